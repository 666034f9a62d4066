// From tile IR to PTX. Names no LLVM and no CUDA type: this is what runtime/ sees of codegen/nvptx.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::codegen::nvptx {

/// A tensor map that a kernel wants for TMA loads or stores of one tensor: 128-byte swizzle, boxes of 128 bytes by
/// `rows`. Passed as kernel parameters before the arguments, in this order.
struct TensorMap {
  int tensor = -1;        // of the program
  std::int64_t rows = 0;  // rows of a box
};

/// PTX of one program. One kernel named as the program; parameters: the tensor maps (128 bytes each, aligned to 64),
/// then one struct of 64-bit words, `argument_words` long: cpu::pack_args' order, then for each axis a device pointer
/// to its size (i64) or 0. Instances are walked in steps of the grid: any grid size is right.
struct Code {
  std::string ptx;
  std::string entry;
  int threads = 0;                // of a block
  std::int64_t shared_bytes = 0;  // dynamic shared memory
  std::int64_t argument_words = 0;
  std::vector<TensorMap> maps;
  std::vector<int> aligned;  // tensors that are read 16 bytes at a time: like the maps' they must fit, see below
};

/// `program` has been through the passes. What is read by TMA or 16 bytes at a time must begin at a multiple of 16 bytes
/// and have rows a multiple of 16 bytes apart; with `any_stride` nothing is, and the code is slower. Throws DeviceError
/// when the program does not fit the architecture: which limit, how much is needed, how much there is, what would help.
Code compile(const ir::Program& program, const Target& target, const Schedule& schedule, bool any_stride = false);
/// LLVM IR as handed to LLVM's optimizer (Stage::llvm) or PTX (Stage::assembly).
std::string emit_text(const ir::Program& program, Stage stage, const Target& target, const Schedule& schedule);

}  // namespace kerf::codegen::nvptx
