// What a loss call on a device keeps in the caller's workspace; as in loss_space.h, one function says both how many
// bytes it is and where each array lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kerf/loss.h"
#include "runtime/carver.h"
#include "runtime/device_programs.h"
#include "runtime/loss_space.h"

namespace kerf::runtime {

/// Which rows have a label. R blocks of kernels::label_block rows, P rows in them.
struct LabelSpace {
  std::int64_t* valid;   // [1] how many
  std::int64_t* strays;  // [1] right behind: how many labels lie outside the vocabulary
  std::int32_t* label;   // [P]
  std::int64_t* count;   // [R]
  std::int64_t* outside;
  std::int64_t* rows;    // [P]
  std::int32_t* target;  // [P]
};
LabelSpace take_labels(Carver& carve, std::int64_t rows);
/// At least 1, so that without rows the same steps run.
std::int64_t label_blocks(std::int64_t rows);

/// A list of tiles in the caller's workspace.
struct ListSpace {
  TileListRef ref;
  std::int64_t rows, columns;  // blocks
};
/// `rows` by `columns` blocks, of which at most `count` are in the list.
ListSpace take_list(Carver& carve, std::int64_t rows, std::int64_t columns, std::int64_t count);

struct DeviceForwardSpace {
  LabelSpace labels;
  std::int64_t* chunk_rows;  // [chunks], with several
  std::byte* compact;        // [rows of a chunk, D], rows copied_row apart
  std::byte* c;              // [V, D], the same; where the programs copy c
  float* part_max;           // [parts, rows of a chunk]
  float* part_sum;
  float* part_target;
  float* lse;      // [N], where the caller gives no output
  float* loss;     // [N], the same
  float* partial;  // [blocks of kernels::loss_block rows]
  ListSpace kept;  // of a plan that stashes
  std::size_t bytes;
};
/// `chunk`: rows of one pass; the last may have fewer. `width`: blocks of the vocabulary in one list, of a plan that
/// stashes.
DeviceForwardSpace lay_out_device_forward(std::byte* memory, const PlanDesc& desc, std::int64_t rows,
                                          const DevicePrograms& programs, std::int64_t chunk, std::int64_t parts,
                                          std::int64_t width);
struct DeviceBackwardSpace {
  LabelSpace labels;
  std::byte* c;  // as in the forward
  std::byte*
      compact;     // [P, D], rows copied_row apart; with min_memory where `sum` lies, for calls that leave that alone
  float* g;        // [P]
  float* largest;  // [R], for f16
  float* scale;    // [1]
  float* sum;      // [P, D] where there may be several ranges, or with min_memory; [parts, M, D] with several parts
  ListSpace kept, written;
  std::int64_t parts;          // of the vocabulary in the sums of de: several where rows are few
  TileListRef part_items;      // the list kept by rows of parts, with several
  std::int64_t row_parts;      // in the sums of dc: several where blocks of dc are few
  float* dc_sum;               // [row_parts, b.v of a range's blocks, D], with several
  TileListRef row_part_items;  // the list kept by columns of parts, with several
  std::byte* dz;               // not with Strategy::dense
  std::size_t bytes;
};
DeviceBackwardSpace lay_out_device_backward(std::byte* memory, const PlanDesc& desc, std::int64_t rows,
                                            const DevicePrograms& programs, const Ranges& ranges);

/// What lies between a forward and its backward: tiles of the first columns of the vocabulary, those of each range in
/// the order of its list.
struct StashSpace {
  float* part_max;       // [all columns, P]
  std::byte* tiles;      // [columns, row blocks, a tile]
  std::int64_t columns;  // blocks of the vocabulary that it has room for
  std::int64_t column_bytes;
  std::size_t bytes;  // of all that
};
/// As far as `bytes` reach.
StashSpace lay_out_stash(std::byte* memory, std::size_t bytes, const PlanDesc& desc, std::int64_t rows,
                         const DevicePrograms& programs);
/// Bytes with room for everything.
std::size_t stash_bytes(const PlanDesc& desc, std::int64_t rows, const DevicePrograms& programs);

}  // namespace kerf::runtime
