// Every program of the loss and random ones as PTX, for each architecture and dtype; assembled by ptxas where a toolkit
// is installed. A GPU is not needed.
#include <doctest/doctest.h>

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kerf/kernel.h"
#include "lib/kernels/kernels.h"
#include "tests/support/random_program.h"

using namespace kerf;

namespace {

std::string ptxas() {
  for (const char* path : {"/usr/local/cuda/bin/ptxas", "/usr/bin/ptxas"})
    if (std::filesystem::exists(path)) return path;
  return "";
}

/// What ptxas says about the text, an empty string without ptxas.
std::string assembled(const std::string& ptx, const std::string& arch) {
  if (ptxas().empty()) return "";
  const auto file = std::filesystem::temp_directory_path() / ("kerf-ptx-" + std::to_string(::getpid()) + ".ptx");
  std::ofstream(file) << ptx;
  const std::string command = ptxas() + " -v -arch=" + arch + " -o /dev/null " + file.string() + " 2>&1";
  std::string said;
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe);
  char buffer[512];
  while (std::fgets(buffer, sizeof buffer, pipe)) said += buffer;
  CHECK(::pclose(pipe) == 0);
  std::filesystem::remove(file);
  return said;
}

}  // namespace

TEST_CASE("ptx: the programs of the loss assemble and multiply with mma.sync") {
  if (ptxas().empty()) MESSAGE("SKIPPED in part, no ptxas: the PTX is made but not assembled");
  for (const std::string arch : {"sm_80", "sm_90a"})
    for (DType t : {f32, bf16, f16}) {
      const kernels::Shape shape{.vocabulary = 50257, .hidden = 333, .dtype = t};
      const kernels::Blocks blocks{.n = 64, .v = 64, .d = 64, .split = 16};
      for (const Program& p :
           {kernels::lse_forward(shape, blocks), kernels::combine(128), kernels::grad_tiles(shape, blocks),
            kernels::grad_e(shape, blocks, true, false), kernels::grad_c(shape, blocks, t, true)}) {
        CAPTURE(arch);
        CAPTURE(p.name());
        const std::string text = emit(p, Stage::assembly, Target::cuda(arch));
        if (t != f32 && p.name() != "combine") CHECK(text.find("mma.sync.aligned.m16n8k16") != std::string::npos);
        const std::string said = assembled(text, arch);
        CAPTURE(said);
        CHECK(said.find("error") == std::string::npos);
        if (!said.empty()) CHECK(said.find(" 0 bytes spill stores, 0 bytes spill loads") != std::string::npos);
      }
    }
}

TEST_CASE("ptx: random programs assemble for the oldest and the newest architecture") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const Target target = Target::cuda(seed % 2 ? "sm_90a" : "sm_80");
    CAPTURE(seed);
    const std::string said = assembled(emit(test::random_program(seed).program, Stage::assembly, target), target.cpu);
    CAPTURE(said);
    CHECK(said.find("error") == std::string::npos);
  }
}
