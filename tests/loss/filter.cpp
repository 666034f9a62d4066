// The filtered backward: what it keeps, what it leaves out, and that nothing else changes.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kerf/error.h"
#include "tests/loss/routes.h"

using namespace kerf;
using namespace kerf::test;

namespace {

PlanDesc filtered(DType dtype, Order order = Order::identity) {
  return {.dtype = dtype, .strategy = Strategy::filtered, .order = order};
}

/// Runs both calls, and tells what was left out.
template <class On>
FilterReport run(Routed<On>& x, typename On::Runner& plan) {
  x.filter(plan);
  x.run_forward(plan);
  x.poison_backward();
  const Workspace w(plan.workspace_bytes(x.N, true));
  plan.backward(x.backward_args(w));
  CHECK(w.guards_intact());
  x.check_surroundings();
  return plan.filter_report(w.ref());
}

/// Logits that fall with the number of the token, so that most blocks hardly matter.
template <class On>
Routed<On> falling(Sizes s, const PlanDesc& desc) {
  Routed<On> x(s, desc);
  Random random(9);
  for (std::int64_t v = 0; v < s.V; ++v) x.c.set(v * s.D, 1 - 30.0 * static_cast<double>(v) / static_cast<double>(s.V));
  for (std::int64_t n = 0; n < s.N; ++n) x.e.set(n * s.D, 1);
  for (std::int64_t n = 0; n < s.N; ++n)
    if (x.label[static_cast<std::size_t>(n)] >= 0) {
      const std::int64_t y = random.integer(0, s.V / 4);
      x.label[static_cast<std::size_t>(n)] = y;
      x.target.set(n, static_cast<double>(y));
    }
  return x;
}

}  // namespace

TEST_CASE_TEMPLATE("filter: what nothing is left out of has the exact gradients", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16, f16})
    for (Reduction reduction : {Reduction::none, Reduction::mean})
      for (Order order : {Order::identity, Order::automatic}) {
        PlanDesc desc = filtered(dtype, order);
        desc.reduction = reduction;
        desc.filter_threshold = 1e-30;
        Routed<On> x({157, 301, 70}, desc);
        typename On::Runner plan(x.desc);
        const FilterReport report = run(x, plan);
        CHECK(report.kept == report.tiles);
        CHECK(report.dropped_mass == 0);
        x.check();
      }
}

TEST_CASE_TEMPLATE("filter: tiles without mass are left out, and the gradients keep their exactness", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16, f16})
    for (std::int64_t D : {24, 33}) {
      CAPTURE(name_of(dtype));
      CAPTURE(D);
      auto x = falling<On>({300, 3000, D}, filtered(dtype));
      x.align();
      typename On::Runner plan(x.desc);
      const FilterReport report = run(x, plan);
      CHECK(report.kept_share < 0.8);
      CHECK(report.kept_share > 0.1);
      CHECK(report.dropped_mass > 0);
      CHECK(report.dropped_mass < 1e-2);
      const Expected want = x.expected();
      CHECK(error(x.de, want.de).norm < 4e-3);
      CHECK(error(x.dc, want.dc).norm < 4e-3);
    }
}

TEST_CASE_TEMPLATE("filter: a c that boxes cannot read is not filtered, or copied first", On, Steps, Gpu) {
  if (!On::here()) return;
  for (Order order : {Order::identity, Order::automatic}) {
    auto x = falling<On>({300, 3000, 24}, filtered(bf16, order));
    typename On::Runner plan(x.desc);
    const FilterReport report = run(x, plan);
    CHECK((report.kept == report.tiles) == (order == Order::identity));
    x.check();
  }
}

TEST_CASE_TEMPLATE("filter: any order of the vocabulary gives gradients of the same tokens", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (bool accumulate : {false, true}) {
    auto x = falling<On>({300, 3000, 24}, filtered(bf16, Order::given));
    std::vector<std::int64_t> order(3000);
    std::iota(order.rbegin(), order.rend(), 0);
    std::swap(order[5], order[2000]);
    typename On::Runner plan(x.desc);
    plan.set_order(order);
    std::vector<double> before;
    if (accumulate) {
      Random random(4);
      for (std::int64_t i = 0; i < x.dc.size(); ++i) x.dc.set(i, 1e-3 * random.normal());
      before = x.dc.values();
      x.accumulate_dc = true;
    }
    CHECK(run(x, plan).kept_share < 0.8);
    Expected want = x.expected();
    for (std::size_t i = 0; i < before.size(); ++i) want.dc[i] += before[i];
    CHECK(error(x.de, want.de).norm < 4e-3);
    CHECK(error(x.dc, want.dc).norm < 4e-3);
  }
}

TEST_CASE_TEMPLATE("filter: a workspace for a few of the tiles gives the same gradients", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Order order : {Order::identity, Order::automatic})
    for (std::int64_t V : {3000, 2945}) {
      auto x = falling<On>({300, V, 24}, filtered(bf16, order));
      x.align();
      typename On::Runner large(x.desc);
      const FilterReport all = run(x, large);
      const auto de = x.de.values(), dc = x.dc.values();
      x.desc.workspace_limit = 1;
      typename On::Runner small(x.desc);
      CHECK(small.workspace_bytes(x.N, true) < large.workspace_bytes(x.N, true));
      const FilterReport few = run(x, small);
      CHECK(few.kept == all.kept);
      CHECK(few.dropped_mass == doctest::Approx(all.dropped_mass));
      CHECK(error(x.de, de).norm < 1e-3);
      CHECK(error(x.dc, dc).norm < 1e-3);
    }
}
