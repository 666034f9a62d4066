// What machine code is generated for, and LLVM's view of it. Only codegen/cpu includes this.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/math.h"
#include "codegen/llvm.h"

namespace kerf::codegen::cpu {

CpuInfo cpu_info(const Target& target);
/// Throws UsageError where LLVM does not know the triple, the processor or a feature.
std::unique_ptr<llvm::TargetMachine> make_target_machine(const Target& target);
/// Features, tuning and vector width; every function of a module needs them.
void set_target_attributes(llvm::Function& f, const Target& target);

/// A module in a context of its own.
struct Module {
  std::unique_ptr<llvm::LLVMContext> context;
  std::unique_ptr<llvm::Module> module;
};
/// Cleans up after the emitter (a short list of LLVM passes; most of the work was done by Kerf's own).
void optimize(llvm::Module& module, llvm::TargetMachine& machine);
std::string to_text(llvm::Module& module);
/// Both change the module on the way; it cannot be emitted twice.
std::string to_assembly(llvm::Module& module, llvm::TargetMachine& machine);
std::vector<std::byte> to_object(llvm::Module& module, llvm::TargetMachine& machine);

}  // namespace kerf::codegen::cpu
