// dz of the kept tiles, packed one behind the other: dz[n,v] = g[n] (exp(z - lse) - [v = target]). Logits are made
// again, tile by tile. Rows past N have lse = inf and so no probability, columns past V have z = -inf; both leave zeros
// in the packed tile, which the products that read it then need not mask.
#include <cmath>

#include "lib/kernels/kernels.h"
#include "lib/kernels/logits.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

Doubles reference_grad_tiles(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                             const Labels& target, const Doubles& lse, const Doubles& g,
                             const std::vector<TileAt>& kept) {
  const std::int64_t D = s.hidden, V = s.vocabulary, N = std::ssize(rows);
  Doubles dz;
  for (TileAt at : kept) {
    for (std::int64_t v = at.column * b.v; v < (at.column + 1) * b.v; ++v) {
      for (std::int64_t n = at.row * b.n; n < (at.row + 1) * b.n; ++n) {
        double x = 0;
        if (n < N && v < V) {
          double z = 0;
          for (std::int64_t d = 0; d < D; ++d) z += e[row_of_e(s, rows, n) * D + d] * c[v * D + d];
          x = g[n] * (std::exp(z - lse[rows[n]]) - (v == target[n] ? 1 : 0));
        }
        dz.push_back(x);
      }
    }
  }
  return dz;
}

Program grad_tiles(Shape s, Blocks b) {
  ProgramBuilder p("grad_tiles");
  Axis N = p.axis("N"), T = p.axis("T"), V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {s.compact ? N : T, D});
  const Classifier c(p, s, V, D);
  Tensor rows = p.input("rows", i64, {N}), target = p.input("target", i32, {N});
  Tensor lse = p.input("lse", f32, {T}), g = p.input("g", f32, {N});
  TileList kept = p.tile_list("kept", N, b.n, V, b.v);
  Packed dz = p.packed_output("dz", s.dtype, kept, {V, N});

  auto [k, n, v] = p.parallel(kept);
  Tile r = load(rows, n, fill(-1)), y = load(target, n, fill(-1));
  Tile row_lse = load(lse, r, fill(inf)), row_g = load(g, n);
  Tile z = s.compact ? logits_tile(p, e, c, n, n, v, D, b.d) : logits_tile(p, e, c, r, n, v, D, b.d);
  Tile hit = where(v.index(i32) == y, 1, zeros(n, v));
  store(dz, k, cast((exp(z - row_lse) - hit) * row_g, s.dtype));
  return p.finish();
}

}  // namespace kerf::kernels
