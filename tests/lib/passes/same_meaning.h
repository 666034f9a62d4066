// Two forms of one program compute the same: both run through the interpreter on equal data.
#pragma once

#include <doctest/doctest.h>

#include "lib/ir/ir.h"
#include "tests/support/launch_data.h"

namespace kerf::test {

/// Dots that start from a sum.
inline int accumulating_dots(const ir::Program& p) {
  int count = 0;
  ir::walk(p.body, [&](const ir::Op& op) { count += op.kind == ir::OpKind::dot && op.operands.size() == 3; });
  return count;
}

/// Bit for bit, on data with NaN, infinities and -0 in it too. Where a sum became the accumulator of a dot, rounding
/// differs: then on numbers whose sums and products are exact, for programs whose dots are of what they load.
inline void check_same_meaning(const ir::Program& before, const ir::Program& after, int runs = 4) {
  const bool rounds_alike = accumulating_dots(before) == accumulating_dots(after);
  Random random(7);
  for (int run = 0; run < runs; ++run) {
    const Sizes sizes = ragged_sizes(before, random);
    const std::uint64_t seed = random.bits();
    const Floats floats = !rounds_alike ? Floats::quarters : run % 2 == 0 ? Floats::normal : Floats::special;
    LaunchData a(before, sizes, seed, floats), b(before, sizes, seed, floats);
    ir::interpret(before, ir::bind(before, a.args()));
    ir::interpret(after, ir::bind(after, b.args()));
    std::string where;
    for (const auto& [axis, size] : sizes) where += axis + "=" + std::to_string(size) + " ";
    CAPTURE(where);
    CHECK(a.difference(b) == "");
  }
}

/// On ordinary numbers, each rounding its own way: within 1e-6 of the root mean square.
inline void check_nearly_same(const ir::Program& before, const ir::Program& after) {
  Random random(8);
  for (int run = 0; run < 4; ++run) {
    const Sizes sizes = ragged_sizes(before, random);
    const std::uint64_t seed = random.bits();
    LaunchData a(before, sizes, seed), b(before, sizes, seed);
    ir::interpret(before, ir::bind(before, a.args()));
    ir::interpret(after, ir::bind(after, b.args()));
    CHECK(a.difference(b, 1e-6) == "");
  }
}

}  // namespace kerf::test
