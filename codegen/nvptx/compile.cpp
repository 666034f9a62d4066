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

Built build(const ir::Program& program, const Target& target, const Schedule& schedule, const Engine& engine,
            bool& turns_broken) {
  Built out;
  out.machine = cpu::make_target_machine(target);
  out.module.context = std::make_unique<llvm::LLVMContext>();
  out.module.module = std::make_unique<llvm::Module>(program.name, *out.module.context);
  out.module.module->setTargetTriple(target.triple);
  out.module.module->setDataLayout(out.machine->createDataLayout());
  Emitter emitter(program, *out.module.module, schedule, engine);
  out.code = emitter.run();
  turns_broken = emitter.turns_broken();
  std::string text;
  llvm::raw_string_ostream stream(text);
  if (llvm::verifyModule(*out.module.module, &stream))
    throw InternalError("gpu emitter: LLVM refuses the code for " + program.name + ": " + stream.str());
  return out;
}

/// With the engine that fits program and architecture, and as many stages as the shared memory holds.
Built build(const ir::Program& program, const Target& target, const Schedule& schedule, bool any_stride) {
  const std::int64_t limit = shared_limit(target.cpu);
  bool turns_broken = false;
  Engine engine;
  if (target.cpu == "sm_90a" && !any_stride) engine.wgmma = plan_wgmma(program, schedule);
  if (!engine.wgmma && !any_stride) engine.mma = plan_mma(program, schedule);
  while (engine.wgmma || engine.mma) {
    StagedPlan& plan = engine.wgmma ? static_cast<StagedPlan&>(*engine.wgmma) : *engine.mma;
    if (plan.stages < 2) break;
    if (plan.stages * plan.stage_bytes() <= limit) {
      Built out = build(program, target, schedule, engine, turns_broken);
      if (turns_broken) {
        engine.wgmma->take_turns = false;
        continue;
      }
      if (out.code.shared_bytes <= limit) return out;
    }
    if (schedule.stages > 0) break;
    --plan.stages;
  }
  Built out = build(program, target, schedule, Engine{.wgmma = {}, .mma = {}, .pairs = !any_stride}, turns_broken);
  if (out.code.shared_bytes > limit)
    throw DeviceError(program.name + ": needs " + std::to_string(out.code.shared_bytes / 1024) +
                      " KiB of shared memory, the GPU has " + std::to_string(limit / 1024) +
                      " KiB; smaller blocks need less");
  return out;
}

}  // namespace

Code compile(const ir::Program& program, const Target& target, const Schedule& schedule, bool any_stride) {
  Built b = build(program, target, schedule, any_stride);
  cpu::optimize(*b.module.module, *b.machine);
  b.code.ptx = cpu::to_assembly(*b.module.module, *b.machine);
  return b.code;
}

std::string emit_text(const ir::Program& program, Stage stage, const Target& target, const Schedule& schedule) {
  if (stage == Stage::llvm) return cpu::to_text(*build(program, target, schedule, false).module.module);
  return compile(program, target, schedule).ptx;
}

}  // namespace kerf::codegen::nvptx
