// The forward: for a block of rows and one part of the vocabulary, the largest logit, the sum of exp(z - largest) and
// the target's logit. Logits live in one tile at a time. Splitting the vocabulary over instances lets many of them
// share a part of c while it is near, and gives a few rows enough instances to occupy every thread; `combine` merges
// the parts.
//
// The running maximum and the sum rescaled to it follow Milakov and Gimelshein, Online normalizer calculation for
// softmax, 2018. A maximum of -inf (nothing but masked logits so far) is replaced by 0 before it is subtracted, since
// -inf - -inf would be NaN where the sum must stay 0.
#include <algorithm>
#include <cmath>

#include "lib/kernels/kernels.h"
#include "lib/kernels/logits.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

Parts reference_lse_forward(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                            const Labels& target) {
  const std::int64_t D = s.hidden, V = s.vocabulary, N = std::ssize(rows);
  Parts parts;
  for (std::int64_t begin = 0; begin < V; begin += b.split * b.v) {
    for (std::int64_t n = 0; n < N; ++n) {
      Doubles z;
      double hit = 0;
      for (std::int64_t v = begin; v < std::min(V, begin + b.split * b.v); ++v) {
        double sum = 0;
        for (std::int64_t d = 0; d < D; ++d) sum += e[row_of_e(s, rows, n) * D + d] * c[v * D + d];
        z.push_back(sum);
        if (v == target[n]) hit = sum;
      }
      const double largest = *std::max_element(z.begin(), z.end());
      double sum = 0;
      for (double x : z) sum += std::exp(x - largest);
      parts.max.push_back(largest);
      parts.sum.push_back(sum);
      parts.target.push_back(hit);
    }
  }
  return parts;
}

Program lse_forward(Shape s, Blocks b, BlockStatistic statistic) {
  ProgramBuilder p("lse_forward");
  Axis S = p.axis("S"), N = p.axis("N"), T = s.compact ? N : p.axis("T");
  Axis V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {T, D});
  const Classifier c(p, s, V, D);
  Tensor rows;
  if (!s.compact) rows = p.input("rows", i64, {N});
  Tensor target = p.input("target", i32, {N});
  Tensor part_max = p.output("part_max", f32, {S, N}), part_sum = p.output("part_sum", f32, {S, N});
  Tensor part_target = p.output("part_target", f32, {S, N}), block_lse;
  if (statistic != BlockStatistic::none)
    block_lse = p.output("block_lse", f32, {p.axis("B", vocabulary_blocks(s, b)), N});

  Block at = p.parallel(S, 1), n = p.parallel(N, b.n);  // blocks of rows follow each other on one part of c
  const bool compact = s.compact;
  Tile r, y = load(target, n, fill(-1));
  if (!compact) r = load(rows, n, fill(-1));
  auto [largest, sum, hit] =
      p.loop(part(V, at, b.split), b.v, carry(full(n, -inf), zeros(n), zeros(n)), [&](Block v, Tile m, Tile s, Tile t) {
        Tile z = compact ? logits_tile(p, e, c, n, n, v, D, b.d) : logits_tile(p, e, c, r, n, v, D, b.d);
        Tile here = reduce_max(z, V), m1 = max(m, here);
        Tile base = where(m1 == -inf, 0, m1);
        Tile more = reduce_sum(exp(z - base), V), s1 = s * exp(m - base) + more;
        if (statistic == BlockStatistic::lse) store(block_lse, v.number(), n, base + log(more));
        if (statistic == BlockStatistic::largest) store(block_lse, v.number(), n, here);
        Tile t1 = t + reduce_sum(where(v.index(i32) == y, z, 0), V);
        return carry(m1, s1, t1);
      });
  store(part_max, at, n, largest);
  store(part_sum, at, n, sum);
  store(part_target, at, n, hit);  // 0 in the parts that do not hold the target
  return p.finish();
}

}  // namespace kerf::kernels
