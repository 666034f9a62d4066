// Opening the driver, and what each of its errors means to a caller of Kerf.
#include "runtime/cuda/driver.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>

#include "kerf/error.h"

namespace kerf::cuda {

namespace {

using api::Result;

enum class Kind { usage, device, internal };

/// What a result asks of the caller.
struct Meaning {
  Kind kind;
  std::string_view way_out;
};

constexpr std::string_view lost =
    "a kernel or the hardware failed, in this call or in an earlier one by anyone in this process, and the device is "
    "lost "
    "to it: restart the process; compute-sanitizer finds the kernel";
constexpr std::string_view captured =
    "the stream, or another one of this thread, is being captured: make plans and kernels ready (prepare, compile) and "
    "allocate before the capture begins, and start it again";
constexpr std::string_view ours = "Kerf called the driver wrongly; please report it";

Meaning meaning(Result result) {
  switch (result) {
    case Result::out_of_memory:
      return {Kind::device, "free memory of the device, use fewer tokens at a time or a lower workspace_limit"};
    case Result::not_initialized:
      return {Kind::device,
              "the driver does not work in a child that was forked after its parent had used it: start the child with "
              "exec or posix_spawn (Python: the spawn start method), or fork before the first use"};
    case Result::deinitialized: return {Kind::device, "the process is ending; call Kerf before main returns"};
    case Result::stub_library:
      return {
          Kind::device,
          "this library is the toolkit's stub, made for linking: take its folder (.../stubs) out of LD_LIBRARY_PATH, "
          "or name the real driver in KERF_CUDA_DRIVER"};
    case Result::device_unavailable:
      return {Kind::device,
              "another process holds the device alone (compute mode, nvidia-smi -q -d COMPUTE): wait for it or "
              "choose another device"};
    case Result::no_device:
      return {Kind::device, "see nvidia-smi, and CUDA_VISIBLE_DEVICES, which may hide devices; the CPU needs none"};
    case Result::invalid_device: return {Kind::usage, "choose a device that is there"};
    case Result::invalid_context:
    case Result::context_is_destroyed:
      return {Kind::device,
              "someone in this process destroyed or reset the device's primary context (cuDevicePrimaryCtxReset, "
              "cudaDeviceReset): make kernels and buffers again after a reset"};
    case Result::no_binary_for_gpu:
      return {Kind::device,
              "the code is for another GPU: compile for Target::of(device), or for sm_80, which runs on all"};
    case Result::jit_compiler_not_found:
      return {Kind::device,
              "the driver's libnvidia-ptxjitcompiler.so is missing: install the whole driver (in a container: "
              "the 'compute' capability)"};
    case Result::unsupported_ptx_version:
      return {Kind::device,
              "the driver is older than the PTX: update it, or compile for sm_80, which needs CUDA 12.0 only"};
    case Result::jit_disabled: return {Kind::device, "unset CUDA_DISABLE_PTX_JIT"};
    case Result::invalid_handle:
      return {Kind::usage, "the stream or event belongs to another device or was destroyed: pass one of this device"};
    case Result::ecc_uncorrectable:
    case Result::nvlink_uncorrectable:
    case Result::illegal_address:
    case Result::launch_timeout:
    case Result::assertion:
    case Result::hardware_stack_error:
    case Result::illegal_instruction:
    case Result::misaligned_address:
    case Result::invalid_address_space:
    case Result::invalid_pc:
    case Result::launch_failed:
    case Result::unknown: return {Kind::device, lost};
    case Result::launch_out_of_resources:
      return {Kind::device, "a block needs more registers or shared memory than the device has: use smaller blocks"};
    case Result::not_permitted:
    case Result::not_supported: return {Kind::device, "this device or its mode cannot do it; another may"};
    case Result::system_not_ready:
      return {Kind::device,
              "the system is still starting: NVIDIA's fabric manager must run (systemctl status "
              "nvidia-fabricmanager)"};
    case Result::driver_mismatch:
      return {Kind::device,
              "the driver's library and its kernel module are of two versions: restart the machine, or the "
              "container with the host's libraries"};
    case Result::compatibility_not_supported:
      return {Kind::device,
              "a forward compatibility package is in use on a device it does not support: take its folder "
              "(.../compat) out of LD_LIBRARY_PATH"};
    case Result::capture_unsupported:
    case Result::capture_invalidated:
    case Result::capture_merge:
    case Result::capture_unmatched:
    case Result::capture_unjoined:
    case Result::capture_isolation:
    case Result::capture_implicit:
    case Result::captured_event:
    case Result::capture_wrong_thread: return {Kind::usage, captured};
    case Result::success:
    case Result::invalid_value:
    case Result::invalid_image:
    case Result::invalid_ptx:
    case Result::not_found: return {Kind::internal, ours};
  }
  // Results that are not listed: of newer drivers, or of parts of the driver that Kerf does not use.
  return {Kind::device, "the driver's own text is all that is known; see its documentation of this code"};
}

}  // namespace

std::string Driver::describe(Result result) const {
  const char *name = nullptr, *text = nullptr;
  if (functions_.cuGetErrorName(result, &name) != Result::success || !name) name = "unknown to this driver";
  if (functions_.cuGetErrorString(result, &text) != Result::success || !text) text = "no text";
  return fmt::format("{} ({}, {})", text, name, static_cast<unsigned>(result));
}

void Driver::fail(Result result, std::string_view call, std::string_view doing, std::string_view more,
                  Result meant) const {
  const Meaning m = meaning(meant);
  std::string text = fmt::format("cuda: {}: {} from {}", doing, describe(result), call);
  if (!more.empty()) text += fmt::format("; {}", more);
  if (result == Result::no_device) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    if (visible) text += fmt::format("; CUDA_VISIBLE_DEVICES is '{}'", visible);
  }
  text += fmt::format("; {}", m.way_out);
  if (m.kind == Kind::usage) throw UsageError(text);
  if (m.kind == Kind::device) throw DeviceError(text);
  throw InternalError(text);
}

std::string Driver::version_text() const { return fmt::format("{}.{}", version_ / 1000, version_ % 1000 / 10); }

std::shared_ptr<const Driver> Driver::open() {
  const char* named = std::getenv("KERF_CUDA_DRIVER");
  std::shared_ptr<Driver> driver(new Driver);
  driver->library_ = named && *named ? named : "libcuda.so.1";
  // NODELETE: the real driver has threads of its own, which must not find their code unmapped.
  void* handle = dlopen(driver->library_.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!handle)
    throw DeviceError(
        fmt::format("cuda: there is no NVIDIA driver: {}; install one, name its library in KERF_CUDA_DRIVER, "
                    "or use the CPU",
                    dlerror()));
  driver->handle_ = std::shared_ptr<void>(handle, [](void* h) { dlclose(h); });

  api::Functions& f = driver->functions_;
  std::string missing;
  const auto look_up = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, symbol));
  };
  const auto find = [&](auto& function, const char* symbol) {
    look_up(function, symbol);
    if (!function) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", symbol);
  };
#define KERF_CUDA(symbol, parameters) find(f.symbol, #symbol);
#define KERF_CUDA_OPTIONAL(symbol, parameters) look_up(f.symbol, #symbol);
#include "runtime/cuda/functions.def"
#undef KERF_CUDA
  if (f.cuDriverGetVersion) f.cuDriverGetVersion(&driver->version_);
  if (!missing.empty())
    throw DeviceError(fmt::format("cuda: {} {}lacks {}; Kerf needs driver 525 (CUDA 12.0) or later: update the driver",
                                  driver->library_,
                                  driver->version_ ? fmt::format("(CUDA {}) ", driver->version_text()) : "", missing));
  driver->check(f.cuInit(0), "cuInit", fmt::format("starting the driver {}", driver->library_));
  driver->check(f.cuDeviceGetCount(&driver->device_count_), "cuDeviceGetCount", "counting the devices");
  if (driver->device_count_ == 0) driver->fail(Result::no_device, "cuDeviceGetCount", "counting the devices");
  return driver;
}

}  // namespace kerf::cuda
