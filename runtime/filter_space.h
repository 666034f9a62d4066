// What a filtered backward keeps in the caller's workspace, and how many tiles it has room for at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/device_space.h"

namespace kerf::runtime {

/// How the kept tiles are cut into ranges of the vocabulary; sizes alone decide.
struct FilterRanges {
  std::int64_t rows, columns;    // blocks, of a window of the vocabulary
  std::int64_t all_columns;      // of all of it
  std::int64_t capacity = 0;     // tiles that there is room for
  std::int64_t most_pieces = 0;  // the lists of rows are cut into about as many, or are not: 0
  std::int64_t pieces() const { return most_pieces > 0 ? most_pieces + rows : 0; }
  /// A column belongs to the range that its first tile falls in, by steps of this many tiles.
  std::int64_t quota() const { return capacity < rows * columns ? capacity - rows + 1 : capacity + 1; }
  std::int64_t count() const { return rows * columns / quota() + 1; }
};

/// A workspace begins with what is known of the last call.
struct FilterFigures {
  std::int64_t valid, strays, kept, tiles;
  float left_out;
};
struct FilterSpace {
  LabelSpace labels;
  std::int64_t* kept;      // [1] FilterFigures
  std::int64_t* tiles;     // [1]
  float* left_out;         // [1]
  std::byte *c, *compact;  // of c a window
  std::int32_t* target;    // [P] in a window, where there are several
  float *g, *largest, *scale;
  // What group_rows.cpp makes, or rows as they lay: [B] of all blocks, else [P].
  std::int32_t *askers, *rating, *moved_target;
  std::int64_t *place, *from, *rows;
  float *moved_g, *outside, *moved_outside;
  float* sum;                                        // [P, D]
  std::int32_t* keep;                                // [B, R]
  float* block_left_out;                             // [B, R]
  std::int64_t* kept_count;                          // [B]
  float* lost;                                       // [B]
  std::int32_t *item_rank, *column_rank, *row_rank;  // [W, R] of a window; row_rank [W + 1, R]
  std::int64_t *item_count, *column_count;           // [W]
  std::int64_t *item_begin, *column_begin;           // [W + 1]
  std::int64_t *first, *range_rows;                  // [ranges + 1], [ranges]
  std::byte *m, *cmean;                              // [B, P], [B, D]
  float* added;                                      // [B, D]
  ListSpace list, written;
  std::int32_t *piece_begin, *piece_items, *piece_start;  // [R + 1], [pieces + 1], [most_pieces, R]
  std::int32_t *begin_of_piece, *piece_row, *counting;    // [pieces + 1]
  std::int32_t *items_of_pieces, *item_piece;             // [capacity]
  std::int32_t* piece_count;                              // [1]
  std::int64_t* piece_rows;                               // [1]
  float* part;                                            // [pieces, b.n, D]
  std::byte* dz;
  std::size_t bytes;
};
FilterSpace lay_out_filter(std::byte* memory, const PlanDesc& desc, std::int64_t rows, const DevicePrograms& programs,
                           const FilterRanges& ranges);
/// Room for all tiles or for as many as `limit` bytes allow, at least two columns.
FilterRanges choose_filter_ranges(const PlanDesc& desc, std::int64_t rows, const DevicePrograms& programs,
                                  std::size_t limit);

}  // namespace kerf::runtime
