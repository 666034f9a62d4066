// kerf doctor: what was found on this machine, what is missing, what to do about it.
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <fstream>

#include "codegen/cpu/jit.h"
#include "kerf/error.h"
#include "tools/kerf/verbs.h"
#include "tools/support/blas.h"
#include "tools/support/parallel.h"

namespace kerf::tools {
namespace {

struct DoctorOptions {
  bool json = false;
};

std::string cpu_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const std::size_t colon = line.find(':');
    if (line.starts_with("model name") && colon + 2 < line.size()) return line.substr(colon + 2);
  }
  return "unknown";
}

bool has_library(const char* name) {
  void* const handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle != nullptr) dlclose(handle);
  return handle != nullptr;
}

const char* variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

/// Compiles and runs y = x + 1: the whole way from a program to machine code. Empty if right, else what went wrong.
std::string try_compiling(double& milliseconds) {
  std::vector<float> x(1000), y(x.size(), 0);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  try {
    const auto start = std::chrono::steady_clock::now();
    ProgramBuilder p("add_one");
    const Axis N = p.axis("N");
    const Tensor from = p.input("x", f32, {N}), to = p.output("y", f32, {N});
    const Block n = p.parallel(N, 64);
    store(to, n, load(from, n) + 1);
    const Kernel kernel = compile(p.finish());
    milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    ThreadPool pool;
    const auto size = static_cast<std::int64_t>(x.size());
    kernel.launch({{{"x", TensorRef(x.data(), {size})}, {"y", TensorRef(y.data(), {size})}}, {}, {}, nullptr}, pool);
  } catch (const Error& e) {
    return e.what();
  }
  for (std::size_t i = 0; i < x.size(); ++i)
    if (y[i] != x[i] + 1) return fmt::format("{} + 1 came out as {}", x[i], y[i]);
  return "";
}

int doctor(const DoctorOptions& options) {
  const Target host = Target::host();
  const int found_processors = processors();
  const int threads = ThreadPool().size();
  const std::optional<Blas> blas = Blas::open(1);
  const bool cuda = has_library("libcuda.so.1");
  double compile_ms = 0;
  const std::string compile_failure = try_compiling(compile_ms);

  std::vector<std::string> advice;
  if (!compile_failure.empty()) advice.push_back("compiling a program failed (" + compile_failure + "): please report");
  if (*variable("KERF_CPU_FEATURES") != '\0')
    advice.push_back(fmt::format("KERF_CPU_FEATURES={} holds the processor's features back; unset it for full speed",
                                 variable("KERF_CPU_FEATURES")));
  if (threads < found_processors)
    advice.push_back(
        fmt::format("{} of {} processors are used; unset KERF_NUM_THREADS for full speed", threads, found_processors));
  if (host.level() == "sse2")
    advice.push_back("no AVX2: kernels run with vectors of four floats, several times slower than on newer processors");
  if (blas && !blas->warning().empty()) advice.push_back(blas->warning());
  if (!blas)
    advice.push_back(
        "OpenBLAS is not installed, so `kerf bench` has nothing to compare with: apt-get install libopenblas0-pthread");

  const std::string llvm = codegen::cpu::llvm_version();
  if (options.json) {
    print_json(
        {{"cpu", cpu_name()},
         {"target", {{"triple", host.triple}, {"cpu", host.cpu}, {"features", host.features}, {"level", host.level()}}},
         {"processors", found_processors},
         {"threads", threads},
         {"llvm", llvm},
         {"compile_ms", compile_ms},
         {"compiles", compile_failure.empty()},
         {"openblas", blas ? nlohmann::ordered_json({{"config", blas->config()}, {"core", blas->core()}})
                           : nlohmann::ordered_json(nullptr)},
         {"cuda_driver", cuda},
         {"devices", {"cpu"}},
         {"cache_folder", nullptr},
         {"advice", advice}});
  } else {
    const auto line = [](const char* name, const std::string& value) { fmt::print("{:<14}{}\n", name, value); };
    line("processor", fmt::format("{}, {} available to this process", cpu_name(), found_processors));
    line("kernels for", fmt::format("{} ({}{}{})", host.level(), host.triple, host.cpu.empty() ? "" : ", ", host.cpu));
    line("features", host.features);
    line("threads", fmt::format("{}{}", threads, *variable("KERF_NUM_THREADS") != '\0' ? " (KERF_NUM_THREADS)" : ""));
    line("LLVM", llvm);
    line("compiler", compile_failure.empty() ? fmt::format("works; a small program took {:.0f} ms", compile_ms)
                                             : "FAILED: " + compile_failure);
    line("OpenBLAS", blas ? fmt::format("{}; kernels for {}", blas->config(), blas->core()) : "not found");
    line("CUDA driver", cuda ? "found; kernels of your own run on it, the loss on the cpu"
                             : "not found; not needed, the loss computes on the cpu");
    line("cache folder", "none; programs are compiled when first used and kept in memory");
    for (const std::string& a : advice) fmt::print("-> {}\n", a);
    if (advice.empty()) fmt::print("nothing is missing\n");
  }
  return compile_failure.empty() ? 0 : 1;
}

}  // namespace

void add_doctor(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("doctor", "what was found on this machine, what is missing, what to do");
  auto& options = options_of<DoctorOptions>(*verb, run, doctor);
  verb->add_flag("--json", options.json, "print JSON");
  verb->footer("Example: kerf doctor");
}

}  // namespace kerf::tools
