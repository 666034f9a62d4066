#include "runtime/loss_space.h"

#include <limits>

#include "runtime/carver.h"
#include "runtime/tile_lists.h"

namespace kerf::runtime {

namespace {

Rectangle kept_tiles(std::int64_t rows, const kernels::Blocks& b, const Ranges& r) {
  return {.rows = blocks_of(rows, b.n), .columns = r.columns, .begin = 0, .end = r.width};
}
Rectangle written_blocks(const kernels::Shape& s, const kernels::Blocks& b, const Ranges& r) {
  return {.rows = blocks_of(s.hidden, b.d), .columns = r.columns, .begin = 0, .end = r.width};
}

}  // namespace

ForwardSpace lay_out_forward(std::byte* memory, std::int64_t rows, std::int64_t parts, std::size_t scratch) {
  Carver carve(memory);
  ForwardSpace s{};
  s.rows = carve.take<std::int64_t>(rows);
  s.target = carve.take<std::int32_t>(rows);
  s.part_max = carve.take<float>(rows, parts);
  s.part_sum = carve.take<float>(rows, parts);
  s.part_target = carve.take<float>(rows, parts);
  s.lse = carve.take<float>(rows);
  s.loss = carve.take<float>(rows);
  s.scratch = carve.take<std::byte>(static_cast<std::int64_t>(scratch));
  s.bytes = carve.bytes();
  return s;
}

BackwardSpace lay_out_backward(std::byte* memory, std::int64_t rows, const kernels::Shape& shape,
                               const kernels::Blocks& b, const Ranges& ranges, std::size_t scratch) {
  Carver carve(memory);
  BackwardSpace s{};
  s.rows = carve.take<std::int64_t>(rows);
  s.target = carve.take<std::int32_t>(rows);
  s.g = carve.take<float>(rows);
  s.scale = carve.take<float>(1);
  if (ranges.count() > 1) s.sum = carve.take<float>(rows, shape.hidden);
  const Rectangle kept = kept_tiles(rows, b, ranges);
  s.dz = carve.take<std::byte>(kept.rows, ranges.width, b.n * b.v * size_of(shape.dtype));
  s.kept = carve.take<std::byte>(static_cast<std::int64_t>(list_bytes(kept)));
  s.written = carve.take<std::byte>(static_cast<std::int64_t>(list_bytes(written_blocks(shape, b, ranges))));
  s.scratch = carve.take<std::byte>(static_cast<std::int64_t>(scratch));
  s.bytes = carve.bytes();
  return s;
}

Ranges choose_ranges(std::int64_t columns, std::size_t limit, const std::function<std::size_t(const Ranges&)>& bytes) {
  const auto fits = [&](std::int64_t width) { return bytes({columns, width}) <= limit; };
  if (columns == 1 || fits(columns)) return {columns, columns};
  std::int64_t low = 1, high = columns;  // low works, or is the least; high does not
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  const std::int64_t count = blocks_of(columns, low);
  return {columns, blocks_of(columns, count)};
}

Ranges choose_ranges(std::int64_t rows, const kernels::Shape& shape, const kernels::Blocks& blocks, std::size_t scratch,
                     std::size_t limit) {
  return choose_ranges(blocks_of(shape.vocabulary, blocks.v), limit, [&](const Ranges& ranges) {
    return kept_tiles(rows, blocks, ranges).count() <= std::numeric_limits<std::int32_t>::max()
               ? lay_out_backward(nullptr, rows, shape, blocks, ranges, scratch).bytes
               : too_large;
  });
}

}  // namespace kerf::runtime
