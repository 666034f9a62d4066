// Random arguments for any program: tensors of every dtype, tile lists, sizes that blocks do not divide. Two LaunchData
// made alike hold the same, so two forms of a program can be run on one each and compared.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"
#include "tests/support/tensors.h"

namespace kerf::test {

using Sizes = std::map<std::string, std::int64_t>;

/// Sizes for the axes that the program leaves unknown: 1, just below, at, and past the largest block it uses of them.
Sizes ragged_sizes(const ir::Program& p, Random& random);

class LaunchData {
 public:
  /// Inputs and inouts: floats are normal, with `special` now and then NaN, infinite, -0 or huge; integers of rank 1
  /// are distinct or -1, so that they may scatter, other integers reach from -1 past the largest axis. Outputs are
  /// poisoned. Rows are padded.
  LaunchData(const ir::Program& p, const Sizes& sizes, std::uint64_t seed, bool special = false);

  LaunchArgs args();

  /// Where the tensors differ, or what was written outside one, in words; empty: all is well. Any two NaN are equal.
  /// Floats may differ by `tolerance` times their own size or, where larger, the root mean square of the finite numbers
  /// in their tensor.
  std::string difference(const LaunchData& other, double tolerance = 0) const;

 private:
  struct List {
    std::string name;
    std::vector<std::int32_t> row, column, row_begin, row_items, column_begin, column_items;
  };
  List make_list(const ir::Program& p, const ir::ListInfo& info, Random& random) const;
  void fill_in(Array& array, Random& random, bool special) const;

  Sizes sizes_;
  std::vector<std::pair<std::string, Array>> tensors_;
  std::vector<List> lists_;
};

}  // namespace kerf::test
