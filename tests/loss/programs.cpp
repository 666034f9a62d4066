// Each program of the loss against its plain loops, interpreted and compiled, on shapes that no block divides.
#include "tests/support/run.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"
#include "runtime/tile_lists.h"

using namespace kerf;
using namespace kerf::kernels;
using namespace kerf::test;

namespace {

/// Sizes and blocks; N of T rows are valid. `logits_d`: blocks of D where logits are made.
struct Setup {
  std::int64_t T, N, V, D;
  Blocks blocks;
  std::int64_t logits_d;
  std::vector<DType> dtypes;
  bool compact = false;                      // e holds the valid rows alone
  std::int64_t row_pad = 3, column_pad = 5;  // elements behind each row of e and c
};
const Setup setups[] = {
    {41, 37, 75, 21, {.n = 16, .v = 32, .d = 16, .split = 2}, 16, {f32, bf16, f16}},
    // A GPU's tensor cores read e and c in boxes.
    {154, 150, 300, 136, {.n = 128, .v = 256, .d = 128, .split = 1}, 64, {bf16, f16}, true, 8, 16},
    {74, 70, 200, 72, {.n = 64, .v = 64, .d = 64, .split = 2}, 64, {bf16}, true, 8, 16},
    // The same blocks where it cannot: rows of c are not 16 bytes apart.
    {74, 70, 200, 71, {.n = 64, .v = 64, .d = 64, .split = 2}, 64, {f16}, true, 1, 1},
};

struct Data {
  std::int64_t T, N, V, D;
  Shape shape;
  Array e, c, rows{i64, {N}}, target;
  Rows row_list;
  Labels label_list;

  Data(const Setup& s, DType dtype)
      : T(s.T), N(s.N), V(s.V), D(s.D), shape{V, D, dtype, s.compact}, e(f32, {1}), c(f32, {1}), target(f32, {1}) {
    Random random(7 + static_cast<std::uint64_t>(dtype));
    e = normal(random, dtype, {s.compact ? N : T, D}, 1, s.row_pad);
    c = normal(random, dtype, {V, D}, 4 / std::sqrt(static_cast<double>(D)), s.column_pad);
    target = integers(random, i32, {N}, 0, static_cast<double>(V - 1));
    for (std::int64_t n = 0; n < N; ++n) {
      row_list.push_back(n + (n >= 5) + (n >= 20) + 2 * (n >= 30));
      rows.set(n, static_cast<double>(row_list.back()));
      label_list.push_back(static_cast<std::int32_t>(target[n]));
    }
  }
};

/// Rounding of the dtype that a result is stored in, and of f32 sums.
double tolerance(DType dtype) { return dtype == f32 ? 2e-6 : dtype == f16 ? 1e-3 : 8e-3; }

struct Lists {
  runtime::Rectangle area;
  std::vector<std::byte> memory;
  TileListRef ref;
  explicit Lists(runtime::Rectangle r) : area(r), memory(list_bytes(r)), ref(fill_by_column(r, memory.data())) {}
  std::vector<TileAt> at() const {
    std::vector<TileAt> tiles;
    for (std::int64_t k = 0; k < ref.count; ++k) tiles.push_back({ref.row[k], ref.column[k]});
    return tiles;
  }
};
void for_each_setup(const std::function<void(const Setup&, DType)>& test) {
  for (const Setup& s : setups)
    for (DType dtype : s.dtypes) {
      CAPTURE(s.N);
      CAPTURE(s.D);
      CAPTURE(name_of(dtype));
      test(s, dtype);
    }
}

std::int64_t blocks_of(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

}  // namespace

TEST_CASE("lse_forward and combine: parts of the vocabulary give lse and loss of the valid rows") {
  for_each_setup([](const Setup& setup, DType dtype) {
    Data x(setup, dtype);
    const Blocks& blocks = setup.blocks;
    Blocks logits = blocks;
    logits.d = setup.logits_d;
    const auto [T, N, V, D] = std::tuple(setup.T, setup.N, setup.V, setup.D);
    const Parts parts = reference_lse_forward(x.shape, logits, x.e.values(), x.c.values(), x.row_list, x.label_list);
    const std::int64_t S = std::ssize(parts.max) / N;
    CHECK(S > 1);
    Array part_max(f32, {S, N}), part_sum(f32, {S, N}), part_target(f32, {S, N});
    NamedArrays inputs = {{"e", &x.e}, {"c", &x.c}, {"target", &x.target}};
    if (!setup.compact) inputs.emplace_back("rows", &x.rows);
    NamedArrays all = inputs;
    all.insert(all.end(), {{"part_max", &part_max}, {"part_sum", &part_sum}, {"part_target", &part_target}});
    on_each_backend(lse_forward(x.shape, logits), {.arrays = all}, [&] {
      CHECK(error(part_max, parts.max).worst_row < 1e-6);
      CHECK(error(part_sum, parts.sum).worst_row < 1e-6);
      CHECK(error(part_target, parts.target).worst_row < 1e-6);
    });

    Doubles lse(T, 7), loss(T, 7);
    reference_combine(parts, x.row_list, lse, loss);
    Array out_lse(f32, {T}), out_loss(f32, {T});
    on_each_backend(combine(blocks.n, 1),
                    {.arrays = {{"part_max", &part_max},
                                {"part_sum", &part_sum},
                                {"part_target", &part_target},
                                {"rows", &x.rows},
                                {"lse", &out_lse},
                                {"loss", &out_loss}}},
                    [&] {
                      std::int64_t unwritten = 0;
                      for (std::int64_t t = 0; t < T; ++t) {
                        if (lse[static_cast<std::size_t>(t)] == 7) {
                          ++unwritten;
                          CHECK(std::isnan(out_lse[t]));
                          CHECK(std::isnan(out_loss[t]));
                          continue;
                        }
                        CHECK(out_lse[t] == doctest::Approx(lse[static_cast<std::size_t>(t)]).epsilon(1e-6));
                        CHECK(out_loss[t] == doctest::Approx(loss[static_cast<std::size_t>(t)]).epsilon(2e-6));
                      }
                      CHECK(unwritten == T - N);
                    });
  });
}

TEST_CASE("lse_tiles and dz_of_stash: what the forward keeps of a list of tiles becomes dz in place") {
  for_each_setup([](const Setup& setup, DType dtype) {
    Data x(setup, dtype);
    const Blocks& blocks = setup.blocks;
    Blocks logits = blocks, single = blocks;
    logits.d = setup.logits_d, single.split = 1;
    const auto [T, N, V, D] = std::tuple(setup.T, setup.N, setup.V, setup.D);
    const Parts parts = reference_lse_forward(x.shape, single, x.e.values(), x.c.values(), x.row_list, x.label_list);
    const std::int64_t S = blocks_of(V, blocks.v), rows = blocks_of(N, blocks.n);
    for (bool stashes : {false, true}) {
      Lists kept({.rows = rows, .columns = S, .begin = stashes ? 0 : 1, .end = S});
      Array part_max(f32, {S, N}), part_sum(f32, {S, N}), part_target(f32, {S, N});
      Array stash(dtype, {kept.ref.count * blocks.v * blocks.n});
      NamedArrays all = {{"e", &x.e},
                         {"c", &x.c},
                         {"target", &x.target},
                         {"part_max", &part_max},
                         {"part_sum", &part_sum},
                         {"part_target", &part_target}};
      if (!setup.compact) all.emplace_back("rows", &x.rows);
      if (stashes) all.emplace_back("stash", &stash);
      const Doubles stash_ref =
          reference_stash(x.shape, blocks, x.e.values(), x.c.values(), x.row_list, parts, kept.at());
      on_each_backend(lse_tiles(x.shape, logits, stashes), {.arrays = all, .lists = {{"kept", kept.ref}}}, [&] {
        for (std::int64_t i = 0; i < S * N; ++i) {
          const auto at = static_cast<std::size_t>(i);
          if (i < kept.area.begin * N) {
            CHECK(std::isnan(part_max[i]));
            continue;
          }
          CHECK(part_max[i] == doctest::Approx(parts.max[at]).epsilon(1e-5));
          CHECK(part_sum[i] == doctest::Approx(parts.sum[at]).epsilon(1e-5));
          CHECK(part_target[i] == doctest::Approx(parts.target[at]).epsilon(1e-5));
        }
        if (!stashes) return;
        for (std::int64_t i = 0; i < stash.size(); ++i) {  // rows past the end mean nothing
          const std::int64_t row = kept.at()[static_cast<std::size_t>(i / (blocks.v * blocks.n))].row * blocks.n;
          if (row + i % blocks.n >= N) stash.set(i, 0);
        }
        CHECK(error(stash, stash_ref).norm < tolerance(dtype));
      });
      if (!stashes) continue;

      Random random(98);
      Doubles lse_list(T, 0), loss_list(T, 0);
      reference_combine(parts, x.row_list, lse_list, loss_list);
      Array lse(f32, {T}), g = normal(random, f32, {N});
      for (std::int64_t t = 0; t < T; ++t) lse.set(t, lse_list[static_cast<std::size_t>(t)]);
      for (std::int64_t i = 0; i < S * N; ++i) part_max.set(i, parts.max[static_cast<std::size_t>(i)]);
      for (std::int64_t i = 0; i < stash.size(); ++i) stash.set(i, stash_ref[static_cast<std::size_t>(i)]);
      const Doubles dz_ref = reference_grad_tiles(x.shape, blocks, x.e.values(), x.c.values(), x.row_list, x.label_list,
                                                  lse_list, g.values(), kept.at());
      on_each_backend(dz_of_stash(x.shape, blocks),
                      {.arrays = {{"part_max", &part_max},
                                  {"rows", &x.rows},
                                  {"target", &x.target},
                                  {"lse", &lse},
                                  {"g", &g},
                                  {"stash", &stash}},
                       .lists = {{"kept", kept.ref}}},
                      [&] { CHECK(error(stash, dz_ref).norm < 2 * tolerance(dtype)); });
    }
  });
}

TEST_CASE("grad_tiles, grad_e and grad_c: one range of the vocabulary after the other gives de and dc") {
  for_each_setup([](const Setup& setup, DType dtype) {
    Data x(setup, dtype);
    const Blocks& blocks = setup.blocks;
    Blocks logits = blocks;
    logits.d = setup.logits_d;
    const auto [T, N, V, D] = std::tuple(setup.T, setup.N, setup.V, setup.D);
    Random random(99);
    Doubles lse_list(T, 0), loss_list(T, 0);
    reference_combine(reference_lse_forward(x.shape, logits, x.e.values(), x.c.values(), x.row_list, x.label_list),
                      x.row_list, lse_list, loss_list);
    Array lse(f32, {T}), g = normal(random, f32, {N}), scale(f32, {});
    for (std::int64_t t = 0; t < T; ++t) lse.set(t, lse_list[static_cast<std::size_t>(t)]);
    const double factor = dtype == f16 ? 0.25 : 1;
    scale.set(0, factor);

    Array sum(f32, {N, D}), de(dtype, {T, D}, 2), dc(dtype, {V, D}, 4), main_grad = normal(random, f32, {V, D});
    Doubles de_ref(T * D, 0), dc_ref(V * D, 0), main_ref = main_grad.values(), sum_ref(N * D, 0);
    for (std::int64_t i = 0; i < sum.size(); ++i) sum.set(i, 0);
    const std::int64_t columns = blocks_of(V, blocks.v), middle = (columns + 1) / 2;
    for (auto [begin, end] : {std::pair{std::int64_t{0}, middle}, {middle, columns}}) {
      CAPTURE(begin);
      Lists kept({.rows = blocks_of(N, blocks.n), .columns = columns, .begin = begin, .end = end});
      Lists written({.rows = blocks_of(D, blocks.d), .columns = columns, .begin = begin, .end = end});
      const Doubles dz_ref = reference_grad_tiles(x.shape, blocks, x.e.values(), x.c.values(), x.row_list, x.label_list,
                                                  lse_list, g.values(), kept.at());
      Array dz(dtype, {kept.ref.count * blocks.v * blocks.n});
      on_each_backend(grad_tiles(x.shape, logits),
                      {.arrays = {{"e", &x.e},
                                  {"c", &x.c},
                                  {"rows", &x.rows},
                                  {"target", &x.target},
                                  {"lse", &lse},
                                  {"g", &g},
                                  {"dz", &dz}},
                       .lists = {{"kept", kept.ref}}},
                      [&] { CHECK(error(dz, dz_ref).norm < tolerance(dtype)); });

      reference_grad_e(x.shape, blocks, x.c.values(), x.row_list, kept.at(), dz.values(), factor, de_ref);
      Rows same(N);
      for (std::int64_t n = 0; n < N; ++n) same[static_cast<std::size_t>(n)] = n;
      reference_grad_e(x.shape, blocks, x.c.values(), same, kept.at(), dz.values(), 1, sum_ref);
      NamedArrays to_de = {{"c", &x.c}, {"dz", &dz}, {"sum", &sum}, {"rows", &x.rows}, {"de", &de}};
      if (dtype == f16) to_de.emplace_back("scale", &scale);
      if (end < columns)
        on_each_backend(grad_e(x.shape, blocks, true, true, setup.compact),
                        {.arrays = {{"c", &x.c}, {"dz", &dz}, {"sum", &sum}}, .lists = {{"kept", kept.ref}}},
                        [&] { CHECK(error(sum, sum_ref).norm < 2e-6); });
      else
        on_each_backend(grad_e(x.shape, blocks, true, false), {.arrays = to_de, .lists = {{"kept", kept.ref}}}, [&] {
          for (std::int64_t t = 0; t < T; ++t)
            if (std::find(x.row_list.begin(), x.row_list.end(), t) == x.row_list.end())
              for (std::int64_t d = 0; d < D; ++d) {
                CHECK(std::isnan(de[t * D + d]));
                de.set(t * D + d, 0);
              }
          CHECK(error(de, de_ref).norm < tolerance(dtype));
        });

      // dc of this range alone is written.
      reference_grad_c(x.shape, blocks, x.e.values(), x.row_list, kept.at(), dz.values(), factor, dc_ref);
      reference_grad_c(x.shape, blocks, x.e.values(), x.row_list, kept.at(), dz.values(), factor, main_ref);
      NamedArrays to_dc = {{"e", &x.e}, {"dz", &dz}, {"dc", &dc}};
      NamedArrays to_main = {{"e", &x.e}, {"dz", &dz}, {"dc", &main_grad}};
      if (!setup.compact) {
        to_dc.emplace_back("rows", &x.rows);
        to_main.emplace_back("rows", &x.rows);
      }
      if (dtype == f16) {
        to_dc.emplace_back("scale", &scale);
        to_main.emplace_back("scale", &scale);
      }
      const std::vector<std::pair<std::string, TileListRef>> lists = {{"kept", kept.ref}, {"written", written.ref}};
      on_each_backend(grad_c(x.shape, blocks, dtype, false), {.arrays = to_dc, .lists = lists}, [&] {
        Array whole = dc;
        for (std::int64_t v = 0; v < V; ++v)
          for (std::int64_t d = 0; d < D; ++d) {
            if (v / blocks.v >= begin && v / blocks.v < end) continue;
            CHECK(std::isnan(dc[v * D + d]));
            whole.set(v * D + d, dc_ref[static_cast<std::size_t>(v * D + d)]);
          }
        CHECK(error(whole, dc_ref).norm < tolerance(dtype));
      });
      on_each_backend(grad_c(x.shape, blocks, f32, true), {.arrays = to_main, .lists = lists},
                      [&] { CHECK(error(main_grad, main_ref).norm < 2e-6); });

      if (!setup.compact) continue;
      // The list by columns of two parts, of which every second row block is one.
      const std::int64_t parts = 2, width = end - begin, K = kept.ref.count;
      std::vector<std::int32_t> column, items, item_begin;
      for (const TileAt& tile : kept.at())
        column.push_back(static_cast<std::int32_t>(tile.row % parts * width + tile.column - begin));
      for (std::int32_t of = 0; of <= parts * width; ++of) {
        item_begin.push_back(static_cast<std::int32_t>(items.size()));
        for (std::int32_t k = 0; k < K; ++k)
          if (column[static_cast<std::size_t>(k)] == of) items.push_back(k);
      }
      TileListRef by_part = kept.ref;
      by_part.column = column.data(), by_part.column_items = items.data(), by_part.column_begin = item_begin.data();
      const std::int64_t M = width * blocks.v;
      Doubles part_ref(parts * M * D, 0);
      for (std::int64_t k = 0; k < K; ++k) {
        Doubles one(V * D, 0);
        const TileAt tile = kept.at()[static_cast<std::size_t>(k)];
        const Doubles all = dz.values();
        reference_grad_c(x.shape, blocks, x.e.values(), x.row_list, {tile},
                         {all.begin() + k * blocks.v * blocks.n, all.begin() + (k + 1) * blocks.v * blocks.n}, 1, one);
        for (std::int64_t v = begin * blocks.v; v < std::min(V, end * blocks.v); ++v)
          for (std::int64_t d = 0; d < D; ++d)
            part_ref[(tile.row % parts * M + v - begin * blocks.v) * D + d] += one[v * D + d];
      }
      Array part_sum(f32, {parts * M, D});
      on_each_backend(grad_c_parts(x.shape, blocks),
                      {.arrays = {{"e", &x.e}, {"dz", &dz}, {"sum", &part_sum}}, .lists = {{"kept", by_part}}},
                      [&] { CHECK(error(part_sum, part_ref).norm < 2e-6); });
    }
  });
}
