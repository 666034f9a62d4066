#include "tests/support/fake_cuda/fake_cuda.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <regex>
#include <sstream>

using namespace kerf::cuda::api;  // NOLINT: every name here is the driver's
using kerf::test::FakeLaunch;
using kerf::test::FakeMemory;
using kerf::test::FakeState;
using kerf::test::FakeTensorMap;

struct CUmod_st {
  int ordinal;
  std::string ptx;
  std::deque<CUfunc_st> functions;
};
struct CUfunc_st {
  CUmod_st* module;
  std::string name;
  std::vector<std::size_t> parameter_bytes;
};
struct CUstream_st {
  int ordinal;
};
struct CUevent_st {
  int ordinal;
  double time;
};
struct CUgraph_st {
  std::vector<FakeLaunch> launches;
};
struct CUgraphExec_st {
  std::vector<FakeLaunch> launches;
};
struct CUlinkState_st {
  char* log = nullptr;
  std::size_t room = 0;
  std::string cubin;
};

#define EXPORT extern "C" [[gnu::visibility("default")]]

// Every function of the table, so that a definition with other types does not compile.
#define KERF_CUDA(symbol, parameters) EXPORT Result symbol parameters;
#include "runtime/cuda/functions.def"
#undef KERF_CUDA

namespace {

FakeState& state() {
  static FakeState s;
  return s;
}
std::vector<Context>& stack() {
  static thread_local std::vector<Context> s;
  return s;
}

struct Capture {
  StreamHandle stream = nullptr;
  bool active = false, invalid = false;
  CaptureMode mode = CaptureMode::global;
  std::vector<FakeLaunch> launches;
};
Capture& capture() {
  static Capture c;
  return c;
}

struct Gpu {
  int major, minor;
  std::unique_ptr<CUctx_st> context;
};
std::vector<Gpu>& devices() {
  static std::vector<Gpu> list;
  return list;
}

/// Before anything else a function asks here whether it is to fail; one that frees does so before, as on a lost device.
Result enter(const char* function) {
  ++state().calls[function];
  if (state().lost != Result::success) return state().lost;
  const auto told = state().results.find(function);
  if (told == state().results.end()) return Result::success;
  const auto result = static_cast<Result>(told->second);
  if ((told->second >= 700 && told->second < 800 && told->second != 701) || told->second == 999) state().lost = result;
  return result;
}
#define ENTER(function) \
  if (const Result told = enter(#function); told != Result::success) return told
#define IN_CONTEXT \
  if (stack().empty()) return Result::invalid_context

bool is_memory(DevicePointer p, std::size_t bytes) {
  const auto at = state().memory.upper_bound(p);
  if (at == state().memory.begin()) return false;
  const auto& [base, memory] = *std::prev(at);
  return p + bytes <= base + memory.bytes;
}

int version() {
  const char* v = std::getenv("KERF_FAKE_CUDA_VERSION");
  return v ? std::atoi(v) : 13000;
}

bool capture_forbids() {
  if (!capture().active || capture().mode == CaptureMode::relaxed) return false;
  capture().invalid = true;
  return true;
}

void queue(FakeLaunch launch, StreamHandle stream) {
  if (capture().active && capture().stream == stream)
    capture().launches.push_back(std::move(launch));
  else
    state().launches.push_back(std::move(launch));
}

}  // namespace

EXPORT FakeState* kerf_fake_cuda_state() { return &state(); }
EXPORT std::vector<Context>* kerf_fake_cuda_stack() { return &stack(); }

Result cuInit(unsigned) {
  static std::string made = "none";
  const char* wanted = std::getenv("KERF_FAKE_CUDA_DEVICES");
  const std::string list = wanted ? wanted : "9.0";
  if (list != made) {  // else a second cuInit, which changes nothing
    devices().clear();
    std::istringstream in(list);
    for (std::string item; std::getline(in, item, ',');)
      devices().push_back({std::atoi(item.c_str()), std::atoi(item.c_str() + item.find('.') + 1),
                           std::make_unique<CUctx_st>(CUctx_st{static_cast<int>(devices().size())})});
    made = list;
  }
  if (const char* script = std::getenv("KERF_FAKE_CUDA")) {
    std::istringstream lines(script);
    for (std::string item; std::getline(lines, item, ',');)
      if (const std::size_t at = item.find('='); at != std::string::npos)
        state().results[item.substr(0, at)] = static_cast<unsigned>(std::atoi(item.c_str() + at + 1));
  }
  ENTER(cuInit);
  return devices().empty() ? Result::no_device : Result::success;
}
Result cuDriverGetVersion(int* out) {
  *out = version();
  return Result::success;
}
Result cuGetErrorName(Result error, const char** text) {
  static const std::map<unsigned, const char*> names = {{2, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                        {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
                                                        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}};
  const auto at = names.find(static_cast<unsigned>(error));
  *text = at == names.end() ? "CUDA_ERROR_FAKE" : at->second;
  return Result::success;
}
Result cuGetErrorString(Result error, const char** text) {
  static const std::map<unsigned, const char*> texts = {
      {2, "out of memory"},
      {222, "the provided PTX was compiled with an unsupported toolchain."},
      {700, "an illegal memory access was encountered"}};
  const auto at = texts.find(static_cast<unsigned>(error));
  *text = at == texts.end() ? "a scripted failure" : at->second;
  return Result::success;
}

Result cuDeviceGet(DeviceId* device, int ordinal) {
  ENTER(cuDeviceGet);
  if (ordinal < 0 || ordinal >= static_cast<int>(devices().size())) return Result::invalid_device;
  *device = ordinal;
  return Result::success;
}
Result cuDeviceGetCount(int* count) {
  ENTER(cuDeviceGetCount);
  *count = static_cast<int>(devices().size());
  return Result::success;
}
Result cuDeviceGetName(char* name, int length, DeviceId device) {
  ENTER(cuDeviceGetName);
  const std::string text = "Stand-in " + std::to_string(device);
  std::strncpy(name, text.c_str(), static_cast<std::size_t>(length));
  return Result::success;
}
Result cuDeviceGetAttribute(int* value, DeviceAttribute attribute, DeviceId device) {
  ENTER(cuDeviceGetAttribute);
  const Gpu& gpu = devices()[static_cast<std::size_t>(device)];
  switch (attribute) {
    case DeviceAttribute::multiprocessor_count: *value = 132; break;
    case DeviceAttribute::l2_cache_size: *value = 60 << 20; break;
    case DeviceAttribute::compute_capability_major: *value = gpu.major; break;
    case DeviceAttribute::compute_capability_minor: *value = gpu.minor; break;
    case DeviceAttribute::max_shared_memory_per_block_optin:
      *value = gpu.minor == 0 && gpu.major < 12 ? (gpu.major == 8 ? 163 << 10 : 227 << 10) : 99 << 10;
      break;
    default: return Result::invalid_value;
  }
  return Result::success;
}
Result cuDeviceTotalMem_v2(std::size_t* bytes, DeviceId) {
  ENTER(cuDeviceTotalMem_v2);
  *bytes = std::size_t{1} << 37;
  return Result::success;
}
Result cuDevicePrimaryCtxRetain(Context* context, DeviceId device) {
  ENTER(cuDevicePrimaryCtxRetain);
  ++state().retained[device];
  *context = devices()[static_cast<std::size_t>(device)].context.get();
  return Result::success;
}
Result cuDevicePrimaryCtxRelease_v2(DeviceId device) {
  --state().retained[device];
  ENTER(cuDevicePrimaryCtxRelease_v2);
  return Result::success;
}

Result cuCtxPushCurrent_v2(Context context) {
  const Result told = enter("cuCtxPushCurrent_v2");
  if (told != Result::success && told != state().lost) return told;
  stack().push_back(context);
  return Result::success;
}
Result cuCtxPopCurrent_v2(Context* context) {
  ++state().calls["cuCtxPopCurrent_v2"];  // works on a lost device too
  IN_CONTEXT;
  *context = stack().back();
  stack().pop_back();
  return Result::success;
}
Result cuCtxGetCurrent(Context* context) {
  ENTER(cuCtxGetCurrent);
  *context = stack().empty() ? nullptr : stack().back();
  return Result::success;
}
Result cuCtxGetDevice(DeviceId* device) {
  ENTER(cuCtxGetDevice);
  IN_CONTEXT;
  *device = stack().back()->ordinal;
  return Result::success;
}
Result cuCtxSynchronize() {
  ENTER(cuCtxSynchronize);
  IN_CONTEXT;
  return capture_forbids() ? Result::capture_unsupported : Result::success;
}

namespace {

/// What a cubin of the stand-in begins with; the capability and the PTX follow.
const std::string cubin_magic = "STAND-IN CUBIN ";

Result translates(const std::string& ptx) {
  std::smatch found;
  if (!std::regex_search(ptx, found, std::regex(R"(\.version\s+(\d+)\.(\d+))"))) return Result::invalid_image;
  // PTX 8.0 came with CUDA 12.0, 9.0 with 13.0.
  const int needs = (std::stoi(found[1]) + 4) * 1000 + std::stoi(found[2]) * 10;
  if (needs > version()) return Result::unsupported_ptx_version;
  const Gpu& gpu = devices()[static_cast<std::size_t>(stack().back()->ordinal)];
  if (!std::regex_search(ptx, found, std::regex(R"(\.target\s+sm_(\d+)(a?))"))) return Result::invalid_ptx;
  const int target = std::stoi(found[1]), device = gpu.major * 10 + gpu.minor;
  if (found[2].length() ? target != device : target > device) return Result::invalid_ptx;
  return Result::success;
}

std::string capability() {
  const Gpu& gpu = devices()[static_cast<std::size_t>(stack().back()->ordinal)];
  return std::to_string(gpu.major * 10 + gpu.minor);
}

std::string translator_says() { return "ptxas info    : Used " + std::to_string(state().registers) + " registers"; }

}  // namespace

#ifndef KERF_FAKE_CUDA_NO_LINKER
Result cuLinkCreate_v2(unsigned count, JitOption* options, void** values, LinkState* link) {
  ENTER(cuLinkCreate_v2);
  IN_CONTEXT;
  *link = new CUlinkState_st;
  for (unsigned i = 0; i < count; ++i) {
    if (options[i] == JitOption::info_log_buffer) (*link)->log = static_cast<char*>(values[i]);
    if (options[i] == JitOption::info_log_buffer_size_bytes) (*link)->room = reinterpret_cast<std::size_t>(values[i]);
  }
  ++state().links;
  return Result::success;
}
Result cuLinkAddData_v2(LinkState link, JitInput type, void* data, std::size_t bytes, const char*, unsigned, JitOption*,
                        void**) {
  ENTER(cuLinkAddData_v2);
  IN_CONTEXT;
  const std::string ptx(static_cast<const char*>(data), bytes);
  if (type != JitInput::ptx || ptx.empty() || ptx.back() != '\0') return Result::invalid_value;
  if (const Result r = translates(ptx); r != Result::success) return r;
  link->cubin = cubin_magic + capability() + "\n" + ptx;
  return Result::success;
}
Result cuLinkComplete(LinkState link, void** cubin, std::size_t* bytes) {
  ENTER(cuLinkComplete);
  IN_CONTEXT;
  const std::string said = translator_says();
  if (link->log && link->room) std::memcpy(link->log, said.c_str(), std::min(link->room, said.size() + 1));
  *cubin = link->cubin.data();
  *bytes = link->cubin.size();
  return Result::success;
}
Result cuLinkDestroy(LinkState link) {
  delete link;
  --state().links;
  ENTER(cuLinkDestroy);
  return Result::success;
}
#endif

Result cuModuleLoadDataEx(Module* module, const void* image, unsigned count, JitOption* options, void** values) {
  std::string ptx = static_cast<const char*>(image);
  const auto say = [&](JitOption buffer, JitOption size, const std::string& text) {
    char* to = nullptr;
    std::size_t room = 0;
    for (unsigned i = 0; i < count; ++i) {
      if (options[i] == buffer) to = static_cast<char*>(values[i]);
      if (options[i] == size) room = reinterpret_cast<std::size_t>(values[i]);
    }
    if (to && room) std::memcpy(to, text.c_str(), std::min(room, text.size() + 1));
  };
  say(JitOption::error_log_buffer, JitOption::error_log_buffer_size_bytes, state().jit_error_log);
  ENTER(cuModuleLoadDataEx);
  IN_CONTEXT;
  if (ptx.starts_with(cubin_magic)) {
    const std::string head = cubin_magic + capability() + "\n";
    if (!ptx.starts_with(head)) return Result::no_binary_for_gpu;
    ptx.erase(0, head.size());
    ++state().cubins;
  } else if (const Result r = translates(ptx); r != Result::success) {
    return r;
  }
  say(JitOption::info_log_buffer, JitOption::info_log_buffer_size_bytes,
      translator_says());
  *module = new CUmod_st{stack().back()->ordinal, ptx, {}};
  ++state().modules;
  return Result::success;
}
Result cuModuleUnload(Module module) {
  IN_CONTEXT;
  delete module;
  --state().modules;
  ENTER(cuModuleUnload);
  return Result::success;
}
Result cuModuleGetFunction(Function* function, Module module, const char* name) {
  ENTER(cuModuleGetFunction);
  IN_CONTEXT;
  const std::size_t at = module->ptx.find(std::string(".entry ") + name + "(");
  if (at == std::string::npos) return Result::not_found;
  const std::string head = module->ptx.substr(at, module->ptx.find(')', at) - at);
  CUfunc_st f{module, name, {}};
  const std::regex sized(R"(\.param[^,\[]*\[(\d+)\])");
  for (std::sregex_iterator i(head.begin(), head.end(), sized), end; i != end; ++i)
    f.parameter_bytes.push_back(std::stoul((*i)[1]));
  module->functions.push_back(std::move(f));
  *function = &module->functions.back();
  return Result::success;
}
Result cuFuncGetAttribute(int* value, FunctionAttribute attribute, Function) {
  ENTER(cuFuncGetAttribute);
  switch (attribute) {
    case FunctionAttribute::max_threads_per_block: *value = state().most_threads; break;
    case FunctionAttribute::shared_size_bytes: *value = 0; break;
    case FunctionAttribute::local_size_bytes: *value = state().local_bytes; break;
    case FunctionAttribute::num_regs: *value = state().registers; break;
    default: return Result::invalid_value;
  }
  return Result::success;
}
Result cuFuncSetAttribute(Function function, FunctionAttribute attribute, int value) {
  ENTER(cuFuncSetAttribute);
  if (attribute != FunctionAttribute::max_dynamic_shared_size_bytes) return Result::invalid_value;
  state().dynamic_shared[function->name] = value;
  return Result::success;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function, int, std::size_t) {
  ENTER(cuOccupancyMaxActiveBlocksPerMultiprocessor);
  *blocks = state().blocks_per_multiprocessor;
  return Result::success;
}
Result cuLaunchKernelEx(const LaunchConfig* config, Function function, void** parameters, void**) {
  ENTER(cuLaunchKernelEx);
  IN_CONTEXT;
  if (config->grid_x == 0 || config->block_x == 0 || config->block_x > 1024) return Result::invalid_value;
  const int ordinal = stack().back()->ordinal;
  if (function->module->ordinal != ordinal || (config->stream && config->stream->ordinal != ordinal))
    return Result::invalid_handle;
  if (config->dynamic_shared_bytes > 48 << 10 &&
      static_cast<int>(config->dynamic_shared_bytes) > state().dynamic_shared[function->name])
    return Result::invalid_value;
  FakeLaunch launch;
  launch.function = function->name;
  launch.grid = config->grid_x;
  launch.threads = config->block_x;
  launch.shared = config->dynamic_shared_bytes;
  launch.stream = config->stream;
  launch.ordinal = ordinal;
  for (unsigned i = 0; i < config->attribute_count; ++i)
    if (config->attributes[i].id == LaunchAttributeId::cluster_dimension)
      launch.cluster = config->attributes[i].value.cluster.x;
  if (launch.grid % launch.cluster) return Result::invalid_value;
  for (std::size_t i = 0; i < function->parameter_bytes.size(); ++i) {
    const auto* from = static_cast<const std::byte*>(parameters[i]);
    launch.parameters.emplace_back(from, from + function->parameter_bytes[i]);
  }
  queue(std::move(launch), config->stream);
  return Result::success;
}

Result cuMemAlloc_v2(DevicePointer* pointer, std::size_t bytes) {
  ENTER(cuMemAlloc_v2);
  IN_CONTEXT;
  if (bytes == 0) return Result::invalid_value;
  if (capture_forbids()) return Result::capture_unsupported;
  if (bytes > std::size_t{1} << 37) return Result::out_of_memory;
  void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!p) return Result::out_of_memory;
  *pointer = reinterpret_cast<DevicePointer>(p);
  state().memory[*pointer] = {bytes, MemoryType::device, stack().back()->ordinal, false};
  return Result::success;
}
Result cuMemFree_v2(DevicePointer pointer) {
  IN_CONTEXT;
  if (!state().memory.erase(pointer)) return Result::invalid_value;
  std::free(reinterpret_cast<void*>(pointer));
  ENTER(cuMemFree_v2);
  return Result::success;
}
Result cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  ENTER(cuMemGetInfo_v2);
  IN_CONTEXT;
  *total = std::size_t{1} << 37;
  *free = *total / 2;
  return Result::success;
}
Result cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, std::size_t bytes, StreamHandle) {
  ENTER(cuMemcpyHtoDAsync_v2);
  IN_CONTEXT;
  if (!is_memory(to, bytes)) return Result::invalid_value;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return Result::success;
}
Result cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, std::size_t bytes, StreamHandle) {
  ENTER(cuMemcpyDtoHAsync_v2);
  IN_CONTEXT;
  if (!is_memory(from, bytes)) return Result::invalid_value;
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return Result::success;
}
Result cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, std::size_t bytes, StreamHandle) {
  ENTER(cuMemcpyDtoDAsync_v2);
  IN_CONTEXT;
  if (!is_memory(from, bytes) || !is_memory(to, bytes)) return Result::invalid_value;
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  return Result::success;
}
Result cuMemsetD8Async(DevicePointer to, unsigned char value, std::size_t count, StreamHandle) {
  ENTER(cuMemsetD8Async);
  IN_CONTEXT;
  if (!is_memory(to, count)) return Result::invalid_value;
  std::memset(reinterpret_cast<void*>(to), value, count);
  return Result::success;
}
Result cuMemsetD32Async(DevicePointer to, unsigned value, std::size_t count, StreamHandle) {
  ENTER(cuMemsetD32Async);
  IN_CONTEXT;
  if (!is_memory(to, 4 * count)) return Result::invalid_value;
  std::fill_n(reinterpret_cast<unsigned*>(to), count, value);
  return Result::success;
}
Result cuPointerGetAttributes(unsigned count, PointerAttribute* attributes, void** values, DevicePointer pointer) {
  ENTER(cuPointerGetAttributes);
  FakeMemory memory{0, MemoryType::none, -2, false};
  if (is_memory(pointer, 1)) memory = std::prev(state().memory.upper_bound(pointer))->second;
  for (unsigned i = 0; i < count; ++i) switch (attributes[i]) {
      case PointerAttribute::memory_type: std::memcpy(values[i], &memory.type, 4); break;
      case PointerAttribute::is_managed: std::memcpy(values[i], &memory.managed, 1); break;
      case PointerAttribute::device_ordinal: std::memcpy(values[i], &memory.ordinal, 4); break;
      default: return Result::invalid_value;
    }
  return Result::success;
}

Result cuStreamCreate(StreamHandle* stream, unsigned) {
  ENTER(cuStreamCreate);
  IN_CONTEXT;
  *stream = new CUstream_st{stack().back()->ordinal};
  ++state().streams;
  return Result::success;
}
Result cuStreamDestroy_v2(StreamHandle stream) {
  delete stream;
  --state().streams;
  ENTER(cuStreamDestroy_v2);
  return Result::success;
}
Result cuStreamSynchronize(StreamHandle stream) {
  ENTER(cuStreamSynchronize);
  if (capture().active && capture().stream == stream) {
    capture().invalid = true;
    return Result::capture_unsupported;
  }
  return Result::success;
}
Result cuStreamWaitEvent(StreamHandle, EventHandle, unsigned) {
  ENTER(cuStreamWaitEvent);
  return Result::success;
}
Result cuStreamIsCapturing(StreamHandle stream, CaptureStatus* status) {
  ENTER(cuStreamIsCapturing);
  *status = !capture().active || capture().stream != stream ? CaptureStatus::none
            : capture().invalid                             ? CaptureStatus::invalidated
                                                            : CaptureStatus::active;
  return Result::success;
}
Result cuEventCreate(EventHandle* event, unsigned) {
  ENTER(cuEventCreate);
  IN_CONTEXT;
  *event = new CUevent_st{stack().back()->ordinal, 0};
  ++state().events;
  return Result::success;
}
Result cuEventRecord(EventHandle event, StreamHandle stream) {
  ENTER(cuEventRecord);
  if (stream && stream->ordinal != event->ordinal) return Result::invalid_handle;
  event->time = state().calls["cuEventRecord"];  // one millisecond goes by from record to record
  return Result::success;
}
Result cuEventSynchronize(EventHandle) {
  ENTER(cuEventSynchronize);
  return Result::success;
}
Result cuEventElapsedTime(float* milliseconds, EventHandle start, EventHandle end) {
  ENTER(cuEventElapsedTime);
  *milliseconds = static_cast<float>(end->time - start->time);
  return Result::success;
}
Result cuEventDestroy_v2(EventHandle event) {
  delete event;
  --state().events;
  ENTER(cuEventDestroy_v2);
  return Result::success;
}

Result cuStreamBeginCapture_v2(StreamHandle stream, CaptureMode mode) {
  ENTER(cuStreamBeginCapture_v2);
  if (!stream) return Result::capture_unsupported;
  capture() = {stream, true, false, mode, {}};
  return Result::success;
}
Result cuStreamEndCapture(StreamHandle, Graph* graph) {
  ENTER(cuStreamEndCapture);
  if (!capture().active) return Result::invalid_value;
  capture().active = false;
  *graph = nullptr;
  if (capture().invalid) return Result::capture_invalidated;
  *graph = new CUgraph_st{capture().launches};
  ++state().graphs;
  return Result::success;
}
Result cuGraphInstantiateWithFlags(GraphExec* exec, Graph graph, unsigned long long) {
  ENTER(cuGraphInstantiateWithFlags);
  *exec = new CUgraphExec_st{graph->launches};
  ++state().graphs;
  return Result::success;
}
Result cuGraphLaunch(GraphExec exec, StreamHandle stream) {
  ENTER(cuGraphLaunch);
  for (const FakeLaunch& launch : exec->launches) queue(launch, stream);
  return Result::success;
}
Result cuGraphExecDestroy(GraphExec exec) {
  delete exec;
  --state().graphs;
  ENTER(cuGraphExecDestroy);
  return Result::success;
}
Result cuGraphDestroy(Graph graph) {
  delete graph;
  --state().graphs;
  ENTER(cuGraphDestroy);
  return Result::success;
}

#ifndef KERF_FAKE_CUDA_OLD  // as drivers before 525 lack it
Result cuTensorMapEncodeTiled(TensorMapBits* map, TensorMapType type, std::uint32_t rank, void* data,
                              const std::uint64_t* sizes, const std::uint64_t* strides, const std::uint32_t* box,
                              const std::uint32_t*, TensorMapInterleave, TensorMapSwizzle, TensorMapPromotion,
                              TensorMapFill) {
  ENTER(cuTensorMapEncodeTiled);
  if (reinterpret_cast<std::uintptr_t>(map) % 64 || reinterpret_cast<std::uintptr_t>(data) % 16)
    return Result::invalid_value;
  FakeTensorMap m{
      static_cast<unsigned>(type), rank, data, {sizes, sizes + rank}, {strides, strides + rank - 1}, {box, box + rank}};
  for (std::uint64_t n : m.sizes)
    if (n == 0 || n > std::uint64_t{1} << 32) return Result::invalid_value;
  for (std::uint64_t s : m.strides)
    if (s % 16 || s >= std::uint64_t{1} << 40) return Result::invalid_value;
  for (std::uint32_t n : m.box)
    if (n == 0 || n > 256) return Result::invalid_value;
  *map = {};
  map->words[0] = state().maps.size() + 1;  // so that a launch shows which map it was given
  state().maps.push_back(std::move(m));
  return Result::success;
}
#endif
