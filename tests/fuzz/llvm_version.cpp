// In place of the code generator, which is asked for nothing else.
#include "codegen/cpu/jit.h"

namespace kerf::codegen::cpu {

std::string llvm_version() { return "0"; }

}  // namespace kerf::codegen::cpu
