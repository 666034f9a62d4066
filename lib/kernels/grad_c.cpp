// dc of one block of vocabulary: its kept tiles in order, summed in registers, written once, or added to what dc holds.
// The blocks of dc to write come as a list, so that a launch touches one range of the vocabulary and nothing else.
// Where these are too few for a GPU, the rows are cut in parts, each summed apart, and sum_dc adds the parts in order.
#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

void reference_grad_c(Shape s, Blocks b, const Doubles& e, const Rows& rows, const std::vector<TileAt>& kept,
                      const Doubles& dz, double scale, Doubles& dc) {
  const std::int64_t D = s.hidden, V = s.vocabulary, N = std::ssize(rows);
  for (std::size_t k = 0; k < kept.size(); ++k)
    for (std::int64_t i = 0; i < b.v; ++i)
      for (std::int64_t j = 0; j < b.n; ++j) {
        const std::int64_t v = kept[k].column * b.v + i, n = kept[k].row * b.n + j;
        if (n >= N || v >= V) continue;
        for (std::int64_t d = 0; d < D; ++d)
          dc[v * D + d] += scale * dz[(k * b.v + i) * b.n + j] * e[row_of_e(s, rows, n) * D + d];
      }
}

Program grad_c(Shape s, Blocks b, DType out, bool accumulate, bool corrected) {
  ProgramBuilder p(accumulate ? "grad_c_accumulate" : "grad_c");
  Axis N = p.axis("N"), T = s.compact ? N : p.axis("T"), V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {T, D}), rows, scale;
  if (!s.compact) rows = p.input("rows", i64, {N});
  if (s.dtype == f16) scale = p.input("scale", f32, {});
  Tensor order, added;
  const Axis U = s.gather ? p.axis("U") : V;  // all tokens that dc has a row for
  if (s.gather) order = p.input("order", i64, {V});
  if (corrected) added = p.input("added", f32, {p.axis("B", vocabulary_blocks(s, b)), D});
  TileList kept = p.tile_list("kept", N, b.n, V, b.v), written = p.tile_list("written", D, b.d, V, b.v);
  Packed dz = p.packed_input("dz", s.dtype, kept, {V, N});
  Tensor dc = accumulate ? p.inout("dc", out, {U, D}) : p.output("dc", out, {U, D});

  auto [at, d, v] = p.parallel(written);
  Tile row;  // asked for before the sum, not waited for after it
  if (s.gather) row = load(order, v, fill(-1));
  Tile total = p.loop(kept.in_column(v), zeros(v, d), [&](Kept k, Block n, Tile acc) {
    Tile x = s.compact ? load(e, n, d) : load(e, load(rows, n, fill(-1)), d);
    return acc + dot(load(dz, k), x);  // contracts N
  });
  if (corrected) total = total + load(added, v.number(), d);
  if (s.dtype == f16) total = total * load(scale);
  if (accumulate) total = total + cast(s.gather ? load(dc, row, d) : load(dc, v, d), f32);
  if (s.gather)
    store(dc, row, d, cast(total, out));
  else
    store(dc, v, d, cast(total, out));
  return p.finish();
}

Program grad_c_parts(Shape s, Blocks b) {
  ProgramBuilder p("grad_c_parts");
  Axis N = p.axis("N"), M = p.axis("M"), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {N, D}), sum = p.output("sum", f32, {M, D});
  TileList kept = p.tile_list("kept", N, b.n, M, b.v);
  Packed dz = p.packed_input("dz", s.dtype, kept, {M, N});
  Block m = p.parallel(M, b.v), d = p.parallel(D, b.d);
  store(sum, m, d, p.loop(kept.in_column(m), zeros(m, d), [&](Kept k, Block n, Tile acc) {
    return acc + dot(load(dz, k), load(e, n, d));  // contracts N
  }));
  return p.finish();
}

Program sum_dc(Shape s, DType out, bool accumulate, std::int64_t block_s, std::int64_t block_v, std::int64_t block_d) {
  ProgramBuilder p(accumulate ? "sum_dc_accumulate" : "sum_dc");
  Axis S = p.axis("S"), V = p.axis("V"), D = p.axis("D", s.hidden);
  Tensor sum = p.input("sum", f32, {S, V, D}), scale;
  if (s.dtype == f16) scale = p.input("scale", f32, {});
  Tensor dc = accumulate ? p.inout("dc", out, {V, D}) : p.output("dc", out, {V, D});
  Block v = p.parallel(V, block_v), d = p.parallel(D, block_d);
  Tile total =
      p.loop(S, block_s, zeros(v, d), [&](Block at, Tile acc) { return acc + reduce_sum(load(sum, at, v, d), S); });
  if (s.dtype == f16) total = total * load(scale);
  if (accumulate) total = total + cast(load(dc, v, d), f32);
  store(dc, v, d, cast(total, out));
  return p.finish();
}

}  // namespace kerf::kernels
