// The forward by tiles of dz, which may keep what it computes for the backward: exp(z - largest), the largest logit of
// each row in its own block of the vocabulary. That is at most 1, so it keeps its precision in bf16 and f16 however the
// logits lie, and once lse is known one factor for each row of a tile makes probabilities of it.
#include <cmath>

#include "lib/kernels/kernels.h"
#include "lib/kernels/logits.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

Doubles reference_stash(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows, const Parts& parts,
                        const std::vector<TileAt>& kept) {
  const std::int64_t D = s.hidden, V = s.vocabulary, N = std::ssize(rows);
  Doubles stash;
  for (TileAt at : kept)
    for (std::int64_t v = at.column * b.v; v < (at.column + 1) * b.v; ++v)
      for (std::int64_t n = at.row * b.n; n < (at.row + 1) * b.n; ++n) {
        double x = 0;
        if (n < N && v < V) {
          double z = 0;
          for (std::int64_t d = 0; d < D; ++d) z += e[row_of_e(s, rows, n) * D + d] * c[v * D + d];
          x = std::exp(z - parts.max[at.column * N + n]);
        }
        stash.push_back(x);
      }
  return stash;
}

Program lse_tiles(Shape s, Blocks b, bool stash) {
  ProgramBuilder p(stash ? "stash_tiles" : "lse_tiles");
  const ForwardTensors t(p, s);
  TileList kept = p.tile_list("kept", t.N, b.n, t.V, b.v);
  Packed out;
  if (stash) out = p.packed_output("stash", s.dtype, kept, {t.V, t.N});

  auto [k, n, v] = p.parallel(kept);
  Tile y = load(t.target, n, fill(-1)), z = t.logits(p, t.at(n), n, v, b.d);
  Tile hit = reduce_sum(where(v.index(i32) == y, z, 0), t.V), largest = reduce_max(z, t.V);
  Tile share = exp(z - where(largest == -inf, 0, largest));  // as in lse_forward
  store(t.part_max, v.number(), n, largest);
  store(t.part_sum, v.number(), n, reduce_sum(share, t.V));
  store(t.part_target, v.number(), n, hit);  // 0 in the parts that do not hold the target
  if (stash) store(out, k, cast(share, s.dtype));
  return p.finish();
}

// Rows past N have lse = inf, as in grad_tiles, and g = 0.
Program dz_of_stash(Shape s, Blocks b) {
  ProgramBuilder p("dz_of_stash");
  Axis S = p.axis("S"), N = p.axis("N"), T = p.axis("T"), V = p.axis("V", s.vocabulary);
  Tensor part_max = p.input("part_max", f32, {S, N}), rows = p.input("rows", i64, {N});
  Tensor target = p.input("target", i32, {N}), lse = p.input("lse", f32, {T}), g = p.input("g", f32, {N});
  TileList kept = p.tile_list("kept", N, b.n, V, b.v);
  Packed stash = p.packed_inout("stash", s.dtype, kept, {V, N});

  auto [k, n, v] = p.parallel(kept);
  Tile r = load(rows, n, fill(-1)), y = load(target, n, fill(-1)), row_g = load(g, n);
  Tile factor = exp(load(part_max, v.number(), n) - load(lse, r, fill(inf)));
  Tile hit = where(v.index(i32) == y, 1, zeros(n, v));
  store(stash, k, cast((load(stash, k) * factor - hit) * row_g, s.dtype));
  return p.finish();
}

}  // namespace kerf::kernels
