// The list of all tiles of a rectangle, for a number of rows that only the device knows. Every entry is closed-form, so
// one program writes all arrays, each instance 256 entries of each.
#include <algorithm>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

std::vector<TileAt> reference_list_tiles(std::int64_t R, std::int64_t first, std::int64_t last, std::int64_t band) {
  std::vector<TileAt> tiles;
  for (std::int64_t begin = 0; begin < R; begin += band)
    for (std::int64_t column = first; column < last; ++column)
      for (std::int64_t row = begin; row < std::min(R, begin + band); ++row) tiles.push_back({row, column});
  return tiles;
}

Program list_tiles(std::int64_t block_n, std::int64_t band) {
  ProgramBuilder p("list_tiles");
  Axis N = p.axis("N"), I = p.axis("I"), first_axis = p.axis("first"), last_axis = p.axis("last");
  Axis K = p.axis("K"), R = p.axis("R"), C = p.axis("C"), one = p.axis("one", 1);
  Tensor row = p.output("row", i32, {K}), column = p.output("column", i32, {K});
  Tensor row_items = p.output("row_items", i32, {K}), column_items = p.output("column_items", i32, {K});
  Tensor row_begin = p.output("row_begin", i32, {R}), column_begin = p.output("column_begin", i32, {C});
  Tensor count = p.output("count", i32, {one});

  Block at = p.parallel(I, 256);
  Tile i = at.index(), first = p.size(first_axis), last = p.size(last_axis), width = last - first;
  Tile rows = (p.size(N) + (block_n - 1)) / block_n;
  auto put = [&](Tensor t, Tile value) { store(t, i, cast(value, i32)); };
  // The rows of the band that begins at `begin`, and the number of a tile. Past the last tile the numbers mean nothing.
  auto band_rows = [&](Tile begin) { return min(rows - begin, band); };
  auto number = [&](Tile r, Tile c) {
    Tile begin = r / band * band;
    return begin * width + (c - first) * band_rows(begin) + (r - begin);
  };

  Tile begin = i / (width * band) * band;
  Tile inside = i - begin * width, high = band_rows(begin), c = inside / high;
  put(row, begin + inside - c * high);
  put(column, first + c);
  Tile item_row = i / width, item_column = i / rows;
  put(row_items, number(item_row, first + i - item_row * width));
  put(column_items, number(i - item_column * rows, first + item_column));
  put(row_begin, i * width);
  put(column_begin, (min(max(i, first), last) - first) * rows);
  store(count, i, cast(full(at, 0, i64) + rows * width, i32));
  return p.finish();
}

Program list_parts(std::int64_t block_n, std::int64_t band) {
  ProgramBuilder p("list_parts");
  Axis N = p.axis("N"), I = p.axis("I"), first_axis = p.axis("first"), last_axis = p.axis("last");
  Axis parts_axis = p.axis("parts"), down_axis = p.axis("down"), K = p.axis("K"), Q = p.axis("Q");
  Tensor item_row = p.output("item_row", i32, {K}), items = p.output("items", i32, {K});
  Tensor begins = p.output("begin", i32, {Q});

  Block at = p.parallel(I, 256);
  Tile i = at.index(), first = p.size(first_axis), last = p.size(last_axis), width = last - first;
  Tile parts = p.size(parts_axis), down = p.size(down_axis), rows = (p.size(N) + (block_n - 1)) / block_n;
  // Columns below x that belong to parts before s.
  auto below = [&](Tile x, Tile s) { return x / parts * s + min(x - x / parts * parts, s); };
  auto before = [&](Tile s) { return below(last, s) - below(first, s); };
  auto count = [&](Tile s) { return before(s + 1) - before(s); };

  Tile begin = i / (width * band) * band, inside = i - begin * width, high = min(rows - begin, band);
  Tile step = inside / high, row = begin + inside - step * high, column = first + step;
  Tile part = column - column / parts * parts, nth = column / parts - (first - part + parts - 1) / parts;
  Tile place = before(part) * rows + row * count(part) + nth;
  store(item_row, i, cast(part * down + row, i32));
  store(items, where(i < rows * width, place, -1), cast(i, i32));

  Tile s = i / down, r = min(i - s * down, rows);
  store(begins, i, cast(before(s) * rows + r * count(s), i32));
  return p.finish();
}

Program list_row_parts(std::int64_t block_n, std::int64_t band) {
  ProgramBuilder p("list_row_parts");
  Axis N = p.axis("N"), I = p.axis("I"), width_axis = p.axis("width"), parts_axis = p.axis("parts");
  Axis K = p.axis("K"), Q = p.axis("Q");
  Tensor item_column = p.output("item_column", i32, {K}), items = p.output("items", i32, {K});
  Tensor begins = p.output("begin", i32, {Q});

  Block at = p.parallel(I, 256);
  Tile i = at.index(), width = p.size(width_axis), parts = p.size(parts_axis);
  Tile rows = (p.size(N) + (block_n - 1)) / block_n;
  // Rows of the parts before s.
  auto before = [&](Tile s) { return rows / parts * s + min(rows - rows / parts * parts, s); };
  auto count = [&](Tile s) { return before(s + 1) - before(s); };

  Tile begin = i / (width * band) * band, inside = i - begin * width, high = min(rows - begin, band);
  Tile step = inside / high, row = begin + inside - step * high;
  Tile nth = row / parts, part = row - nth * parts;
  store(item_column, i, cast(part * width + step, i32));
  store(items, where(i < rows * width, before(part) * width + step * count(part) + nth, -1), cast(i, i32));

  Tile s = i / width;
  store(begins, i, cast(before(s) * width + (i - s * width) * count(s), i32));
  return p.finish();
}

}  // namespace kerf::kernels
