// The order in which tokens of the vocabulary form blocks: when it is found, how long it lasts.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "kerf/error.h"
#include "tests/loss/filter_case.h"

using namespace kerf;
using namespace kerf::test;

namespace {

constexpr Sizes sizes{150, 1000, 24};

/// Rows about a mean of which every element is `mean`; tokens of c lie so that each mean has an order of its own.
template <class On>
Routed<On> batch(double mean, std::int64_t rows = sizes.N) {
  Routed<On> x({rows, sizes.V, sizes.D}, filtered(f32, Order::automatic));
  for (std::int64_t i = 0; i < x.e.size(); ++i) x.e.set(i, x.e[i] + mean);
  return x;
}

/// What a forward of these rows leaves: the order can be told by it.
template <class On>
std::vector<std::byte> masses(Routed<On>& x, typename On::Runner& plan) {
  x.filter(plan);
  x.run_forward(plan);
  return x.block_lse.bytes();
}

}  // namespace

TEST_CASE_TEMPLATE("filter: an order found in the first forward stays, until it is refreshed", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  auto a = batch<On>(1), b = batch<On>(-1);
  for (std::int64_t n = 0; n < sizes.N; ++n) set_label(a, n, n), set_label(b, n, n);
  typename On::Runner first_a(a.desc), first_b(a.desc), other(a.desc);
  const auto a_by_a = masses(a, first_a), b_by_a = masses(b, first_a);
  const auto b_by_b = masses(b, first_b), a_by_b = masses(a, first_b);
  CHECK(a_by_a != a_by_b);
  CHECK(b_by_a != b_by_b);
  run_filtered(b, first_a);
  CHECK(masses(b, first_a) == b_by_a);  // after a backward, too
  CHECK(error(b.de, b.expected().de).norm < 4e-3);
  CHECK(error(b.dc, b.expected().dc).norm < 4e-3);
  first_a.refresh_order(b.e.ref(), b.c.ref());
  CHECK(masses(b, first_a) == b_by_b);
  CHECK(masses(a, first_a) == a_by_b);
  other.refresh_order(a.e.ref(), a.c.ref());  // before any call
  CHECK(masses(b, other) == b_by_a);
}

TEST_CASE_TEMPLATE("filter: a batch without a label has an order for the time being", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  auto a = batch<On>(1), b = batch<On>(-1), none = batch<On>(1);
  typename On::Runner known(a.desc), plan(a.desc);
  const auto a_by_a = masses(a, known), b_by_a = masses(b, known);
  for (std::int64_t n = 0; n < sizes.N; ++n) set_label(none, n, -1);
  for (int call = 0; call < 2; ++call) run_filtered(none, plan);
  auto empty = batch<On>(1, 0);
  run_filtered(empty, plan);
  CHECK(masses(a, plan) == a_by_a);
  CHECK(masses(b, plan) == b_by_a);
  run_filtered(none, plan);
  CHECK(masses(b, plan) == b_by_a);

  // One that is asked for lasts.
  typename On::Runner refreshed(a.desc), asked(a.desc);
  run_filtered(none, refreshed);
  for (auto* p : {&refreshed, &asked}) p->refresh_order(a.e.ref(), a.c.ref());
  CHECK(masses(b, refreshed) == masses(b, asked));
}

TEST_CASE_TEMPLATE("filter: a row that is not finite in the first batch does not decide the order for good", On, Host,
                   Steps, Gpu) {
  if (!On::here()) return;
  auto a = batch<On>(1), bad = batch<On>(1);
  typename On::Runner known(a.desc), plan(a.desc);
  const auto a_by_a = masses(a, known);
  bad.e.set(5 * sizes.D + 3, std::numeric_limits<double>::quiet_NaN());
  run_filtered(bad, plan);
  CHECK(masses(a, plan) == a_by_a);
}

TEST_CASE_TEMPLATE("filter: rows without a label have no say in the order", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  auto a = batch<On>(1), spoiled = batch<On>(1);
  for (std::int64_t n = 0; n < sizes.N; ++n)
    for (std::int64_t d = 0; d < sizes.D && a.label[static_cast<std::size_t>(n)] < 0; ++d)
      spoiled.e.set(n * sizes.D + d, n % 2 ? std::numeric_limits<double>::quiet_NaN() : -100);
  typename On::Runner clean(a.desc), plan(a.desc);
  CHECK(masses(a, clean) == masses(spoiled, plan));
}

TEST_CASE_TEMPLATE("filter: the automatic order is by c times the mean of e, as vocabulary_order sorts", On, Host,
                   Steps, Gpu) {
  if (!On::here()) return;
  Routed<On> x({90, 500, 16}, filtered(f32, Order::automatic));
  // Scores are whole numbers, many of them equal, and sums of them exact.
  for (std::int64_t i = 0; i < x.e.size(); ++i) x.e.set(i, static_cast<double>(i / 16 % 3));
  for (std::int64_t i = 0; i < x.c.size(); ++i) x.c.set(i, 0.0625 * static_cast<double>(i / 16 * 7 % 40 - 20));
  typename On::Runner found(x.desc);
  const auto by_scores = masses(x, found);
  run_filtered(x, found);
  const auto de = x.de.bytes(), dc = x.dc.bytes();
  std::vector<double> score;
  for (std::int64_t v = 0; v < 500; ++v) score.push_back(x.c[v * 16]);
  x.desc.order = Order::given;
  typename On::Runner given(x.desc);
  given.set_order(vocabulary_order(score));
  CHECK(masses(x, given) == by_scores);
  run_filtered(x, given);
  CHECK(x.de.bytes() == de);
  CHECK(x.dc.bytes() == dc);
}

TEST_CASE_TEMPLATE("filter: the order that is the identity gives the bits of none", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  auto x = falling<On>(sizes, filtered(bf16));
  typename On::Runner none(x.desc);
  run_filtered(x, none);
  auto bits = x.bits();
  bits.push_back(x.block_lse.bytes());
  x.desc.order = Order::given;
  typename On::Runner plan(x.desc);
  std::vector<std::int64_t> order(sizes.V);
  std::iota(order.begin(), order.end(), 0);
  plan.set_order(order);
  run_filtered(x, plan);
  auto same = x.bits();
  same.push_back(x.block_lse.bytes());
  CHECK(same == bits);
  std::reverse(order.begin(), order.end());  // may be set again
  plan.set_order(order);
  run_filtered(x, plan);
  CHECK(x.block_lse.bytes() != bits.back());
  CHECK(error(x.de, x.expected().de).norm < 4e-3);
  CHECK(error(x.dc, x.expected().dc).norm < 4e-3);
}

TEST_CASE("vocabulary_order: by falling score, equal ones as they are, NaN last") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(vocabulary_order({}) == std::vector<std::int64_t>{});
  CHECK(vocabulary_order({3, 1, 3, 5, 1}) == std::vector<std::int64_t>{3, 0, 2, 1, 4});
  CHECK(vocabulary_order({-0.0, 0.0, inf, -inf, 2}) == std::vector<std::int64_t>{2, 4, 0, 1, 3});
  CHECK(vocabulary_order({nan, 1, nan, -2}) == std::vector<std::int64_t>{1, 3, 0, 2});
}
