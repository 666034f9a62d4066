// What a loss call keeps in the caller's workspace. One function per direction says both how many bytes it is and where
// each array lies, so the two cannot differ.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include "lib/kernels/kernels.h"
#include "runtime/carver.h"

namespace kerf::runtime {

/// Tiles are numbered in 32 bits.
inline constexpr std::int64_t most_row_blocks = std::numeric_limits<std::int32_t>::max();

struct ForwardSpace {
  std::int64_t* rows;    // [N] where valid row n lies
  std::int32_t* target;  // [N]
  float* part_max;       // [parts, N]
  float* part_sum;
  float* part_target;
  float* lse;   // [N], where the caller gives no output
  float* loss;  // [N], the same
  std::byte* scratch;
  std::size_t bytes;
};
ForwardSpace lay_out_forward(std::byte* memory, std::int64_t rows, std::int64_t parts, std::size_t scratch);

/// How the backward walks the vocabulary.
struct Ranges {
  std::int64_t columns = 0;  // blocks of vocabulary in all
  std::int64_t width = 1;    // of them in one range
  int count() const { return static_cast<int>((columns + width - 1) / width); }
};
struct BackwardSpace {
  std::int64_t* rows;    // [N] where valid row n lies
  std::int32_t* target;  // [N]
  float* g;              // [N] upstream gradient with every factor in it
  float* scale;          // [1] what takes the f16 scale out again
  float* sum;            // [N, D] de so far, with more than one range
  std::byte* kept;       // lists
  std::byte* written;
  std::byte* dz;  // packed tiles of one range
  std::byte* scratch;
  std::size_t bytes;
};
BackwardSpace lay_out_backward(std::byte* memory, std::int64_t rows, const kernels::Shape& shape,
                               const kernels::Blocks& blocks, const Ranges& ranges, std::size_t scratch);
/// The widest ranges whose `bytes` are at most `limit`, or of one block, in as equal parts as can be.
Ranges choose_ranges(std::int64_t columns, std::size_t limit, const std::function<std::size_t(const Ranges&)>& bytes);
/// The widest ranges whose workspace is at most `limit` bytes, or of one block, in as equal parts as can be.
Ranges choose_ranges(std::int64_t rows, const kernels::Shape& shape, const kernels::Blocks& blocks, std::size_t scratch,
                     std::size_t limit);

}  // namespace kerf::runtime
