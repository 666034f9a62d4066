// Random programs on the CPU against the interpreter, at every level that this machine has.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "lib/ir/ir.h"
#include "tests/support/random_program.h"

using namespace kerf;

namespace {

/// The levels that this machine can run, the lowest first.
std::vector<Target> targets() {
  std::vector<Target> all;
  const std::string host = Target::host().level();
  if (host != "neon")
    for (const std::string level : {"sse2", "avx2", "avx512", "avx512bf16"}) {
      if (level == host) break;
      all.push_back(Target::x86(level));
    }
  all.push_back(Target::host());
  return all;
}

}  // namespace

TEST_CASE("random programs: the CPU agrees with the interpreter, and its bits do not depend on the threads") {
  const std::vector<Target> levels = targets();
  ThreadPool one(1), several(3);
  for (std::uint64_t seed = 0; seed < 240; ++seed) {
    test::RandomProgram expected = test::random_program(seed);
    test::RandomProgram alone = expected, together = expected;
    const Target& target = levels[seed % levels.size()];
    Schedule schedule;
    schedule.stage = seed % 8 < 6;
    const std::string level = target.level(), text = expected.program.text();
    CAPTURE(seed);
    CAPTURE(level);
    CAPTURE(text);
    interpret(expected.program, expected.args());
    const Kernel kernel = compile(expected.program, target, schedule);
    kernel.launch(alone.args(), one);
    CHECK(expected.difference(alone) == "");
    kernel.launch(together.args(), several);
    for (const auto& [name, array] : alone.arrays) {
      CAPTURE(name);
      CHECK(array.bytes() == together.arrays.at(name).bytes());
    }
  }
}
