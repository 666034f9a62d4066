// The programs that find rows, list tiles and reduce losses on a device, against plain loops.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::kernels;
using namespace kerf::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

void check_equal(const Array& out, const auto& want) {
  REQUIRE(out.size() == std::ssize(want));
  for (std::int64_t i = 0; i < out.size(); ++i) {
    CAPTURE(i);
    CHECK(out[i] == static_cast<double>(want[static_cast<std::size_t>(i)]));
  }
}

struct Labelling {
  LabelRule rule;
  std::int64_t B, T;
  std::vector<std::int64_t> cu_seqlens = {};
};

/// The two programs in a row, each on every backend, on what the one before it left.
void check_labelling(const Labelling& x) {
  const std::int64_t N = x.B * x.T, R = (N + label_block - 1) / label_block, P = R * label_block;
  Random random(3);
  Array target(x.rule.target, {x.B, x.T, 1}, 2);  // labels three apart
  std::vector<std::int64_t> values;
  for (std::int64_t n = 0; n < N; ++n) {
    std::int64_t y = random.integer(0, x.rule.vocabulary - 1);
    if (n % 5 == 2) y = x.rule.ignore_index;
    if (n % 97 == 11) y = n % 2 ? x.rule.vocabulary : -7;
    values.push_back(y);
    target.set(n, static_cast<double>(y));
  }
  Labels label_ref = reference_label_rows(x.rule, x.B, x.T, values, x.cu_seqlens);
  label_ref.resize(static_cast<std::size_t>(P), no_label);
  Rows rows_ref;
  Labels target_ref;
  reference_compact_labels(label_ref, rows_ref, target_ref);
  std::vector<std::int64_t> count_ref, outside_ref;
  std::int64_t valid_ref = 0, strays_ref = 0;
  for (std::int64_t r = 0; r < R; ++r) {
    const auto begin = label_ref.begin() + r * label_block, end = begin + label_block;
    count_ref.push_back(std::count_if(begin, end, [](std::int32_t y) { return y >= 0; }));
    outside_ref.push_back(std::count(begin, end, label_outside));
    valid_ref += count_ref.back();
    strays_ref += outside_ref.back();
  }

  Array cu_seqlens(x.rule.cu_seqlens, {std::ssize(x.cu_seqlens), 1}, 1);
  for (std::size_t i = 0; i < x.cu_seqlens.size(); ++i)
    cu_seqlens.set(static_cast<std::int64_t>(i), static_cast<double>(x.cu_seqlens[i]));
  Array label(i32, {R, label_block}), count(i64, {R}), outside(i64, {R}), valid(i64, {1}), strays(i64, {1});
  NamedArrays all = {{"target", &target}, {"label", &label}, {"count", &count}, {"outside", &outside}};
  if (x.rule.packed) all.emplace_back("cu_seqlens", &cu_seqlens);
  on_each_backend(label_rows(x.rule), {.arrays = all}, [&] {
    check_equal(label, label_ref);
    check_equal(count, count_ref);
    check_equal(outside, outside_ref);
  });
  Array rows(i64, {P}), labels(i32, {P});
  Array loss(f32, {N}), lse(f32, {N});
  for (bool losses : {false, true}) {
    NamedArrays compact = {{"label", &label},   {"count", &count}, {"outside", &outside}, {"valid", &valid},
                           {"strays", &strays}, {"rows", &rows},   {"target", &labels}};
    if (losses) compact.insert(compact.end(), {{"loss", &loss}, {"lse", &lse}});
    on_each_backend(compact_labels(losses), {.arrays = compact}, [&] {
      check_equal(rows, rows_ref);
      check_equal(labels, target_ref);
      CHECK(valid[0] == static_cast<double>(valid_ref));
      CHECK(strays[0] == static_cast<double>(strays_ref));
      for (std::int64_t n = 0; n < N && losses; ++n)
        for (const Array* a : {&loss, &lse})
          CHECK((label_ref[static_cast<std::size_t>(n)] == label_outside ? std::isnan((*a)[n]) : (*a)[n] == 0));
    });
  }
}

}  // namespace

TEST_CASE(
    "label_rows and compact_labels: rows with a label come in order, with their number, and the others lose nothing") {
  check_labelling({{.target = i64, .vocabulary = 40}, 1, 700});
  check_labelling({{.target = i32, .vocabulary = 40}, 1, 1});
  check_labelling({{.target = i32, .shift = 3, .ignore_index = -1, .vocabulary = 40}, 9, 57});
  check_labelling({{.target = i64, .shift = 80, .vocabulary = 40}, 9, 57});  // longer than a sequence
  check_labelling({{.target = i64, .ignore_index = (std::int64_t{1} << 40) + 5, .vocabulary = 1}, 2, 150});
  check_labelling({{.target = i64, .ignore_index = -(std::int64_t{1} << 40) - 5, .vocabulary = 40}, 300, 1});
  check_labelling({{.target = i64, .ignore_index = 0, .vocabulary = 40}, 3, 256});
}

TEST_CASE("label_rows: a packed row's label lies in its own sequence, empty ones included") {
  const std::vector<std::int64_t> ends = {0, 0, 1, 30, 30, 32, 97, 98, 99, 100, 256, 511, 600};
  for (DType target : {i32, i64})
    for (DType cu_seqlens : {i32, i64})
      check_labelling(
          {{.target = target, .packed = true, .cu_seqlens = cu_seqlens, .shift = 2, .vocabulary = 40}, 1, 600, ends});
  std::vector<std::int64_t> many;
  for (std::int64_t i = 0; i <= 100; ++i) many.push_back(6 * i);
  check_labelling({{.packed = true, .shift = 1, .vocabulary = 40}, 1, 600, many});
}

TEST_CASE("label_rows: an ignore_index that no double holds is told from its neighbours") {
  const std::int64_t ignore = (std::int64_t{1} << 60) + 1;
  std::vector<std::int64_t> target = {ignore, ignore - 1, 3};
  Array label(i32, {1, label_block}), count(i64, {1}), outside(i64, {1});
  const Program program = label_rows({.ignore_index = ignore, .vocabulary = 10});
  interpret(program, {.tensors = {{"target", TensorRef(target.data(), i64, {1, 3, 1})},
                                  {"label", label.ref()},
                                  {"count", count.ref()},
                                  {"outside", outside.ref()}}});
  CHECK(label[0] == no_label);
  CHECK(label[1] == label_outside);
  CHECK(label[2] == 3);
}

TEST_CASE("chunk_rows: rows with a label fill one chunk after the other") {
  Array valid(i64, {}), count(i64, {5});
  valid.set(0, 300);
  on_each_backend(chunk_rows(128), {.arrays = {{"valid", &valid}, {"count", &count}}}, [&] {
    check_equal(count, std::vector<int>{128, 128, 44, 0, 0});
  });
}

TEST_CASE("compact_rows and clear_rows: rows with a label are copied, the gradient of the others is zero") {
  for (DType dtype : {f32, bf16, f16, i64}) {
    const Shape shape{.vocabulary = 5, .hidden = 21, .dtype = dtype};
    Random random(5);
    Array e = dtype == i64 ? integers(random, dtype, {10, 21}, -999, 999) : normal(random, dtype, {10, 21}, 1, 3),
          rows(i64, {6}), compact(dtype, {6, 21}), label(i32, {10});
    const Rows list = {1, 4, 5, 9, -1, -1};
    for (std::int64_t i = 0; i < 10; ++i) label.set(i, i == 3 ? label_outside : no_label);
    for (std::int64_t i = 0; i < 6; ++i) {
      rows.set(i, static_cast<double>(list[static_cast<std::size_t>(i)]));
      if (i < 4) label.set(list[static_cast<std::size_t>(i)], 2);
    }
    on_each_backend(compact_rows(shape, 4, 8), {.arrays = {{"e", &e}, {"rows", &rows}, {"compact", &compact}}}, [&] {
      for (std::int64_t i = 0; i < 6; ++i)
        for (std::int64_t d = 0; d < 21; ++d)
          CHECK(compact[i * 21 + d] == (i < 4 ? e[list[static_cast<std::size_t>(i)] * 21 + d] : 0));
    });
    Array de(dtype, {10, 21}, 2);
    on_each_backend(clear_rows(shape, 4, 8), {.arrays = {{"label", &label}, {"de", &de}}}, [&] {
      for (std::int64_t t = 0; t < 10; ++t)
        for (std::int64_t d = 0; d < 21; ++d) {
          const double x = de[t * 21 + d];
          const bool untouched = dtype == i64 ? x == -0x1p63 : std::isnan(x);
          CHECK((label[t] < 0 ? x == 0 : untouched));
        }
    });
  }
}

TEST_CASE("sum_losses and finish_loss: blocks of rows, then their sums") {
  const std::int64_t N = 2500, Q = 3;
  Random random(6);
  Array loss(f32, {N});
  std::vector<double> sums(static_cast<std::size_t>(Q));
  for (std::int64_t n = 0; n < N; ++n) {
    loss.set(n, random.uniform() + 1);
    sums[static_cast<std::size_t>(n / loss_block)] += loss[n];
  }
  Array partial(f32, {Q}), valid(i64, {}), total(f32, {});
  on_each_backend(sum_losses(), {.arrays = {{"loss", &loss}, {"partial", &partial}}},
                  [&] { CHECK(error(partial, sums).worst_row < 1e-6); });
  for (double n : {2500.0, 0.0})
    for (bool mean : {false, true}) {
      valid.set(0, n);
      if (n == 0)
        for (std::int64_t q = 0; q < Q; ++q) partial.set(q, 0);
      NamedArrays all = {{"partial", &partial}, {"loss", &total}};
      if (mean) all.emplace_back("valid", &valid);
      double want = 0;
      for (double x : partial.values()) want += x;
      if (mean) want /= n;
      on_each_backend(finish_loss(mean), {.arrays = all}, [&] {
        CHECK((std::isnan(want) ? std::isnan(total[0]) : total[0] == doctest::Approx(want).epsilon(1e-6)));
      });
    }
}

TEST_CASE("upstream: the gradient of each row, or of all times the reduction's factor") {
  Array g(f32, {300}), grad(f32, {4, 100, 1}, 3), rows(i64, {300}), valid(i64, {}), one(f32, {});
  for (std::int64_t i = 0; i < 400; ++i) grad.set(i, static_cast<double>(i));
  for (std::int64_t i = 0; i < 300; ++i) rows.set(i, static_cast<double>(i + i / 5));
  valid.set(0, 300);
  one.set(0, -2.5);
  for (bool find_largest : {false, true}) {
    Array largest(f32, {4});
    NamedArrays all = {{"grad", &grad}, {"rows", &rows}, {"g", &g}};
    if (find_largest) all.emplace_back("largest", &largest);
    on_each_backend(upstream(Upstream::each, true, find_largest), {.arrays = all}, [&] {
      for (std::int64_t i = 0; i < 300; ++i) CHECK(g[i] == rows[i]);
      for (std::int64_t q = 0; q < 4 && find_largest; ++q)
        CHECK((q == 0 ? largest[q] == rows[255] : q == 1 ? largest[q] == rows[299] : std::isnan(largest[q])));
    });
  }
  const auto all = [&](double want) {
    return [&g, want] {
      for (std::int64_t i = 0; i < 300; ++i) CHECK(g[i] == static_cast<float>(want));
    };
  };
  on_each_backend(upstream(Upstream::mean, true, false), {.arrays = {{"grad", &one}, {"valid", &valid}, {"g", &g}}},
                  all(-2.5 / 300));
  on_each_backend(upstream(Upstream::mean, false, false), {.arrays = {{"valid", &valid}, {"g", &g}}}, all(1.0 / 300));
  on_each_backend(upstream(Upstream::sum, true, false), {.arrays = {{"grad", &one}, {"g", &g}}}, all(-2.5));
  on_each_backend(upstream(Upstream::sum, false, false), {.arrays = {{"g", &g}}}, all(1));
}

TEST_CASE("scale_upstream: the largest finite element becomes 2^14, and scale takes that out again") {
  for (double size : {1.0, 3e-7, 1e38, 1e-42, 0.0}) {
    CAPTURE(size);
    Array g(f32, {1500}), largest(f32, {9}), scale(f32, {1});  // the last three of no rows
    for (std::int64_t i = 0; i < g.size(); ++i) g.set(i, size * std::cos(static_cast<double>(i)));
    g.set(700, not_a_number);
    g.set(701, -inf);
    const std::vector<double> before = g.values();
    for (std::int64_t q = 0; q < 9; ++q) largest.set(q, q < 6 ? 0 : not_a_number);
    for (std::int64_t i = 0; i < g.size(); ++i)
      if (std::isfinite(g[i])) largest.set(i / 256, std::max(largest[i / 256], std::abs(g[i])));
    on_each_backend(scale_upstream(), {.arrays = {{"largest", &largest}, {"g", &g}, {"scale", &scale}}}, [&] {
      double most = 0;
      for (std::int64_t i = 0; i < g.size(); ++i) {
        if (i == 700) CHECK(std::isnan(g[i]));
        if (i == 701) CHECK(g[i] == -inf);
        if (i == 700 || i == 701) continue;
        most = std::max(most, std::abs(g[i]));
        const double want = before[static_cast<std::size_t>(i)];
        CHECK(std::abs(g[i] * scale[0] - want) <= 1e-6 * std::abs(want));
      }
      if (size > 1e-30) CHECK(most == doctest::Approx(16384).epsilon(1e-6));
      CHECK(std::isnormal(scale[0]));
    });
  }
}

TEST_CASE("list_tiles: every tile of the columns once, in bands of rows, and each row and column knows its own") {
  struct Size {
    std::int64_t rows, most, first, last, columns, band;
  };
  for (const Size s :
       {Size{7, 7, 0, 5, 5, 3}, {7, 10, 2, 5, 9, 24}, {1, 1, 0, 1, 1, 4}, {0, 3, 1, 4, 6, 2}, {30, 30, 3, 13, 13, 4}}) {
    CAPTURE(s.rows);
    const std::vector<TileAt> want = reference_list_tiles(s.rows, s.first, s.last, s.band);
    const std::int64_t K = s.most * (s.last - s.first), block = 16;
    Array row(i32, {K}), column(i32, {K}), row_items(i32, {K}), column_items(i32, {K}), row_begin(i32, {s.most + 1});
    Array column_begin(i32, {s.columns + 1}), count(i32, {1});
    on_each_backend(
        list_tiles(block, s.band),
        {.arrays = {{"row", &row},
                    {"column", &column},
                    {"row_items", &row_items},
                    {"column_items", &column_items},
                    {"row_begin", &row_begin},
                    {"column_begin", &column_begin},
                    {"count", &count}},
         .axes = {{"N", s.rows * block - (s.rows > 0 ? 5 : 0)},
                  {"I", std::max({K, s.most + 1, s.columns + 1})},
                  {"first", s.first},
                  {"last", s.last}}},
        [&] {
          REQUIRE(count[0] == static_cast<double>(want.size()));
          for (std::size_t k = 0; k < want.size(); ++k) {
            CHECK(row[static_cast<std::int64_t>(k)] == static_cast<double>(want[k].row));
            CHECK(column[static_cast<std::int64_t>(k)] == static_cast<double>(want[k].column));
          }
          const auto walk = [&](std::int64_t blocks, const Array& begin, const Array& items, auto at, auto next) {
            CHECK(begin[0] == 0);
            for (std::int64_t r = 0; r < blocks; ++r) {
              std::int64_t before = -1;
              for (auto i = static_cast<std::int64_t>(begin[r]); i < static_cast<std::int64_t>(begin[r + 1]); ++i) {
                const TileAt& tile = want.at(static_cast<std::size_t>(items[i]));
                CHECK(at(tile) == r);
                CHECK(next(tile) > before);
                before = next(tile);
              }
            }
            CHECK(begin[blocks] == static_cast<double>(want.size()));
          };
          const auto by_row = [](const TileAt& t) { return t.row; };
          const auto by_column = [](const TileAt& t) { return t.column; };
          walk(s.rows, row_begin, row_items, by_row, by_column);
          walk(s.columns, column_begin, column_items, by_column, by_row);
        });
  }
}

TEST_CASE("list_parts: the tiles of each part and row of blocks, in the order of their columns") {
  struct Size {
    std::int64_t rows, down, first, last, parts;
  };
  for (const Size s : {Size{7, 7, 0, 5, 3}, {3, 5, 4, 21, 4}, {0, 2, 1, 4, 2}, {2, 2, 3, 5, 16}}) {
    CAPTURE(s.parts);
    const std::int64_t block = 16, band = 3, K = s.down * (s.last - s.first), Q = s.parts * s.down + 1;
    const std::vector<TileAt> tiles = reference_list_tiles(s.rows, s.first, s.last, band);
    std::vector<std::int64_t> begin_ref = {0}, items_ref;
    for (std::int64_t part = 0; part < s.parts; ++part)
      for (std::int64_t row = 0; row < s.down; ++row) {
        for (std::int64_t column = s.first; column < s.last; ++column)
          for (std::size_t k = 0; k < tiles.size() && column % s.parts == part; ++k)
            if (tiles[k].row == row && tiles[k].column == column) items_ref.push_back(static_cast<std::int64_t>(k));
        begin_ref.push_back(std::ssize(items_ref));
      }
    Array item_row(i32, {K}), items(i32, {K}), begin(i32, {Q});
    on_each_backend(list_parts(block, band),
                    {.arrays = {{"item_row", &item_row}, {"items", &items}, {"begin", &begin}},
                     .axes = {{"N", s.rows * block},
                              {"I", std::max(K, Q)},
                              {"first", s.first},
                              {"last", s.last},
                              {"parts", s.parts},
                              {"down", s.down}}},
                    [&] {
                      check_equal(begin, begin_ref);
                      for (std::size_t k = 0; k < tiles.size(); ++k) {
                        const auto at = static_cast<std::int64_t>(k);
                        CHECK(items[at] == static_cast<double>(items_ref[k]));
                        CHECK(item_row[at] == static_cast<double>(tiles[k].column % s.parts * s.down + tiles[k].row));
                      }
                    });
  }
}

TEST_CASE("list_row_parts: the tiles of each part of the rows and column, in the order of their rows") {
  struct Size {
    std::int64_t rows, down, width, parts;
  };
  for (const Size s : {Size{7, 7, 5, 3}, {17, 20, 2, 4}, {0, 2, 3, 2}, {2, 9, 2, 16}, {1, 40, 4, 5}, {33, 33, 1, 16}}) {
    CAPTURE(s.rows);
    CAPTURE(s.parts);
    const std::int64_t block = 16, band = 3, K = s.down * s.width, Q = s.parts * s.width + 1, first = 4;
    const std::vector<TileAt> tiles = reference_list_tiles(s.rows, first, first + s.width, band);
    std::vector<std::int64_t> begin_ref = {0}, items_ref;
    for (std::int64_t part = 0; part < s.parts; ++part)
      for (std::int64_t column = first; column < first + s.width; ++column) {
        for (std::int64_t row = part; row < s.rows; row += s.parts)
          for (std::size_t k = 0; k < tiles.size(); ++k)
            if (tiles[k].row == row && tiles[k].column == column) items_ref.push_back(static_cast<std::int64_t>(k));
        begin_ref.push_back(std::ssize(items_ref));
      }
    Array item_column(i32, {K}), items(i32, {K}), begin(i32, {Q});
    on_each_backend(
        list_row_parts(block, band),
        {.arrays = {{"item_column", &item_column}, {"items", &items}, {"begin", &begin}},
         .axes = {{"N", s.rows * block - (s.rows > 0 ? 7 : 0)},
                  {"I", std::max(K, Q)},
                  {"width", s.width},
                  {"parts", s.parts}}},
        [&] {
          check_equal(begin, begin_ref);
          for (std::size_t k = 0; k < tiles.size(); ++k) {
            const auto at = static_cast<std::int64_t>(k);
            CHECK(items[at] == static_cast<double>(items_ref[k]));
            CHECK(item_column[at] == static_cast<double>(tiles[k].row % s.parts * s.width + tiles[k].column - first));
          }
        });
  }
}

TEST_CASE("sum_dc: parts in order give dc, or are added to it") {
  for (DType dtype : {f32, bf16, f16})
    for (DType out : {dtype, f32})
      for (bool accumulate : {false, true}) {
        CAPTURE(name_of(dtype));
        CAPTURE(name_of(out));
        CAPTURE(accumulate);
        Random random(8);
        Array sum = normal(random, f32, {11, 7, 21}), dc = normal(random, out, {7, 21}, 1, 3), scale(f32, {});
        scale.set(0, 0.5);
        std::vector<double> want(7 * 21);
        for (std::int64_t i = 0; i < 11 * 7 * 21; ++i)
          want[static_cast<std::size_t>(i % (7 * 21))] += (dtype == f16 ? 0.5 : 1) * sum[i];
        for (std::int64_t i = 0; i < dc.size() && accumulate; ++i) want[static_cast<std::size_t>(i)] += dc[i];
        NamedArrays all = {{"sum", &sum}, {"dc", &dc}};
        if (dtype == f16) all.emplace_back("scale", &scale);
        const Program program = sum_dc({.vocabulary = 5, .hidden = 21, .dtype = dtype}, out, accumulate, 4, 2, 8);
        on_each_backend(program, {.arrays = all}, [&] {
          CHECK(error(dc, want).norm < (out == f32 ? 1e-6 : out == f16 ? 1e-3 : 4e-3));
        });
      }
}

TEST_CASE("sum_parts: parts in order give de of the rows with a label") {
  for (DType dtype : {f32, bf16, f16}) {
    Random random(8);
    Array sum = normal(random, f32, {3, 6, 21}), rows(i64, {6}), de(dtype, {9, 21}, 3), scale(f32, {});
    scale.set(0, 0.5);
    std::vector<double> want(9 * 21);
    for (std::int64_t i = 0; i < 6; ++i) {
      rows.set(i, i < 4 ? static_cast<double>(2 * i + 1) : -1);
      for (std::int64_t j = 0; j < 3 * 21 && i < 4; ++j)
        want[static_cast<std::size_t>((2 * i + 1) * 21 + j % 21)] +=
            (dtype == f16 ? 0.5 : 1) * sum[(j / 21 * 6 + i) * 21 + j % 21];
    }
    NamedArrays all = {{"sum", &sum}, {"rows", &rows}, {"de", &de}};
    if (dtype == f16) all.emplace_back("scale", &scale);
    on_each_backend(sum_parts({.vocabulary = 5, .hidden = 21, .dtype = dtype}, 4, 8), {.arrays = all}, [&] {
      for (std::int64_t i = 0; i < de.size(); ++i)
        if (i / 21 % 2 == 0 || i / 21 > 7) {
          CHECK(std::isnan(de[i]));
          de.set(i, 0);
        }
      CHECK(error(de, want).norm < (dtype == f32 ? 1e-6 : dtype == f16 ? 1e-3 : 4e-3));
    });
  }
}
