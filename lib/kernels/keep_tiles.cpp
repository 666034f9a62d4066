// Which tiles of dz matter. The forward left block_lse[b,n], the log-sum-exp of row n over block b of the vocabulary,
// so once lse is known mass[b,n] = exp(block_lse[b,n] - lse[n]) bounds every probability of the row in that block, and
// nothing is made again to decide. A row with g = 0 asks for nothing; any other asks for the block that holds its
// target and for each whose mass is not below eps. A tile is kept if any of its rows asks, so one that is not has
// gradients below eps |g| in every row; or if what its rows would lose adds up to 16 eps, since a tile in which all of
// 128 rows lose nearly eps is worth more than one in which a single row loses it.
//
//   |g| mass < eps |g|   is false where anything is NaN, and so keeps
//
// A row that is sure of its token has small gradients, of which eps would be a large share: where less than `sure` of
// it lies outside the block of its target, that many times less counts as small. mass_outside adds up what does.
//
// What a dropped tile would have added is nearly its mass times the mean row of c in its block: m[b,n] = g mass. Two
// products with a block of the vocabulary in place of a token put it back: correct_e adds m^T cmean to de, correct_c
// the mean over its block of m e to each row of dc. Measured on a trained model's softmax this makes the error of
// dropping a tile about a hundred times smaller, and tokens that never appear keep their gradient.
#include <algorithm>
#include <cmath>

#include "lib/kernels/keep_rule.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/logits.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

KeptTiles reference_keep_tiles(Shape s, Blocks b, KeepRule rule, const Doubles& block_lse, const Doubles& lse,
                               const Rows& rows, const Labels& target, const Doubles& g, const Doubles& outside,
                               const Rows& from) {
  const std::int64_t P = std::ssize(rows), B = vocabulary_blocks(s, b), R = (P + b.n - 1) / b.n;
  KeptTiles out{std::vector<bool>(static_cast<std::size_t>(B * R)), Doubles(static_cast<std::size_t>(B * P)),
                Doubles(static_cast<std::size_t>(B * R))};
  for (std::int64_t v = 0; v < B; ++v)
    for (std::int64_t r = 0; r < R; ++r) {
      const std::int64_t end = std::min(P, (r + 1) * b.n);
      bool keep = false;
      double lost = 0;
      for (std::int64_t n = r * b.n; n < end; ++n) {
        if (rows[n] < 0 || g[n] == 0) continue;
        const double mass = std::exp(block_lse[v * P + from[n]] - lse[rows[n]]);
        keep = keep || reference_asks(b, rule, v, target[n], g[n], rule.sure > 0 ? outside[n] : 0, mass);
        lost += mass;
      }
      keep = keep || (rule.together > 0 && lost >= rule.together);
      out.keep[v * R + r] = keep;
      for (std::int64_t n = r * b.n; n < end && !keep; ++n) {
        if (rows[n] < 0 || g[n] == 0) continue;
        const double mass = std::exp(block_lse[v * P + from[n]] - lse[rows[n]]);
        out.m[v * P + n] = g[n] * mass;
        out.left_out[v * R + r] += mass;
      }
    }
  return out;
}

Doubles reference_mass_outside(Shape s, Blocks b, const Doubles& block_lse, const Doubles& lse, const Rows& rows,
                               const Labels& target) {
  const std::int64_t P = std::ssize(rows);
  Doubles outside(static_cast<std::size_t>(P));
  for (std::int64_t v = 0; v < vocabulary_blocks(s, b); ++v)
    for (std::int64_t n = 0; n < P; ++n)
      if (rows[n] >= 0 && !(target[n] >= 0 && target[n] / b.v == v))
        outside[n] += std::exp(block_lse[v * P + n] - lse[rows[n]]);
  return outside;
}

Program mass_outside(Shape s, Blocks b) {
  ProgramBuilder p("mass_outside");
  Axis B = p.axis("B", vocabulary_blocks(s, b)), P = p.axis("P"), T = p.axis("T");
  Tensor block_lse = p.input("block_lse", f32, {B, P}), lse = p.input("lse", f32, {T});
  Tensor rows = p.input("rows", i64, {P}), target = p.input("target", i32, {P}),
         outside = p.output("outside", f32, {P});
  Block n = p.parallel(P, 32);
  Tile row = load(rows, n, fill(-1)), row_lse = load(lse, row, fill(inf)), y = cast(load(target, n, fill(-1)), i64);
  Tile sum = p.loop(B, 64, zeros(n), [&](Block v, Tile sum) {
    Tile mass = exp(load(block_lse, v, n, fill(-inf)) - row_lse);
    return sum + reduce_sum(where(y >= 0 && y / b.v == v.index(), 0, mass), B);
  });
  store(outside, n, where(row >= 0, sum, 0));
  return p.finish();
}

Program keep_tiles(Shape s, Blocks b, KeepRule rule) {
  ProgramBuilder p("keep_tiles");
  Axis B = p.axis("B", vocabulary_blocks(s, b)), P = p.axis("P"), R = p.axis("R"), T = p.axis("T");
  Tensor block_lse = p.input("block_lse", f32, {B, P}), lse = p.input("lse", f32, {T});
  Tensor rows = p.input("rows", i64, {P}), target = p.input("target", i32, {P}), g = p.input("g", f32, {P});
  Tensor from, outside;
  if (rule.sure > 0) outside = p.input("outside", f32, {P});
  if (rule.group) from = p.input("from", i64, {P});
  Tensor keep = p.output("keep", i32, {B, R}), left_out = p.output("left_out", f32, {B, R}), m;
  if (rule.correct) m = p.output("m", s.dtype, {B, P});

  Block v = p.parallel(B, 16), n = p.parallel(P, b.n);
  Tile r = load(rows, n, fill(-1));
  const Asking row(
      b, rule, r, load(target, n, fill(-1)), load(g, n), rule.sure > 0 ? load(outside, n) : Tile(),
      rule.group ? load(block_lse, v, load(from, n, fill(-1)), fill(-inf)) : load(block_lse, v, n, fill(-inf)),
      load(lse, r, fill(inf)), v);
  Tile asked = reduce_any(row.asks, P), lost = reduce_sum(where(row.g == 0, 0, row.mass), P);
  if (rule.together > 0) asked = asked || lost >= rule.together;
  store(keep, v, n.number(), where(asked, 1, full(v, 0, i32)));
  store(left_out, v, n.number(), where(asked, 0, lost));
  Tile nothing = asked || row.g == 0;
  if (rule.correct) store(m, v, n, cast(where(nothing, 0, row.mass * row.g), s.dtype));
  return p.finish();
}

namespace {

/// Tokens in block number `at` of the vocabulary, f32.
Tile tokens_in(const Shape& s, const Blocks& b, Tile at) { return cast(min(s.vocabulary - at * b.v, b.v), f32); }

}  // namespace

Program block_means(Shape s, Blocks b) {
  ProgramBuilder p("block_means");
  Axis V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden), B = p.axis("B", vocabulary_blocks(s, b));
  const Classifier c(p, s, V, D);
  Tensor cmean = p.output("cmean", s.dtype, {B, D});
  Block at = p.parallel(B, 1), d = p.parallel(D, b.d);
  const std::int64_t rows = b.v % 8 == 0 ? 8 : 1;  // loads of so many are under way at once
  Tile sum = p.loop(part(V, at, b.v / rows), rows, full(at, d, 0),
                    [&](Block v, Tile acc) { return acc + reduce_sum(cast(c.load_at(c.at(v), v, d), f32), V); });
  store(cmean, at, d, cast(sum / tokens_in(s, b, at.index()), s.dtype));
  return p.finish();
}

Program correct_e(Shape s, Blocks b) {
  ProgramBuilder p("correct_e");
  Axis N = p.axis("N"), B = p.axis("B", vocabulary_blocks(s, b)), D = p.axis("D", s.hidden);
  Tensor m = p.input("m", s.dtype, {B, N}), cmean = p.input("cmean", s.dtype, {B, D});
  Tensor sum = p.output("sum", f32, {N, D});
  Block n = p.parallel(N, b.n), d = p.parallel(D, b.d);
  store(sum, n, d, p.loop(B, 64, zeros(n, d), [&](Block v, Tile acc) {
    return acc + dot(load(m, v, n), load(cmean, v, d));  // contracts B
  }));
  return p.finish();
}

Program correct_c(Shape s, Blocks b) {
  ProgramBuilder p("correct_c");
  Axis N = p.axis("N"), B = p.axis("B", vocabulary_blocks(s, b)), D = p.axis("D", s.hidden);
  Tensor m = p.input("m", s.dtype, {B, N}), e = p.input("e", s.dtype, {N, D});
  Tensor added = p.output("added", f32, {B, D});
  Block v = p.parallel(B, b.n), d = p.parallel(D, b.d);
  Tile sum = p.loop(N, 64, zeros(v, d), [&](Block n, Tile acc) {
    return acc + dot(load(m, v, n), load(e, n, d));  // contracts N
  });
  store(added, v, d, sum / tokens_in(s, b, v.index()));
  return p.finish();
}

}  // namespace kerf::kernels
