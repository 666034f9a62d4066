#include "runtime/blocks.h"

#include <algorithm>

namespace kerf::runtime {

namespace {

constexpr std::int64_t part_bytes = std::int64_t{8} << 20;  // of c in one part of the forward: stays in a shared cache

std::int64_t clip(std::int64_t block, std::int64_t axis) { return std::min(block, (axis + 15) / 16 * 16); }

}  // namespace

PlanBlocks choose_blocks(const kernels::Shape& s) {
  kernels::Blocks b{.n = 128, .v = clip(256, s.vocabulary), .d = clip(256, s.hidden), .split = 1};
  const std::int64_t blocks = (s.vocabulary + b.v - 1) / b.v;
  const std::int64_t fit = part_bytes / size_of(s.dtype) / b.v / s.hidden;
  b.split = std::clamp<std::int64_t>(fit, 1, blocks);
  return {b, b};
}

}  // namespace kerf::runtime
