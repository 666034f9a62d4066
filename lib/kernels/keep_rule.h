// What a row asks for, in the programs that choose tiles.
#pragma once

#include "lib/kernels/kernels.h"

namespace kerf::kernels {

/// What keep_tiles.cpp goes by. `row`: the numbers of the rows, -1 where there is none.
struct Asking {
  Asking(const Blocks& b, const KeepRule& rule, Tile row, Tile target, Tile g, Tile block_lse, Tile lse, Block v)
      : g(where(row >= 0, g, 0)), mass(exp(block_lse - lse)) {
    Tile size = max(this->g, -this->g), y = cast(target, i64);
    Tile small = size * mass < rule.eps * size, holds = y >= 0 && y / b.v == v.index();
    asks = this->g != 0 && (holds || !small);
  }
  Tile g, mass, asks;
};

}  // namespace kerf::kernels
