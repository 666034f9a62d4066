// What holds of the lists that a filtered backward makes of any tiles: each kept tile once, in the range of its column,
// in order along its row and its column, and rows in pieces.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"
#include "runtime/filter_space.h"
#include "tests/support/random_program.h"
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::kernels;
using namespace kerf::test;
using kerf::runtime::blocks_of;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

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
        CHECK(error(a, want.values()).norm < (a.dtype() == f32 ? 2e-6 : 8e-3));  // f32 sums, or m in bf16
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
  Array kept(i64, {1}), tiles(i64, {1}), mean_lost(f32, {1});
  run("count_kept", count_kept(block_n),
      {.arrays = {{"kept_count", &kept_count},
                  {"lost", &lost},
                  {"valid", &valid},
                  {"kept", &kept},
                  {"tiles", &tiles},
                  {"left_out", &mean_lost}}});
  CHECK(tiles[0] == static_cast<double>(B * ((N + block_n - 1) / block_n)));
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
    run("list_selected" + kind, list_selected(sides, block_n),
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
    // A side's tiles line by line, in a line across; behind them nothing is written.
    const auto check_side = [&](const Array& begins, const Array& in_order, std::int64_t lines, std::int64_t across,
                                const auto& at_line) {
      std::int64_t at = 0;
      for (std::int64_t line = 0; line < lines; ++line) {
        CHECK(begins[line] == static_cast<double>(at));
        for (std::int64_t i = 0; i < across; ++i) {
          const std::optional<TileAt> want = at_line(line, i);
          if (!want) continue;
          const TileAt t = tile(in_order[at++]);
          CHECK(t.row == want->row);
          CHECK(t.column == want->column);
        }
      }
      CHECK(begins[lines] == static_cast<double>(at));
      for (; at < K; ++at) CHECK(in_order[at] == -0x1p31);
    };
    const auto if_here = [&](std::int64_t b, std::int64_t r, bool in_list) {
      return b >= from && b < to && in_list ? std::optional(TileAt{r, b}) : std::nullopt;
    };
    check_side(row_begin, row_items, R, B, [&](std::int64_t r, std::int64_t b) { return if_here(b, r, in_row(b, r)); });
    check_side(column_begin, column_items, B, R,
               [&](std::int64_t b, std::int64_t r) { return if_here(b, r, in_column(b, r)); });

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
    std::vector<std::int64_t> length(static_cast<std::size_t>(pieces), 0);
    for (std::int64_t r = 0; r < R; ++r) {
      auto next = static_cast<std::int64_t>(row_begin[r]);
      const auto begin_of_row = static_cast<std::int64_t>(piece_begin[r]);
      for (auto i = begin_of_row; i < static_cast<std::int64_t>(piece_begin[r + 1]); ++i) {
        const auto piece = static_cast<std::int64_t>(piece_items[i]);
        REQUIRE(piece >= 0);
        REQUIRE(piece < pieces);
        CHECK(piece_row[piece] == static_cast<double>(r));
        CHECK(length[static_cast<std::size_t>(piece)] == 0);
        const auto end = static_cast<std::int64_t>(begin_of_piece[piece + 1]);
        length[static_cast<std::size_t>(piece)] = end - static_cast<std::int64_t>(begin_of_piece[piece]);
        for (auto j = static_cast<std::int64_t>(begin_of_piece[piece]); j < end; ++j, ++next) {
          CHECK(items_of_pieces[j] == row_items[next]);
          CHECK(item_piece[static_cast<std::int64_t>(items_of_pieces[j])] == static_cast<double>(piece));
        }
      }
      CHECK(next == static_cast<std::int64_t>(row_begin[r + 1]));
    }
    CHECK(std::is_sorted(length.rbegin(), length.rend()));  // the longest first
    if (pieces > 0) CHECK((length.front() <= longest && length.back() > 0));
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
    Array from(i64, {P});
    const double spread = 20 * random.uniform();
    for (std::int64_t n = 0; n < P; ++n) {
      rows.set(n, static_cast<double>(n < valid ? n : -1));
      from.set(n, static_cast<double>(n));
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
                    {"from", &from},
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
