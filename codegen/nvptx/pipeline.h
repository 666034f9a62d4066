// The loop of a program in which nearly all of its time goes: acc = dot(load a, load b, acc) over blocks of the axis
// that a and b share. Where a program has one such loop, its operands can be read ahead of the multiplication.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::codegen::nvptx {

/// One operand of the product, a matrix in memory.
struct Factor {
  const ir::Op* load = nullptr;
  int own = -1;              // axis: the product's rows or columns
  std::int64_t extent = 0;   // along it
  bool k_contiguous = true;  // else its own axis is, and the tensor cores read it transposed
};
struct Product {
  const ir::Op* loop = nullptr;
  Factor row, column;
  int k = -1;                      // the axis they share
  std::int64_t turn = 0;           // indices of it in one turn of the loop
  DType dtype = DType::bf16;       // of both factors
  bool from_zero = false;          // what the loop starts from
  bool never_empty = false;        // it makes at least one turn
  const ir::Op* within = nullptr;  // the loop around it; null: the program's body
};
/// The one such loop of a program; none where it has another dot, or factors that are gathered, written by the program
/// or not two-dimensional.
std::optional<Product> find_product(const ir::Program& p);

/// A product read ahead of the multiplication: steps of 128 bytes of k in a ring of stages in shared memory.
struct StagedPlan {
  Product product;
  int stages = 0;

  static constexpr std::int64_t step = 64;  // elements of k in a stage
  std::int64_t row_bytes() const { return product.row.extent * step * 2; }
  std::int64_t stage_bytes() const { return row_bytes() + product.column.extent * step * 2; }
};

/// How the engine of sm_90a makes a product: one warpgroup copies boxes of memory to shared memory by TMA; the others
/// multiply by wgmma, each its own rows, all columns.
struct WgmmaPlan : StagedPlan {
  int groups = 0;           // warpgroups that multiply
  int slices = 0;           // wgmma's 64 rows in each
  int columns_at_once = 0;  // of one wgmma
  bool take_turns = true;   // warpgroups do what follows the product one after the other

  int threads() const { return 128 * (groups + 1); }
  /// Registers that setmaxnreg leaves to each thread.
  int copy_registers() const { return groups == 3 ? 32 : 24; }
  int multiply_registers() const { return groups == 3 ? 160 : 240; }
};
/// None where the program has no product, or one that this engine's instructions do not fit. `stages` is the most that
/// are of use; the caller takes fewer where shared memory is short. Here and below.
std::optional<WgmmaPlan> plan_wgmma(const ir::Program& p, const Schedule& schedule);

/// How the engine of sm_80 makes a product: every thread copies its share of what comes `stages` - 1 steps later by
/// cp.async, then all multiply by mma.sync from fragments that ldmatrix reads.
struct MmaPlan : StagedPlan {
  int row_warp_bits = 0, column_warp_bits = 0;  // each warp has a part of the tile
  int warp_bits() const { return row_warp_bits + column_warp_bits; }
};
std::optional<MmaPlan> plan_mma(const ir::Program& p, const Schedule& schedule);

}  // namespace kerf::codegen::nvptx
