// The rows of a filtered backward in an order in which those of a block ask for the same tiles. A tile is kept for 128
// rows if one of them asks, so 127 rows pay for one that asks for a block nobody else wants. How many rows ask for a
// block is known before any tile is made; a row goes by the rarest block it asks for, those with the rarest first:
//
//   count_askers   rows that ask for each block of the vocabulary
//   rate_rows      how rare the rarest block is that a row asks for
//   place_rows     how many rows come before each, of some thousands at a time: each is compared with all
//   move_rows      rows, labels and g in that order, and where each of them lay
//
// A row that is sure of its token asks for blocks that all ask for, and lies with its like; flat rows lie together at
// the beginning, where their long lists are begun first. On a trained model's softmax with 128 x 256 tiles and rows as
// the text has them 0.26 of the tiles were kept, in this order 0.12; 0.15 with rows by how many blocks they ask for.
// Rows were kept from losing much by strangers in their block, so keep_tiles looks at what a tile loses in all.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "lib/kernels/keep_rule.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

GroupedRows reference_group_rows(Shape s, Blocks b, KeepRule rule, const Doubles& block_lse, const Doubles& lse,
                                 const Rows& rows, const Labels& target, const Doubles& g, const Doubles& outside,
                                 std::int64_t group) {
  const std::int64_t P = std::ssize(rows), B = vocabulary_blocks(s, b);
  const auto asks = [&](std::int64_t v, std::int64_t n) {
    if (rows[n] < 0 || g[n] == 0) return false;
    const double mass = std::exp(block_lse[v * P + n] - lse[rows[n]]);
    return reference_asks(b, rule, v, target[n], g[n], rule.sure > 0 ? outside[n] : 0, mass);
  };
  GroupedRows out{Rows(static_cast<std::size_t>(B)), Labels(static_cast<std::size_t>(P)),
                  Rows(static_cast<std::size_t>(P))};
  for (std::int64_t v = 0; v < B; ++v)
    for (std::int64_t n = 0; n < P; ++n) out.askers[v] += asks(v, n);
  for (std::int64_t n = 0; n < P; ++n) {
    out.rating[n] = rows[n] < 0 ? -1 : 0;
    for (std::int64_t v = 0; v < B; ++v)
      if (asks(v, n)) out.rating[n] = std::max(out.rating[n], static_cast<std::int32_t>(P + 1 - out.askers[v]));
  }
  std::iota(out.from.begin(), out.from.end(), 0);
  for (std::int64_t begin = 0; begin < P; begin += group)
    std::stable_sort(out.from.begin() + begin, out.from.begin() + std::min(begin + group, P),
                     [&](std::int64_t x, std::int64_t y) { return out.rating[x] > out.rating[y]; });
  return out;
}

namespace {

/// What programs know of rows before they are moved.
struct RowTensors {
  RowTensors(ProgramBuilder& p, const Shape& s, const Blocks& b, const KeepRule& rule)
      : B(p.axis("B", vocabulary_blocks(s, b))),
        P(p.axis("P")),
        block_lse(p.input("block_lse", f32, {B, P})),
        lse(p.input("lse", f32, {p.axis("T")})),
        rows(p.input("rows", i64, {P})),
        target(p.input("target", i32, {P})),
        g(p.input("g", f32, {P})) {
    if (rule.sure > 0) outside = p.input("outside", f32, {P});
  }
  Tile row(Block n) const { return load(rows, n, fill(-1)); }
  Tile asks(const Blocks& b, const KeepRule& rule, Block v, Block n) const {
    Tile r = row(n);
    return Asking(b, rule, r, load(target, n, fill(-1)), load(g, n), rule.sure > 0 ? load(outside, n) : Tile(),
                  load(block_lse, v, n, fill(-inf)), load(lse, r, fill(inf)), v)
        .asks;
  }
  Axis B, P;
  Tensor block_lse, lse, rows, target, g, outside;
};

}  // namespace

Program count_askers(Shape s, Blocks b, KeepRule rule) {
  ProgramBuilder p("count_askers");
  const RowTensors t(p, s, b, rule);
  Tensor askers = p.output("askers", i32, {t.B});
  Block v = p.parallel(t.B, 4);
  store(askers, v, p.loop(t.P, 256, full(v, 0, i32), [&](Block n, Tile sum) {
    return sum + reduce_sum(where(t.asks(b, rule, v, n), 1, full(v, n, 0, i32)), t.P);
  }));
  return p.finish();
}

Program rate_rows(Shape s, Blocks b, KeepRule rule) {
  ProgramBuilder p("rate_rows");
  const RowTensors t(p, s, b, rule);
  Tensor askers = p.input("askers", i32, {t.B}), rating = p.output("rating", i32, {t.P});
  Block n = p.parallel(t.P, 32);
  Tile most = cast(p.size(t.P) + 1, i32);
  store(rating, n, p.loop(t.B, 64, where(t.row(n) >= 0, 0, full(n, -1, i32)), [&](Block v, Tile best) {
    Tile rare = most - load(askers, v, fill(0));
    return max(best, reduce_max(where(v.in_bounds() && t.asks(b, rule, v, n), rare, full(v, n, -1, i32)), t.B));
  }));
  return p.finish();
}

Program place_rows(std::int64_t rows) {
  ProgramBuilder p("place_rows");
  // The same rows twice: each beside all of its group.
  Axis P = p.axis("P"), all = p.axis("all"), G = p.axis("G"), I = p.axis("I", rows);
  Tensor rating = p.input("rating", i32, {P}), of_all = p.input("of_all", i32, {all});
  Tensor place = p.output("place", i64, {P});
  Block group = p.parallel(G, 1), i = p.parallel(I, 32);
  Tile begin = group.number() * rows, n = begin + i.index(), own = load(rating, n, fill(-1));
  Tile before = p.loop(part(all, group, rows / 256), 256, full(i, 0, i64), [&](Block m, Tile before) {
    Tile other = load(of_all, m);
    Tile first = m.in_bounds() && (other > own || (other == own && m.index() < n));
    return before + reduce_sum(where(first, 1, full(m, i, 0, i64)), all);
  });
  store(place, n, begin + before);
  return p.finish();
}

Program move_rows() {
  ProgramBuilder p("move_rows");
  Axis P = p.axis("P");
  Tensor place = p.input("place", i64, {P}), rows = p.input("rows", i64, {P}), target = p.input("target", i32, {P});
  Tensor g = p.input("g", f32, {P}), outside = p.input("outside", f32, {P});
  Tensor from = p.output("from", i64, {P}), moved = p.output("moved_rows", i64, {P});
  Tensor moved_target = p.output("moved_target", i32, {P}), moved_g = p.output("moved_g", f32, {P});
  Tensor moved_outside = p.output("moved_outside", f32, {P});
  Block n = p.parallel(P, 256);
  Tile to = load(place, n, fill(-1));
  store(from, to, n.index());
  store(moved, to, load(rows, n));
  store(moved_target, to, load(target, n));
  store(moved_g, to, load(g, n));
  store(moved_outside, to, load(outside, n));
  return p.finish();
}

}  // namespace kerf::kernels
