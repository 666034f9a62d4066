// Tile IR in, PTX or its LLVM IR out.
#include "codegen/cpu/target.h"
#include "codegen/nvptx/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::nvptx {

namespace {

/// Dynamic shared memory that a block may have, CUDA C++ Programming Guide, table of compute capabilities.
std::int64_t shared_limit(const std::string& arch) {
  if (arch == "sm_90" || arch == "sm_90a") return 227 * 1024;
  if (arch == "sm_80" || arch == "sm_87") return 163 * 1024;
  return 99 * 1024;
}

struct Built {
  cpu::Module module;
  std::unique_ptr<llvm::TargetMachine> machine;
  Code code;
};

Built build(const ir::Program& program, const Target& target) {
  Built out;
  out.machine = cpu::make_target_machine(target);
  out.module.context = std::make_unique<llvm::LLVMContext>();
  out.module.module = std::make_unique<llvm::Module>(program.name, *out.module.context);
  out.module.module->setTargetTriple(target.triple);
  out.module.module->setDataLayout(out.machine->createDataLayout());
  Emitter emitter(program, *out.module.module, shared_limit(target.cpu));
  out.code = emitter.run();
  std::string text;
  llvm::raw_string_ostream stream(text);
  if (llvm::verifyModule(*out.module.module, &stream))
    throw InternalError("gpu emitter: LLVM refuses the code for " + program.name + ": " + stream.str());
  return out;
}

}  // namespace

Code compile(const ir::Program& program, const Target& target, const Schedule&) {
  Built b = build(program, target);
  cpu::optimize(*b.module.module, *b.machine);
  b.code.ptx = cpu::to_assembly(*b.module.module, *b.machine);
  return b.code;
}

std::string emit_text(const ir::Program& program, Stage stage, const Target& target, const Schedule& schedule) {
  if (stage == Stage::llvm) return cpu::to_text(*build(program, target).module.module);
  return compile(program, target, schedule).ptx;
}

}  // namespace kerf::codegen::nvptx
