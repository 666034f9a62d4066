// The library's side of check and bench: a plan with every buffer that a call of it needs, where it computes.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kerf/loss.h"
#include "runtime/cuda/device.h"
#include "tools/support/problem.h"

namespace kerf::tools {

class LossCall {
 public:
  /// `order`: of the vocabulary, for Order::given. `stash_limit`: bytes of stash at most, where the plan has one.
  LossCall(const Problem& problem, const PlanDesc& desc, const std::vector<std::int64_t>& order = {},
           std::size_t stash_limit = std::numeric_limits<std::size_t>::max());

  void prepare() { plan_.prepare(); }
  /// Fills all outputs and the workspace with NaN and what lies behind them with a pattern.
  void poison();
  /// On a GPU both are queued on `stream`.
  void forward() { plan_.forward(forward_, stream()); }
  void backward() { plan_.backward(backward_, stream()); }
  /// Brings the results to where the functions below look. On a GPU waits for what is queued.
  void fetch();

  /// What is wrong with the outputs without knowing what they should be: elements never written or not finite, rows of
  /// ignored tokens that are not 0, bytes written past the end. Empty if nothing.
  std::vector<std::string> defects() const;

  PlanReport report() const { return plan_.report(problem_.spec.tokens); }
  /// What the last backward dropped; nothing where the plan does not filter. Waits for it.
  FilterReport filter_report() const {
    return plan_.filters() ? plan_.filter_report(backward_.workspace, stream()) : FilterReport{};
  }
  bool filters() const { return plan_.filters(); }
  std::size_t block_lse_bytes() const { return block_lse_.bytes; }
  std::size_t stash_bytes() const { return stash_.bytes; }
  /// What a direction asks for beside inputs and results, block_lse and stash among it.
  std::size_t workspace_bytes(bool backward) const {
    return plan_.workspace_bytes(problem_.spec.tokens, backward) + block_lse_.bytes + stash_.bytes;
  }
  std::size_t workspace_bytes() const { return std::max(workspace_bytes(false), workspace_bytes(true)); }
  const float* loss() const { return loss_.host.as<float>(); }
  const float* lse() const { return lse_.host.as<float>(); }
  const void* de() const { return de_.host.data(); }
  const void* dc() const { return dc_.host.data(); }

  /// Null on the CPU.
  const std::shared_ptr<const cuda::Device>& gpu() const { return gpu_; }
  Stream stream() const { return stream_ ? static_cast<Stream>(*stream_) : Stream{}; }
  /// Where the plan reads c.
  const void* c() const { return forward_.c.data; }

 private:
  /// What a call writes, with a guard behind. On a GPU `host` is what was fetched: all of an output, of the workspace
  /// the guard.
  struct Array {
    Buffer host;
    cuda::Buffer device;
    std::size_t bytes = 0;  // without the guard
    void* data() const { return device.bytes() > 0 ? device.data() : host.data(); }
    bool guard_written() const;
  };
  Array array(std::size_t bytes, bool fetched) const;

  const Problem& problem_;
  std::shared_ptr<const cuda::Device> gpu_;
  std::optional<cuda::OwnStream> stream_;
  Plan plan_;
  std::vector<cuda::Buffer> inputs_;
  Array loss_, lse_, de_, dc_, block_lse_, stash_, workspace_;
  ForwardArgs forward_;
  BackwardArgs backward_;
};

}  // namespace kerf::tools
