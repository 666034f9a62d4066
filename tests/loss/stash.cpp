// A forward that leaves softmax numerators for its backward.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "kerf/error.h"
#include "tests/loss/routes.h"

using namespace kerf;
using namespace kerf::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

PlanDesc stashing(DType dtype, Strategy strategy = Strategy::exact_stash, Reduction reduction = Reduction::mean) {
  return {.dtype = dtype, .reduction = reduction, .strategy = strategy};
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "nothing was refused";
}

/// Runs both calls with a share of what holds everything.
template <class On>
void run(Routed<On>& x, double share = 1) {
  typename On::Runner plan(x.desc);
  x.stash_in(static_cast<std::size_t>(share * static_cast<double>(plan.stash_bytes(x.N))));
  x.run(plan);
}

}  // namespace

TEST_CASE_TEMPLATE("stash: loss and gradients are exact, whatever the stash has room for", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16, f16})
    for (Strategy strategy : {Strategy::exact_stash, Strategy::dense})
      for (double share : {1.0, 0.33, 0.0005}) {
        if (strategy == Strategy::dense && share < 1) continue;
        for (bool aligned : {false, true}) {
          CAPTURE(name_of(dtype));
          CAPTURE(name_of(strategy));
          CAPTURE(share);
          Routed<On> x({157, 1001, 72}, stashing(dtype, strategy, share == 1 ? Reduction::none : Reduction::sum));
          if (aligned) x.align();
          run(x, share);
          x.check();
        }
      }
}

TEST_CASE_TEMPLATE("stash: in narrow ranges, and without one, the gradients are the same", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16}) {
    Routed<On> x({157, 1001, 33}, stashing(dtype));
    x.desc.workspace_limit = 1;
    run(x, 0.5);
    x.check();
    x.stash = nullptr;
    x.Routed<On>::run();
    x.check();
  }
}

TEST_CASE_TEMPLATE("stash: repeated calls give the same bits, and what ignored rows hold changes none", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  Routed<On> x({157, 601, 40}, stashing(bf16, Strategy::dense, Reduction::none));
  typename On::Runner plan(x.desc);
  x.stash_in(plan.stash_bytes(x.N));
  x.run(plan);
  const auto bits = x.bits();
  x.run(plan);
  CHECK(x.bits() == bits);
  for (std::int64_t n = 0; n < x.N; ++n)
    for (std::int64_t d = 0; d < 40 && x.label[static_cast<std::size_t>(n)] < 0; ++d) x.e.set(n * 40 + d, not_a_number);
  x.run(plan);
  CHECK(x.bits() == bits);
}

TEST_CASE_TEMPLATE("stash: NaN or Inf in a valid row spoils that row and dc, and no other row", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (double bad : {not_a_number, inf, -inf}) {
    CAPTURE(bad);
    Routed<On> x({150, 301, 40}, stashing(bf16, Strategy::exact_stash, Reduction::none), 9);
    run(x);
    const Doubles lse = x.lse.values(), de = x.de.values();
    x.e.set(42 * 40 + 11, bad);
    run(x);
    CHECK(std::isnan(x.dc[0]));
    for (std::int64_t n = 0; n < x.N; ++n) {
      CAPTURE(n);
      CHECK((n == 42 ? std::isnan(x.lse[n]) : x.lse[n] == lse[static_cast<std::size_t>(n)]));
      for (std::int64_t d = 0; d < 40; ++d) {
        const double before = de[static_cast<std::size_t>(n * 40 + d)];
        CHECK((n == 42 ? std::isnan(x.de[n * 40 + d]) : x.de[n * 40 + d] == before));
      }
    }
  }
}

TEST_CASE_TEMPLATE("stash: one class, no rows, and rows without a label", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Strategy strategy : {Strategy::exact_stash, Strategy::dense}) {
    Routed<On> one({30, 1, 24}, stashing(f32, strategy, Reduction::none));
    run(one);
    for (std::int64_t i = 0; i < one.de.size(); ++i) CHECK(std::abs(one.de[i]) < 1e-6);
    for (std::int64_t n = 0; n < one.N; ++n) CHECK(std::abs(one.loss[n]) < 1e-6);
    Routed<On> none({0, 90, 24}, stashing(bf16, strategy, Reduction::sum));
    run(none);
    CHECK(none.loss[0] == 0);
    for (std::int64_t i = 0; i < none.dc.size(); ++i) CHECK(none.dc[i] == 0);
    Routed<On> ignored({40, 90, 24}, stashing(bf16, strategy, Reduction::sum));
    for (std::int64_t n = 0; n < 40; ++n) ignored.target.set(n, -100), ignored.label[static_cast<std::size_t>(n)] = -1;
    run(ignored);
    for (std::int64_t i = 0; i < ignored.dc.size(); ++i) CHECK(ignored.dc[i] == 0);
    for (std::int64_t i = 0; i < ignored.de.size(); ++i) CHECK(ignored.de[i] == 0);
  }
}

TEST_CASE_TEMPLATE("stash: a label outside the vocabulary gives its row no gradient", On, Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({60, 301, 24}, stashing(bf16, Strategy::exact_stash, Reduction::none));
  x.target.set(5, 301);
  x.target.set(6, -7);
  run(x);
  for (std::int64_t n : {5, 6}) {
    CHECK(std::isnan(x.lse[n]));
    for (std::int64_t d = 0; d < 24; ++d) CHECK(x.de[n * 24 + d] == 0);
  }
  for (std::int64_t i = 0; i < x.dc.size(); ++i) CHECK(std::isfinite(x.dc[i]));
}

TEST_CASE_TEMPLATE("stash: sequences, gradients in f32 added to what is there, and either side alone", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (Strategy strategy : {Strategy::exact_stash, Strategy::dense}) {
    CAPTURE(name_of(strategy));
    PlanDesc desc = stashing(bf16, strategy, Reduction::sum);
    desc.shift = 1;
    Routed<On> x({90, 301, 40}, desc);
    const std::vector<std::int64_t> begin = {0, 1, 50, 90};
    Array cu(i32, {4});
    for (std::int64_t i = 0; i < 4; ++i) cu.set(i, static_cast<double>(begin[static_cast<std::size_t>(i)]));
    for (std::size_t s = 0; s + 1 < begin.size(); ++s)
      for (std::int64_t n = begin[s]; n < begin[s + 1]; ++n) {
        const double label = n + 1 < begin[s + 1] ? x.target[n + 1] : -1;
        x.label[static_cast<std::size_t>(n)] = label < 0 ? -1 : static_cast<std::int64_t>(label);
      }
    x.dc = Array(f32, {301, 40}, 7);
    typename On::Runner plan(x.desc);
    x.stash_in(plan.stash_bytes(x.N));
    const Workspace forward(plan.workspace_bytes(x.N, false)), backward(plan.workspace_bytes(x.N, true));
    const Expected loops = x.expected();
    for (bool of_e : {true, false}) {
      ForwardArgs f = x.forward_args(forward);
      BackwardArgs b = x.backward_args(backward);
      f.cu_seqlens = b.cu_seqlens = cu.ref();
      b.accumulate_dc = true;
      for (std::int64_t i = 0; i < x.dc.size(); ++i) x.dc.set(i, 0.5);
      x.de.poison();
      (of_e ? b.dc : b.de) = {};
      plan.forward(f);
      plan.backward(b);
      CHECK(x.loss[0] == doctest::Approx(loops.loss).epsilon(1e-3));
      Doubles added = loops.dc;
      for (double& d : added) d += 0.5;
      CHECK(error(of_e ? x.de : x.dc, of_e ? loops.de : added).norm < 4e-3);
      if (of_e) CHECK(x.dc.values() == Doubles(added.size(), 0.5));
    }
  }
}

TEST_CASE_TEMPLATE("stash: automatic shares workspace_limit out, and with or without its stash gradients are exact", On,
                   Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16}) {
    Routed<On> x({157, 1001, 72}, stashing(dtype, Strategy::automatic));
    CHECK(x.plan().stash_bytes(x.N) == 0);  // no limit, no stash
    std::size_t before = 0;
    for (std::size_t limit : {std::size_t{1}, std::size_t{1200000}, std::size_t{16} << 20}) {
      CAPTURE(limit);
      x.desc.workspace_limit = limit;
      typename On::Runner plan(x.desc);
      const std::size_t bytes = plan.stash_bytes(x.N);
      CHECK((bytes == 0 || bytes + plan.workspace_bytes(x.N, true) <= limit));
      CHECK(bytes >= before);
      before = bytes;
      x.stash = nullptr;
      x.run(plan);
      x.check();
      x.stash_in(std::max<std::size_t>(bytes, 64));  // one that is not worth while may be given
      x.run(plan);
      x.check();
    }
    PlanDesc all = x.desc;
    all.strategy = Strategy::exact_stash;
    const std::size_t everything = typename On::Runner(all).stash_bytes(x.N);
    CHECK(before <= everything);
    CHECK(before > everything / 10 * 9);
  }
}

TEST_CASE("stash: automatic reports exact_stash where it is worth while, and filters where the plan filters") {
  PlanDesc desc{.hidden = 2304, .vocabulary = 256000, .dtype = bf16, .filter = Filter::off};
  const std::int64_t tokens = 2048;
  const PlanReport by_default = Plan(desc).report(tokens);
  CHECK(by_default.strategy == Strategy::exact_recompute);
  CHECK(by_default.stash == 0);
  desc.workspace_limit = std::size_t{64} << 20;
  CHECK(Plan(desc).report(tokens).strategy == Strategy::exact_recompute);
  desc.workspace_limit = std::size_t{800} << 20;
  const PlanReport some = Plan(desc).report(tokens);
  CHECK(some.strategy == Strategy::exact_stash);
  CHECK(some.stash > std::size_t{500} << 20);
  CHECK(some.stash + some.backward_workspace <= desc.workspace_limit);
  CHECK(some.ranges < 40);
  desc.filter = Filter::automatic;
  const PlanReport filtered = Plan(desc).report(tokens);
  CHECK(filtered.strategy == Strategy::filtered);
  CHECK(filtered.stash == 0);
}

TEST_CASE("linear_cross_entropy: makes the stash that its plan uses") {
  LossCase x({70, 300, 12}, {.dtype = bf16});
  x.grad.set(0, 1);
  x.de = Array(bf16, {70, 12});
  x.dc = Array(bf16, {300, 12});
  for (Strategy strategy : {Strategy::exact_stash, Strategy::dense, Strategy::automatic}) {
    CAPTURE(name_of(strategy));
    x.desc.strategy = strategy;
    x.desc.workspace_limit = strategy == Strategy::automatic ? 1 << 24 : 0;
    Plan plan(x.desc);
    x.stash_in(plan.stash_bytes(x.N));
    x.run(plan);
    x.check();
    const LossResult r = linear_cross_entropy(plan, x.e.ref(), x.c.ref(), x.target.ref());
    CHECK(r.de == x.de.bytes());
    CHECK(r.dc == x.dc.bytes());
    CHECK(r.loss[0] == x.loss[0]);
  }
}

TEST_CASE("stash: a strategy without one, a stash too small or not aligned are refused") {
  const auto refused = [](Strategy strategy, const auto& change, bool backward = false) {
    LossCase x({30, 90, 24}, stashing(f32, strategy));
    Plan plan(x.desc);
    x.stash_in(100000);
    const Workspace w(plan.workspace_bytes(30, backward));
    if (backward) {
      auto args = x.backward_args(w);
      change(args);
      return message_of([&] { plan.backward(args); });
    }
    auto args = x.forward_args(w);
    change(args);
    return message_of([&] { plan.forward(args); });
  };
  CHECK(refused(Strategy::min_memory, [](auto&) {}) ==
        "Plan::forward: stash is given and the plan's strategy is min_memory; those with a stash are exact_stash and "
        "dense, and automatic with a workspace_limit where nothing is filtered");
  const Plan dense({.hidden = 24, .vocabulary = 90, .strategy = Strategy::dense});
  const std::string all = std::to_string(dense.stash_bytes(30));
  for (bool backward : {false, true})
    CHECK(refused(
              Strategy::dense, [](auto& a) { a.stash.shape[0] = 99; }, backward) ==
          std::string("Plan::") + (backward ? "backward" : "forward") +
              ": stash has 99 bytes; with strategy dense it holds everything, for 30 rows " + all +
              " bytes (Plan::stash_bytes); exact_stash takes any size");
  CHECK(refused(
            Strategy::dense, [](auto& a) { a.stash = {}; }, true) ==
        "Plan::backward: stash is not given; with strategy dense it holds what the forward left (exact_stash works "
        "without)");
  CHECK(refused(Strategy::exact_stash, [](auto& a) {
          a.stash = TensorRef(static_cast<std::byte*>(a.stash.data) + 4, boolean, {90});
        }).find("is not aligned to 64 bytes") != std::string::npos);
  CHECK(Plan({.hidden = 24, .vocabulary = 90}).stash_bytes(30) == 0);
  CHECK(dense.report(30).stash == dense.stash_bytes(30));
  CHECK(dense.report(30).strategy == Strategy::dense);
}

TEST_CASE("stash: its size is that of the logits in their dtype and one f32 for each row of a block") {
  const PlanDesc desc{.hidden = 2304, .vocabulary = 256000, .dtype = bf16, .strategy = Strategy::dense};
  const Plan plan(desc);
  const double logits = 2.0 * 8192 * 256000;
  CHECK(static_cast<double>(plan.stash_bytes(8192)) < 1.02 * logits);
  CHECK(static_cast<double>(plan.stash_bytes(8192)) >= logits);
}
