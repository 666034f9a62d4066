// What the loss means: labels, reductions, values that are not finite, edge sizes.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "tests/loss/routes.h"

using namespace kerf;
using namespace kerf::test;

namespace {

constexpr DType dtypes[] = {f32, bf16, f16};
constexpr Reduction reductions[] = {Reduction::none, Reduction::mean, Reduction::sum};
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

std::int64_t elements(const Array& a, double value) {
  std::int64_t n = 0;
  for (double x : a.values()) n += std::isnan(value) ? std::isnan(x) : x == value;
  return n;
}

}  // namespace

TEST_CASE_TEMPLATE("loss: loss, lse, de and dc agree with plain loops in each dtype and reduction", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (DType dtype : dtypes)
    for (Reduction reduction : reductions) {
      CAPTURE(name_of(dtype));
      CAPTURE(name_of(reduction));
      Routed<On> x({157, 301, 70}, {.dtype = dtype, .reduction = reduction});
      x.run();
      x.check();
    }
}

TEST_CASE_TEMPLATE("loss: sizes that no block divides, or that are smaller than one", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Sizes s : {Sizes{1, 1, 1}, {5, 1, 3}, {9, 40, 1}, {3, 7, 5}, {1, 300, 17}, {129, 257, 33}, {300, 16, 300}}) {
    CAPTURE(s.N);
    CAPTURE(s.V);
    CAPTURE(s.D);
    for (DType dtype : dtypes) {
      CAPTURE(name_of(dtype));
      Routed<On> x(s, {.dtype = dtype}, 5);
      x.run();
      x.check();
    }
  }
}

TEST_CASE_TEMPLATE("loss: one class has loss 0 and no gradient", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({6, 1, 4}, {.reduction = Reduction::none});
  x.run();
  CHECK(elements(x.loss, 0) == 6);
  CHECK(elements(x.de, 0) == x.de.size());
  CHECK(elements(x.dc, 0) == x.dc.size());
}

TEST_CASE_TEMPLATE("loss: without rows, none is empty, sum is 0, mean is NaN and dc is 0", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Reduction reduction : reductions) {
    Routed<On> x({0, 40, 8}, {.reduction = reduction});
    x.run();
    CHECK(elements(x.dc, 0) == x.dc.size());
    if (reduction == Reduction::sum) CHECK(x.loss[0] == 0);
    if (reduction == Reduction::mean) CHECK(std::isnan(x.loss[0]));
  }
}

TEST_CASE_TEMPLATE("loss: with every row ignored, mean is NaN, sum and none are 0, gradients exactly 0", On, Host,
                   Steps, Gpu) {
  if (!On::here()) return;
  for (Reduction reduction : reductions) {
    Routed<On> x({150, 40, 8}, {.reduction = reduction});
    for (std::int64_t n = 0; n < x.N; ++n) x.target.set(n, -100);
    for (std::int64_t i = 0; i < x.e.size(); ++i) x.e.set(i, not_a_number);
    x.run();
    CHECK(elements(x.de, 0) == x.de.size());
    CHECK(elements(x.dc, 0) == x.dc.size());
    CHECK(elements(x.lse, 0) == x.lse.size());
    CHECK(elements(x.loss, reduction == Reduction::mean ? not_a_number : 0) == x.loss.size());

    x.accumulate_dc = true;
    for (std::int64_t i = 0; i < x.dc.size(); ++i) x.dc.set(i, 0.5);
    x.run();
    CHECK(elements(x.dc, 0.5) == x.dc.size());
  }
}

TEST_CASE_TEMPLATE("loss: ignore_index may be any integer, also one inside the vocabulary", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (std::int64_t ignore : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{6}, std::int64_t{1} << 40}) {
    CAPTURE(ignore);
    Routed<On> x({90, 11, 20}, {.ignore_index = ignore}, 3);
    CHECK(std::count(x.label.begin(), x.label.end(), -1) > 0);
    x.run();
    x.check();
  }
}

TEST_CASE_TEMPLATE("loss: labels may be i32", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({90, 11, 20}, {}, 3);
  x.run();
  const auto bits = x.bits();
  Array narrow(i32, {x.N});
  for (std::int64_t n = 0; n < x.N; ++n) narrow.set(n, x.target[n]);
  x.target = narrow;
  x.run();
  CHECK(x.bits() == bits);
}

TEST_CASE_TEMPLATE("loss: what an ignored row of e holds changes no bit", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : dtypes) {
    Routed<On> x({157, 301, 70}, {.dtype = dtype}, 8);
    x.run();
    const auto bits = x.bits();
    std::int64_t ignored = 0;
    for (std::int64_t n = 0; n < x.N; ++n) {
      if (x.label[static_cast<std::size_t>(n)] >= 0) continue;
      for (std::int64_t d = 0; d < 70; ++d) x.e.set(n * 70 + d, ++ignored % 2 ? not_a_number : inf);
    }
    CHECK(ignored > 0);
    x.run();
    CHECK(x.bits() == bits);
  }
}

TEST_CASE_TEMPLATE("loss: NaN or Inf in a valid row spoils that row and dc, and no other row", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (double bad : {not_a_number, inf, -inf}) {
    CAPTURE(bad);
    Routed<On> x({150, 301, 40}, {.reduction = Reduction::none}, 9);
    x.run();
    const Doubles loss = x.loss.values(), lse = x.lse.values(), de = x.de.values();
    x.e.set(42 * 40 + 11, bad);
    x.run();
    CHECK(elements(x.dc, not_a_number) == x.dc.size());
    for (std::int64_t n = 0; n < x.N; ++n) {
      CAPTURE(n);
      const auto i = static_cast<std::size_t>(n);
      CHECK((n == 42 ? std::isnan(x.loss[n]) : x.loss[n] == loss[i]));
      CHECK((n == 42 ? std::isnan(x.lse[n]) : x.lse[n] == lse[i]));
      for (std::int64_t d = 0; d < 40; ++d) {
        const double before = de[static_cast<std::size_t>(n * 40 + d)];
        CHECK((n == 42 ? std::isnan(x.de[n * 40 + d]) : x.de[n * 40 + d] == before));
      }
    }
    Routed<On> mean({150, 301, 40}, {}, 9);
    mean.e.set(42 * 40 + 11, bad);
    mean.run();
    CHECK(std::isnan(mean.loss[0]));
  }
}

TEST_CASE_TEMPLATE("loss: logits of 1e4 and -1e4 give finite, exact losses and gradients", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  // e and c are such that z is a small integer plus or minus 1e4: both loss and gradient are as for the small integer.
  for (double offset : {1e4, -1e4}) {
    CAPTURE(offset);
    Routed<On> x({40, 90, 2}, {.reduction = Reduction::none}, 2);
    for (std::int64_t n = 0; n < x.N; ++n) {
      x.e.set(2 * n, 100);
      x.e.set(2 * n + 1, static_cast<double>(n % 3));
    }
    for (std::int64_t v = 0; v < 90; ++v) {
      x.c.set(2 * v, offset / 100);
      x.c.set(2 * v + 1, static_cast<double>(v % 5 - 2));
    }
    x.run();
    const Expected want = x.expected();
    for (std::int64_t n = 0; n < x.N; ++n)
      CHECK(x.loss[n] == doctest::Approx(want.row_loss[static_cast<std::size_t>(n)]).epsilon(1e-6));
    CHECK(error(x.lse, want.lse).worst_row < 1e-7);
    // lse near 1e4 is rounded by up to 2^-11, which p = exp(z - lse) turns into a relative error; |e|, |c| <= 100.
    for (std::int64_t i = 0; i < x.de.size(); ++i)
      CHECK(std::abs(x.de[i] - want.de[static_cast<std::size_t>(i)]) <= std::abs(x.grad[i / 2]) * 100 * 0x1p-10);
    double upstream = 0;
    for (double g : x.grad.values()) upstream += std::abs(g);
    for (std::int64_t i = 0; i < x.dc.size(); ++i)
      CHECK(std::abs(x.dc[i] - want.dc[static_cast<std::size_t>(i)]) <= upstream * 100 * 0x1p-10);
  }
  for (double big : {1e4, -1e4}) {  // one logit alone
    Routed<On> x({3, 70, 1}, {.reduction = Reduction::none}, 2);
    for (std::int64_t n = 0; n < 3; ++n) x.e.set(n, 100), x.target.set(n, 5), x.label[static_cast<std::size_t>(n)] = 5;
    for (std::int64_t v = 0; v < 70; ++v) x.c.set(v, v == 5 ? big / 100 : 0);
    x.run();
    for (std::int64_t n = 0; n < 3; ++n) CHECK(x.loss[n] == doctest::Approx(big > 0 ? 0 : 1e4 + std::log(69.0)));
    for (double d : x.de.values()) CHECK(std::isfinite(d));
  }
}

TEST_CASE_TEMPLATE("loss: with all logits equal the loss is log V to rounding", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (std::int64_t V : {1, 2, 3, 257, 5000}) {
    CAPTURE(V);
    Routed<On> x({5, V, 3}, {.reduction = Reduction::none});
    typename On::Runner plan(x.desc);
    for (double logit : {0.0, 0.37, -123.456, 1e4, -1e4}) {
      CAPTURE(logit);
      for (std::int64_t i = 0; i < x.e.size(); ++i) x.e.set(i, i % 3 == 1 ? 1 : 0);
      for (std::int64_t i = 0; i < x.c.size(); ++i) x.c.set(i, i % 3 == 1 ? logit : 7);
      x.run_forward(plan);
      const auto want = static_cast<float>(std::log(static_cast<double>(V)));
      for (std::int64_t n = 0; n < 5; ++n) CHECK(std::abs(x.loss[n] - want) <= std::ldexp(std::abs(want), -22));
    }
  }
}

TEST_CASE_TEMPLATE("loss: the upstream gradient scales de and dc, and is 1 when not given", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({33, 60, 12}, {.reduction = Reduction::mean});
  x.grad.set(0, 1);
  x.run();
  const auto bits = x.bits();
  typename On::Runner plan(x.desc);
  const Workspace w(plan.workspace_bytes(x.N, true));
  BackwardArgs args = x.backward_args(w);
  args.grad_loss = {};
  x.de.poison();
  x.dc.poison();
  plan.backward(args);
  CHECK(x.bits() == bits);
  x.grad.set(0, -3.5);
  x.run(plan);
  x.check();
}

TEST_CASE_TEMPLATE("loss: the upstream gradient may have any strides, also 0", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({33, 60, 12}, {.reduction = Reduction::none});
  for (std::int64_t n = 0; n < x.N; ++n) x.grad.set(n, 0.75);
  x.run();
  const auto bits = x.bits();
  typename On::Runner plan(x.desc);
  const Workspace w(plan.workspace_bytes(x.N, true));
  const float one = 0.75f;
  BackwardArgs args = x.backward_args(w);
  args.grad_loss = TensorRef(&one, {x.N}).with_strides({0});
  x.de.poison();
  x.dc.poison();
  plan.backward(args);
  CHECK(x.bits() == bits);
}

TEST_CASE_TEMPLATE("loss: f16 gradients survive an upstream gradient far below the range of f16", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (double g : {1e-7, 1.0, 3e4}) {
    CAPTURE(g);
    Routed<On> x({60, 200, 16}, {.dtype = f16, .reduction = Reduction::sum});
    x.grad.set(0, g);
    x.dc = Array(f32, {200, 16}, 3);  // f32, so that only dz could underflow
    x.run();
    CHECK(error(x.dc, x.expected().dc).norm < 1e-3);
  }
}

TEST_CASE_TEMPLATE("loss: a row whose upstream gradient is 0 gets no gradient", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({60, 200, 16}, {.dtype = f16, .reduction = Reduction::none});
  for (std::int64_t n = 0; n < x.N; ++n) x.grad.set(n, n == 4 ? 2 : 0);
  x.run();
  x.check();
  for (std::int64_t n = 0; n < x.N; ++n)
    for (std::int64_t d = 0; d < 16; ++d) CHECK((n == 4 || x.de[n * 16 + d] == 0));
  for (std::int64_t n = 0; n < x.N; ++n) x.grad.set(n, 0);
  x.run();
  CHECK(elements(x.de, 0) == x.de.size());
  CHECK(elements(x.dc, 0) == x.dc.size());
}

TEST_CASE_TEMPLATE("loss: dc is added to what is there, in f32 or in the dtype of c", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : dtypes)
    for (DType out : {dtype, f32}) {
      CAPTURE(name_of(dtype));
      CAPTURE(name_of(out));
      Routed<On> x({90, 150, 20}, {.dtype = dtype, .reduction = Reduction::sum});
      x.dc = Array(out, {150, 20}, 7);
      x.accumulate_dc = true;
      Random random(4);
      for (std::int64_t i = 0; i < x.dc.size(); ++i) x.dc.set(i, random.normal());
      Doubles want = x.dc.values();
      x.run();
      const Expected loops = x.expected();
      for (std::size_t i = 0; i < want.size(); ++i) want[i] += loops.dc[i];
      CHECK(error(x.dc, want).norm < (dtype == f32 ? 1e-6 : dtype == f16 ? 1e-3 : 4e-3));
    }
}

TEST_CASE_TEMPLATE("loss: a gradient that is not asked for changes nothing of the other", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({157, 301, 70}, {.dtype = bf16});
  x.run();
  const auto de = x.de.bytes(), dc = x.dc.bytes();
  typename On::Runner plan(x.desc);
  for (bool only_e : {true, false}) {
    const Workspace w(plan.workspace_bytes(x.N, true));
    BackwardArgs args = x.backward_args(w);
    (only_e ? args.dc : args.de) = {};
    x.de.poison();
    x.dc.poison();
    plan.backward(args);
    CHECK((only_e ? x.de.bytes() == de : x.dc.bytes() == dc));
    CHECK(elements(only_e ? x.dc : x.de, not_a_number) == (only_e ? x.dc : x.de).size());
  }
}

TEST_CASE_TEMPLATE("loss: loss and lse are each optional", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({60, 200, 16}, {});
  x.run();
  const auto bits = x.bits();
  typename On::Runner plan(x.desc);
  const Workspace w(plan.workspace_bytes(x.N, false));
  for (bool only_loss : {true, false}) {
    ForwardArgs args = x.forward_args(w);
    (only_loss ? args.lse : args.loss) = {};
    x.loss.poison();
    x.lse.poison();
    plan.forward(args);
    CHECK((only_loss ? x.loss.bytes() == bits[0] : x.lse.bytes() == bits[1]));
    CHECK(elements(only_loss ? x.lse : x.loss, not_a_number) == (only_loss ? x.N : 1));
  }
}
