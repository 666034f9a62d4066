// Functions over tiles that several programs share.
#pragma once

#include <cstdint>

#include "kerf/dsl.h"

namespace kerf::kernels {

/// Logits of one tile, z[n,v] = sum_d e[n,d] c[v,d]: made again where needed, never stored. Columns past V are -inf, so
/// that they weigh nothing in a softmax; rows past N are 0. `rows` says which rows of e: a block of them, or a tile of
/// their numbers.
template <class Rows>
Tile logits_tile(ProgramBuilder& p, Tensor e, Tensor c, Rows rows, Block n, Block v, Axis D, std::int64_t block_d) {
  Tile z = p.loop(D, block_d, zeros(n, v), [&](Block d, Tile acc) {
    return acc + dot(load(e, rows, d), load(c, v, d));  // contracts D, the axis they share
  });
  return where(v.in_bounds(), z, -inf);
}

}  // namespace kerf::kernels
