// The door to the code generator for GPUs.
#include "codegen/nvptx/ptx.h"

#include "kerf/error.h"

namespace kerf::codegen::nvptx {

Code compile(const ir::Program& program, const Target& target, const Schedule&) {
  throw DeviceError("compile: this build has no code generator for " + target.level() + ", which " + program.name +
                    " is to be compiled for; use the CPU");
}

std::string emit_text(const ir::Program& program, Stage, const Target& target, const Schedule& schedule) {
  return compile(program, target, schedule).ptx;
}

}  // namespace kerf::codegen::nvptx
