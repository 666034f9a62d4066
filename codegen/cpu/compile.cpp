// Tile IR in, machine code or its text out: the emitter, LLVM's clean-up, and the loader in a row.
#include "codegen/cpu/emit.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/target.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

namespace {

struct Built {
  Module module;
  std::unique_ptr<llvm::TargetMachine> machine;
  std::size_t scratch_bytes = 0;
};

Built build(const ir::Program& program, const Target& target, const Schedule& schedule) {
  Built out;
  out.machine = make_target_machine(target);
  out.module.context = std::make_unique<llvm::LLVMContext>();
  out.module.module = std::make_unique<llvm::Module>(program.name, *out.module.context);
  out.module.module->setTargetTriple(target.triple);
  out.module.module->setDataLayout(out.machine->createDataLayout());
  Emitter emitter(program, schedule, cpu_info(target), *out.module.module);
  out.scratch_bytes = emitter.run(program.name);
  set_target_attributes(*emitter.function(), target);
  std::string text;
  llvm::raw_string_ostream stream(text);
  if (llvm::verifyModule(*out.module.module, &stream))
    throw InternalError("cpu emitter: LLVM refuses the code for " + program.name + ": " + stream.str());
  return out;
}

}  // namespace

Object compile(const ir::Program& program, const Target& target, const Schedule& schedule) {
  Built b = build(program, target, schedule);
  optimize(*b.module.module, *b.machine);
  return {to_object(*b.module.module, *b.machine), program.name, b.scratch_bytes};
}

std::size_t scratch_bytes(const ir::Program& program, const Target& target, const Schedule& schedule) {
  return build(program, target, schedule).scratch_bytes;
}

std::string emit_text(const ir::Program& program, Stage stage, const Target& target, const Schedule& schedule) {
  Built b = build(program, target, schedule);
  if (stage == Stage::llvm) return to_text(*b.module.module);
  optimize(*b.module.module, *b.machine);
  return to_assembly(*b.module.module, *b.machine);
}

}  // namespace kerf::codegen::cpu
