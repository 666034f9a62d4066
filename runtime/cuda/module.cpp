// Loading PTX and launching it. What a launch needs (attributes, occupancy) is asked for once, when the code is loaded.
#include "runtime/cuda/module.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <utility>
#include <vector>

#include "kerf/error.h"

namespace kerf::cuda {

namespace {

/// The word that follows `directive` in the PTX: ".version" -> "8.3".
std::string word_after(const std::string& ptx, std::string_view directive) {
  const std::size_t at = ptx.find(directive);
  if (at == std::string::npos) return "?";
  const std::size_t begin = ptx.find_first_not_of(" \t", at + directive.size());
  if (begin == std::string::npos) return "?";
  return ptx.substr(begin, ptx.find_first_of(" \t\r\n,", begin) - begin);
}

/// True where PTX for `target` ("sm_90a") may be translated for the device.
bool runs_on(const std::string& target, const DeviceInfo& info) {
  if (!target.starts_with("sm_")) return true;
  const int number = std::atoi(target.c_str() + 3), device = info.major * 10 + info.minor;
  const bool exact = target.ends_with('a');
  return exact ? number == device : number <= device;
}

/// Where the translator writes, and the options that tell it.
class JitLog {
 public:
  JitLog() : info_(16384, '\0'), errors_(8192, '\0') {
    // The driver reads the numbers from the pointers' own bits. One byte is kept back: a full log may lack its end.
    const auto number = [](std::size_t n) { return reinterpret_cast<void*>(n); };
    values_ = {info_.data(), number(info_.size() - 1), errors_.data(), number(errors_.size() - 1), number(1)};
  }
  JitLog(const JitLog&) = delete;
  JitLog& operator=(const JitLog&) = delete;
  unsigned count() const { return static_cast<unsigned>(options_.size()); }
  api::JitOption* options() { return options_.data(); }
  void** values() { return values_.data(); }
  std::string info() const { return info_.c_str(); }
  std::string errors() const { return errors_.c_str(); }

 private:
  std::string info_, errors_;
  std::array<api::JitOption, 5> options_ = {api::JitOption::info_log_buffer, api::JitOption::info_log_buffer_size_bytes,
                                            api::JitOption::error_log_buffer,
                                            api::JitOption::error_log_buffer_size_bytes, api::JitOption::log_verbose};
  std::array<void*, 5> values_;
};

class Stopwatch {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

Module::Module(std::shared_ptr<const Device> device, const std::string& ptx, std::string name)
    : device_(std::move(device)), name_(std::move(name)) {
  const Driver& d = device_->driver();
  const Current current(*device_);
  JitLog log;
  const Stopwatch watch;
  const api::Result r = d->cuModuleLoadDataEx(&handle_, ptx.c_str(), log.count(), log.options(), log.values());
  jit_ms_ = watch.ms();
  log_ = log.info();
  const std::string errors = log.errors();
  if (r == api::Result::success) return;

  const std::string target = word_after(ptx, ".target"), version = word_after(ptx, ".version");
  const DeviceInfo& info = device_->info();
  const std::string doing = fmt::format("loading {} on {}", name_, info.describe());
  std::string more;
  api::Result meant = r;
  if (r == api::Result::unsupported_ptx_version)
    more = fmt::format("the PTX is version {}, the driver is for CUDA {}", version, d.version_text());
  if ((r == api::Result::invalid_ptx || r == api::Result::no_binary_for_gpu) && !runs_on(target, info)) {
    meant = api::Result::no_binary_for_gpu;
    more = fmt::format("the PTX is for {}, the device has compute capability {}.{}", target, info.major, info.minor);
  }
  if (!errors.empty()) more += fmt::format("{}the translator says: {}", more.empty() ? "" : "; ", errors);
  d.fail(r, "cuModuleLoadDataEx", doing, more, meant);
}

Module::Module(std::shared_ptr<const Device> device, const Translated& code, std::string name)
    : device_(std::move(device)), name_(std::move(name)), log_(code.log) {
  const Driver& d = device_->driver();
  const Current current(*device_);
  const Stopwatch watch;
  const api::Result r = d->cuModuleLoadDataEx(&handle_, code.cubin.data(), 0, nullptr, nullptr);
  if (code.ms > 0) jit_ms_ = code.ms + watch.ms();
  if (r == api::Result::success) return;
  const bool refused = r == api::Result::no_binary_for_gpu || r == api::Result::invalid_ptx;
  d.fail(r, "cuModuleLoadDataEx", fmt::format("loading {} on {}", name_, device_->info().describe()), {},
         refused ? api::Result::invalid_image : r);
}

std::optional<Translated> translate(const Device& device, const std::string& ptx, const std::string& name) {
  const Driver& d = device.driver();
  if (!d->cuLinkCreate_v2 || !d->cuLinkAddData_v2 || !d->cuLinkComplete || !d->cuLinkDestroy) return {};
  if (ptx.find("wgmma") != std::string::npos || ptx.find("setmaxnreg") != std::string::npos) return {};
  const Current current(device);
  JitLog log;
  const Stopwatch watch;
  api::LinkState state = nullptr;
  if (d->cuLinkCreate_v2(log.count(), log.options(), log.values(), &state) != api::Result::success) return {};
  // The log and the cubin are the state's until it is destroyed.
  void* cubin = nullptr;
  std::size_t bytes = 0;
  Translated out;
  if (d->cuLinkAddData_v2(state, api::JitInput::ptx, const_cast<char*>(ptx.c_str()), ptx.size() + 1, name.c_str(), 0,
                          nullptr, nullptr) == api::Result::success &&
      d->cuLinkComplete(state, &cubin, &bytes) == api::Result::success) {
    const auto* first = static_cast<const std::byte*>(cubin);
    out.cubin.assign(first, first + bytes);
  }
  d->cuLinkDestroy(state);
  out.log = log.info();
  out.ms = watch.ms();
  if (out.cubin.empty()) return {};
  return out;
}

Module::~Module() {
  if (!handle_) return;
  const Driver& d = device_->driver();
  if (d->cuCtxPushCurrent_v2(device_->context()) != api::Result::success) return;
  d->cuModuleUnload(handle_);
  api::Context popped = nullptr;
  d->cuCtxPopCurrent_v2(&popped);
}

Function Module::function(const std::string& entry, int threads, std::int64_t shared) const {
  const Driver& d = device_->driver();
  const DeviceInfo& info = device_->info();
  const Current current(*device_);
  const std::string doing = fmt::format("preparing {} on {}", entry, info.describe());
  Function f;
  f.name = entry;
  f.threads = threads;
  f.dynamic_shared_bytes = shared;
  d.check(d->cuModuleGetFunction(&f.handle, handle_, entry.c_str()), "cuModuleGetFunction", doing);
  const auto get = [&](api::FunctionAttribute a) {
    int value = 0;
    d.check(d->cuFuncGetAttribute(&value, a, f.handle), "cuFuncGetAttribute", doing);
    return value;
  };
  f.registers = get(api::FunctionAttribute::num_regs);
  f.local_bytes = get(api::FunctionAttribute::local_size_bytes);
  f.static_shared_bytes = get(api::FunctionAttribute::shared_size_bytes);
  const int most_threads = get(api::FunctionAttribute::max_threads_per_block);
  if (f.static_shared_bytes + shared > info.shared_bytes)
    throw DeviceError(
        fmt::format("cuda: {} needs {} bytes of shared memory a block, {} has {}: use smaller blocks or fewer "
                    "stages",
                    entry, f.static_shared_bytes + shared, info.describe(), info.shared_bytes));
  if (threads > most_threads)
    throw DeviceError(
        fmt::format("cuda: {} is launched with {} threads a block, and its {} registers a thread leave room "
                    "for {} on {}: use smaller blocks",
                    entry, threads, f.registers, most_threads, info.describe()));
  // More than 48 KiB must be asked for; it is the function's own, so asking once is enough.
  if (shared > 0)
    d.check(d->cuFuncSetAttribute(f.handle, api::FunctionAttribute::max_dynamic_shared_size_bytes,
                                  static_cast<int>(shared)),
            "cuFuncSetAttribute", doing);
  d.check(d->cuOccupancyMaxActiveBlocksPerMultiprocessor(&f.blocks_per_multiprocessor, f.handle, threads,
                                                         static_cast<std::size_t>(shared)),
          "cuOccupancyMaxActiveBlocksPerMultiprocessor", doing);
  if (f.blocks_per_multiprocessor < 1)
    throw DeviceError(
        fmt::format("cuda: no block of {} fits a multiprocessor of {}: {} threads of {} registers, {} bytes of "
                    "shared memory; use smaller blocks",
                    entry, info.describe(), threads, f.registers, f.static_shared_bytes + shared));
  return f;
}

void launch(const Device& device, const Function& function, std::int64_t grid, std::span<void*> parameters,
            Stream stream, int cluster) {
  if (grid == 0) return;
  api::LaunchAttribute attribute{};
  attribute.id = api::LaunchAttributeId::cluster_dimension;
  attribute.value.cluster = {static_cast<unsigned>(cluster), 1, 1};
  api::LaunchConfig config{};
  config.grid_x = static_cast<unsigned>(grid);
  config.grid_y = config.grid_z = config.block_y = config.block_z = 1;
  config.block_x = static_cast<unsigned>(function.threads);
  config.dynamic_shared_bytes = static_cast<unsigned>(function.dynamic_shared_bytes);
  config.stream = static_cast<api::StreamHandle>(stream.handle);
  config.attributes = &attribute;
  config.attribute_count = cluster > 1 ? 1 : 0;
  const Current current(device);
  const Driver& d = device.driver();
  const api::Result r = d->cuLaunchKernelEx(&config, function.handle, parameters.data(), nullptr);
  if (r != api::Result::success)
    d.fail(r, "cuLaunchKernelEx", fmt::format("launching {} on {}", function.name, device.info().describe()));
}

// ---- tensor maps ----

namespace {

std::int64_t elements_of_128_bytes(DType t) { return 128 / size_of(t); }

}  // namespace

std::string unfit_for_map(const TensorRef& m) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();  // coordinates
  if (m.rank != 2) return fmt::format("it has rank {}, not 2", m.rank);
  if (m.dtype != DType::bf16 && m.dtype != DType::f16 && m.dtype != DType::f32)
    return fmt::format("it holds {}", name_of(m.dtype));
  if (m.shape[0] < 1 || m.shape[1] < 1) return "it is empty";
  if (m.shape[0] > limit || m.shape[1] > limit) return "it has 2^31 rows or columns, or more";
  if (reinterpret_cast<std::uintptr_t>(m.data) % 16 != 0) return "it is not aligned to 16 bytes";
  const std::int64_t step = m.strides[0] * size_of(m.dtype);
  if (m.shape[0] > 1 && (step % 16 != 0 || step <= 0 || step >= std::int64_t{1} << 40))
    return fmt::format("its rows are {} bytes apart, which must be a multiple of 16, above 0 and below 2^40", step);
  return {};
}

api::TensorMapBits encode_tensor_map(const Driver& driver, const TensorMap& map, const TensorRef& m) {
  if (const std::string why = unfit_for_map(m); !why.empty())
    throw InternalError(fmt::format("tensor map of {}: {}", m.describe(), why));
  if (map.rows < 1 || map.rows > 256)
    throw InternalError(fmt::format("tensor map: boxes of {} rows; 1 to 256 are possible", map.rows));
  const auto columns = static_cast<std::uint64_t>(m.shape[1]), rows = static_cast<std::uint64_t>(m.shape[0]);
  const auto inner = static_cast<std::uint32_t>(elements_of_128_bytes(m.dtype));
  // One row has no step to the next; the driver wants a legal one all the same.
  const std::uint64_t step = m.shape[0] > 1 ? static_cast<std::uint64_t>(m.strides[0] * size_of(m.dtype))
                                            : (columns * static_cast<std::uint64_t>(size_of(m.dtype)) + 15) / 16 * 16;
  const std::uint64_t sizes[] = {columns, rows}, strides[] = {step};
  const std::uint32_t box[] = {inner, static_cast<std::uint32_t>(map.rows)}, steps[] = {1, 1};
  const auto type = m.dtype == DType::bf16  ? api::TensorMapType::bf16
                    : m.dtype == DType::f16 ? api::TensorMapType::f16
                                            : api::TensorMapType::f32;
  api::TensorMapBits bits;
  const api::Result r = driver->cuTensorMapEncodeTiled(&bits, type, 2, m.data, sizes, strides, box, steps,
                                                       api::TensorMapInterleave::none, api::TensorMapSwizzle::bytes_128,
                                                       api::TensorMapPromotion::l2_256, api::TensorMapFill::zeros);
  if (r != api::Result::success)
    driver.fail(r, "cuTensorMapEncodeTiled", fmt::format("describing {} in boxes of {} rows", m.describe(), map.rows));
  return bits;
}

}  // namespace kerf::cuda
