// Runs a program wherever it can run and compares: the interpreter defines it, the CPU kernel must agree with the same
// reference, and its bits must not depend on the number of threads; so must a GPU where there is one. For AArch64 it is
// lowered to an object file.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"
#include "tests/codegen/targets.h"
#include "tests/support/cuda_run.h"
#include "tests/support/tensors.h"

namespace kerf::test {

struct Launch {
  NamedArrays arrays;
  std::vector<std::pair<std::string, std::int64_t>> axes = {};
  std::vector<std::pair<std::string, TileListRef>> lists = {};

  LaunchArgs args() const {
    LaunchArgs a;
    for (const auto& [name, array] : arrays) a.tensors.emplace_back(name, array->ref());
    a.axes = axes;
    a.lists = lists;
    return a;
  }
};

/// Calls check() after each run. Outputs are poisoned before, what is written in place is put back.
template <class Check>
void on_each_backend(const Program& program, const Launch& launch, Check check) {
  std::vector<std::pair<Array*, Array>> written;  // with what they held
  for (const ir::TensorInfo& t : program.ir().tensors)
    for (const auto& [name, array] : launch.arrays)
      if (name == t.name && t.access != ir::Access::input) {
        if (t.access == ir::Access::output) array->poison();
        written.emplace_back(array, *array);
      }
  const auto run = [&](const std::string& backend, auto&& execute) {
    CAPTURE(backend);
    for (auto& [array, before] : written) *array = before;
    execute();
    for (const auto& [name, array] : launch.arrays) {
      CAPTURE(name);
      CHECK(array->surroundings_intact());
    }
    check();
  };

  run("interpreter", [&] { interpret(program, launch.args()); });
  const Kernel kernel = compile(program);
  std::vector<std::vector<std::byte>> bits;
  for (int threads : {1, 2, 7}) {
    run("cpu, threads: " + std::to_string(threads), [&] {
      ThreadPool pool(threads);
      kernel.launch(launch.args(), pool);
    });
    for (std::size_t i = 0; i < written.size(); ++i) {
      if (threads == 1) bits.push_back(written[i].first->bytes());
      CHECK(bits[i] == written[i].first->bytes());
    }
  }

  if (const auto device = gpu())
    for (const Target& target : gpu_targets()) {
      const Kernel on_gpu = compile(program, target, {}, device->tag());
      run("gpu, " + target.cpu, [&] { launch_on_gpu(device, on_gpu, program.ir(), launch.args()); });
    }

  const Object object = lower(program, Target::aarch64());
  CHECK(object.functions == std::vector<std::string>{program.name()});
  CHECK(object.undefined == std::vector<std::string>{});
}

}  // namespace kerf::test
