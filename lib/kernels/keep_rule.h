// What a row asks for, in the programs that choose tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

/// What keep_tiles.cpp goes by. `row`: the numbers of the rows, -1 where there is none.
struct Asking {
  /// `outside` is not looked at where all rows are alike.
  Asking(const Blocks& b, const KeepRule& rule, Tile row, Tile target, Tile g, Tile outside, Tile block_lse, Tile lse,
         Block v)
      : g(where(row >= 0, g, 0)), mass(exp(block_lse - lse)) {
    Tile size = max(this->g, -this->g), y = cast(target, i64), least = rule.eps * size;
    if (rule.sure > 0) least = least * max(least_share, min(1, outside * (1 / rule.sure)));
    Tile small = size * mass < least, holds = y >= 0 && y / b.v == v.index();
    asks = this->g != 0 && (holds || !small);
  }
  Tile g, mass, asks;
};

/// The same of one row that exists and has a gradient, for the references.
inline bool reference_asks(const Blocks& b, const KeepRule& rule, std::int64_t block, std::int32_t target, double g,
                           double outside, double mass) {
  double share = 1;
  if (rule.sure > 0)
    share = std::isnan(outside) ? std::numeric_limits<double>::quiet_NaN()
                                : std::clamp(outside / rule.sure, least_share, 1.0);
  return (target >= 0 && target / b.v == block) || !(std::abs(g) * mass < rule.eps * share * std::abs(g));
}

}  // namespace kerf::kernels
