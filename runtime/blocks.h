// Block sizes of the loss, from the shape, and on the CPU from the number of tokens where they are few.
#pragma once

#include "kerf/kernel.h"
#include "kerf/loss.h"
#include "lib/kernels/kernels.h"

namespace kerf::runtime {

struct PlanBlocks {
  kernels::Blocks forward, backward;
  Schedule forward_schedule, backward_schedule = {};
};
inline constexpr std::int64_t many_tokens = 256;
/// From so many tokens on the same for any number: one set of programs serves them all. Of fewer the blocks are as
/// short, so that nothing is computed for rows that are not there.
PlanBlocks choose_blocks(const kernels::Shape& shape, std::int64_t tokens = many_tokens);

/// What the programs of a device loss are cut into. split: blocks of v in one part, where rows are many.
struct DeviceBlocks {
  kernels::Blocks forward;
  kernels::Blocks backward;         // the tiles of dz, and the d that their logits are summed over
  std::int64_t grad_e_d, grad_c_d;  // hidden, in the products with dz
  kernels::Blocks tall{};           // the forward's where rows are many and fill them; n = 0: none
  std::int64_t band = 24;           // row blocks whose e stays near while columns pass; fewer tall ones
  std::int64_t list_band = 24;      // the same in lists of the backward's tiles
  bool boxed = false;               // for code that reads e and c in boxes of memory
  std::int64_t many = 8 * 132;      // instances of the forward that keep the machine busy to the end
  Schedule forward_schedule = {};
  /// Filtered: rows whose lists of tiles differ in length are cut into pieces, about so many products of a piece and a
  /// block of d; 0: they are not.
  std::int64_t pieces = 0;
};
/// For a GPU, whose tiles want powers of two: those of code that reads tensors in boxes, and of any other.
DeviceBlocks choose_boxed_blocks(const kernels::Shape& shape, const Target& target);
DeviceBlocks choose_plain_blocks(const kernels::Shape& shape);
/// For a filtered backward on the CPU.
DeviceBlocks choose_filter_blocks(const kernels::Shape& shape);
/// Whether code for a plan on this target reads e and c in boxes, where they lie as boxes want it: rows at multiples of
/// 16 bytes. With another hidden size c is copied to such rows first, unless memory is to be saved.
bool reads_in_boxes(const PlanDesc& desc, const Target& target);
/// Elements from one row to the next of what a plan copies.
std::int64_t copied_row(const PlanDesc& desc);
/// What a plan's programs are compiled for.
Target target_of(const PlanDesc& desc);

}  // namespace kerf::runtime
