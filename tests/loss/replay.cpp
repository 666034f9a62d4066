// A call of a plan captured in a graph and replayed: the same bits as the call, every time.
#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kerf/loss.h"
#include "tests/loss/loss_case.h"
#include "tests/support/cuda_run.h"

namespace kerf::test {

namespace {

constexpr std::int64_t N = 333, V = 3000, D = 72;

/// A forward and a backward of a case on a device, called or captured in a graph.
class Calls {
 public:
  Calls(const LossCase& x, std::shared_ptr<const cuda::Device> device)
      : device_(std::move(device)), stream_(device_), plan_(on(x.desc)) {
    plan_.prepare();
    const auto dense = [&](const Array& a) {
      Array d(a.dtype(), a.shape());
      for (std::int64_t i = 0; i < a.size(); ++i) d.set(i, a[i]);
      const cuda::Buffer& b = buffer(d.size() * size_of(d.dtype()));
      b.upload(d.ref().data, b.bytes());
      device_->synchronize();
      return &b;
    };
    const auto written = [&](std::int64_t bytes) { return outputs_.emplace_back(&buffer(bytes)); };
    const TensorRef workspace = [&] {
      const std::size_t bytes = std::max(plan_.workspace_bytes(N, false), plan_.workspace_bytes(N, true));
      return (space_ = &buffer(static_cast<std::int64_t>(bytes)))->tensor(boolean, {static_cast<std::int64_t>(bytes)});
    }();
    forward_ = {.e = dense(x.e)->tensor(bf16, {N, D}),
                .c = dense(x.c)->tensor(bf16, {V, D}),
                .target = dense(x.target)->tensor(x.target.dtype(), {N}),
                .loss = written(4)->tensor(f32, {1}),
                .lse = written(N * 4)->tensor(f32, {N}),
                .workspace = workspace};
    if (plan_.filters()) {
      const auto [blocks, tokens] = plan_.block_lse_shape(N);
      forward_.block_lse = (block_lse_ = &buffer(blocks * tokens * 4))->tensor(f32, {blocks, tokens});
    }
    backward_ = {.e = forward_.e,
                 .c = forward_.c,
                 .target = forward_.target,
                 .lse = forward_.lse,
                 .de = written(N * D * 2)->tensor(bf16, {N, D}),
                 .dc = written(V * D * 2)->tensor(bf16, {V, D}),
                 .block_lse = forward_.block_lse,
                 .workspace = workspace};
  }

  void call() {
    plan_.forward(forward_, stream_);
    plan_.backward(backward_, stream_);
  }
  void poison() const {
    for (const cuda::Buffer* b : outputs_) b->fill(0xff, stream_);
    space_->fill(0xff, stream_);
    if (block_lse_) block_lse_->fill(0xff, stream_);
  }
  /// Bytes of loss, lse, de and dc.
  std::vector<std::byte> results() const {
    std::vector<std::byte> all;
    for (const cuda::Buffer* b : outputs_) {
      const std::size_t at = all.size();
      all.resize(at + b->bytes());
      b->download(all.data() + at, b->bytes(), stream_);
      stream_.synchronize();
    }
    return all;
  }
  FilterReport filter_report() const { return plan_.filter_report(forward_.workspace, stream_); }

  /// Captures the calls, then launches them `times` a round, on poisoned outputs.
  void replay(int rounds, int times, const std::function<void()>& after_round) {
    const cuda::Driver& d = device_->driver();
    const auto raw = static_cast<cuda::api::StreamHandle>(static_cast<Stream>(stream_).handle);
    d.check(d->cuStreamBeginCapture_v2(raw, cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
    call();
    cuda::api::Graph graph = nullptr;
    d.check(d->cuStreamEndCapture(raw, &graph), "cuStreamEndCapture", "a test");
    cuda::api::GraphExec exec = nullptr;
    {
      const cuda::Current current(*device_);
      d.check(d->cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiateWithFlags", "a test");
    }
    for (int round = 0; round < rounds; ++round) {
      poison();
      {
        const cuda::Current current(*device_);
        for (int i = 0; i < times; ++i) d.check(d->cuGraphLaunch(exec, raw), "cuGraphLaunch", "a test");
      }
      after_round();
    }
    d->cuGraphExecDestroy(exec);
    d->cuGraphDestroy(graph);
  }

 private:
  PlanDesc on(PlanDesc desc) const {
    desc.device = device_->tag();
    return desc;
  }
  const cuda::Buffer& buffer(std::int64_t bytes) {
    return buffers_.emplace_back(device_, static_cast<std::size_t>(bytes));
  }

  std::shared_ptr<const cuda::Device> device_;
  cuda::OwnStream stream_;
  Plan plan_;
  std::deque<cuda::Buffer> buffers_;
  std::vector<const cuda::Buffer*> outputs_;
  const cuda::Buffer *space_ = nullptr, *block_lse_ = nullptr;
  ForwardArgs forward_;
  BackwardArgs backward_;
};

}  // namespace

TEST_CASE("gpu loss: forward and backward replayed a thousand times from a graph give the bits of the call") {
  const auto device = gpu();
  if (!device) return;
  Calls calls(LossCase({N, V, D}, {.dtype = bf16}), device);
  calls.poison();
  calls.call();
  const std::vector<std::byte> called = calls.results();
  calls.replay(10, 100, [&] { CHECK(calls.results() == called); });
}

TEST_CASE("gpu filter: calls replayed from a graph give the bits of the call, once the order is known") {
  const auto device = gpu();
  if (!device) return;
  for (Order order : {Order::identity, Order::automatic}) {
    CAPTURE(name_of(order));
    LossCase x({N, V, D}, {.dtype = bf16, .strategy = Strategy::filtered, .order = order});
    for (std::int64_t v = 0; v < V; ++v) x.c.set(v * D, 1 - 0.01 * static_cast<double>(v));  // most tiles hardly matter
    for (std::int64_t n = 0; n < N; ++n) x.e.set(n * D, 1);
    for (std::int64_t n = 0; n < N; ++n)
      if (x.label[static_cast<std::size_t>(n)] >= 0) x.target.set(n, static_cast<double>(n));
    Calls calls(x, device);
    calls.poison();
    calls.call();
    const std::vector<std::byte> called = calls.results();
    const FilterReport report = calls.filter_report();
    CHECK(report.kept < report.tiles);
    CHECK(report.kept > 0);
    calls.replay(20, 1, [&] {
      CHECK(calls.results() == called);
      CHECK(calls.filter_report().kept == report.kept);
    });
  }
}

}  // namespace kerf::test
