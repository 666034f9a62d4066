// Merges what lse_forward left of each part of the vocabulary, in the order of the parts, and writes the results where
// the valid rows lie. The loss is log(sum) + (largest - hit) rather than lse - hit: with logits near 1e4 the rounding
// of lse alone would cost the loss its third decimal.
#include <algorithm>
#include <cmath>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

void reference_combine(const Parts& parts, const Rows& rows, Doubles& lse, Doubles& loss) {
  const std::size_t N = rows.size(), S = parts.max.size() / N;
  for (std::size_t n = 0; n < N; ++n) {
    double largest = -inf, sum = 0, hit = 0;
    for (std::size_t s = 0; s < S; ++s) largest = std::max(largest, parts.max[s * N + n]);
    for (std::size_t s = 0; s < S; ++s) {
      sum += parts.sum[s * N + n] * std::exp(parts.max[s * N + n] - largest);
      hit += parts.target[s * N + n];
    }
    lse[rows[n]] = largest + std::log(sum);
    loss[rows[n]] = lse[rows[n]] - hit;
  }
}

Program combine(std::int64_t block_n, std::int64_t block_s) {
  ProgramBuilder p("combine");
  Axis S = p.axis("S"), N = p.axis("N"), T = p.axis("T");
  Tensor part_max = p.input("part_max", f32, {S, N}), part_sum = p.input("part_sum", f32, {S, N});
  Tensor part_target = p.input("part_target", f32, {S, N}), rows = p.input("rows", i64, {N});
  Tensor lse = p.output("lse", f32, {T}), loss = p.output("loss", f32, {T});

  Block n = p.parallel(N, block_n);
  auto [largest, sum, hit] =
      p.loop(S, block_s, carry(full(n, -inf), zeros(n), zeros(n)), [&](Block at, Tile m, Tile s, Tile t) {
        Tile pm = load(part_max, at, n, fill(-inf)), m1 = max(m, reduce_max(pm, S));
        Tile base = where(m1 == -inf, 0, m1);  // as in lse_forward
        Tile ps = reduce_sum(load(part_sum, at, n) * exp(pm - base), S);
        return carry(m1, s * exp(m - base) + ps, t + reduce_sum(load(part_target, at, n), S));
      });
  Tile r = load(rows, n, fill(-1));  // rows past N go nowhere
  store(lse, r, largest + log(sum));
  store(loss, r, log(sum) + (largest - hit));
  return p.finish();
}

}  // namespace kerf::kernels
