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
  const ForwardTensors t(p, s);
  Tensor block_lse;
  if (statistic != BlockStatistic::none)
    block_lse = p.output("block_lse", f32, {p.axis("B", vocabulary_blocks(s, b)), t.N});

  Block at = p.parallel(t.S, 1), n = p.parallel(t.N, b.n);  // blocks of rows follow each other on one part of c
  Tile y = load(t.target, n, fill(-1)), row = t.at(n);
  auto [largest, sum, hit] = p.loop(part(t.V, at, b.split), b.v, carry(full(n, -inf), zeros(n), zeros(n)),
                                    [&](Block v, Tile m, Tile s, Tile hit) {
                                      Tile z = t.logits(p, row, n, v, b.d);
                                      Tile here = reduce_max(z, t.V), m1 = max(m, here);
                                      Tile base = where(m1 == -inf, 0, m1);
                                      Tile more = reduce_sum(exp(z - base), t.V), s1 = s * exp(m - base) + more;
                                      if (statistic == BlockStatistic::lse)
                                        store(block_lse, v.number(), n, base + log(more));
                                      if (statistic == BlockStatistic::largest) store(block_lse, v.number(), n, here);
                                      Tile hit1 = hit + reduce_sum(where(v.index(i32) == y, z, 0), t.V);
                                      return carry(m1, s1, hit1);
                                    });
  store(t.part_max, at, n, largest);
  store(t.part_sum, at, n, sum);
  store(t.part_target, at, n, hit);  // 0 in the parts that do not hold the target
  return p.finish();
}

}  // namespace kerf::kernels
