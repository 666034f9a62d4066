#include "runtime/device_space.h"

#include <algorithm>
#include <limits>

#include "lib/kernels/kernels.h"
#include "runtime/carver.h"

namespace kerf::runtime {

namespace {

constexpr std::int64_t few_tiles = 132, most_parts = 16;
constexpr std::int64_t most_dc_sums = std::int64_t{64} << 20, most_de_sums = std::int64_t{256} << 20;  // bytes

/// In how many parts rows are cut for the sums of `tiles` blocks of dc, each over `row_blocks`; `part_bytes`: of the
/// sums of one part. All of a GPU's multiprocessors, one block each, should have equally much to do.
std::int64_t choose_row_parts(std::int64_t tiles, std::int64_t row_blocks, std::int64_t part_bytes,
                              std::int64_t most_bytes) {
  if (tiles >= few_tiles) return 1;
  const std::int64_t most = std::min({most_parts, row_blocks, most_bytes / part_bytes});
  std::int64_t best = 1, least = row_blocks;
  for (std::int64_t parts = 2; parts <= most; ++parts) {
    // In turns of a sum: two launches more cost about as much as four, writing and reading 16 blocks as one.
    const std::int64_t cost =
        blocks_of(tiles * parts, few_tiles) * blocks_of(row_blocks, parts) + 4 + blocks_of(tiles * parts, 16);
    if (cost < least) best = parts, least = cost;
  }
  return best;
}

/// In how many parts a range of `columns` blocks is cut for `tiles` blocks of de. 576 blocks are 4.4 waves of 132,
/// which take the time of 5; in halves they take that of 4.5. Never fewer for a wider range, so that it never takes
/// less memory.
std::int64_t choose_column_parts(std::int64_t tiles, std::int64_t columns, std::int64_t part_bytes,
                                 std::int64_t most_bytes) {
  std::int64_t best = std::clamp<std::int64_t>(few_tiles / tiles, 1, most_parts);
  // In turns of a sum, in ranges of 128: writing and reading 48 blocks costs about as much as one.
  const auto cost = [&](std::int64_t parts) {
    return static_cast<double>(blocks_of(tiles * parts, few_tiles)) * 128 / static_cast<double>(parts) +
           static_cast<double>(tiles * parts) / 48;
  };
  for (std::int64_t parts = best + 1; parts <= std::min(most_parts, most_bytes / part_bytes); ++parts)
    if (cost(parts) < cost(best)) best = parts;
  return std::min(best, columns);
}

}  // namespace

LabelSpace take_labels(Carver& carve, std::int64_t rows) {
  const std::int64_t R = label_blocks(rows), P = R * kernels::label_block;
  LabelSpace s{};
  s.valid = carve.take<std::int64_t>(5);  // three more for a filtered backward
  s.strays = s.valid ? s.valid + 1 : nullptr;
  s.label = carve.take<std::int32_t>(P);
  s.count = carve.take<std::int64_t>(R);
  s.outside = carve.take<std::int64_t>(R);
  s.rows = carve.take<std::int64_t>(P);
  s.target = carve.take<std::int32_t>(P);
  return s;
}

ListSpace take_list(Carver& carve, std::int64_t rows, std::int64_t columns, std::int64_t count) {
  ListSpace s{.ref = {}, .rows = rows, .columns = columns};
  s.ref.count = count;
  s.ref.row = carve.take<std::int32_t>(count);
  s.ref.column = carve.take<std::int32_t>(count);
  s.ref.row_begin = carve.take<std::int32_t>(rows + 1);
  s.ref.row_items = carve.take<std::int32_t>(count);
  s.ref.column_begin = carve.take<std::int32_t>(columns + 1);
  s.ref.column_items = carve.take<std::int32_t>(count);
  s.ref.device_count = carve.take<std::int32_t>(1);
  return s;
}

std::int64_t label_blocks(std::int64_t rows) {
  return std::max<std::int64_t>(1, blocks_of(rows, kernels::label_block));
}

DeviceForwardSpace lay_out_device_forward(std::byte* memory, const PlanDesc& desc, std::int64_t rows,
                                          const DevicePrograms& programs, std::int64_t chunk, std::int64_t parts,
                                          std::int64_t width) {
  Carver carve(memory);
  DeviceForwardSpace s{};
  s.labels = take_labels(carve, rows);
  const std::int64_t P = label_blocks(rows) * kernels::label_block;
  s.chunk_rows = carve.take<std::int64_t>(blocks_of(P, chunk));
  s.compact = carve.take<std::byte>(chunk, copied_row(desc), size_of(desc.dtype));
  if (programs.copies_c()) s.c = carve.take<std::byte>(desc.vocabulary, copied_row(desc), size_of(desc.dtype));
  s.part_max = carve.take<float>(chunk, parts);
  s.part_sum = carve.take<float>(chunk, parts);
  s.part_target = carve.take<float>(chunk, parts);
  s.lse = carve.take<float>(rows);
  s.loss = carve.take<float>(rows);
  s.partial = carve.take<float>(std::max<std::int64_t>(1, blocks_of(rows, kernels::loss_block)));
  if (stashes(desc)) {
    const kernels::Blocks& b = programs.blocks().backward;
    const std::int64_t row_blocks = blocks_of(P, b.n);
    s.kept = take_list(carve, row_blocks, blocks_of(desc.vocabulary, b.v), row_blocks * width);
  }
  s.bytes = carve.bytes();
  return s;
}

DeviceBackwardSpace lay_out_device_backward(std::byte* memory, const PlanDesc& desc, std::int64_t rows,
                                            const DevicePrograms& programs, const Ranges& ranges) {
  Carver carve(memory);
  DeviceBackwardSpace s{};
  const DeviceBlocks& blocks = programs.blocks();
  const kernels::Blocks& b = blocks.backward;
  s.labels = take_labels(carve, rows);
  const std::int64_t P = label_blocks(rows) * kernels::label_block, row_blocks = blocks_of(P, b.n);
  const bool save = desc.strategy == Strategy::min_memory;
  if (programs.copies_c()) s.c = carve.take<std::byte>(desc.vocabulary, copied_row(desc), size_of(desc.dtype));
  if (!save) s.compact = carve.take<std::byte>(P, copied_row(desc), size_of(desc.dtype));
  s.g = carve.take<float>(P);
  if (desc.dtype == f16) s.largest = carve.take<float>(label_blocks(rows));
  s.scale = carve.take<float>(1);
  const std::int64_t down = std::max<std::int64_t>(1, blocks_of(rows, b.n));
  // What parts add takes no more than dz, where narrow ranges are to save memory, but for parts that keep all busy.
  const std::int64_t tile_bytes = b.n * b.v * size_of(desc.dtype), dz_bytes = down * ranges.width * tile_bytes;
  const std::int64_t row_bytes = desc.hidden * std::int64_t{sizeof(float)};
  s.parts = save ? 1
                 : choose_column_parts(down * blocks_of(desc.hidden, blocks.grad_e_d), ranges.width,
                                       down * b.n * row_bytes, std::min(most_de_sums, dz_bytes));
  if (s.parts > 1)
    s.sum = carve.take<float>(s.parts, down * b.n, desc.hidden);
  else if (save || ranges.count() > 1 || (stashes(desc) && desc.strategy != Strategy::dense))  // may end with the stash
    s.sum = carve.take<float>(P, desc.hidden);
  if (save) s.compact = reinterpret_cast<std::byte*>(s.sum);
  const std::int64_t hidden_blocks = blocks_of(desc.hidden, blocks.grad_c_d);
  const auto numbered = [&](std::int64_t blocks_down) {  // tiles are numbered in 32 bits
    return blocks_down <= std::numeric_limits<std::int32_t>::max() / ranges.width;
  };
  if (!numbered(row_blocks) || !numbered(hidden_blocks)) {
    s.bytes = too_large;
    return s;
  }
  s.kept = take_list(carve, row_blocks, ranges.columns, row_blocks * ranges.width);
  s.written = take_list(carve, hidden_blocks, ranges.columns, hidden_blocks * ranges.width);
  if (s.parts > 1) {
    s.part_items = s.kept.ref;
    s.part_items.row = carve.take<std::int32_t>(s.kept.ref.count);
    s.part_items.row_items = carve.take<std::int32_t>(s.kept.ref.count);
    s.part_items.row_begin = carve.take<std::int32_t>(s.parts * down + 1);
  }
  const std::int64_t range_v = ranges.width * b.v;
  s.row_parts = save ? 1
                     : choose_row_parts(hidden_blocks * ranges.width, down, range_v * row_bytes,
                                        std::min(most_dc_sums, dz_bytes));
  if (s.row_parts > 1) {
    s.dc_sum = carve.take<float>(s.row_parts, range_v, desc.hidden);
    s.row_part_items = s.kept.ref;
    s.row_part_items.column = carve.take<std::int32_t>(s.kept.ref.count);
    s.row_part_items.column_items = carve.take<std::int32_t>(s.kept.ref.count);
    s.row_part_items.column_begin = carve.take<std::int32_t>(s.row_parts * ranges.width + 1);
  }
  if (desc.strategy != Strategy::dense) s.dz = carve.take<std::byte>(row_blocks, ranges.width, tile_bytes);
  s.bytes = carve.bytes();
  return s;
}

StashSpace lay_out_stash(std::byte* memory, std::size_t bytes, const PlanDesc& desc, std::int64_t rows,
                         const DevicePrograms& programs) {
  const kernels::Blocks& b = programs.blocks().backward;
  const std::int64_t P = label_blocks(rows) * kernels::label_block, all = blocks_of(desc.vocabulary, b.v);
  Carver carve(memory);
  StashSpace s{};
  s.part_max = carve.take<float>(all, P);
  const std::size_t before = carve.bytes();
  s.column_bytes = blocks_of(P, b.n) * b.n * b.v * size_of(desc.dtype);
  if (bytes <= before) return s;
  s.columns = std::min(all, static_cast<std::int64_t>((bytes - before) / static_cast<std::size_t>(s.column_bytes)));
  s.tiles = carve.take<std::byte>(s.columns, s.column_bytes);
  s.bytes = carve.bytes();
  return s;
}

std::size_t stash_bytes(const PlanDesc& desc, std::int64_t rows, const DevicePrograms& programs) {
  const kernels::Blocks& b = programs.blocks().backward;
  const std::int64_t P = label_blocks(rows) * kernels::label_block, all = blocks_of(desc.vocabulary, b.v);
  Carver carve(nullptr);
  carve.take<float>(all, P);
  carve.take<std::byte>(all, blocks_of(P, b.n), b.n * b.v * size_of(desc.dtype));
  return carve.bytes();
}

}  // namespace kerf::runtime
