// The ways a loss is computed, each a type that tests are instantiated with: Host, the plan of the CPU; Steps, the
// sequence of launches of a GPU, run by kernels of the CPU; Gpu, a plan of a GPU, which is given copies of everything.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "runtime/device_loss.h"
#include "tests/loss/loss_case.h"
#include "tests/support/cuda_run.h"

namespace kerf::test {

struct Host {
  static bool here() { return true; }
  using Runner = Plan;
};

/// Blocks that the shapes of tests have several of; the second where c is not aligned.
inline constexpr runtime::DeviceBlocks small_blocks{.forward = {.n = 32, .v = 64, .d = 16, .split = 2},
                                                    .backward = {.n = 32, .v = 64, .d = 16, .split = 2},
                                                    .grad_e_d = 32,
                                                    .grad_c_d = 16,
                                                    .tall = {.n = 48, .v = 64, .d = 16, .split = 2},
                                                    .band = 3,
                                                    .boxed = true,
                                                    .pieces = 12};
inline constexpr runtime::DeviceBlocks smaller_blocks{.forward = {.n = 16, .v = 32, .d = 32, .split = 3},
                                                      .backward = {.n = 16, .v = 32, .d = 32, .split = 3},
                                                      .grad_e_d = 16,
                                                      .grad_c_d = 32,
                                                      .band = 5};

struct Steps {
  static bool here() { return true; }
  class Runner {
   public:
    explicit Runner(const PlanDesc& desc)
        : loss_(desc, small_blocks, smaller_blocks, std::make_shared<ThreadPool>(2)) {}
    std::size_t workspace_bytes(std::int64_t rows, bool backward) const { return loss_.workspace(rows, backward); }
    std::size_t stash_bytes(std::int64_t rows) const { return loss_.stash_bytes(rows); }
    void forward(const ForwardArgs& a) { loss_.forward(a, {}); }
    void backward(const BackwardArgs& a) { loss_.backward(a, {}); }
    std::array<std::int64_t, 2> block_lse_shape(std::int64_t rows) const { return loss_.block_lse_shape(rows); }
    void set_order(const std::vector<std::int64_t>& order) { loss_.set_order(order, "set_order"); }
    void refresh_order(const TensorRef& e, const TensorRef& c) { loss_.find_order(e, c, "refresh_order", {}); }
    FilterReport filter_report(const TensorRef& workspace) const { return loss_.filter_report(workspace, {}); }

   private:
    runtime::DeviceLoss loss_;
  };
};

struct Gpu {
  static bool here() { return gpu() != nullptr; }
  class Runner {
   public:
    explicit Runner(PlanDesc desc) : gpu_(gpu()), plan_(on(desc)) {}
    std::size_t workspace_bytes(std::int64_t rows, bool backward) const {
      return plan_.workspace_bytes(rows, backward);
    }
    std::size_t stash_bytes(std::int64_t rows) const { return plan_.stash_bytes(rows); }
    std::array<std::int64_t, 2> block_lse_shape(std::int64_t rows) const { return plan_.block_lse_shape(rows); }
    void set_order(const std::vector<std::int64_t>& order) { plan_.set_order(order); }
    void refresh_order(TensorRef e, TensorRef c) {
      Copies copies(*this);
      copies.place(e, false);
      copies.place(c, false);
      plan_.refresh_order(e, c, stream_);
    }
    /// Of a copy of the workspace that came back.
    FilterReport filter_report(const TensorRef& workspace) const {
      const cuda::Buffer copy(gpu_, static_cast<std::size_t>(workspace.elements()));
      copy.upload(workspace.data, copy.bytes(), stream_);
      return plan_.filter_report(copy.tensor(boolean, {workspace.elements()}), stream_);
    }
    void forward(ForwardArgs a) {
      Copies copies(*this);
      for (TensorRef* t : {&a.e, &a.c, &a.target, &a.cu_seqlens}) copies.place(*t, false);
      for (TensorRef* t : {&a.loss, &a.lse, &a.block_lse, &a.stash, &a.workspace}) copies.place(*t, true);
      plan_.forward(a, stream_);
      copies.fetch();
    }
    void backward(BackwardArgs a) {
      Copies copies(*this);
      for (TensorRef* t : {&a.e, &a.c, &a.target, &a.cu_seqlens, &a.lse, &a.grad_loss, &a.block_lse})
        copies.place(*t, false);
      for (TensorRef* t : {&a.de, &a.dc, &a.stash, &a.workspace}) copies.place(*t, true);
      plan_.backward(a, stream_);
      copies.fetch();
    }

   private:
    /// What a call reads and writes, on the device: each tensor with its padding.
    class Copies {
     public:
      explicit Copies(Runner& runner) : runner_(runner) {}
      void place(TensorRef& t, bool written) {
        if (!t.given()) return;
        std::int64_t elements = t.elements() > 0 ? 1 : 0;
        for (int i = 0; i < t.rank && elements > 0; ++i) elements += (t.shape[i] - 1) * t.strides[i];
        const auto bytes = static_cast<std::size_t>(elements * size_of(t.dtype));
        copies_.push_back({t.data, bytes, cuda::Buffer(runner_.gpu_, std::max<std::size_t>(bytes, 64)), written});
        copies_.back().buffer.upload(t.data, bytes, runner_.stream_);
        t.data = copies_.back().buffer.data();
        t.device = runner_.gpu_->tag();
      }
      void fetch() {
        for (Copy& c : copies_)
          if (c.written) c.buffer.download(c.host, c.bytes, runner_.stream_);
        runner_.stream_.synchronize();
      }

     private:
      struct Copy {
        void* host;
        std::size_t bytes;
        cuda::Buffer buffer;
        bool written;
      };
      Runner& runner_;
      std::deque<Copy> copies_;
    };
    static PlanDesc on(PlanDesc desc) {
      desc.device = {DeviceType::cuda, 0};
      if (desc.arch.empty()) desc.arch = forced_arch();
      return desc;
    }

    std::shared_ptr<const cuda::Device> gpu_;
    Plan plan_;
    cuda::OwnStream stream_{gpu_};
  };
};

/// A loss to test on one route.
template <class On>
struct Routed : LossCase {
  Routed(Sizes s, PlanDesc d, std::uint64_t seed = 1) : LossCase(s, std::move(d), seed) {
    tensor_cores = std::is_same_v<On, Gpu>;
  }
  using LossCase::run;
  using Runner = typename On::Runner;
  Runner plan() const { return Runner(desc); }
  /// Rows of c and de begin at multiples of 16 bytes, as boxes want them, if D does; those of e too.
  void align() {
    for (Array* a : {&c, &e}) {
      Array dense(a->dtype(), a->shape());
      for (std::int64_t i = 0; i < a->size(); ++i) dense.set(i, (*a)[i]);
      *a = dense;
    }
    de = Array(de.dtype(), de.shape());
  }
  void run() {
    Runner runner(desc);
    run(runner);
  }
};

}  // namespace kerf::test
