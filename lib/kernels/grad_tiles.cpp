// dz of the kept tiles, packed one behind the other: dz[n,v] = g[n] (exp(z - lse) - [v = target]). Logits are made
// again, tile by tile. Rows past N have lse = inf and so no probability, columns past V have z = -inf; both leave zeros
// in the packed tile, which the products that read it then need not mask.
//
// Of a row that is sure of its target exp(z - lse) - 1 has no digits in f32. What all others have has them:
// mass_outside adds up the blocks of the forward, and the block of the target is a tile that is always kept, so its
// others are here.
#include <algorithm>
#include <cmath>

#include "lib/kernels/kernels.h"
#include "lib/kernels/logits.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

Doubles reference_grad_tiles(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                             const Labels& target, const Doubles& lse, const Doubles& g,
                             const std::vector<TileAt>& kept, const Doubles& outside) {
  const std::int64_t D = s.hidden, V = s.vocabulary, N = std::ssize(rows);
  Doubles dz;
  for (TileAt at : kept) {
    const auto share = [&](std::int64_t n, std::int64_t v) {
      double z = 0;
      for (std::int64_t d = 0; d < D; ++d) z += e[row_of_e(s, rows, n) * D + d] * c[v * D + d];
      return std::exp(z - lse[rows[n]]);
    };
    const std::int64_t begin = at.column * b.v, end = begin + b.v;
    for (std::int64_t v = begin; v < end; ++v) {
      for (std::int64_t n = at.row * b.n; n < (at.row + 1) * b.n; ++n) {
        double x = 0;
        if (n < N && v < V) {
          x = share(n, v) - (v == target[n] ? 1 : 0);
          if (v == target[n] && !outside.empty() && !std::isnan(outside[n])) {
            x = -outside[n];
            for (std::int64_t other = begin; other < std::min(V, end); ++other)
              if (other != v) x -= share(n, other);
          }
          x *= g[n];
        }
        dz.push_back(x);
      }
    }
  }
  return dz;
}

Program grad_tiles(Shape s, Blocks b, bool outside) {
  ProgramBuilder p("grad_tiles");
  Axis N = p.axis("N"), T = p.axis("T"), V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {s.compact ? N : T, D});
  const Classifier c(p, s, V, D);
  Tensor rows = p.input("rows", i64, {N}), target = p.input("target", i32, {N});
  Tensor lse = p.input("lse", f32, {T}), g = p.input("g", f32, {N});
  Tensor far;
  if (outside) far = p.input("outside", f32, {N});
  TileList kept = p.tile_list("kept", N, b.n, V, b.v);
  Packed dz = p.packed_output("dz", s.dtype, kept, {V, N});

  auto [k, n, v] = p.parallel(kept);
  Tile r = load(rows, n, fill(-1)), y = load(target, n, fill(-1));
  Tile row_lse = load(lse, r, fill(inf)), row_g = load(g, n);
  Tile z = s.compact ? logits_tile(p, e, c, n, n, v, D, b.d) : logits_tile(p, e, c, r, n, v, D, b.d);
  if (!outside) {
    Tile hit = where(v.index(i32) == y, 1, zeros(n, v));
    store(dz, k, cast((exp(z - row_lse) - hit) * row_g, s.dtype));
    return p.finish();
  }
  Tile is_y = v.index(i32) == y, share = exp(z - row_lse);
  Tile others = load(far, n) + reduce_sum(where(is_y, 0, share), V), known = others == others;
  Tile at_y = share * where(known, 0, full(n, 1)) - where(known, others, 1);
  store(dz, k, cast(where(is_y, at_y, share) * row_g, s.dtype));
  return p.finish();
}

}  // namespace kerf::kernels
