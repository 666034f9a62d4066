// Which rows of the gradients a check compares: all of a small problem, strata of a large one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/support/reference.h"

namespace kerf::tools {

struct Sample {
  ReferenceRows rows;
  std::vector<double> dc_weight;  // how many rows of dc each one stands for
  std::string text;               // what was sampled; empty: all rows are compared
};

/// While N * D * V is at most `whole_limit`, all rows that are not ignored and the whole vocabulary. Above it, of de a
/// random sample of the rows; of dc, whose norm lies mostly in few rows, every target's row and a random sample of n
/// others, weighted by (V - targets) / n.
Sample choose_rows(const LossProblem& problem, std::uint64_t seed, double whole_limit = 1.1e11,
                   std::int64_t de_rows = 256, std::int64_t other_dc_rows = 2048);

}  // namespace kerf::tools
