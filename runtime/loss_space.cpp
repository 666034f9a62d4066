#include "runtime/loss_space.h"

#include <limits>

#include "runtime/tile_lists.h"

namespace kerf::runtime {

namespace {

constexpr std::int64_t blocks_of(std::int64_t size, std::int64_t block) { return size / block + (size % block != 0); }

/// Cuts arrays off a piece of memory, each aligned to 64 bytes; without memory only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}
  /// An array of a * b * c elements.
  template <class T>
  T* take(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) {
    const std::int64_t at = bytes_;
    std::int64_t n = 0;
    if (__builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, c, &n) ||
        __builtin_mul_overflow(n, static_cast<std::int64_t>(sizeof(T)), &n) || __builtin_add_overflow(n, 63, &n) ||
        __builtin_add_overflow(bytes_, n / 64 * 64, &bytes_))
      fits_ = false;
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  std::size_t bytes() const { return fits_ ? static_cast<std::size_t>(bytes_) : too_large; }

 private:
  std::byte* memory_;
  std::int64_t bytes_ = 0;
  bool fits_ = true;
};

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

Ranges choose_ranges(std::int64_t rows, const kernels::Shape& shape, const kernels::Blocks& blocks, std::size_t scratch,
                     std::size_t limit) {
  const std::int64_t columns = blocks_of(shape.vocabulary, blocks.v);
  const auto fits = [&](std::int64_t width) {
    const Ranges ranges{columns, width};
    return kept_tiles(rows, blocks, ranges).count() <= std::numeric_limits<std::int32_t>::max() &&
           lay_out_backward(nullptr, rows, shape, blocks, ranges, scratch).bytes <= limit;
  };
  if (columns == 1 || fits(columns)) return {columns, columns};
  std::int64_t low = 1, high = columns;  // low works, or is the least; high does not
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  const std::int64_t count = blocks_of(columns, low);
  return {columns, blocks_of(columns, count)};
}

}  // namespace kerf::runtime
