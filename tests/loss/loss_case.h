// One linear cross-entropy to test: inputs, outputs that start as NaN, a workspace of exactly the size asked for
// between guard bytes, and the same loss as plain loops in double.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kerf/loss.h"
#include "tests/support/tensors.h"

namespace kerf::test {

using Doubles = std::vector<double>;

/// What plain loops say. Rows without a label (-1) have loss, lse and de 0.
struct Expected {
  Doubles row_loss, lse, de, dc;
  double loss = 0;  // reduced
};
/// `grad` is dL/dloss: per row for none, else one element.
Expected plain_loops(std::int64_t V, std::int64_t D, const Doubles& e, const Doubles& c,
                     const std::vector<std::int64_t>& label, Reduction reduction, const Doubles& grad);

/// Bytes aligned to 64 that notice writes before and behind them.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes);
  TensorRef ref() const { return TensorRef(data_, boolean, {static_cast<std::int64_t>(bytes_)}); }
  bool guards_intact() const;

 private:
  std::size_t bytes_;
  std::vector<std::byte> memory_;
  std::byte* data_;
};

struct Sizes {
  std::int64_t N, V, D;
};

struct LossCase {
  PlanDesc desc;
  std::int64_t N;
  Array e, c, target, grad;  // grad: N elements for none, else one
  Array loss, lse, de, dc;
  Array block_lse;                   // of a case that filters
  std::shared_ptr<Workspace> stash;  // of a case that stashes
  std::vector<std::int64_t> label;   // what each row is scored against, -1: nothing
  bool accumulate_dc = false;
  bool tensor_cores = false;  // compute it: sums of bf16 and f16 products lose what f32 does not hold

  /// Random: logits of standard deviation 2.5, every tenth row close to its target's row of c, every twentieth ignored.
  LossCase(Sizes s, PlanDesc desc, std::uint64_t seed = 1);

  /// Calls of `plan` are given block_lse from here on.
  template <class P>
  void filter(const P& plan) {
    const auto [blocks, tokens] = plan.block_lse_shape(N);
    block_lse = Array(f32, {blocks, tokens});
  }
  /// Calls are given a stash of so many bytes from here on.
  void stash_in(std::size_t bytes) { stash = std::make_shared<Workspace>(bytes); }
  /// Poison outputs, run with workspaces of the size asked for, check that nothing else was written. `P` is Plan, or
  /// has its calls.
  template <class P>
  void run_forward(P& plan) {
    poison_forward();
    const Workspace w(plan.workspace_bytes(N, false));
    plan.forward(forward_args(w));
    CHECK(w.guards_intact());
  }
  template <class P>
  void run_backward(P& plan) {
    poison_backward();
    const Workspace w(plan.workspace_bytes(N, true));
    plan.backward(backward_args(w));
    CHECK(w.guards_intact());
  }
  template <class P>
  void run(P& plan) {
    const auto before = inputs();
    run_forward(plan);
    run_backward(plan);
    CHECK(inputs() == before);
    check_surroundings();
  }
  void run() {
    Plan plan(desc);
    run(plan);
  }
  void poison_forward();
  void poison_backward();
  void check_surroundings() const;
  std::vector<std::vector<std::byte>> inputs() const;
  Expected expected() const;
  /// Compares with plain loops, within what rounding of dz and of the results to the dtype explains.
  void check() const;

  ForwardArgs forward_args(const Workspace& w);
  BackwardArgs backward_args(const Workspace& w);
  /// Bytes of loss, lse, de and dc.
  std::vector<std::vector<std::byte>> bits() const { return {loss.bytes(), lse.bytes(), de.bytes(), dc.bytes()}; }
};

}  // namespace kerf::test
