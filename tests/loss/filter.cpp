// The filtered backward: what it keeps, what it leaves out, and that nothing else changes.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kerf/error.h"
#include "tests/loss/filter_case.h"

using namespace kerf;
using namespace kerf::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

std::int64_t elements(const Array& a, double value) {
  std::int64_t n = 0;
  for (double x : a.values()) n += std::isnan(value) ? std::isnan(x) : x == value;
  return n;
}

double tolerance(DType dtype) { return dtype == f32 ? 1e-5 : dtype == f16 ? 1e-3 : 4e-3; }

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
        const FilterReport report = run_filtered(x, plan);
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
      typename On::Runner plan(x.desc);
      const FilterReport report = run_filtered(x, plan);
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
    Array apart(bf16, {3000, 24}, 5);
    for (std::int64_t i = 0; i < apart.size(); ++i) apart.set(i, x.c[i]);
    x.c = apart;
    typename On::Runner plan(x.desc);
    const FilterReport report = run_filtered(x, plan);
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
    CHECK(run_filtered(x, plan).kept_share < 0.8);
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
      typename On::Runner large(x.desc);
      const FilterReport all = run_filtered(x, large);
      const auto de = x.de.values(), dc = x.dc.values();
      x.desc.workspace_limit = 1;
      typename On::Runner small(x.desc);
      CHECK(small.workspace_bytes(x.N, true) < large.workspace_bytes(x.N, true));
      const FilterReport few = run_filtered(x, small);
      CHECK(few.kept == all.kept);
      CHECK(few.dropped_mass == doctest::Approx(all.dropped_mass));
      CHECK(error(x.de, de).norm < 1e-3);
      CHECK(error(x.dc, dc).norm < 1e-3);
    }
}

TEST_CASE_TEMPLATE("filter: a dropped tile is as if its probabilities were alike, on the sides that filter", On, Host,
                   Steps, Gpu) {
  if (!On::here()) return;
  struct Case {
    DType dtype = f32;
    bool e = true, c = true, correction = true;
    Filter filter = Filter::mass;
    Reduction reduction = Reduction::none;
    Order order = Order::identity;
    double eps = 0.01;
  };
  for (const Case& k :
       {Case{.dtype = f32}, Case{.dtype = f16, .reduction = Reduction::mean}, Case{.dtype = bf16, .eps = 1},
        Case{.e = false}, Case{.c = false, .reduction = Reduction::sum}, Case{.e = false, .correction = false},
        Case{.c = false, .correction = false, .order = Order::given},
        Case{.correction = false, .filter = Filter::largest, .eps = 1e-3}, Case{.order = Order::given, .eps = 1}}) {
    CAPTURE(name_of(k.dtype));
    CAPTURE(k.e);
    CAPTURE(k.c);
    CAPTURE(k.correction);
    CAPTURE(name_of(k.filter));
    CAPTURE(name_of(k.order));
    PlanDesc desc = filtered(k.dtype, k.order);
    desc.reduction = k.reduction;
    desc.filter = k.filter, desc.filter_e = k.e, desc.filter_c = k.c, desc.correction = k.correction;
    desc.filter_threshold = k.eps;
    auto x = falling<On>({29, 1000, 24}, desc);
    typename On::Runner plan(x.desc);
    std::vector<std::int64_t> order;
    if (k.order == Order::given) {
      order.resize(1000);
      std::iota(order.rbegin(), order.rend(), 0);
      std::rotate(order.begin(), order.begin() + 77, order.end());
      plan.set_order(order);
    }
    const FilterReport report = run_filtered(x, plan);
    CHECK(report.kept > 0);
    CHECK(report.kept < report.tiles);
    const Expected want = filtered_loops(x, block_of_vocabulary(1000, report.tiles), k.eps, order);
    CHECK(error(x.de, want.de).norm < tolerance(k.dtype));
    CHECK(error(x.dc, want.dc).norm < tolerance(k.dtype));
    const Expected exact = x.expected();
    if (!k.e) CHECK(error(x.de, exact.de).norm < 1e-5);
    if (!k.c) CHECK(error(x.dc, exact.dc).norm < 1e-5);
    if (k.dtype == f32 && k.e) CHECK(error(x.de, exact.de).norm > 1e-5);
    if (k.dtype == f32 && k.c) CHECK(error(x.dc, exact.dc).norm > 1e-5);
  }
}

TEST_CASE_TEMPLATE("filter: the correction makes what is dropped worth half the error at most", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  double with = 0;
  for (bool correction : {true, false}) {
    PlanDesc desc = filtered(f32);
    desc.correction = correction;
    auto x = falling<On>({150, 1000, 24}, desc);
    typename On::Runner plan(x.desc);
    CHECK(run_filtered(x, plan).kept_share < 0.8);
    const double wrong = error(x.de, x.expected().de).norm;
    if (correction) with = wrong;
    CHECK(wrong < (correction ? 1e-3 : 1e-2));
    if (!correction) CHECK(with < 0.5 * wrong);
  }
}

TEST_CASE_TEMPLATE("filter: any number of rows, with a label or without", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Order order : {Order::identity, Order::automatic})
    for (Reduction reduction : {Reduction::mean, Reduction::none}) {
      CAPTURE(name_of(order));
      CAPTURE(name_of(reduction));
      PlanDesc desc = filtered(bf16, order);
      desc.reduction = reduction;
      const auto sized = [&](std::int64_t N) {
        auto x = falling<On>({N, 1000, 24}, desc);
        return x;
      };
      typename On::Runner plan(sized(1).desc);
      for (std::int64_t N : {300, 1, 33, 0, 129}) {
        CAPTURE(N);
        auto x = sized(N);
        const FilterReport report = run_filtered(x, plan);
        const Expected want = x.expected();
        CHECK(error(x.de, want.de).norm < 4e-3);
        CHECK(error(x.dc, want.dc).norm < 4e-3);
        if (N > 0) CHECK(report.kept_share < 0.8);
        if (N == 0) {
          CHECK(report.tiles == 0);
          CHECK(elements(x.dc, 0) == x.dc.size());
        }
        for (std::int64_t n = 0; n < N; ++n) {
          set_label(x, n, -1);
          for (std::int64_t d = 0; d < 24; ++d) x.e.set(n * 24 + d, not_a_number);
        }
        const FilterReport none = run_filtered(x, plan);
        CHECK(none.tiles == 0);
        CHECK(none.kept == 0);
        CHECK(none.dropped_mass == 0);
        CHECK(elements(x.de, 0) == x.de.size());
        CHECK(elements(x.dc, 0) == x.dc.size());
        CHECK(elements(x.lse, 0) == N);
      }
    }
}

TEST_CASE_TEMPLATE("filter: rows without a label fill whole blocks of rows, and cost nothing", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  auto x = falling<On>({700, 1000, 24}, filtered(bf16));
  for (std::int64_t n = 10; n < 690; ++n) {
    set_label(x, n, -1);
    for (std::int64_t d = 0; d < 24; ++d) x.e.set(n * 24 + d, n % 2 ? not_a_number : inf);
  }
  typename On::Runner plan(x.desc);
  const FilterReport report = run_filtered(x, plan);
  CHECK(report.tiles <= 16);  // one block of rows
  for (std::int64_t n = 10; n < 690; ++n)
    for (std::int64_t d = 0; d < 24; ++d) {
      CHECK(x.de[n * 24 + d] == 0);
      x.e.set(n * 24 + d, 0);
    }
  const Expected want = x.expected();
  CHECK(error(x.de, want.de).norm < 4e-3);
  CHECK(error(x.dc, want.dc).norm < 4e-3);
}

TEST_CASE_TEMPLATE("filter: NaN or Inf in a valid row spoils that row and dc, and no other row", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (bool correction : {true, false}) {
    CAPTURE(correction);
    PlanDesc desc = filtered(f32);
    desc.reduction = Reduction::none, desc.correction = correction;
    auto x = falling<On>({150, 1000, 24}, desc);
    typename On::Runner plan(x.desc);
    const double before = x.e[42 * 24 + 11];
    for (double bad : {not_a_number, inf, -inf}) {
      CAPTURE(bad);
      x.e.set(42 * 24 + 11, bad);
      run_filtered(x, plan);
      CHECK(elements(x.dc, not_a_number) == x.dc.size());
      x.e.set(42 * 24 + 11, before);
      const Expected want = x.expected();
      for (std::int64_t n = 0; n < x.N; ++n) {
        CAPTURE(n);
        const auto i = static_cast<std::size_t>(n);
        CHECK((n == 42 ? std::isnan(x.loss[n]) : std::abs(x.loss[n] - want.row_loss[i]) < 2e-5));
        CHECK((n == 42 ? std::isnan(x.lse[n]) : std::abs(x.lse[n] - want.lse[i]) < 2e-5));
        double off = 0, size = 0;
        for (std::int64_t d = 0; d < 24; ++d) {
          const double de = x.de[n * 24 + d], is = want.de[i * 24 + static_cast<std::size_t>(d)];
          if (n == 42) CHECK(std::isnan(de));
          off += (de - is) * (de - is);
          size += is * is;
        }
        if (n != 42) CHECK(std::sqrt(off) <= (correction ? 1e-2 : 3e-2) * std::sqrt(size));
      }
    }
  }
}

TEST_CASE_TEMPLATE("filter: rows that ask for the same blocks share tiles, wherever they lie", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  // A third of the rows speaks of the second half of the vocabulary, the others of the first.
  Routed<On> x({768, 2048, 24}, filtered(f32));
  const auto second = [](std::int64_t n) { return n % 3 == 1; };
  for (std::int64_t v = 0; v < 2048; ++v)
    for (std::int64_t d = 0; d < 2; ++d) x.c.set(v * 24 + d, (v >= 1024) == (d == 1) ? 6 : -6);
  Random random(4);
  for (std::int64_t n = 0; n < 768; ++n) {
    for (std::int64_t d = 0; d < 2; ++d) x.e.set(n * 24 + d, second(n) == (d == 1) ? 2 : 0);
    if (x.label[static_cast<std::size_t>(n)] >= 0) set_label(x, n, random.integer(0, 1023) + (second(n) ? 1024 : 0));
  }
  x.align();
  typename On::Runner plan(x.desc);
  const FilterReport report = run_filtered(x, plan);
  CHECK(report.kept_share < 0.7);
  CHECK(report.kept_share >= 0.5);
  x.check();
}

TEST_CASE_TEMPLATE("filter: a row of c that is not finite spoils every gradient, as without a filter", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (double bad : {not_a_number, inf}) {
    CAPTURE(bad);
    auto x = falling<On>({70, 1000, 24}, filtered(f32));
    x.c.set(800 * 24 + 3, bad);
    typename On::Runner plan(x.desc);
    run_filtered(x, plan);
    CHECK(std::isnan(x.loss[0]));
    const auto filtered_de = x.de.values(), filtered_dc = x.dc.values();
    x.block_lse = Array(f32, {0});
    x.run(plan);
    for (std::int64_t i = 0; i < x.de.size(); ++i)
      CHECK(std::isfinite(x.de[i]) == std::isfinite(filtered_de[static_cast<std::size_t>(i)]));
    for (std::int64_t i = 0; i < x.dc.size(); ++i)
      CHECK(std::isfinite(x.dc[i]) == std::isfinite(filtered_dc[static_cast<std::size_t>(i)]));
  }
}

TEST_CASE_TEMPLATE("filter: a label outside the vocabulary is counted, its row has no gradient", On, Steps, Gpu) {
  if (!On::here()) return;
  for (Order order : {Order::identity, Order::automatic}) {
    CAPTURE(name_of(order));
    PlanDesc desc = filtered(bf16, order);
    desc.reduction = Reduction::none;
    auto x = falling<On>({150, 1000, 24}, desc);
    typename On::Runner plan(x.desc);
    x.target.set(11, 1000), x.target.set(12, -7), x.target.set(149, 1e12);
    for (std::size_t n : {11, 12, 149}) x.label[n] = -1;
    run_filtered(x, plan);
    const Expected want = x.expected();
    CHECK(error(x.de, want.de).norm < 4e-3);
    CHECK(error(x.dc, want.dc).norm < 4e-3);
    for (std::int64_t n : {11, 12, 149}) {
      CHECK(std::isnan(x.loss[n]));
      CHECK(std::isnan(x.lse[n]));
      for (std::int64_t d = 0; d < 24; ++d) CHECK(x.de[n * 24 + d] == 0);
    }
  }
}

TEST_CASE_TEMPLATE("filter: upstream gradients of any size, and of 0", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f16, bf16}) {
    CAPTURE(name_of(dtype));
    PlanDesc desc = filtered(dtype);
    desc.reduction = Reduction::none;
    auto x = falling<On>({300, 1000, 24}, desc);
    typename On::Runner plan(x.desc);
    x.filter(plan);
    x.run_forward(plan);
    std::int64_t kept = 0;
    for (double size : {1.0, 0x1p-13, 0x1p10}) {
      CAPTURE(size);
      Random random(5);
      for (std::int64_t n = 0; n < x.N; ++n) x.grad.set(n, n % 7 == 2 ? 0 : size * random.normal());
      x.dc = Array(f32, {1000, 24});  // f16 would not hold them
      const FilterReport report = run_filtered_backward(x, plan);
      if (kept > 0) CHECK(report.kept == kept);
      kept = report.kept;
      const Expected want = x.expected();
      if (dtype != f16 || size == 1) CHECK(error(x.de, want.de).norm < 4e-3);
      CHECK(error(x.dc, want.dc).norm < 4e-3);
    }
    // A block of rows asks for nothing.
    for (std::int64_t n = 0; n < 256; ++n) x.grad.set(n, 0);
    const FilterReport few = run_filtered_backward(x, plan);
    CHECK(few.kept < kept);
    CHECK(error(x.de, x.expected().de).norm < 4e-3);
    for (std::int64_t i = 0; i < 256 * 24; ++i) CHECK(x.de[i] == 0);
    for (std::int64_t n = 0; n < x.N; ++n) x.grad.set(n, 0);
    CHECK(run_filtered_backward(x, plan).kept == 0);
    CHECK(elements(x.de, 0) == x.de.size());
    CHECK(elements(x.dc, 0) == x.dc.size());
  }
}

TEST_CASE_TEMPLATE("filter: dc in the dtype of c or in f32, written or added to; de or dc alone", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (DType dtype : {bf16, f16})
    for (Order order : {Order::identity, Order::given}) {
      CAPTURE(name_of(dtype));
      auto x = falling<On>({100, 1000, 24}, filtered(dtype, order));
      typename On::Runner plan(x.desc);
      std::vector<std::int64_t> tokens(1000);
      std::iota(tokens.begin(), tokens.end(), 0);
      std::rotate(tokens.begin(), tokens.begin() + 333, tokens.end());
      if (order == Order::given) plan.set_order(tokens);
      x.filter(plan);
      x.run_forward(plan);
      const Expected want = x.expected();
      for (DType out : {dtype, f32})
        for (bool accumulate : {false, true}) {
          CAPTURE(name_of(out));
          CAPTURE(accumulate);
          x.dc = Array(out, {1000, 24}, out == f32 ? 1 : 8);
          std::vector<double> all = want.dc;
          for (std::int64_t i = 0; i < x.dc.size() && accumulate; ++i) {
            x.dc.set(i, 1e-3 * static_cast<double>(i % 5));
            all[static_cast<std::size_t>(i)] += x.dc[i];
          }
          x.accumulate_dc = accumulate;
          run_filtered_backward(x, plan);
          CHECK(error(x.dc, all).norm < 4e-3);
          CHECK(error(x.de, want.de).norm < 4e-3);
        }
      x.accumulate_dc = false;
      run_filtered_backward(x, plan);
      const auto de = x.de.bytes(), dc = x.dc.bytes();
      const Workspace w(plan.workspace_bytes(x.N, true));
      x.poison_backward();
      BackwardArgs args = x.backward_args(w);
      args.dc = {};
      plan.backward(args);
      CHECK(x.de.bytes() == de);
      args = x.backward_args(w);
      args.de = {};
      plan.backward(args);
      CHECK(x.dc.bytes() == dc);
      args.dc = {};
      plan.backward(args);
    }
}

TEST_CASE_TEMPLATE("filter: a vocabulary smaller than a block, or with one token in the last", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (std::int64_t V : {1, 10, 65, 129, 257, 513}) {
    CAPTURE(V);
    PlanDesc desc = filtered(f32, V == 129 ? Order::automatic : Order::identity);
    desc.filter_threshold = 0.05;
    auto x = falling<On>({29, V, 24}, desc);
    set_label(x, 3, V - 1);
    typename On::Runner plan(x.desc);
    run_filtered(x, plan);
    const Expected want = x.expected();
    CHECK(error(x.de, want.de).norm < 0.05);
    CHECK(error(x.dc, want.dc).norm < 0.05);
    if (V == 129) continue;
    const Expected same = filtered_loops(x, block_of_vocabulary(V, plan.block_lse_shape(29)[0]), 0.05);
    if (V != 513 && V != 257) continue;  // blocks are powers of two there
    CHECK(error(x.de, same.de).norm < 1e-5);
    CHECK(error(x.dc, same.dc).norm < 1e-5);
  }
}

TEST_CASE_TEMPLATE("filter: little memory means more ranges, and the same tiles", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (bool filter_e : {true, false}) {
    CAPTURE(filter_e);
    PlanDesc desc = filtered(f32);
    desc.filter_e = filter_e;
    auto x = falling<On>({300, 2000, 24}, desc);
    typename On::Runner large(x.desc);
    const FilterReport all = run_filtered(x, large);
    const auto de = x.de.values(), dc = x.dc.values();
    const std::size_t most = large.workspace_bytes(x.N, true);
    std::size_t before = 0;
    for (std::size_t limit : {std::size_t{1}, most / 10, most / 2, most}) {
      CAPTURE(limit);
      x.desc.workspace_limit = limit;
      typename On::Runner small(x.desc);
      CHECK(small.workspace_bytes(x.N, true) >= before);
      CHECK(small.workspace_bytes(x.N, true) <= most);
      before = small.workspace_bytes(x.N, true);
      const FilterReport few = run_filtered(x, small);
      CHECK(few.kept == all.kept);
      CHECK(few.dropped_mass == all.dropped_mass);
      CHECK(error(x.de, de).norm < 1e-6);
      CHECK(error(x.dc, dc).norm < 1e-6);
      const auto bits = x.bits();
      for (int call = 0; call < 3; ++call) {
        run_filtered(x, small);
        CHECK(x.bits() == bits);
      }
    }
  }
}

TEST_CASE_TEMPLATE("filter: a token of probability 1 in each row leaves no gradient but its own", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  PlanDesc desc = filtered(f32);
  desc.reduction = Reduction::sum;
  Routed<On> x({70, 1000, 8}, desc);
  x.align();
  for (std::int64_t i = 0; i < x.e.size(); ++i) x.e.set(i, i % 8 == i / 8 % 8 ? 100 : 0);
  for (std::int64_t i = 0; i < x.c.size(); ++i) x.c.set(i, i / 8 % 125 == 0 && i / 8 / 125 == i % 8 ? 10 : 0);
  for (std::int64_t n = 0; n < x.N; ++n) set_label(x, n, n % 8 * 125);
  typename On::Runner plan(x.desc);
  FilterReport report = run_filtered(x, plan);
  CHECK(report.kept < report.tiles);
  CHECK(report.dropped_mass == 0);
  CHECK(elements(x.de, 0) == x.de.size());
  CHECK(elements(x.dc, 0) == x.dc.size());
  // And with another label the gradient of two tokens.
  for (std::int64_t n = 0; n < x.N; ++n) set_label(x, n, (n + 1) % 8 * 125);
  run_filtered(x, plan);
  const Expected want = x.expected();
  CHECK(error(x.de, want.de).norm < 1e-6);
  CHECK(error(x.dc, want.dc).norm < 1e-6);
}

TEST_CASE_TEMPLATE("filter: rows that are sure of their token have gradients as exact as their size", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  auto x = falling<On>({200, 4096, 24}, filtered(f32));
  for (std::int64_t v = 0; v < 4096; ++v) x.c.set(v * 24 + 1, v == 5 ? 10 : 0);
  for (std::int64_t n = 0; n < x.N; ++n) {  // up to all but 1e-7
    set_label(x, n, 5);
    x.e.set(n * 24 + 1, 0.011 * static_cast<double>(n));
  }
  typename On::Runner plan(x.desc);
  const FilterReport report = run_filtered(x, plan);
  CHECK(report.kept_share < 0.8);
  const Expected want = x.expected();
  double largest = 0, least = inf;
  for (std::int64_t n = 0; n < x.N; ++n) {
    double norm = 0;
    for (std::int64_t d = 0; d < 24; ++d) norm += want.de[n * 24 + d] * want.de[n * 24 + d];
    largest = std::max(largest, std::sqrt(norm)), least = std::min(least, std::sqrt(norm));
  }
  CHECK(least < 1e-6 * largest);
  CHECK(error(x.de, want.de).worst_row < 1e-2);
}

TEST_CASE_TEMPLATE("filter: of a uniform softmax whole blocks are never dropped, and the gradients are right", On, Host,
                   Steps, Gpu) {
  if (!On::here()) return;
  for (std::int64_t V : {1024, 1025}) {  // a last block of one token may be dropped
    CAPTURE(V);
    Routed<On> x({150, V, 24}, filtered(f32));
    x.align();
    for (std::int64_t v = 1; v < V; ++v)
      for (std::int64_t d = 0; d < 24; ++d) x.c.set(v * 24 + d, x.c[d]);
    typename On::Runner plan(x.desc);
    const FilterReport report = run_filtered(x, plan);
    if (V == 1024) CHECK(report.kept == report.tiles);
    CHECK(report.kept_share > 0.8);
    const Expected want = x.expected();
    CHECK(error(x.dc, want.dc).norm < 1e-5);
    for (std::int64_t i = 0; i < x.de.size(); ++i) CHECK(std::abs(x.de[i]) < 1e-6);
  }
}

TEST_CASE_TEMPLATE("filter: labels shifted within sequences, of equal length or packed", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  PlanDesc desc = filtered(f32);
  desc.shift = 1;
  auto x = falling<On>({120, 1000, 24}, desc);
  typename On::Runner plan(x.desc);
  x.filter(plan);
  const std::vector<std::int64_t> labels = [&] {
    std::vector<std::int64_t> all;
    for (std::int64_t n = 0; n < 120; ++n) all.push_back(static_cast<std::int64_t>(x.target[n]));
    return all;
  }();
  std::vector<std::int64_t> ends = {0, 30, 60, 90, 120};
  for (std::int64_t n = 0; n < 120; ++n) {
    const bool last = n % 30 == 29;
    x.label[static_cast<std::size_t>(n)] = last || labels[static_cast<std::size_t>(n + 1)] < 0 ? -1 : labels[n + 1];
  }
  const Expected want = x.expected();
  for (bool packed : {true, false}) {
    CAPTURE(packed);
    const auto shaped = [&](auto& args) {
      if (packed) {
        args.cu_seqlens = TensorRef(ends.data(), i64, {5});
        return;
      }
      args.e = TensorRef(args.e.data, f32, {4, 30, 24}).with_strides({30 * args.e.strides[0], args.e.strides[0], 1});
      args.target = TensorRef(args.target.data, i64, {4, 30});
      args.lse = TensorRef(args.lse.data, f32, {4, 30});
    };
    x.poison_forward();
    x.poison_backward();
    const Workspace fw(plan.workspace_bytes(120, false)), bw(plan.workspace_bytes(120, true));
    ForwardArgs forward = x.forward_args(fw);
    shaped(forward);
    plan.forward(forward);
    BackwardArgs backward = x.backward_args(bw);
    shaped(backward);
    if (!packed)
      backward.de = TensorRef(backward.de.data, f32, {4, 30, 24})
                        .with_strides({30 * x.de.ref().strides[0], x.de.ref().strides[0], 1});
    plan.backward(backward);
    CHECK(x.loss[0] == doctest::Approx(want.loss).epsilon(1e-5));
    CHECK(error(x.de, want.de).norm < 4e-3);
    CHECK(error(x.dc, want.dc).norm < 4e-3);
  }
}
