// Small random programs that are valid and well-conditioned, with everything a launch needs: for comparing two ways to
// run a program on constructs that nobody thought of together.
//
// The generator follows a bound on the magnitude and on the rounding error of every float tile it makes, so the largest
// difference that two correct runs may show is known. Integers and bools are exact; floats are compared with each other
// only where they are exact too.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kerf/dsl.h"
#include "kerf/kernel.h"
#include "tests/support/tensors.h"

namespace kerf::test {

/// Kept tiles with their lists by row and by column.
struct OwnedTileList {
  std::vector<std::int32_t> row, column, row_begin, row_items, column_begin, column_items;
  OwnedTileList() = default;
  OwnedTileList(std::int64_t rows, std::int64_t columns, std::vector<std::pair<int, int>> tiles);
  TileListRef ref() const;
};

struct RandomProgram {
  Program program;
  std::map<std::string, Array> arrays;         // by tensor; outputs are poisoned
  std::map<std::string, OwnedTileList> lists;  // by tile list
  std::vector<std::pair<std::string, std::int64_t>> axes;
  std::map<std::string, double> tolerance;  // by float output: the largest difference of two correct runs

  /// Points into this object.
  LaunchArgs args();
  /// What differs between the outputs of two runs of this program, each on its own copy; empty if nothing does.
  std::string difference(const RandomProgram& other) const;
};

/// The same seed gives the same program and data everywhere. One program in four has NaN, infinities and zeros of both
/// signs in its inputs.
RandomProgram random_program(std::uint64_t seed);

}  // namespace kerf::test
