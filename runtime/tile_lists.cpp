#include "runtime/tile_lists.h"

#include <algorithm>

namespace kerf::runtime {

std::size_t list_bytes(const Rectangle& r) {
  const auto entries = static_cast<std::size_t>(4 * r.count() + (r.rows + 1) + (r.columns + 1));
  return (entries * sizeof(std::int32_t) + 63) / 64 * 64;
}

TileListRef fill_by_column(const Rectangle& r, std::byte* memory) {
  const std::int64_t width = r.end - r.begin;
  auto* row = reinterpret_cast<std::int32_t*>(memory);
  std::int32_t *column = row + r.count(), *row_items = column + r.count(), *column_items = row_items + r.count();
  std::int32_t *row_begin = column_items + r.count(), *column_begin = row_begin + r.rows + 1;
  for (std::int64_t k = 0; k < r.count(); ++k) {
    row[k] = static_cast<std::int32_t>(k % r.rows);
    column[k] = static_cast<std::int32_t>(r.begin + k / r.rows);
    row_items[k] = static_cast<std::int32_t>(k % width * r.rows + k / width);
    column_items[k] = static_cast<std::int32_t>(k);
  }
  for (std::int64_t i = 0; i <= r.rows; ++i) row_begin[i] = static_cast<std::int32_t>(i * width);
  for (std::int64_t i = 0; i <= r.columns; ++i)
    column_begin[i] = static_cast<std::int32_t>((std::clamp(i, r.begin, r.end) - r.begin) * r.rows);
  return {.count = r.count(),
          .row = row,
          .column = column,
          .row_begin = row_begin,
          .row_items = row_items,
          .column_begin = column_begin,
          .column_items = column_items};
}

}  // namespace kerf::runtime
