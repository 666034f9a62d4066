// Lists of tiles for the block-sparse backward, built in the caller's workspace in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kerf/kernel.h"

namespace kerf::runtime {

/// Every tile of a rectangle of blocks: all `rows` row blocks, column blocks [begin, end) of `columns`.
struct Rectangle {
  std::int64_t rows = 0, columns = 0, begin = 0, end = 0;
  std::int64_t count() const { return rows * (end - begin); }
};

/// Bytes that a list of such a rectangle takes, a multiple of 64.
std::size_t list_bytes(const Rectangle& r);
/// Column by column, so that tiles which follow each other share a block of columns. `memory` holds list_bytes(r).
TileListRef fill_by_column(const Rectangle& r, std::byte* memory);

}  // namespace kerf::runtime
