// Which instructions are used: levels, the cap from the environment, targets that this machine cannot run; and that
// what is emitted stands alone.
#include "codegen/cpu/jit.h"

#include <doctest/doctest.h>
#include <elf.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kerf/dsl.h"
#include "kerf/error.h"
#include "kerf/kernel.h"
#include "lib/kernels/kernels.h"
#include "tests/codegen/targets.h"

using namespace kerf;
using namespace kerf::test;

namespace {

/// Sets a variable of the environment while it lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) before_ = old, was_set_ = true;
    setenv(name, value, 1);
  }
  ~Variable() { was_set_ ? setenv(name_, before_.c_str(), 1) : unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::string before_;
  bool was_set_ = false;
};

template <class Error, class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// y = exp(x): small, with the vectors of the target in it.
Program exponential() {
  ProgramBuilder p("exponential");
  Axis N = p.axis("N");
  Tensor x = p.input("x", f32, {N}), y = p.output("y", f32, {N});
  Block n = p.parallel(N, 64);
  store(y, n, exp(load(x, n)));
  return p.finish();
}

/// Every kind of elementwise operation on every kind of element, with ragged ends.
Program operations(DType dtype) {
  ProgramBuilder p("operations");
  Axis N = p.axis("N"), M = p.axis("M");
  Tensor x = p.input("x", dtype, {N, M}), y = p.output("y", dtype, {N, M}), at = p.output("at", i32, {N});
  Block n = p.parallel(N, 5);
  p.loop(M, 48, zeros(n), [&](Block m, Tile sum) {
    Tile t = load(x, n, m, fill(-1));
    Tile u = max(exp(t), min(log(t), tanh(t))) / sqrt(t);
    store(y, n, m, cast(where(u == u && m.in_bounds(), u, 0), dtype));
    store(at, n, reduce_argmax(u, M));
    return sum + reduce_sum(cast(cast(u, i64), f32), M);
  });
  return p.finish();
}

std::vector<Program> programs() {
  std::vector<Program> all{exponential(), kernels::combine(64, 4)};
  for (DType dtype : {f32, bf16, f16}) {
    const kernels::Shape s{1031, 129, dtype};
    const kernels::Blocks b{32, 64, 64, 4};
    all.push_back(operations(dtype));
    all.push_back(kernels::lse_forward(s, b));
    all.push_back(kernels::grad_tiles(s, b));
    all.push_back(kernels::grad_e(s, b, false, false));
    all.push_back(kernels::grad_e(s, b, true, true));
    all.push_back(kernels::grad_c(s, b, dtype, false));
    all.push_back(kernels::grad_c(s, b, f32, true));
  }
  return all;
}

}  // namespace

TEST_CASE("Target: a level is told from its features") {
  for (const std::string& level : x86_levels()) CHECK(Target::x86(level).level() == level);
  CHECK(Target::aarch64().level() == "neon");
  CHECK(Target{"x86_64-unknown-linux-gnu", "", ""}.level() == "sse2");
  CHECK(Target{"x86_64-unknown-linux-gnu", "", "+avx2"}.level() == "sse2");  // no fma, no f16c
}

TEST_CASE("Target: an unknown level is an error that lists the levels") {
  CHECK(message_of<UsageError>([] { Target::x86("avx3"); }) ==
        "target: 'avx3' is no level of x86; they are sse2, avx2, avx512, avx512bf16");
}

TEST_CASE("Target::host: KERF_CPU_FEATURES takes away what is above the level it names") {
  const std::vector<Target> runnable = runnable_targets();
  if (runnable[0].level() != "sse2") return;  // not an x86
  for (std::size_t i = 0; i < x86_levels().size(); ++i) {
    const Variable cap("KERF_CPU_FEATURES", x86_levels()[i].c_str());
    CHECK(Target::host().level() == x86_levels()[std::min(i, runnable.size() - 1)]);
  }
  const Variable empty("KERF_CPU_FEATURES", "");
  CHECK(Target::host().level() == runnable.back().level());
}

TEST_CASE("Target::host: an unknown level in KERF_CPU_FEATURES is an error that lists the levels") {
  if (!Target::host().triple.starts_with("x86_64")) return;
  const Variable cap("KERF_CPU_FEATURES", "mmx");
  CHECK(message_of<UsageError>([] { Target::host(); }) ==
        "KERF_CPU_FEATURES is 'mmx'; it must be one of sse2, avx2, avx512, avx512bf16, or unset");
}

TEST_CASE("compile: code for another machine is emitted but not loaded") {
  const Program p = exponential();
  if (!Target::host().triple.starts_with("x86_64")) return;
  CHECK(contains(message_of<DeviceError>([&] { compile(p, Target::aarch64()); }),
                 "compile: the target is aarch64-unknown-linux-gnu, this machine is x86_64"));
  Target lacking = Target::host();
  lacking.features += ",+3dnow";  // went out of use before any machine with AVX
  const std::string text = message_of<DeviceError>([&] { compile(p, lacking); });
  CHECK(contains(text, "compile: the target needs 3dnow, which this machine ("));
  CHECK(contains(text, "Target::host() is " + Target::host().level()));
}

TEST_CASE("emit: a target that LLVM does not know is a usage error") {
  const Program p = exponential();
  const auto message = [&](const Target& t) { return message_of<UsageError>([&] { emit(p, Stage::assembly, t); }); };
  CHECK(contains(message({"riscv64-unknown-linux-gnu", "", ""}),
                 "'riscv64-unknown-linux-gnu' is neither x86-64, AArch64 nor a CUDA GPU"));
  CHECK(contains(message({"", "", ""}), "'' is neither x86-64, AArch64 nor a CUDA GPU"));
  CHECK(contains(message({"x86_64-unknown-linux-gnu", "", "+avx9"}), "'avx9' is no feature that LLVM 19"));
  CHECK(contains(message({"x86_64-unknown-linux-gnu", "", "avx2"}),
                 "'avx2' in the feature list is not of the form +name"));
  CHECK(contains(message({"x86_64-unknown-linux-gnu", "pentium9", ""}), "'pentium9' is no processor that LLVM 19"));
}

TEST_CASE("emit: each level uses the registers it names and none above") {
  const Program p = exponential();
  const auto uses = [&](const std::string& level, std::string_view reg) {
    return contains(emit(p, Stage::assembly, Target::x86(level)), reg);
  };
  CHECK(uses("sse2", "%xmm"));
  CHECK_FALSE(uses("sse2", "%ymm"));
  CHECK(uses("avx2", "%ymm"));
  CHECK_FALSE(uses("avx2", "%zmm"));
  CHECK(uses("avx512", "%zmm"));
}

TEST_CASE("every program becomes an object that needs nothing from outside, for AArch64 and each level of x86") {
  for (const Target& target : all_targets())
    for (const Program& p : programs()) {
      CAPTURE(target.level());
      CAPTURE(p.name());
      const Object object = lower(p, target);
      CHECK(object.machine == (target.level() == "neon" ? EM_AARCH64 : EM_X86_64));
      CHECK(object.functions == std::vector<std::string>{p.name()});
      CHECK(object.undefined == std::vector<std::string>{});
    }
}

TEST_CASE("compile: from several threads at once, each kernel right and independent of the others") {
  std::vector<std::string> wrong(4);
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < wrong.size(); ++t)
      threads.emplace_back([&, t] {
        for (int round = 0; round < 3; ++round) {
          const Kernel kernel = compile(exponential());
          std::vector<float> x(70, static_cast<float>(t) - 1.5f), y(70, -1.0f);
          ThreadPool pool(1);
          kernel.launch({{{"x", TensorRef(x.data(), {70})}, {"y", TensorRef(y.data(), {70})}}}, pool);
          for (float v : y)
            if (!(std::abs(v - std::exp(x[0])) <= 1e-6f * v)) wrong[t] = std::to_string(v);
        }
      });
  }
  CHECK(wrong == std::vector<std::string>(4));
}
