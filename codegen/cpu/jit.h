// From tile IR to code for the CPU. Names no LLVM type: this is what runtime/ sees of codegen/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::codegen::cpu {

/// Generated code: runs instances [begin, end) of the program. `args` is pack_args of the launch, `scratch` is private
/// to the calling thread, Code::scratch_bytes long and aligned to 64.
using Entry = void (*)(const std::int64_t* args, std::int64_t begin, std::int64_t end, void* scratch);

struct Code {
  Entry entry = nullptr;
  std::size_t scratch_bytes = 0;  // for one thread, a multiple of 64
  std::shared_ptr<void> loaded;   // keeps the machine code in memory
};

/// Machine code that is not loaded: a relocatable object file.
struct Object {
  std::vector<std::byte> bytes;
  std::string symbol;             // of its Entry
  std::size_t scratch_bytes = 0;  // as in Code
};

/// Lowers a program that has been through the passes; works for targets other than the machine at hand.
Object compile(const ir::Program& program, const Target& target, const Schedule& schedule);
/// Throws DeviceError naming the features that this machine lacks.
void require_runnable(const Target& target);
/// Links an object into this process, nothing outside it being visible to it. Throws InternalError where it is none for
/// this kind of machine.
Code load(const Object& object);
/// Code::scratch_bytes without the cost of making the code.
std::size_t scratch_bytes(const ir::Program& program, const Target& target, const Schedule& schedule);
/// LLVM IR as handed to LLVM's optimizer (Stage::llvm) or assembly (Stage::assembly).
std::string emit_text(const ir::Program& program, Stage stage, const Target& target, const Schedule& schedule);

/// The `args` of Entry, all 64-bit: the size of each axis; for each tensor its pointer, then a stride in elements per
/// axis; for each list count, row, column, row_begin, row_items, column_begin, column_items, device_count.
std::vector<std::int64_t> pack_args(const ir::Program& program, const ir::Bound& bound);
/// Where those of one tensor or list begin.
std::int64_t tensor_slot(const ir::Program& program, int tensor);
std::int64_t list_slot(const ir::Program& program, int list);

/// "19.1.7"
std::string llvm_version();

}  // namespace kerf::codegen::cpu
