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

}  // namespace kerf::kernels
