// de of one block of rows: its kept tiles in order, summed in registers, written once where the valid rows lie. No
// atomics, so the bits never vary. When the vocabulary is walked in ranges, the sum so far stays in f32 between them:
// carried on, as if there were one range; or each summed apart, since tensor cores cut off what a sum in f32 does not
// hold, the more the longer it runs. dz of f16 carries a power of two that keeps it from underflow; `scale` takes it
// out again.
#include "lib/kernels/kernels.h"
#include "lib/kernels/logits.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

void reference_grad_e(Shape s, Blocks b, const Doubles& c, const Rows& rows, const std::vector<TileAt>& kept,
                      const Doubles& dz, double scale, Doubles& de) {
  const std::int64_t D = s.hidden, V = s.vocabulary, N = std::ssize(rows);
  for (std::size_t k = 0; k < kept.size(); ++k)
    for (std::int64_t i = 0; i < b.v; ++i)
      for (std::int64_t j = 0; j < b.n; ++j) {
        const std::int64_t v = kept[k].column * b.v + i, n = kept[k].row * b.n + j;
        if (n >= N || v >= V) continue;
        for (std::int64_t d = 0; d < D; ++d) de[rows[n] * D + d] += scale * dz[(k * b.v + i) * b.n + j] * c[v * D + d];
      }
}

Program grad_e(Shape s, Blocks b, bool from_sum, bool to_sum, bool apart) {
  ProgramBuilder p(std::string("grad_e") + (from_sum ? "_from_sum" : "") + (to_sum ? "_to_sum" : ""));
  Axis N = p.axis("N"), V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden);
  const Classifier c(p, s, V, D);
  Tensor rows, scale, de, sum;
  TileList kept = p.tile_list("kept", N, b.n, V, b.v);
  Packed dz = p.packed_input("dz", s.dtype, kept, {V, N});
  if (from_sum || to_sum) {
    auto declare = !from_sum ? &ProgramBuilder::output : to_sum ? &ProgramBuilder::inout : &ProgramBuilder::input;
    sum = (p.*declare)("sum", f32, {N, D}, ProgramBuilder::Here::current());
  }
  if (!to_sum) {
    rows = p.input("rows", i64, {N});
    de = p.output("de", s.dtype, {p.axis("T"), D});
    if (s.dtype == f16) scale = p.input("scale", f32, {});
  }

  Block n = p.parallel(N, b.n), d = p.parallel(D, b.d);
  Tile r;  // asked for before the sum, not waited for after it
  if (!to_sum) r = load(rows, n, fill(-1));
  Tile total =
      p.loop(kept.in_row(n), from_sum && !apart ? load(sum, n, d) : zeros(n, d), [&](Kept k, Block v, Tile acc) {
        return acc + dot(load(dz, k), c.load_at(c.at(v), v, d));  // contracts V
      });
  if (from_sum && apart) total = total + load(sum, n, d);
  if (to_sum) {
    store(sum, n, d, total);
  } else {
    if (s.dtype == f16) total = total * load(scale);
    store(de, r, d, cast(total, s.dtype));
  }
  return p.finish();
}

Program sum_parts(Shape s, std::int64_t block_n, std::int64_t block_d) {
  ProgramBuilder p("sum_parts");
  Axis S = p.axis("S"), M = p.axis("M"), D = p.axis("D", s.hidden), T = p.axis("T");
  Tensor sum = p.input("sum", f32, {S, M, D}), rows = p.input("rows", i64, {M}), scale;
  if (s.dtype == f16) scale = p.input("scale", f32, {});
  Tensor de = p.output("de", s.dtype, {T, D});
  Block n = p.parallel(M, block_n), d = p.parallel(D, block_d);
  Tile total = p.loop(S, 1, zeros(n, d), [&](Block at, Tile acc) { return acc + reduce_sum(load(sum, at, n, d), S); });
  if (s.dtype == f16) total = total * load(scale);
  store(de, load(rows, n, fill(-1)), d, cast(total, s.dtype));
  return p.finish();
}

}  // namespace kerf::kernels
