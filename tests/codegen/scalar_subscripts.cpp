// A scalar as a subscript of loads and stores, wherever the scalar comes from: every backend as the interpreter.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

TEST_CASE("subscripts: the number of a block, a size and a loaded scalar take a row and put one") {
  for (DType dtype : {f32, bf16, i32}) {
    CAPTURE(name_of(dtype));
    const std::int64_t Q = 7, D = 37;
    ProgramBuilder p("rows_by_number");
    Axis N = p.axis("N"), D_axis = p.axis("D", D), K = p.axis("K"), M = p.axis("M"), one_axis = p.axis("one", 1);
    Tensor x = p.input("x", dtype, {N, D_axis}), at = p.input("at", i64, {K});
    Tensor copy = p.output("copy", dtype, {K, D_axis}), gathered = p.output("gathered", dtype, {K, D_axis});
    Tensor last = p.output("last", dtype, {M, D_axis}), sums = p.output("sums", i32, {K});
    Tensor total = p.output("total", i64, {one_axis});
    Block k = p.parallel(K, 1), d = p.whole(D_axis);
    Tile number = k.number(), here = load(at, number);
    store(copy, number, d, load(x, number * 2 - 1, d, fill(3)));
    store(gathered, number, d, load(x, here, d, fill(5)));
    store(last, where(number == 0, p.size(M) - 1, -1), d, load(x, p.size(N) - 1, d));
    Tile ones = full(d, 1, i32);
    store(sums, number, cast(reduce_sum(ones, D_axis), i32) * cast(number, i32));
    store(total, number * 100, p.size(K) + here * 0);
    const Program program = p.finish();

    Random random(1);
    Array in = dtype == i32 ? integers(random, i32, {9, D}, -99, 99) : normal(random, dtype, {9, D}, 1, 3);
    Array rows(i64, {Q}), out_copy(dtype, {Q, D}, 2), out_gathered(dtype, {Q, D}), out_last(dtype, {4, D}),
        out_sums(i32, {Q});
    Array out_total(i64, {1});
    const std::vector<std::int64_t> list = {8, 0, -1, 9, 3, std::int64_t{1} << 40, 3};
    for (std::int64_t q = 0; q < Q; ++q) rows.set(q, static_cast<double>(list[static_cast<std::size_t>(q)]));
    on_each_backend(program,
                    {.arrays = {{"x", &in},
                                {"at", &rows},
                                {"copy", &out_copy},
                                {"gathered", &out_gathered},
                                {"last", &out_last},
                                {"sums", &out_sums},
                                {"total", &out_total}}},
                    [&] {
                      const auto row = [&](std::int64_t n, std::int64_t d, double outside) {
                        return n >= 0 && n < 9 ? in[n * D + d] : outside;
                      };
                      for (std::int64_t q = 0; q < Q; ++q) {
                        CAPTURE(q);
                        CHECK(out_sums[q] == static_cast<double>(q * D));
                        for (std::int64_t d = 0; d < D; ++d) {
                          CHECK(out_copy[q * D + d] == row(2 * q - 1, d, 3));
                          CHECK(out_gathered[q * D + d] == row(list[static_cast<std::size_t>(q)], d, 5));
                        }
                      }
                      for (std::int64_t i = 0; i < 4 * D; ++i) {
                        const double untouched = out_last[i];
                        if (i / D == 3)
                          CHECK(out_last[i] == in[8 * D + i % D]);
                        else
                          CHECK((dtype == i32 ? untouched == -0x1p31 : std::isnan(untouched)));
                      }
                      CHECK(out_total[0] == Q);
                    });
  }
}

TEST_CASE("subscripts: a scalar that differs from block to block of a loop, beside one that is a tile") {
  ProgramBuilder p("by_block");
  Axis N = p.axis("N"), V = p.axis("V"), B = p.axis("B");
  Tensor x = p.input("x", f32, {V, N}), most = p.output("most", f32, {B, N}), place = p.input("place", i32, {N});
  Block n = p.parallel(N, 8);
  Tile to = load(place, n, fill(-1));
  p.loop(V, 5, [&](Block v) { store(most, v.number(), to, reduce_max(load(x, v, n, fill(-inf)), V)); });
  const Program program = p.finish();
  Random random(2);
  Array in = normal(random, f32, {23, 21}), out(f32, {5, 21}), order(i32, {21});
  for (std::int64_t i = 0; i < 21; ++i) order.set(i, static_cast<double>(i * 4 % 21));
  on_each_backend(program, {.arrays = {{"x", &in}, {"most", &out}, {"place", &order}}}, [&] {
    for (std::int64_t b = 0; b < 5; ++b)
      for (std::int64_t i = 0; i < 21; ++i) {
        double want = -inf;
        for (std::int64_t v = 5 * b; v < std::min<std::int64_t>(23, 5 * b + 5); ++v)
          want = std::max(want, in[v * 21 + i]);
        CHECK(out[b * 21 + i * 4 % 21] == want);
      }
  });
}
