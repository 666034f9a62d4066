// Programs on a GPU against the interpreter, for every architecture that the GPU runs.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/cuda_run.h"
#include "tests/support/random_program.h"

using namespace kerf;

TEST_CASE("gpu: random programs agree with the interpreter, and their bits are the same every time") {
  const auto device = test::gpu();
  if (!device) return;
  const std::vector<Target> targets = test::gpu_targets();
  for (std::uint64_t seed = 0; seed < 240; ++seed) {
    test::RandomProgram expected = test::random_program(seed);
    test::RandomProgram first = expected, second = expected;
    const Target& target = targets[seed % targets.size()];
    const std::string text = expected.program.text();
    CAPTURE(seed);
    CAPTURE(target.cpu);
    CAPTURE(text);
    interpret(expected.program, expected.args());
    const Kernel kernel = compile(expected.program, target, {}, device->tag());
    test::launch_on_gpu(device, kernel, expected.program.ir(), first.args());
    CHECK(expected.difference(first) == "");
    test::launch_on_gpu(device, kernel, expected.program.ir(), second.args());
    for (const auto& [name, array] : first.arrays) {
      CAPTURE(name);
      CHECK(array.bytes() == second.arrays.at(name).bytes());
    }
  }
}
