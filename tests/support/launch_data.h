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

/// Sizes for the axes that the program leaves unknown: 1, just below, at, and past the largest block it uses of them;
/// an axis that is only gathered from or scattered to counts as if in blocks of 8.
Sizes ragged_sizes(const ir::Program& p, Random& random);

/// What the floats are. normal: N(0, 1); special: the same with NaN, infinities, -0, huge and tiny ones among them;
/// quarters: multiples of 1/4 in [-1, 1], whose products and sums are exact in f32 however they are ordered.
enum class Floats { normal, special, quarters };

class LaunchData {
 public:
  /// Inputs and inouts are random. Integers of rank 1 are distinct or -1, so that they may scatter; other integers
  /// reach from -1 past the largest axis. Outputs are poisoned. Rows are padded.
  LaunchData(const ir::Program& p, const Sizes& sizes, std::uint64_t seed, Floats floats = Floats::normal);

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
  void fill_in(Array& array, Random& random, Floats floats) const;

  Sizes sizes_;
  std::vector<std::pair<std::string, Array>> tensors_;
  std::vector<List> lists_;
};

}  // namespace kerf::test
