// Functions over tiles that several programs share.
#pragma once

#include <cstdint>

#include "lib/kernels/kernels.h"

namespace kerf::kernels {

/// c, and the order of its rows where they are gathered.
struct Classifier {
  Classifier(ProgramBuilder& p, const Shape& s, Axis V, Axis D) : c(p.input("c", s.dtype, {V, D})), gather(s.gather) {
    if (gather) order = p.input("order", i64, {V});
  }
  /// Where the rows of a block lie.
  Tile at(Block v) const { return gather ? load(order, v, fill(-1)) : Tile(); }
  Tile load_at(Tile at, Block v, Block d) const { return gather ? load(c, at, d) : load(c, v, d); }

  Tensor c, order;
  bool gather;
};

/// Logits of one tile, z[n,v] = sum_d e[n,d] c[v,d]: made again where needed, never stored. Columns past V are -inf, so
/// that they weigh nothing in a softmax; rows past N are 0. `rows` says which rows of e: a block of them, or a tile of
/// their numbers.
template <class Rows>
Tile logits_tile(ProgramBuilder& p, Tensor e, const Classifier& c, Rows rows, Block n, Block v, Axis D,
                 std::int64_t block_d) {
  const auto at = c.at(v);
  Tile z = p.loop(D, block_d, zeros(n, v), [&](Block d, Tile acc) {
    return acc + dot(load(e, rows, d), c.load_at(at, v, d));  // contracts D, the axis they share
  });
  return where(v.in_bounds(), z, -inf);
}

/// What a forward reads, and what it leaves of each part of the vocabulary.
struct ForwardTensors {
  ForwardTensors(ProgramBuilder& p, const Shape& s)
      : compact(s.compact),
        S(p.axis("S")),
        N(p.axis("N")),
        T(compact ? N : p.axis("T")),
        V(p.axis("V", s.vocabulary)),
        D(p.axis("D", s.hidden)),
        e(p.input("e", s.dtype, {T, D})),
        c(p, s, V, D),
        rows(compact ? Tensor() : p.input("rows", i64, {N})),
        target(p.input("target", i32, {N})),
        part_max(p.output("part_max", f32, {S, N})),
        part_sum(p.output("part_sum", f32, {S, N})),
        part_target(p.output("part_target", f32, {S, N})) {}
  /// Where the rows of a block lie in e.
  Tile at(Block n) const { return compact ? Tile() : load(rows, n, fill(-1)); }
  Tile logits(ProgramBuilder& p, Tile at, Block n, Block v, std::int64_t block_d) const {
    return compact ? logits_tile(p, e, c, n, n, v, D, block_d) : logits_tile(p, e, c, at, n, v, D, block_d);
  }

  bool compact;
  Axis S, N, T, V, D;
  Tensor e;
  Classifier c;
  Tensor rows, target, part_max, part_sum, part_target;
};

}  // namespace kerf::kernels
