// ptxas, the assembler of NVIDIA's toolkit, where one is installed: what it makes of PTX without a GPU.
#pragma once

#include <cstdint>
#include <string>

namespace kerf::tools {

/// The file that KERF_PTXAS names, else ptxas on PATH, else /usr/local/cuda/bin/ptxas; empty where there is none.
std::string find_ptxas();

struct Assembled {
  bool ok = false;
  std::string said;             // what `ptxas -v` printed
  int registers = 0;            // of a thread
  std::int64_t stack = 0;       // bytes of local memory of a thread
  std::int64_t spilled = 0;     // bytes of spill stores and loads
  std::int64_t shared = 0;      // bytes of a block, beside what a launch asks for
  std::int64_t code_bytes = 0;  // of the cubin
};
/// The text as machine code of an architecture ("sm_90a"), by the ptxas found.
Assembled assemble(const std::string& ptxas, const std::string& ptx, const std::string& arch);

}  // namespace kerf::tools
