#include "runtime/filter_space.h"

#include <algorithm>
#include <limits>

#include "runtime/carver.h"

namespace kerf::runtime {

FilterSpace lay_out_filter(std::byte* memory, const PlanDesc& desc, std::int64_t rows, const DevicePrograms& programs,
                           const FilterRanges& ranges) {
  Carver carve(memory);
  FilterSpace s{};
  const DeviceBlocks& blocks = programs.blocks();
  const std::int64_t P = label_blocks(rows) * kernels::label_block, D = desc.hidden, B = ranges.all_columns,
                     W = ranges.columns, R = ranges.rows, size = size_of(desc.dtype);
  const bool corrects = desc.correction;
  s.labels = take_labels(carve, rows);
  if (memory) {
    auto* figures = reinterpret_cast<FilterFigures*>(memory);
    s.kept = &figures->kept;
    s.tiles = &figures->tiles;
    s.left_out = &figures->left_out;
  }
  if (programs.copies_c()) s.c = carve.take<std::byte>(programs.window(), copied_row(desc), size);
  if (W < B) s.target = carve.take<std::int32_t>(P);
  s.compact = carve.take<std::byte>(P, copied_row(desc), size);
  s.g = carve.take<float>(P);
  if (desc.dtype == f16) s.largest = carve.take<float>(label_blocks(rows));
  s.scale = carve.take<float>(1);
  if (groups_rows(desc)) {
    s.askers = carve.take<std::int32_t>(B);
    s.rating = carve.take<std::int32_t>(P);
    s.place = carve.take<std::int64_t>(P);
    s.from = carve.take<std::int64_t>(P);
    s.rows = carve.take<std::int64_t>(P);
    s.moved_target = carve.take<std::int32_t>(P);
    s.moved_g = carve.take<float>(P);
    s.outside = carve.take<float>(P);
    s.moved_outside = carve.take<float>(P);
  } else {
    s.rows = s.labels.rows;
    s.moved_target = s.labels.target;
    s.moved_g = s.g;
  }
  s.sum = carve.take<float>(P, D);
  s.keep = carve.take<std::int32_t>(B, R);
  s.item_rank = carve.take<std::int32_t>(W, R);
  s.column_rank = carve.take<std::int32_t>(W, R);
  s.row_rank = carve.take<std::int32_t>(W + 1, R);
  s.item_count = carve.take<std::int64_t>(W);
  s.column_count = carve.take<std::int64_t>(W);
  s.kept_count = carve.take<std::int64_t>(B);
  s.item_begin = carve.take<std::int64_t>(W + 1);
  s.column_begin = carve.take<std::int64_t>(W + 1);
  s.block_left_out = carve.take<float>(B, R);
  s.lost = carve.take<float>(B);
  s.first = carve.take<std::int64_t>(ranges.count() + 1);
  s.range_rows = carve.take<std::int64_t>(ranges.count());
  if (corrects) {
    s.m = carve.take<std::byte>(B, P, size);
    s.cmean = carve.take<std::byte>(B, copied_row(desc), size);
    s.added = carve.take<float>(blocks_of(B, W) * W, D);
  }
  const std::int64_t hidden_blocks = blocks_of(D, blocks.grad_c_d);
  if (hidden_blocks > std::numeric_limits<std::int32_t>::max() / W) {
    s.bytes = too_large;
    return s;
  }
  s.list = take_list(carve, R, W, ranges.capacity);
  s.written = take_list(carve, hidden_blocks, W, hidden_blocks * W);
  s.item_piece = carve.take<std::int32_t>(ranges.capacity);
  if (ranges.most_pieces > 0) {
    s.piece_begin = carve.take<std::int32_t>(R + 1);
    s.begin_of_piece = carve.take<std::int32_t>(ranges.pieces() + 1);
    s.piece_items = carve.take<std::int32_t>(ranges.pieces() + 1);
    s.piece_start = carve.take<std::int32_t>(ranges.most_pieces, R);
    s.items_of_pieces = carve.take<std::int32_t>(ranges.capacity);
    s.piece_row = carve.take<std::int32_t>(ranges.pieces() + 1);
    s.counting = carve.take<std::int32_t>(ranges.pieces() + 1);
    s.piece_count = carve.take<std::int32_t>(1);
    s.piece_rows = carve.take<std::int64_t>(1);
    s.part = carve.take<float>(ranges.pieces(), blocks.backward.n, D);
  }
  s.dz = carve.take<std::byte>(ranges.capacity, blocks.backward.n * blocks.backward.v * size);
  s.bytes = carve.bytes();
  return s;
}

FilterRanges choose_filter_ranges(const PlanDesc& desc, std::int64_t rows, const DevicePrograms& programs,
                                  std::size_t limit) {
  const kernels::Blocks& b = programs.blocks().backward;
  FilterRanges r{.rows = label_blocks(rows) * kernels::label_block / b.n,
                 .columns = blocks_of(programs.window(), b.v),
                 .all_columns = blocks_of(desc.vocabulary, b.v)};
  // Pieces may have a quarter of the memory, and a sum in f32 of all rows among it; beside windows, which leave less
  // for tiles, a quarter as many pieces were measured to be best.
  const std::int64_t all_pieces = programs.blocks().pieces / (r.columns < r.all_columns ? 4 : 1);
  const std::int64_t wanted = all_pieces / blocks_of(desc.hidden, programs.blocks().grad_e_d);
  const auto piece_bytes = static_cast<std::size_t>(b.n * desc.hidden) * sizeof(float);
  const auto room = static_cast<std::int64_t>(limit / 4 / piece_bytes) - r.rows;
  if (wanted > 0 && room >= r.rows / 4) r.most_pieces = std::clamp<std::int64_t>(room, 1, wanted);
  const std::int64_t all = std::min<std::int64_t>(r.rows * r.columns, std::numeric_limits<std::int32_t>::max());
  const auto fits = [&](std::int64_t capacity) {
    r.capacity = capacity;
    return lay_out_filter(nullptr, desc, rows, programs, r).bytes <= limit;
  };
  std::int64_t low = std::min(2 * r.rows, all), high = all;
  if (!fits(all)) {
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      (fits(middle) ? low : high) = middle;
    }
  } else {
    low = all;
  }
  r.capacity = low;
  return r;
}

}  // namespace kerf::runtime
