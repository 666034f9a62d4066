// The programs of a filtered backward against plain loops, on sizes that no block divides; and what holds of the lists
// that they make of any tiles.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"
#include "runtime/filter_space.h"
#include "runtime/tile_lists.h"
#include "tests/support/random_program.h"
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::kernels;
using namespace kerf::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr DType dtypes[] = {f32, bf16, f16};

/// Rounding of the dtype that a result is stored in, and of f32 sums.
double tolerance(DType dtype) { return dtype == f32 ? 2e-6 : dtype == f16 ? 1e-3 : 8e-3; }
std::int64_t blocks_of(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

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
        Array block_lse(f32, {B, P}), lse = normal(random, f32, {T}), rows(i64, {P}), target(i32, {P});
        Array g = normal(random, f32, {P}), keep(i32, {B, R}), left_out(f32, {B, R}), m(dtype, {B, P});
        const std::int64_t valid = 70;
        Rows row_list;
        Labels labels;
        for (std::int64_t n = 0; n < P; ++n) {
          row_list.push_back(n < valid ? n + n / 7 : -1);
          labels.push_back(n < valid ? static_cast<std::int32_t>(random.integer(0, 74)) : -1);
          rows.set(n, static_cast<double>(row_list.back()));
          target.set(n, labels.back());
          if (n % 9 == 4 || (n >= 32 && n < 48)) g.set(n, n % 2 ? 0.0 : -0.0);  // a whole block of rows
          for (std::int64_t v = 0; v < B; ++v) {
            double x = (n < valid ? lse[row_list.back()] : 0) - 12 * random.uniform();
            if (special && random.integer(0, 60) == 0)
              x = random.integer(0, 1) ? -inf : random.integer(0, 1) ? inf : not_a_number;
            block_lse.set(v * P + n, n < valid ? x : not_a_number);
          }
        }
        if (special) {  // each in a block of rows of its own
          lse.set(row_list[3], not_a_number);
          lse.set(row_list[20], -inf);
          g.set(50, not_a_number), g.set(66, inf);
        }
        for (std::int64_t n = valid; n < P; ++n) g.set(n, not_a_number);  // nobody wrote those
        const KeepRule rule{.eps = 0x1p-9, .correct = correct};
        const KeptTiles want =
            reference_keep_tiles(s, b, rule, block_lse.values(), lse.values(), row_list, labels, g.values());
        std::int64_t kept = std::count(want.keep.begin(), want.keep.end(), true);
        CHECK(kept > 0);
        CHECK(kept < B * R);
        NamedArrays all = {{"block_lse", &block_lse}, {"lse", &lse}, {"rows", &rows},
                           {"target", &target},       {"g", &g},     {"keep", &keep},
                           {"left_out", &left_out}};
        if (correct) all.emplace_back("m", &m);
        on_each_backend(keep_tiles(s, b, rule), {.arrays = all}, [&] {
          for (std::int64_t i = 0; i < B * R; ++i) CHECK(keep[i] == (want.keep[static_cast<std::size_t>(i)] ? 1 : 0));
          CHECK(error(left_out, want.left_out).norm < 1e-5);
          if (correct) CHECK(error(m, want.m).norm < std::max(1e-5, tolerance(dtype)));
          for (std::int64_t i = 0; i < B; ++i) CHECK(keep[i * R + 2] == 0);
        });
      }
}

TEST_CASE("keep_tiles: the least gradients, the threshold itself and 1") {
  const Shape s{.vocabulary = 8, .hidden = 4, .dtype = f32, .compact = true};
  const Blocks b{.n = 1, .v = 4, .d = 4, .split = 1};
  const std::int64_t P = 6;
  Array block_lse(f32, {2, P}), lse(f32, {P}), rows(i64, {P}), target(i32, {P}), g(f32, {P});
  Array keep(i32, {2, P}), left_out(f32, {2, P}), m(f32, {2, P});
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

namespace {

/// Runs programs of one kind after each other: the first on every backend, each on the CPU; all agree with the
/// interpreter.
class Runs {
 public:
  void operator()(const std::string& kind, const Program& program, const Launch& launch) {
    if (!kernels_.contains(kind)) {
      on_each_backend(program, launch, [] {});
      kernels_.emplace(kind, compile(program));
    }
    std::vector<Array> said;
    const auto outputs = [&](auto&& f) {
      for (const ir::TensorInfo& t : program.ir().tensors)
        for (const auto& [name, array] : launch.arrays)
          if (name == t.name && t.access == ir::Access::output) f(*array);
    };
    outputs([](Array& a) { a.poison(); });
    interpret(program, launch.args());
    outputs([&](Array& a) { said.push_back(a), a.poison(); });
    kernels_.at(kind).launch(launch.args(), pool_);
    std::size_t i = 0;
    outputs([&](Array& a) {
      const Array& want = said[i++];
      if (is_float(a.dtype()))
        CHECK(error(a, want.values()).norm < tolerance(a.dtype()));
      else
        CHECK(a.bytes() == want.bytes());
      CHECK(a.surroundings_intact());
    });
  }

 private:
  std::map<std::string, Kernel> kernels_;
  ThreadPool pool_{2};
};

/// Tiles, and the sides that are to leave out those not kept.
struct Tiles {
  std::int64_t B, R, N;
  std::vector<bool> keep;  // [B, R]
  Sides sides;
  bool kept(std::int64_t b, std::int64_t r) const { return keep[static_cast<std::size_t>(b * R + r)]; }
};

constexpr std::int64_t block_n = 16;

/// From the bitmap to the lists of every range of this capacity; checks what must hold of them.
void check_lists(const Tiles& x, std::int64_t capacity, std::int64_t most_pieces, Runs& run) {
  const auto [B, R, N, keep_bits, sides] = x;
  const std::int64_t Q = B + 1, rows = blocks_of(N, block_n);
  const runtime::FilterRanges ranges{
      .rows = R, .columns = B, .all_columns = B, .capacity = capacity, .most_pieces = most_pieces};
  const std::string kind = std::string(sides.e ? "e" : "-") + (sides.c ? "c" : "-");
  const auto is_item = [&](std::int64_t b, std::int64_t r) { return sides.e && sides.c ? x.kept(b, r) : r < rows; };
  const auto in_row = [&](std::int64_t b, std::int64_t r) { return sides.e ? x.kept(b, r) : r < rows; };
  const auto in_column = [&](std::int64_t b, std::int64_t r) { return sides.c ? x.kept(b, r) : r < rows; };

  Array keep(i32, {B, R}), left_out(f32, {B, R}), item_rank(i32, {B, R}), column_rank(i32, {B, R}),
      row_rank(i32, {Q, R});
  Array item_count(i64, {B}), column_count(i64, {B}), kept_count(i64, {B}), lost(f32, {B});
  Array item_begin(i64, {Q}), begin(i64, {Q}), valid(i64, {});
  valid.set(0, static_cast<double>(N));
  std::int64_t kept_in_all = 0;
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t r = 0; r < R; ++r) {
      keep.set(b * R + r, x.kept(b, r) ? 1 : 0);
      left_out.set(b * R + r, x.kept(b, r) ? 0 : 0.25 * static_cast<double>((b + r) % 4));  // sums are exact
      kept_in_all += x.kept(b, r);
    }
  run("rank_columns" + kind, rank_columns(sides, block_n),
      {.arrays = {{"keep", &keep},
                  {"left_out", &left_out},
                  {"item_rank", &item_rank},
                  {"item_count", &item_count},
                  {"column_rank", &column_rank},
                  {"column_count", &column_count},
                  {"kept_count", &kept_count},
                  {"lost", &lost}},
       .axes = {{"N", N}}});
  run("rank_rows" + kind, rank_rows(sides, block_n),
      {.arrays = {{"keep", &keep}, {"row_rank", &row_rank}}, .axes = {{"N", N}}});
  run("begin_columns", begin_columns(), {.arrays = {{"count", &item_count}, {"begin", &item_begin}}});
  run("begin_columns", begin_columns(), {.arrays = {{"count", &column_count}, {"begin", &begin}}});
  double lost_in_all = 0;
  for (std::int64_t b = 0; b < B; ++b) {
    std::int64_t items = 0, column = 0, kept = 0;
    double mass = 0;
    for (std::int64_t r = 0; r < R; ++r) {
      CHECK(item_rank[b * R + r] == static_cast<double>(items));
      CHECK(column_rank[b * R + r] == static_cast<double>(column));
      items += is_item(b, r), column += in_column(b, r), kept += x.kept(b, r), mass += left_out[b * R + r];
    }
    CHECK(item_count[b] == static_cast<double>(items));
    CHECK(column_count[b] == static_cast<double>(column));
    CHECK(kept_count[b] == static_cast<double>(kept));
    CHECK(lost[b] == mass);
    CHECK(item_begin[b + 1] - item_begin[b] == static_cast<double>(items));
    CHECK(begin[b + 1] - begin[b] == static_cast<double>(column));
    lost_in_all += mass;
  }
  CHECK(item_begin[0] == 0);
  CHECK(begin[0] == 0);
  for (std::int64_t r = 0; r < R; ++r) {
    std::int64_t left = 0;
    for (std::int64_t b = 0; b < Q; ++b) {
      CHECK(row_rank[b * R + r] == static_cast<double>(left));
      if (b < B) left += in_row(b, r);
    }
  }
  Array kept(i64, {1}), mean_lost(f32, {1});
  run("count_kept", count_kept(),
      {.arrays = {{"kept_count", &kept_count},
                  {"lost", &lost},
                  {"valid", &valid},
                  {"kept", &kept},
                  {"left_out", &mean_lost}}});
  CHECK(kept[0] == static_cast<double>(kept_in_all));
  CHECK(mean_lost[0] == doctest::Approx(lost_in_all / static_cast<double>(std::max<std::int64_t>(1, N))).epsilon(1e-6));

  const std::int64_t count = ranges.count();
  Array first(i64, {count + 1}), range_rows(i64, {count});
  run("cut_ranges", cut_ranges(),
      {.arrays = {{"begin", &item_begin}, {"valid", &valid}, {"first", &first}, {"range_rows", &range_rows}},
       .axes = {{"quota", ranges.quota()}}});
  CHECK(first[0] == 0);
  CHECK(first[count] == static_cast<double>(B));

  const std::int64_t K = capacity, S = ranges.pieces() + 1;
  Array row(i32, {K}), column(i32, {K}), row_items(i32, {K}), column_items(i32, {K}), row_begin(i32, {R + 1});
  Array column_begin(i32, {Q}), list_count(i32, {1}), piece_begin(i32, {R + 1}), begin_of_piece(i32, {S}),
      piece_rows(i64, {1}), piece_count(i32, {1}), piece_items(i32, {S}), piece_row(i32, {S}),
      start(i32, {std::max<std::int64_t>(1, most_pieces), R}), items_of_pieces(i32, {K}), item_piece(i32, {K});
  std::vector<int> seen(static_cast<std::size_t>(B * R), 0);
  for (std::int64_t range = 0; range < count; ++range) {
    CAPTURE(range);
    const auto from = static_cast<std::int64_t>(first[range]), to = static_cast<std::int64_t>(first[range + 1]);
    REQUIRE(from <= to);
    const std::vector<std::pair<std::string, std::int64_t>> columns = {{"first", from}, {"last", to}};
    run("begin_rows", begin_rows(), {.arrays = {{"row_rank", &row_rank}, {"row_begin", &row_begin}}, .axes = columns});
    run("begin_list", begin_list(),
        {.arrays =
             {{"item_begin", &item_begin}, {"begin", &begin}, {"column_begin", &column_begin}, {"count", &list_count}},
         .axes = columns});
    const auto items = static_cast<std::int64_t>(list_count[0]);
    REQUIRE(items <= K);
    CHECK(range_rows[range] == static_cast<double>(items > 0 ? N : 0));
    auto axes = columns;
    axes.emplace_back("N", N);
    run("list_kept" + kind, list_kept(sides, block_n),
        {.arrays = {{"keep", &keep},
                    {"row_begin", &row_begin},
                    {"item_rank", &item_rank},
                    {"item_begin", &item_begin},
                    {"column_rank", &column_rank},
                    {"begin", &begin},
                    {"row_rank", &row_rank},
                    {"row", &row},
                    {"column", &column},
                    {"row_items", &row_items},
                    {"column_items", &column_items},
                    {"item_piece", &item_piece}},
         .axes = axes});
    // Items by column, in a column by row; behind them nothing is written.
    std::int64_t k = 0;
    for (std::int64_t b = from; b < to; ++b)
      for (std::int64_t r = 0; r < R; ++r) {
        if (!is_item(b, r)) continue;
        REQUIRE(k < items);
        CHECK(row[k] == static_cast<double>(r));
        CHECK(column[k] == static_cast<double>(b));
        seen[static_cast<std::size_t>(b * R + r)] += 1;
        ++k;
      }
    CHECK(k == items);
    for (; k < K; ++k) CHECK(row[k] == -0x1p31);
    const auto tile = [&](double item) {
      REQUIRE(item >= 0);
      REQUIRE(item < static_cast<double>(items));
      const auto i = static_cast<std::int64_t>(item);
      return TileAt{static_cast<std::int64_t>(row[i]), static_cast<std::int64_t>(column[i])};
    };
    std::int64_t at = 0;
    for (std::int64_t r = 0; r < R; ++r) {
      CHECK(row_begin[r] == static_cast<double>(at));
      for (std::int64_t b = from; b < to; ++b) {
        if (!in_row(b, r)) continue;
        const TileAt t = tile(row_items[at++]);
        CHECK(t.row == r);
        CHECK(t.column == b);
      }
    }
    CHECK(row_begin[R] == static_cast<double>(at));
    for (; at < K; ++at) CHECK(row_items[at] == -0x1p31);
    at = 0;
    for (std::int64_t b = 0; b < B; ++b) {
      CHECK(column_begin[b] == static_cast<double>(at));
      for (std::int64_t r = 0; r < R && b >= from && b < to; ++r) {
        if (!in_column(b, r)) continue;
        const TileAt t = tile(column_items[at++]);
        CHECK(t.row == r);
        CHECK(t.column == b);
      }
    }
    CHECK(column_begin[B] == static_cast<double>(at));
    for (; at < K; ++at) CHECK(column_items[at] == -0x1p31);

    if (most_pieces == 0) continue;
    run("cut_rows", cut_rows(block_n),
        {.arrays = {{"row_begin", &row_begin},
                    {"start", &start},
                    {"begin", &begin_of_piece},
                    {"piece_begin", &piece_begin},
                    {"piece_items", &piece_items},
                    {"piece_row", &piece_row},
                    {"count", &piece_count},
                    {"rows", &piece_rows}},
         .axes = {{"R2", R}}});
    run("place_items", place_items(),
        {.arrays = {{"row_begin", &row_begin},
                    {"row_items", &row_items},
                    {"row", &row},
                    {"start", &start},
                    {"piece_begin", &piece_begin},
                    {"piece_items", &piece_items},
                    {"items", &items_of_pieces},
                    {"item_piece", &item_piece}}});
    const auto pieces = static_cast<std::int64_t>(piece_begin[R]);
    const auto all = static_cast<std::int64_t>(row_begin[R]),
               longest = std::max<std::int64_t>(1, blocks_of(all, most_pieces));
    CHECK(pieces <= most_pieces + R);
    CHECK(piece_count[0] == static_cast<double>(pieces));
    CHECK(piece_rows[0] == static_cast<double>(pieces * block_n));
    CHECK(piece_begin[0] == 0);
    CHECK(begin_of_piece[pieces] == static_cast<double>(all));
    std::vector<std::int64_t> turn(static_cast<std::size_t>(pieces), -1);  // the how manieth of its row a piece is
    for (std::int64_t r = 0; r < R; ++r) {
      auto next = static_cast<std::int64_t>(row_begin[r]);
      const auto begin_of_row = static_cast<std::int64_t>(piece_begin[r]);
      for (auto i = begin_of_row; i < static_cast<std::int64_t>(piece_begin[r + 1]); ++i) {
        const auto piece = static_cast<std::int64_t>(piece_items[i]);
        REQUIRE(piece >= 0);
        REQUIRE(piece < pieces);
        CHECK(piece_row[piece] == static_cast<double>(r));
        CHECK(turn[static_cast<std::size_t>(piece)] == -1);
        turn[static_cast<std::size_t>(piece)] = i - begin_of_row;
        const auto end = static_cast<std::int64_t>(begin_of_piece[piece + 1]);
        CHECK(end - static_cast<std::int64_t>(begin_of_piece[piece]) <= longest);
        for (auto j = static_cast<std::int64_t>(begin_of_piece[piece]); j < end; ++j, ++next) {
          CHECK(items_of_pieces[j] == row_items[next]);
          CHECK(item_piece[static_cast<std::int64_t>(items_of_pieces[j])] == static_cast<double>(piece));
        }
      }
      CHECK(next == static_cast<std::int64_t>(row_begin[r + 1]));
    }
    CHECK(std::is_sorted(turn.begin(), turn.end()));  // first pieces of all rows before second ones
  }
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t r = 0; r < R; ++r) CHECK(seen[static_cast<std::size_t>(b * R + r)] == is_item(b, r));
}

}  // namespace

TEST_CASE("lists of kept tiles: each once, in the range of its column, in order along its row and its column") {
  Runs run;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    Tiles x{.B = random.integer(1, seed % 10 == 3 ? 300 : 40),
            .R = random.integer(1, seed % 10 == 4 ? 70 : 12),
            .N = 0,
            .keep = {},
            .sides = {}};
    x.N = random.integer(0, x.R * block_n);
    x.sides = {.e = seed % 4 != 1, .c = seed % 4 != 2};
    const std::int64_t rows = blocks_of(x.N, block_n);
    const double share = seed % 7 == 0 ? 0 : seed % 7 == 1 ? 1 : random.uniform();
    const std::int64_t empty_column = random.integer(0, x.B - 1), full_row = random.integer(0, x.R - 1);
    const std::int64_t empty_row = random.integer(0, x.R - 1);
    for (std::int64_t b = 0; b < x.B; ++b)
      for (std::int64_t r = 0; r < x.R; ++r) {
        bool keep = random.uniform() < share;
        if (seed % 3 == 0 && b == empty_column) keep = false;
        if (seed % 3 == 1 && r == full_row) keep = true;
        if (seed % 3 == 2 && r == empty_row) keep = false;
        x.keep.push_back(keep && r < rows);
      }
    const std::int64_t all = x.B * x.R, least = std::min(2 * x.R, all);
    const std::int64_t capacity = seed % 5 == 0 ? least : seed % 5 == 1 ? all : random.integer(least, all);
    check_lists(x, capacity, seed % 2 ? random.integer(1, 2 * x.R) : 0, run);
  }
}

TEST_CASE("masses to lists: every row's target and what is not finite is kept, rows without gradient ask for nothing") {
  Runs run;
  const Blocks b{.n = block_n, .v = 4, .d = 8, .split = 1};
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    Random random(100 + seed);
    const std::int64_t B = 19, V = 75, P = 96, R = P / block_n, valid = random.integer(0, P);
    const Shape s{.vocabulary = V, .hidden = 8, .dtype = bf16, .compact = true};
    Array block_lse(f32, {B, P}), lse(f32, {P}), rows(i64, {P}), target(i32, {P}), g(f32, {P});
    Array keep(i32, {B, R}), left_out(f32, {B, R}), m(bf16, {B, P});
    const double spread = 20 * random.uniform();
    for (std::int64_t n = 0; n < P; ++n) {
      rows.set(n, static_cast<double>(n < valid ? n : -1));
      target.set(n, static_cast<double>(n < valid ? random.integer(0, V - 1) : -1));
      lse.set(n, 10 * random.normal());
      g.set(n, seed % 3 == 0 || random.integer(0, 3) == 0 ? 0 : random.normal());
      for (std::int64_t v = 0; v < B; ++v) {
        const std::int64_t kind = random.integer(0, 400);
        block_lse.set(v * P + n, kind == 0   ? not_a_number
                                 : kind == 1 ? inf
                                 : kind < 9  ? -inf
                                             : lse[n] - spread * random.uniform());
      }
    }
    const KeepRule rule{.eps = 0x1p-12};
    run("keep_tiles", keep_tiles(s, b, rule),
        {.arrays = {{"block_lse", &block_lse},
                    {"lse", &lse},
                    {"rows", &rows},
                    {"target", &target},
                    {"g", &g},
                    {"keep", &keep},
                    {"left_out", &left_out},
                    {"m", &m}}});
    Tiles x{.B = B, .R = R, .N = valid, .keep = {}, .sides = {}};
    for (std::int64_t v = 0; v < B; ++v)
      for (std::int64_t r = 0; r < R; ++r) {
        const bool kept = keep[v * R + r] == 1;
        x.keep.push_back(kept);
        bool asked = false, must = false;
        for (std::int64_t n = r * block_n; n < std::min(valid, (r + 1) * block_n); ++n) {
          if (g[n] == 0) continue;
          asked = true;
          const double at = block_lse[v * P + n];
          must = must || std::isnan(at) || at == inf || static_cast<std::int64_t>(target[n]) / 4 == v;
        }
        if (must) CHECK(kept);
        if (!asked) CHECK_FALSE(kept);
        for (std::int64_t n = r * block_n; n < (r + 1) * block_n; ++n)
          if (kept || n >= valid || g[n] == 0) CHECK(m[v * P + n] == 0);
        CHECK(std::isfinite(left_out[v * R + r]));
      }
    check_lists(x, random.integer(2 * R, B * R), random.integer(0, 9), run);
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
      const Doubles dz_ref =
          reference_grad_tiles(shape, b, e.values(), c_rows, row_list, labels, lse.values(), g.values(), at);
      const auto with_order = [&](NamedArrays arrays) {
        if (gather) arrays.emplace_back("order", &order_in);
        return arrays;
      };
      on_each_backend(
          grad_tiles(shape, logits),
          {.arrays = with_order(
               {{"e", &e}, {"c", &c}, {"rows", &rows}, {"target", &target}, {"lse", &lse}, {"g", &g}, {"dz", &dz}}),
           .lists = {{"kept", kept.ref()}}},
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
