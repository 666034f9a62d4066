// The targets that tests go through, and what an object file for one of them holds.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::test {

/// The levels of x86.
const std::vector<std::string>& x86_levels();
/// The levels that this machine can run, lowest first; on other processors Target::host() alone.
std::vector<Target> runnable_targets();
/// Every x86 level, and AArch64.
std::vector<Target> all_targets();

struct Object {
  int machine = 0;                     // EM_X86_64, EM_AARCH64
  std::vector<std::string> functions;  // defined
  std::vector<std::string> undefined;  // left for a linker to find
};
/// Reads a relocatable 64-bit little-endian ELF file; throws std::runtime_error where it is none.
Object read_object(const std::vector<std::byte>& file);
/// Passes, then lowers to an object for the target.
Object lower(const Program& program, const Target& target);

}  // namespace kerf::test
