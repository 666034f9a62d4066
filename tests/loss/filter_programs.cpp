// The programs of a filtered backward against plain loops, on sizes that no block divides. Those that make lists of
// tiles are in filter_lists.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"
#include "runtime/carver.h"
#include "runtime/tile_lists.h"
#include "tests/support/random_program.h"
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::kernels;
using namespace kerf::test;
using kerf::runtime::blocks_of;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr DType dtypes[] = {f32, bf16, f16};

/// Rounding of the dtype that a result is stored in, and of f32 sums.
double tolerance(DType dtype) { return dtype == f32 ? 2e-6 : dtype == f16 ? 1e-3 : 8e-3; }

std::vector<std::int64_t> shuffled(Random& random, std::int64_t n) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i) - 1))]);
  return order;
}

Array array_of(DType dtype, const std::vector<std::int64_t>& values) {
  Array a(dtype, {std::ssize(values)});
  for (std::int64_t i = 0; i < a.size(); ++i) a.set(i, static_cast<double>(values[static_cast<std::size_t>(i)]));
  return a;
}

/// Rows of which the first `valid` have a label of 75, with a gap after every seventh.
struct LabelledRows {
  LabelledRows(std::int64_t P, std::int64_t valid) : valid(valid), rows(i64, {P}), target(i32, {P}) {}
  void add(Random& random) {
    const std::int64_t n = std::ssize(row_list);
    row_list.push_back(n < valid ? n + n / 7 : -1);
    labels.push_back(n < valid ? static_cast<std::int32_t>(random.integer(0, 74)) : -1);
    rows.set(n, static_cast<double>(row_list.back()));
    target.set(n, labels.back());
  }
  std::int64_t valid;
  Array rows, target;
  Rows row_list;
  Labels labels;
};

/// The rows of a [V, D] in this order.
Doubles ordered(const Array& a, std::int64_t D, const std::vector<std::int64_t>& order) {
  Doubles out;
  for (std::int64_t v : order)
    for (std::int64_t d = 0; d < D; ++d) out.push_back(a[v * D + d]);
  return out;
}

}  // namespace

TEST_CASE("keep_tiles: a tile is kept if a row asks for it; the others' masses are told") {
  const Shape base{.vocabulary = 75, .hidden = 21, .dtype = f32, .compact = true};
  const Blocks b{.n = 16, .v = 8, .d = 16, .split = 1};
  const std::int64_t B = 10, P = 77, R = 5, T = 90;
  for (DType dtype : dtypes)
    for (bool correct : {true, false})
      for (int special = 0; special < 2; ++special) {
        CAPTURE(name_of(dtype));
        CAPTURE(correct);
        CAPTURE(special);
        Shape s = base;
        s.dtype = dtype;
        Random random(3 + static_cast<std::uint64_t>(special));
        Array block_lse(f32, {B, P}), lse = normal(random, f32, {T});
        Array g = normal(random, f32, {P}), keep(i32, {B, R}), left_out(f32, {B, R}), m(dtype, {B, P});
        const bool group = correct;
        Rows from_list = shuffled(random, P);
        if (!group) std::iota(from_list.begin(), from_list.end(), 0);
        Array from = array_of(i64, from_list);
        const std::int64_t valid = 70;
        LabelledRows with(P, valid);
        auto& rows = with.rows;
        auto& target = with.target;
        const Rows& row_list = with.row_list;
        const Labels& labels = with.labels;
        for (std::int64_t n = 0; n < P; ++n) {
          with.add(random);
          if (n % 9 == 4 || (n >= 32 && n < 48)) g.set(n, n % 2 ? 0.0 : -0.0);  // a whole block of rows
          for (std::int64_t v = 0; v < B; ++v) {
            double x = (n < valid ? lse[row_list.back()] : 0) - 12 * random.uniform();
            if (special && random.integer(0, 60) == 0)
              x = random.integer(0, 1) ? -inf : random.integer(0, 1) ? inf : not_a_number;
            block_lse.set(v * P + from_list[static_cast<std::size_t>(n)], n < valid ? x : not_a_number);
          }
        }
        if (special) {  // each in a block of rows of its own
          lse.set(row_list[3], not_a_number);
          lse.set(row_list[20], -inf);
          g.set(50, not_a_number), g.set(66, inf);
        }
        for (std::int64_t n = valid; n < P; ++n) g.set(n, not_a_number);  // nobody wrote those
        Array outside(f32, {P});  // of rows that are sure, of others, and of none
        for (std::int64_t n = 0; n < P; ++n)
          outside.set(n, n >= valid || (special && n == 11) ? not_a_number : std::exp(-12 * random.uniform()));
        if (special) outside.set(12, 0), outside.set(13, 0x1p-30);
        const KeepRule rule{.eps = 0x1p-9,
                            .correct = correct,
                            .together = special ? 0 : 0x1p-7,
                            .group = group,
                            .sure = group ? 0x1p-4 : 0};
        const KeptTiles want = reference_keep_tiles(s, b, rule, block_lse.values(), lse.values(), row_list, labels,
                                                    g.values(), outside.values(), from_list);
        std::int64_t kept = std::count(want.keep.begin(), want.keep.end(), true);
        CHECK(kept > 0);
        CHECK(kept < B * R);
        NamedArrays all = {{"block_lse", &block_lse}, {"lse", &lse}, {"rows", &rows},
                           {"target", &target},       {"g", &g},     {"keep", &keep},
                           {"left_out", &left_out}};
        if (group) all.emplace_back("from", &from), all.emplace_back("outside", &outside);
        if (correct) all.emplace_back("m", &m);
        on_each_backend(keep_tiles(s, b, rule), {.arrays = all}, [&] {
          for (std::int64_t i = 0; i < B * R; ++i) CHECK(keep[i] == (want.keep[static_cast<std::size_t>(i)] ? 1 : 0));
          CHECK(error(left_out, want.left_out).norm < 1e-5);
          if (correct) CHECK(error(m, want.m).norm < std::max(1e-5, tolerance(dtype)));
          for (std::int64_t i = 0; i < B; ++i) CHECK(keep[i * R + 2] == 0);
        });
      }
}

TEST_CASE("group_rows: rows go by the rarest block that they ask for, those without a label come last") {
  const Shape s{.vocabulary = 75, .hidden = 21, .dtype = f32, .compact = true};
  const Blocks b{.n = 16, .v = 8, .d = 16, .split = 1};
  const KeepRule rule{.eps = 0x1p-5, .sure = 0x1p-3};
  const std::int64_t B = 10, P = 700, T = 850, group = 256;
  Random random(5);
  Array block_lse(f32, {B, P}), lse = normal(random, f32, {T});
  Array g = normal(random, f32, {P}), askers(i32, {B}), rating(i32, {P}), place(i64, {P});
  const std::int64_t valid = 670;
  LabelledRows with(P, valid);
  auto& rows = with.rows;
  auto& target = with.target;
  const Rows& row_list = with.row_list;
  const Labels& labels = with.labels;
  for (std::int64_t n = 0; n < P; ++n) {
    with.add(random);
    if (n % 9 == 4) g.set(n, n % 2 ? 0.0 : -0.0);
    if (n == 100 || n >= valid) g.set(n, not_a_number);
    for (std::int64_t v = 0; v < B; ++v) {
      // Low blocks are asked for by many.
      const double x = (n < valid ? lse[row_list.back()] : 0) - 1 - (2 + static_cast<double>(v)) * random.uniform();
      block_lse.set(v * P + n, n >= valid || (n == 200 && v == 3) ? not_a_number : x);
    }
  }
  Array outside(f32, {P});
  const Doubles outside_ref = reference_mass_outside(s, b, block_lse.values(), lse.values(), row_list, labels);
  on_each_backend(
      mass_outside(s, b),
      {.arrays =
           {{"block_lse", &block_lse}, {"lse", &lse}, {"rows", &rows}, {"target", &target}, {"outside", &outside}}},
      [&] {
        for (std::int64_t n = 0; n < P; ++n) {
          const double want = outside_ref[static_cast<std::size_t>(n)];
          if (n == 200 || n == 100)
            CHECK(std::isnan(outside[n]) == std::isnan(want));
          else
            CHECK(outside[n] == doctest::Approx(want).epsilon(1e-6));
        }
      });
  for (std::int64_t n = 0; n < valid; ++n) outside.set(n, n == 300 ? not_a_number : std::exp(-8 * random.uniform()));
  const GroupedRows want = reference_group_rows(s, b, rule, block_lse.values(), lse.values(), row_list, labels,
                                                g.values(), outside.values(), group);
  CHECK(want.rating[static_cast<std::size_t>(want.from[0])] > want.rating[static_cast<std::size_t>(want.from[200])]);
  const NamedArrays asked = {{"block_lse", &block_lse}, {"lse", &lse}, {"rows", &rows},
                             {"target", &target},       {"g", &g},     {"outside", &outside},
                             {"askers", &askers}};
  on_each_backend(count_askers(s, b, rule), {.arrays = asked}, [&] {
    for (std::int64_t v = 0; v < B; ++v)
      CHECK(askers[v] == static_cast<double>(want.askers[static_cast<std::size_t>(v)]));
  });
  NamedArrays rated = asked;
  rated.emplace_back("rating", &rating);
  on_each_backend(rate_rows(s, b, rule), {.arrays = rated}, [&] {
    for (std::int64_t n = 0; n < P; ++n) CHECK(rating[n] == want.rating[static_cast<std::size_t>(n)]);
  });
  on_each_backend(place_rows(group),
                  {.arrays = {{"rating", &rating}, {"of_all", &rating}, {"place", &place}}, .axes = {{"G", 3}}}, [&] {
                    for (std::int64_t i = 0; i < P; ++i)
                      CHECK(place[want.from[static_cast<std::size_t>(i)]] == static_cast<double>(i));
                  });
  Array from(i64, {P}), moved_rows(i64, {P}), moved_target(i32, {P}), moved_g(f32, {P}), moved_outside(f32, {P});
  on_each_backend(move_rows(),
                  {.arrays = {{"place", &place},
                              {"rows", &rows},
                              {"target", &target},
                              {"g", &g},
                              {"outside", &outside},
                              {"from", &from},
                              {"moved_rows", &moved_rows},
                              {"moved_target", &moved_target},
                              {"moved_g", &moved_g},
                              {"moved_outside", &moved_outside}}},
                  [&] {
                    for (std::int64_t i = 0; i < P; ++i) {
                      const std::int64_t n = want.from[static_cast<std::size_t>(i)];
                      CHECK(from[i] == static_cast<double>(n));
                      CHECK(moved_rows[i] == rows[n]);
                      CHECK(moved_target[i] == target[n]);
                      CHECK((std::isnan(g[n]) ? std::isnan(moved_g[i]) : moved_g[i] == g[n]));
                      CHECK((std::isnan(outside[n]) ? std::isnan(moved_outside[i]) : moved_outside[i] == outside[n]));
                      CHECK((moved_rows[i] < 0) == (i >= valid));
                    }
                  });
}

TEST_CASE("keep_tiles: the least gradients, the threshold itself and 1") {
  const Shape s{.vocabulary = 8, .hidden = 4, .dtype = f32, .compact = true};
  const Blocks b{.n = 1, .v = 4, .d = 4, .split = 1};
  const std::int64_t P = 6;
  Array block_lse(f32, {2, P}), lse(f32, {P}), rows(i64, {P}), target(i32, {P}), g(f32, {P});
  Array keep(i32, {2, P}), left_out(f32, {2, P}), m(f32, {2, P}), from = array_of(i64, {0, 1, 2, 3, 4, 5});
  const double masses[P] = {1, 0.5, 0.25, 0.499, 1, 0}, gs[P] = {1, -3, 1, 1, 0x1p-149, 1};
  for (std::int64_t n = 0; n < P; ++n) {
    rows.set(n, static_cast<double>(n));
    lse.set(n, 0);
    target.set(n, 0);
    g.set(n, gs[n]);
    block_lse.set(n, -inf);  // the block of the target: kept whatever its mass
    block_lse.set(P + n, std::log(masses[n]));
  }
  // log and exp of powers of two need not give them back; 1 and 0 do.
  on_each_backend(keep_tiles(s, b, {.eps = 1, .correct = true}),
                  {.arrays = {{"block_lse", &block_lse},
                              {"lse", &lse},
                              {"rows", &rows},
                              {"target", &target},
                              {"g", &g},
                              {"from", &from},
                              {"keep", &keep},
                              {"left_out", &left_out},
                              {"m", &m}}},
                  [&] {
                    for (std::int64_t n = 0; n < P; ++n) {
                      CAPTURE(n);
                      CHECK(keep[n] == 1);
                      CHECK(keep[P + n] == (masses[n] == 1 ? 1 : 0));
                      CHECK(left_out[P + n] == doctest::Approx(masses[n] == 1 ? 0 : masses[n]).epsilon(1e-6));
                      CHECK(m[P + n] == doctest::Approx(masses[n] == 1 ? 0 : masses[n] * gs[n]).epsilon(1e-6));
                    }
                  });
}

TEST_CASE("block_means, correct_e and correct_c: masses times the mean row of each block") {
  const std::int64_t V = 75, D = 37, N = 41, B = 10;
  const Blocks b{.n = 16, .v = 8, .d = 16, .split = 1};
  for (DType dtype : dtypes)
    for (bool gather : {false, true}) {
      CAPTURE(name_of(dtype));
      CAPTURE(gather);
      const Shape s{V, D, dtype, true, gather};
      Random random(5);
      const std::vector<std::int64_t> order = shuffled(random, V);
      Array c = normal(random, dtype, {V, D}, 1, 5), e = normal(random, dtype, {N, D}, 1, 3),
            order_in = array_of(i64, order);
      Array cmean(dtype, {B, D}, 3), m = normal(random, dtype, {B, N}, 1, 2), sum(f32, {N, D}), added(f32, {B, D});
      const Doubles rows = gather ? ordered(c, D, order) : c.values();
      Doubles mean(B * D), sum_ref(N * D), added_ref(B * D);
      for (std::int64_t v = 0; v < V; ++v)
        for (std::int64_t d = 0; d < D; ++d)
          mean[v / 8 * D + d] += rows[v * D + d] / static_cast<double>(std::min<std::int64_t>(8, V - v / 8 * 8));
      NamedArrays all = {{"c", &c}, {"cmean", &cmean}};
      if (gather) all.emplace_back("order", &order_in);
      on_each_backend(block_means(s, b), {.arrays = all}, [&] { CHECK(error(cmean, mean).norm < tolerance(dtype)); });
      if (gather) continue;
      for (std::int64_t v = 0; v < B; ++v)
        for (std::int64_t n = 0; n < N; ++n)
          for (std::int64_t d = 0; d < D; ++d) {
            sum_ref[n * D + d] += m[v * N + n] * cmean[v * D + d];
            added_ref[v * D + d] += m[v * N + n] * e[n * D + d] / static_cast<double>(v == 9 ? 3 : 8);
          }
      on_each_backend(correct_e(s, b), {.arrays = {{"m", &m}, {"cmean", &cmean}, {"sum", &sum}}},
                      [&] { CHECK(error(sum, sum_ref).norm < 2e-6); });
      on_each_backend(correct_c(s, b), {.arrays = {{"m", &m}, {"e", &e}, {"added", &added}}},
                      [&] { CHECK(error(added, added_ref).norm < 2e-6); });
    }
}

TEST_CASE("count_up and sum_pieces: the pieces of each block of rows in order") {
  Array items(i32, {300});
  on_each_backend(count_up(), {.arrays = {{"items", &items}}}, [&] {
    for (std::int64_t i = 0; i < 300; ++i) CHECK(items[i] == static_cast<double>(i));
  });
  const std::int64_t N = 57, D = 21, S = 9;
  const Blocks b{.n = 16, .v = 8, .d = 8, .split = 1};
  // Rows of blocks with 3, 0, 1 and 4 pieces; the last of the nine belongs to none.
  std::vector<std::pair<int, int>> of = {{0, 0}, {0, 1}, {0, 2}, {2, 3}, {3, 4}, {3, 5}, {3, 6}, {3, 7}};
  const OwnedTileList pieces(4, S, of);
  for (bool from_sum : {false, true}) {
    CAPTURE(from_sum);
    Random random(3);
    Array part = normal(random, f32, {S * 16, D}), sum = normal(random, f32, {N, D}, 1, 2);
    Doubles want = from_sum ? sum.values() : Doubles(static_cast<std::size_t>(N * D), 0);
    for (const auto& [r, piece] : of)
      for (std::int64_t n = r * 16; n < std::min<std::int64_t>(N, (r + 1) * 16); ++n)
        for (std::int64_t d = 0; d < D; ++d) want[n * D + d] += part[(piece * 16 + n - r * 16) * D + d];
    on_each_backend(sum_pieces({.vocabulary = 5, .hidden = D, .dtype = bf16}, b, from_sum),
                    {.arrays = {{"part", &part}, {"sum", &sum}}, .lists = {{"pieces", pieces.ref()}}},
                    [&] { CHECK(error(sum, want).norm < 1e-6); });
  }
}

TEST_CASE("place_targets: labels by their place in the order, what is no label stays none") {
  Random random(6);
  const std::vector<std::int64_t> place = shuffled(random, 50);
  Array places = array_of(i32, place), target(i32, {300});
  std::vector<double> want;
  for (std::int64_t n = 0; n < 300; ++n) {
    const std::int64_t y = n % 7 == 3 ? -1 : random.integer(0, 49);
    target.set(n, static_cast<double>(y));
    want.push_back(y < 0 ? -1 : static_cast<double>(place[static_cast<std::size_t>(y)]));
  }
  on_each_backend(place_targets(50), {.arrays = {{"place", &places}, {"target", &target}}},
                  [&] { CHECK(target.values() == want); });
}

TEST_CASE("sum_rows and score_rows: c times the sum of the rows of e") {
  const std::int64_t V = 45, D = 37;
  for (DType dtype : dtypes)
    for (std::int64_t N : {100, 1, 0}) {
      CAPTURE(name_of(dtype));
      CAPTURE(N);
      const std::int64_t S = std::max<std::int64_t>(1, blocks_of(N, 32));
      const Shape s{.vocabulary = V, .hidden = D, .dtype = dtype};
      Random random(7);
      Array e = normal(random, dtype, {N, D}, 1, 3), c = normal(random, dtype, {V, D}, 1, 1), sum(f32, {S, D}),
            score(f32, {V});
      Doubles sums(static_cast<std::size_t>(S * D), 0), scores(static_cast<std::size_t>(V), 0);
      for (std::int64_t n = 0; n < N; ++n)
        for (std::int64_t d = 0; d < D; ++d) sums[n / 32 * D + d] += e[n * D + d];
      on_each_backend(sum_rows(s, 32, 16), {.arrays = {{"e", &e}, {"sum", &sum}}},
                      [&] { CHECK(error(sum, sums).norm < 1e-6); });
      for (std::int64_t i = 0; i < S * D; ++i)
        for (std::int64_t v = 0; v < V; ++v) scores[v] += c[v * D + i % D] * sum[i];
      on_each_backend(score_rows(s, 16, 8), {.arrays = {{"c", &c}, {"sum", &sum}, {"score", &score}}},
                      [&] { CHECK(error(score, scores).norm < 2e-6); });
    }
}

TEST_CASE("keep_all and forget_masses: what a call leaves that could not filter") {
  Array kept(i64, {1}), left_out(f32, {1}), block_lse(f32, {5, 300});
  on_each_backend(keep_all(), {.arrays = {{"kept", &kept}, {"left_out", &left_out}}}, [&] {
    CHECK(kept[0] == every_tile);
    CHECK(left_out[0] == 0);
  });
  on_each_backend(forget_masses(), {.arrays = {{"block_lse", &block_lse}}}, [&] {
    for (double x : block_lse.values()) CHECK(std::isnan(x));
  });
}

TEST_CASE("lse_forward: the log-sum-exp or the largest logit of each block, in any order of the vocabulary") {
  struct Setup {
    std::int64_t T, N, V, D;
    Blocks blocks;
    DType dtype;
    bool compact, gather;
    std::int64_t row_pad, column_pad;
  };
  for (const Setup& k : {Setup{41, 37, 75, 21, {.n = 16, .v = 32, .d = 16, .split = 2}, f32, false, false, 3, 5},
                         {41, 37, 75, 21, {.n = 16, .v = 8, .d = 16, .split = 3}, bf16, true, true, 3, 5},
                         {154, 150, 300, 136, {.n = 128, .v = 64, .d = 64, .split = 2}, bf16, true, false, 8, 16},
                         {74, 70, 200, 72, {.n = 64, .v = 64, .d = 64, .split = 2}, f16, true, true, 8, 16}})
    for (BlockStatistic statistic : {BlockStatistic::lse, BlockStatistic::largest}) {
      CAPTURE(k.N);
      CAPTURE(name_of(k.dtype));
      const auto [T, N, V, D] = std::tuple(k.T, k.N, k.V, k.D);
      const std::int64_t B = blocks_of(V, k.blocks.v), S = blocks_of(V, k.blocks.v * k.blocks.split);
      const Shape shape{V, D, k.dtype, k.compact, k.gather};
      Random random(8);
      const std::vector<std::int64_t> order = shuffled(random, V);
      Array e = normal(random, k.dtype, {k.compact ? N : T, D}, 1, k.row_pad);
      Array c = normal(random, k.dtype, {V, D}, 4 / std::sqrt(static_cast<double>(D)), k.column_pad);
      Array target = integers(random, i32, {N}, 0, V - 1), rows(i64, {N}), order_in = array_of(i64, order);
      Rows row_list;
      Labels labels;
      for (std::int64_t n = 0; n < N; ++n) {
        row_list.push_back(n + 2 * (n >= 20));
        rows.set(n, static_cast<double>(row_list.back()));
        labels.push_back(static_cast<std::int32_t>(target[n]));
      }
      if (statistic == BlockStatistic::lse) {  // logits that pass what exp holds, of either sign
        for (std::int64_t d = 0; d < D; ++d) e.set(3 * D + d, 40 * e[3 * D + d]);
      }
      const Doubles c_rows = k.gather ? ordered(c, D, order) : c.values();
      const Parts parts = reference_lse_forward(shape, k.blocks, e.values(), c_rows, row_list, labels);
      Doubles want(static_cast<std::size_t>(B * N));
      for (std::int64_t v0 = 0; v0 < B; ++v0)
        for (std::int64_t n = 0; n < N; ++n) {
          Doubles z;
          for (std::int64_t v = v0 * k.blocks.v; v < std::min(V, (v0 + 1) * k.blocks.v); ++v) {
            z.push_back(0);
            for (std::int64_t d = 0; d < D; ++d)
              z.back() += e[row_of_e(shape, row_list, n) * D + d] * c_rows[v * D + d];
          }
          const double largest = *std::max_element(z.begin(), z.end());
          double sum = 0;
          for (double a : z) sum += std::exp(a - largest);
          want[v0 * N + n] = largest + (statistic == BlockStatistic::lse ? std::log(sum) : 0);
        }
      Array part_max(f32, {S, N}), part_sum(f32, {S, N}), part_target(f32, {S, N}), block_lse(f32, {B, N});
      NamedArrays all = {{"e", &e},
                         {"c", &c},
                         {"target", &target},
                         {"part_max", &part_max},
                         {"part_sum", &part_sum},
                         {"part_target", &part_target},
                         {"block_lse", &block_lse}};
      if (!k.compact) all.emplace_back("rows", &rows);
      if (k.gather) all.emplace_back("order", &order_in);
      on_each_backend(lse_forward(shape, k.blocks, statistic), {.arrays = all}, [&] {
        CHECK(error(part_max, parts.max).norm < 1e-6);
        CHECK(error(part_sum, parts.sum).norm < 1e-5);
        CHECK(error(part_target, parts.target).norm < 1e-6);
        for (std::int64_t i = 0; i < B * N; ++i) {
          CAPTURE(i);
          const double is = block_lse[i], said = want[static_cast<std::size_t>(i)];
          // What lies 80 below the largest so far need not be exact; less than 2^-126 of it is nothing.
          const double most = *std::max_element(want.begin(), want.end());
          if (i % N == 3 && statistic == BlockStatistic::lse)
            CHECK((is <= most + 1e-3 &&
                   (std::abs(is - said) < 1e-3 + 1e-5 * std::abs(said) || is < most - 60 || said < is)));
          else
            CHECK(std::abs(is - said) < 1e-5 * std::max(1.0, std::abs(said)));
        }
      });
    }
}

TEST_CASE("grad_tiles, grad_e and grad_c: in an order of the vocabulary, of some of the tiles, and corrected") {
  struct Setup {
    std::int64_t T, N, V, D;
    Blocks blocks;
    std::int64_t logits_d;
    DType dtype;
    std::int64_t row_pad, column_pad;
  };
  for (const Setup& k : {Setup{41, 37, 75, 21, {.n = 16, .v = 8, .d = 16, .split = 1}, 16, f32, 3, 5},
                         {41, 37, 75, 21, {.n = 16, .v = 8, .d = 16, .split = 1}, 16, f16, 3, 5},
                         {154, 150, 300, 136, {.n = 64, .v = 64, .d = 64, .split = 1}, 64, bf16, 8, 16}})
    for (bool gather : {true, false}) {
      CAPTURE(name_of(k.dtype));
      CAPTURE(gather);
      const auto [T, N, V, D] = std::tuple(k.T, k.N, k.V, k.D);
      const Blocks& b = k.blocks;
      Blocks logits = b;
      logits.d = k.logits_d;
      const std::int64_t B = blocks_of(V, b.v), R = blocks_of(N, b.n), H = blocks_of(D, b.d);
      const Shape shape{V, D, k.dtype, true, gather};
      Random random(9);
      const std::vector<std::int64_t> order = shuffled(random, V);
      Array e = normal(random, k.dtype, {N, D}, 1, k.row_pad);
      Array c = normal(random, k.dtype, {V, D}, 4 / std::sqrt(static_cast<double>(D)), k.column_pad);
      Array target = integers(random, i32, {N}, 0, V - 1), rows(i64, {N}), order_in = array_of(i64, order);
      Array lse(f32, {T}), g = normal(random, f32, {N}), scale(f32, {}), added = normal(random, f32, {B, D});
      const double factor = k.dtype == f16 ? 0.25 : 1;
      scale.set(0, factor);
      Rows row_list;
      Labels labels;
      for (std::int64_t n = 0; n < N; ++n) {
        row_list.push_back(n + (n >= 20));
        rows.set(n, static_cast<double>(row_list.back()));
        labels.push_back(static_cast<std::int32_t>(target[n]));
        lse.set(row_list.back(), 8 + random.uniform());
      }
      const Doubles c_rows = gather ? ordered(c, D, order) : c.values();
      std::vector<std::pair<int, int>> tiles;
      std::vector<TileAt> at;
      for (int column = 0; column < B; ++column)
        for (int row = 0; row < R; ++row)
          if (random.integer(0, 2) == 0 && column != 1) {
            tiles.emplace_back(row, column);
            at.push_back({row, column});
          }
      const OwnedTileList kept(R, B, tiles);
      std::vector<std::pair<int, int>> all_written;
      for (int column = 0; column < B; ++column)
        for (int d = 0; d < H; ++d) all_written.emplace_back(d, column);
      const OwnedTileList written(H, B, all_written);

      Array dz(k.dtype, {std::ssize(at) * b.v * b.n}), sum(f32, {N, D});
      const bool with_outside = !gather;
      Array outside(f32, {N});
      for (std::int64_t n = 0; n < N; ++n) outside.set(n, n % 7 == 3 ? not_a_number : random.uniform());
      const Doubles dz_ref = reference_grad_tiles(shape, b, e.values(), c_rows, row_list, labels, lse.values(),
                                                  g.values(), at, with_outside ? outside.values() : Doubles());
      const auto with_order = [&](NamedArrays arrays) {
        if (gather) arrays.emplace_back("order", &order_in);
        return arrays;
      };
      NamedArrays of_dz = {{"e", &e},     {"c", &c}, {"rows", &rows}, {"target", &target},
                           {"lse", &lse}, {"g", &g}, {"dz", &dz}};
      if (with_outside) of_dz.emplace_back("outside", &outside);
      on_each_backend(grad_tiles(shape, logits, with_outside),
                      {.arrays = with_order(of_dz), .lists = {{"kept", kept.ref()}}},
                      [&] { CHECK(error(dz, dz_ref).norm < tolerance(k.dtype)); });
      Rows same(static_cast<std::size_t>(N));
      std::iota(same.begin(), same.end(), 0);
      Doubles sum_ref(static_cast<std::size_t>(N * D), 0);
      reference_grad_e(shape, b, c_rows, same, at, dz.values(), 1, sum_ref);
      on_each_backend(grad_e(shape, b, false, true, true),
                      {.arrays = with_order({{"c", &c}, {"dz", &dz}, {"sum", &sum}}), .lists = {{"kept", kept.ref()}}},
                      [&] { CHECK(error(sum, sum_ref).norm < 2e-6); });
      for (bool corrected : {false, true})
        for (bool accumulate : {false, true}) {
          CAPTURE(corrected);
          CAPTURE(accumulate);
          Array out = normal(random, accumulate ? f32 : k.dtype, {V, D}, 1, 4);
          Doubles dc_ref(static_cast<std::size_t>(V * D), 0);
          reference_grad_c(shape, b, e.values(), row_list, at, dz.values(), factor, dc_ref);
          Doubles want(dc_ref.size());
          for (std::int64_t v = 0; v < V; ++v)
            for (std::int64_t d = 0; d < D; ++d) {
              const std::int64_t to = (gather ? order[static_cast<std::size_t>(v)] : v) * D + d;
              want[to] =
                  dc_ref[v * D + d] + (corrected ? factor * added[v / b.v * D + d] : 0) + (accumulate ? out[to] : 0);
            }
          NamedArrays arrays = with_order({{"e", &e}, {"dz", &dz}, {"dc", &out}});
          if (k.dtype == f16) arrays.emplace_back("scale", &scale);
          if (corrected) arrays.emplace_back("added", &added);
          on_each_backend(grad_c(shape, b, out.dtype(), accumulate, corrected),
                          {.arrays = arrays, .lists = {{"kept", kept.ref()}, {"written", written.ref()}}},
                          [&] { CHECK(error(out, want).norm < (accumulate ? 4e-6 : tolerance(k.dtype))); });
        }
    }
}
