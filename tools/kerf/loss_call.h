// The library's side of check and bench: a plan with every buffer that a call of it needs.
#pragma once

#include <string>
#include <vector>

#include "kerf/loss.h"
#include "tools/support/problem.h"

namespace kerf::tools {

class LossCall {
 public:
  LossCall(const Problem& problem, const PlanDesc& desc);

  void prepare() { plan_.prepare(); }
  /// Fills all outputs with NaN and what lies behind them with a pattern.
  void poison();
  void forward() { plan_.forward(forward_); }
  void backward() { plan_.backward(backward_); }

  /// What is wrong with the outputs without knowing what they should be: elements never written or not finite, rows of
  /// ignored tokens that are not 0, bytes written past the end. Empty if nothing.
  std::vector<std::string> defects() const;

  PlanReport report() const { return plan_.report(problem_.spec.tokens); }
  std::size_t workspace_bytes(bool backward) const { return plan_.workspace_bytes(problem_.spec.tokens, backward); }
  std::size_t workspace_bytes() const { return std::max(workspace_bytes(false), workspace_bytes(true)); }
  const float* loss() const { return loss_.as<float>(); }
  const float* lse() const { return lse_.as<float>(); }
  const void* de() const { return de_.data(); }
  const void* dc() const { return dc_.data(); }

 private:
  const Problem& problem_;
  Plan plan_;
  Buffer loss_, lse_, de_, dc_, workspace_;  // outputs have a guard behind them
  ForwardArgs forward_;
  BackwardArgs backward_;
};

}  // namespace kerf::tools
