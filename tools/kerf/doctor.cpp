// kerf doctor: what was found on this machine, what is missing, what to do about it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cstdlib>
#include <optional>

#include "codegen/cpu/jit.h"
#include "kerf/cache.h"
#include "kerf/error.h"
#include "kerf/tuner.h"
#include "runtime/cuda/device.h"
#include "tools/kerf/verbs.h"
#include "tools/support/blas.h"
#include "tools/support/cublas.h"
#include "tools/support/parallel.h"
#include "tools/support/ptxas.h"

namespace kerf::tools {
namespace {

struct DoctorOptions {
  std::string device = "cpu";
  bool json = false;
};

const char* variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

Program add_one() {
  ProgramBuilder p("add_one");
  const Axis N = p.axis("N");
  const Tensor from = p.input("x", f32, {N}), to = p.output("y", f32, {N});
  const Block n = p.parallel(N, 64);
  store(to, n, load(from, n) + 1);
  return p.finish();
}

struct Trial {
  std::string failure;  // empty: compiled and ran rightly
  double compile_ms = 0, jit_ms = 0;
};

/// Compiles and runs y = x + 1: the whole way from a program to machine code.
Trial try_compiling(Device where) {
  Trial trial;
  std::vector<float> x(1000), y(x.size(), 0);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const auto size = static_cast<std::int64_t>(x.size());
  try {
    const auto start = std::chrono::steady_clock::now();
    const Kernel kernel = compile(add_one(), Target::of(where), {}, where);
    trial.compile_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (where.type == DeviceType::cpu) {
      ThreadPool pool;
      kernel.launch({{{"x", TensorRef(x.data(), {size})}, {"y", TensorRef(y.data(), {size})}}}, pool);
    } else {
      trial.jit_ms = kernel.resources().jit_ms;
      const auto gpu = cuda::Device::open(where.ordinal);
      const std::size_t bytes = x.size() * sizeof(float);
      const cuda::Buffer from(gpu, bytes), to(gpu, bytes);
      from.upload(x.data(), bytes);
      kernel.launch({{{"x", from.tensor(f32, {size})}, {"y", to.tensor(f32, {size})}}}, Stream{});
      to.download(y.data(), bytes);
      gpu->synchronize();
    }
  } catch (const Error& e) {
    trial.failure = e.what();
    return trial;
  }
  for (std::size_t i = 0; i < x.size() && trial.failure.empty(); ++i)
    if (y[i] != x[i] + 1) trial.failure = fmt::format("{} + 1 came out as {}", x[i], y[i]);
  return trial;
}

/// The driver and its devices in a line; empty where there is no driver that works.
std::string driver_text() {
  try {
    const auto driver = cuda::Driver::open();
    std::string text = fmt::format("CUDA {} ({})", driver->version_text(), driver->library());
    for (int i = 0; i < driver->device_count(); ++i) text += ", " + cuda::device_info(*driver, i).describe();
    return text;
  } catch (const Error&) {
    return "";
  }
}

/// A GPU, by lines and as JSON.
struct GpuReport {
  std::vector<std::pair<const char*, std::string>> lines;
  nlohmann::ordered_json json;
  bool works = false;
};

GpuReport look_at_gpu(Device where, std::vector<std::string>& advice) {
  const auto gpu = cuda::Device::open(where.ordinal);
  const cuda::DeviceInfo& info = gpu->info();
  const cuda::Device::Memory memory = gpu->memory();
  const Target target = Target::of(where);
  const Trial trial = try_compiling(where);
  const std::string ptxas = find_ptxas();
  std::string cublas;
  try {
    const cuda::Current current(*gpu);
    if (const auto blas = Cublas::open({}))
      cublas = blas->describe();
    else
      advice.push_back(
          "no cuBLAS, so `kerf bench` has nothing to compare with: name libcublas.so.12 or .13 in KERF_CUBLAS");
  } catch (const DeviceError& e) {
    advice.push_back(std::string("`kerf bench` cannot use cuBLAS: ") + e.what());
  }
  constexpr double gib = 1 << 30;
  GpuReport r;
  r.works = trial.failure.empty();
  r.lines = {
      {"GPU", fmt::format("{}, compute capability {}.{}, {} multiprocessors", info.describe(), info.major, info.minor,
                          info.multiprocessors)},
      {"GPU memory", fmt::format("{:.1f} of {:.1f} GiB free, {} MiB of L2, {} KiB shared by a block",
                                 static_cast<double>(memory.free) / gib, static_cast<double>(memory.total) / gib,
                                 info.l2_bytes >> 20, info.shared_bytes >> 10)},
      {"GPU kernels", fmt::format("for {}", target.level())},
      {"GPU compiler", r.works ? fmt::format("works; a small program took {:.0f} ms, {:.0f} of them in the driver",
                                             trial.compile_ms, trial.jit_ms)
                               : "FAILED: " + trial.failure},
      {"cuBLAS", cublas.empty() ? "none that works" : cublas},
      {"ptxas", ptxas.empty() ? "not found" : ptxas},
  };
  if (!r.works) advice.push_back("compiling a program for the GPU failed (" + trial.failure + "): please report");
  r.json = {{"name", info.name},
            {"ordinal", info.ordinal},
            {"compute_capability", fmt::format("{}.{}", info.major, info.minor)},
            {"multiprocessors", info.multiprocessors},
            {"memory_bytes", memory.total},
            {"free_bytes", memory.free},
            {"l2_bytes", info.l2_bytes},
            {"shared_bytes", info.shared_bytes},
            {"level", target.level()},
            {"compile_ms", trial.compile_ms},
            {"jit_ms", trial.jit_ms},
            {"compiles", r.works},
            {"cublas", cublas},
            {"ptxas", ptxas}};
  return r;
}

int doctor(const DoctorOptions& options) {
  const Target host = Target::host();
  const int found_processors = processors();
  const int threads = ThreadPool().size();
  const std::optional<Blas> blas = Blas::open(1);
  const std::string driver = driver_text();
  const Trial trial = try_compiling({});
  const std::string& compile_failure = trial.failure;

  std::vector<std::string> advice;
  const Device where = device_from_name(options.device);
  std::optional<GpuReport> gpu;
  if (where.type == DeviceType::cuda) gpu = look_at_gpu(where, advice);
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

  const CacheStatus cache = CodeCache().status();
  for (const std::string& w : cache.warnings) advice.push_back("cache: " + w);
  const WisdomLayers wisdom = WisdomLayers::open();
  for (const WisdomProblem& p : wisdom.problems())
    if (!p.note) advice.push_back("wisdom: " + p.text());
  std::vector<std::string> wisdom_layers;
  for (const WisdomLayers::Layer& l : wisdom.layers())
    wisdom_layers.push_back(fmt::format("{} ({} records)", l.name, l.wisdom.records().size()));
  const std::string llvm = codegen::cpu::llvm_version();
  if (options.json) {
    print_json(
        {{"cpu", validators_of().device},
         {"target", {{"triple", host.triple}, {"cpu", host.cpu}, {"features", host.features}, {"level", host.level()}}},
         {"processors", found_processors},
         {"threads", threads},
         {"llvm", llvm},
         {"compile_ms", trial.compile_ms},
         {"compiles", compile_failure.empty()},
         {"openblas", blas ? nlohmann::ordered_json({{"config", blas->config()}, {"core", blas->core()}})
                           : nlohmann::ordered_json(nullptr)},
         {"cuda_driver", !driver.empty()},
         {"gpu", gpu ? gpu->json : nlohmann::ordered_json(nullptr)},
         {"cache_folder",
          cache.folder.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(cache.folder)},
         {"wisdom", wisdom_layers},
         {"advice", advice}});
  } else {
    const auto line = [](const char* name, const std::string& value) { fmt::print("{:<14}{}\n", name, value); };
    line("processor", fmt::format("{}, {} available to this process", validators_of().device, found_processors));
    line("kernels for", fmt::format("{} ({}{}{})", host.level(), host.triple, host.cpu.empty() ? "" : ", ", host.cpu));
    line("features", host.features);
    line("threads", fmt::format("{}{}", threads, *variable("KERF_NUM_THREADS") != '\0' ? " (KERF_NUM_THREADS)" : ""));
    line("LLVM", llvm);
    line("compiler", compile_failure.empty() ? fmt::format("works; a small program took {:.0f} ms", trial.compile_ms)
                                             : "FAILED: " + compile_failure);
    line("OpenBLAS", blas ? fmt::format("{}; kernels for {}", blas->config(), blas->core()) : "not found");
    line("CUDA driver", driver.empty() ? "none that works; not needed on the cpu" : driver);
    for (const auto& [name, value] : gpu ? gpu->lines : decltype(gpu->lines){}) line(name, value);
    line("cache folder", cache.folder.empty() ? "none; programs are compiled when first used and kept in memory"
                                              : cache.folder + " (see kerf cache)");
    line("wisdom", wisdom_layers.empty() ? "none; kerf tune measures which blocks are fast here"
                                         : fmt::format("{}", fmt::join(wisdom_layers, ", ")));
    for (const std::string& a : advice) fmt::print("-> {}\n", a);
    if (advice.empty()) fmt::print("nothing is missing\n");
  }
  return compile_failure.empty() && (!gpu || gpu->works) ? 0 : 1;
}

}  // namespace

void add_doctor(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("doctor", "what was found on this machine, what is missing, what to do");
  auto& options = options_of<DoctorOptions>(*verb, run, doctor);
  verb->add_option("--device", options.device, "also look at a GPU: cuda or cuda:N")->capture_default_str();
  verb->add_flag("--json", options.json, "print JSON");
  verb->footer("Example: kerf doctor");
}

}  // namespace kerf::tools
