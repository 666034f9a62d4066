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
  bool whole_lse = true;          // false: too much work; of the rows of de alone
  std::string text;               // what was sampled; empty: all rows are compared
};

struct SampleLimits {
  double whole = 1.1e11;    // N * D * V up to which all rows that are not ignored and the whole vocabulary are compared
  double whole_lse = 1e12;  // the same for the lse of all rows
  std::int64_t de_rows = 256, other_dc_rows = 2048;
  double dc_rows = 2.5e11;  // rows of dc * N * D: a third of them at most are no targets
};

/// Above the limits, of de a random sample of the rows, spread evenly; of dc, whose norm lies mostly in few rows, every
/// target's row, or the most frequent ones and a sample, and a sample of the others. The weights make up for it.
Sample choose_rows(const LossProblem& problem, std::uint64_t seed, const SampleLimits& limits = {});

}  // namespace kerf::tools
