// Labels shifted inside sequences, and rows that lie apart in memory.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "tests/loss/routes.h"

using namespace kerf;
using namespace kerf::test;

namespace {

/// The same array seen as [B, T, ...].
TensorRef split_rows(const TensorRef& t, std::int64_t B, std::int64_t T) {
  TensorRef r = t;
  r.rank = t.rank + 1;
  r.shape[0] = B;
  r.shape[1] = T;
  r.strides[0] = T * t.strides[0];
  r.strides[1] = t.strides[0];
  for (int i = 1; i < t.rank; ++i) r.shape[i + 1] = t.shape[i], r.strides[i + 1] = t.strides[i];
  return r;
}

/// Writes into x.label what each row is scored against.
void shift_labels(LossCase& x, const std::vector<std::int64_t>& begin, std::int64_t k) {
  const std::vector<std::int64_t> own = x.label;
  for (std::size_t s = 0; s + 1 < begin.size(); ++s)
    for (std::int64_t n = begin[s]; n < begin[s + 1]; ++n)
      x.label[static_cast<std::size_t>(n)] = n + k < begin[s + 1] ? own[static_cast<std::size_t>(n + k)] : -1;
}

}  // namespace

TEST_CASE_TEMPLATE("loss: [B, T, D] with shift k scores row t against label t + k of its own sequence", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (std::int64_t k : {0, 1, 3, 20, 50})
    for (Reduction reduction : {Reduction::none, Reduction::mean}) {
      CAPTURE(k);
      Routed<On> x({5 * 20, 77, 24}, {.reduction = reduction, .shift = k});
      shift_labels(x, {0, 20, 40, 60, 80, 100}, k);
      const bool each = reduction == Reduction::none;
      typename On::Runner plan(x.desc);
      const Workspace forward(plan.workspace_bytes(x.N, false)), backward(plan.workspace_bytes(x.N, true));
      ForwardArgs f = x.forward_args(forward);
      BackwardArgs b = x.backward_args(backward);
      for (TensorRef* t : {&f.e, &f.target, &f.lse, &b.e, &b.target, &b.lse, &b.de}) *t = split_rows(*t, 5, 20);
      if (each) f.loss = split_rows(f.loss, 5, 20), b.grad_loss = split_rows(b.grad_loss, 5, 20);
      plan.forward(f);
      plan.backward(b);
      if (k < 20) {
        x.check();
      } else {
        for (double d : x.de.values()) CHECK(d == 0);
        for (std::int64_t i = 0; i < x.loss.size(); ++i) CHECK((each ? x.loss[i] == 0 : std::isnan(x.loss[i])));
      }
    }
}

TEST_CASE_TEMPLATE("loss: cu_seqlens with shift ends sequences where it says, empty ones included", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (DType dtype : {i32, i64}) {
    Routed<On> x({100, 77, 24}, {.shift = 2});
    const std::vector<std::int64_t> begin = {0, 1, 30, 30, 32, 97, 100};
    Array cu(dtype, {7});
    for (std::int64_t i = 0; i < 7; ++i) cu.set(i, static_cast<double>(begin[static_cast<std::size_t>(i)]));
    shift_labels(x, begin, 2);
    typename On::Runner plan(x.desc);
    const Workspace forward(plan.workspace_bytes(x.N, false)), backward(plan.workspace_bytes(x.N, true));
    ForwardArgs f = x.forward_args(forward);
    BackwardArgs b = x.backward_args(backward);
    f.cu_seqlens = b.cu_seqlens = cu.ref();
    plan.forward(f);
    plan.backward(b);
    x.check();
  }
}

TEST_CASE_TEMPLATE("loss: labels that no row is scored against may be anything", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({20, 9, 4}, {.shift = 1});
  x.target.set(0, 4711);
  shift_labels(x, {0, 20}, 1);
  typename On::Runner plan(x.desc);
  const Workspace w(plan.workspace_bytes(x.N, false));
  ForwardArgs f = x.forward_args(w);
  for (TensorRef* t : {&f.e, &f.target, &f.lse}) *t = split_rows(*t, 1, 20);
  plan.forward(f);
  CHECK(x.loss[0] == doctest::Approx(x.expected().loss).epsilon(1e-5));
}

TEST_CASE_TEMPLATE("loss: e and de may be columns of one matrix", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({50, 40, 8}, {});
  x.run();
  const auto bits = x.bits();
  Array both(f32, {50, 16});
  for (std::int64_t n = 0; n < 50; ++n)
    for (std::int64_t d = 0; d < 8; ++d) both.set(n * 16 + d, x.e[n * 8 + d]);
  const TensorRef left = TensorRef(both.ref().data, f32, {50, 8}).with_strides({16, 1});
  TensorRef right = left;
  right.data = static_cast<float*>(left.data) + 8;
  typename On::Runner plan(x.desc);
  const Workspace w(plan.workspace_bytes(x.N, true));
  BackwardArgs args = x.backward_args(w);
  args.e = left;
  args.de = right;
  x.dc.poison();
  plan.backward(args);
  CHECK(x.dc.bytes() == bits[3]);
  for (std::int64_t n = 0; n < 50; ++n)
    for (std::int64_t d = 0; d < 8; ++d) {
      CHECK(both[n * 16 + d] == x.e[n * 8 + d]);
      CHECK(both[n * 16 + 8 + d] == x.de[n * 8 + d]);
    }
}
