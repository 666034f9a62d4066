// The part of CUDA's driver interface that Kerf uses, declared here so that building needs no toolkit. A test compares
// every line with the real cuda.h where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUlinkState_st;

namespace kerf::cuda::api {

using DeviceId = int;
using DevicePointer = unsigned long long;
using Context = CUctx_st*;
using Module = CUmod_st*;
using Function = CUfunc_st*;
using StreamHandle = CUstream_st*;
using EventHandle = CUevent_st*;
using Graph = CUgraph_st*;
using GraphExec = CUgraphExec_st*;
using LinkState = CUlinkState_st*;

/// Those that Kerf tells apart.
enum class Result : unsigned {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  deinitialized = 4,
  stub_library = 34,
  device_unavailable = 46,
  no_device = 100,
  invalid_device = 101,
  invalid_image = 200,
  invalid_context = 201,
  no_binary_for_gpu = 209,
  ecc_uncorrectable = 214,
  invalid_ptx = 218,
  nvlink_uncorrectable = 220,
  jit_compiler_not_found = 221,
  unsupported_ptx_version = 222,
  jit_disabled = 223,
  invalid_handle = 400,
  not_found = 500,
  illegal_address = 700,
  launch_out_of_resources = 701,
  launch_timeout = 702,
  context_is_destroyed = 709,
  assertion = 710,
  hardware_stack_error = 714,
  illegal_instruction = 715,
  misaligned_address = 716,
  invalid_address_space = 717,
  invalid_pc = 718,
  launch_failed = 719,
  not_permitted = 800,
  not_supported = 801,
  system_not_ready = 802,
  driver_mismatch = 803,
  compatibility_not_supported = 804,
  capture_unsupported = 900,
  capture_invalidated = 901,
  capture_merge = 902,
  capture_unmatched = 903,
  capture_unjoined = 904,
  capture_isolation = 905,
  capture_implicit = 906,
  captured_event = 907,
  capture_wrong_thread = 908,
  unknown = 999,
};

enum class DeviceAttribute : unsigned {
  multiprocessor_count = 16,
  l2_cache_size = 38,
  compute_capability_major = 75,
  compute_capability_minor = 76,
  max_shared_memory_per_block_optin = 97,
};

enum class FunctionAttribute : unsigned {
  max_threads_per_block = 0,
  shared_size_bytes = 1,
  local_size_bytes = 3,
  num_regs = 4,
  max_dynamic_shared_size_bytes = 8,
};

enum class JitOption : unsigned {
  info_log_buffer = 3,
  info_log_buffer_size_bytes = 4,
  error_log_buffer = 5,
  error_log_buffer_size_bytes = 6,
  log_verbose = 12,
};

enum class JitInput : unsigned { ptx = 1 };

enum class PointerAttribute : unsigned { memory_type = 2, is_managed = 8, device_ordinal = 9 };
enum class MemoryType : unsigned { none = 0, host = 1, device = 2, array = 3, unified = 4 };

enum class CaptureStatus : unsigned { none = 0, active = 1, invalidated = 2 };
enum class CaptureMode : unsigned { global = 0, thread_local_ = 1, relaxed = 2 };
inline constexpr unsigned stream_non_blocking = 1;

enum class LaunchAttributeId : unsigned { cluster_dimension = 4 };
struct LaunchAttribute {
  LaunchAttributeId id;
  unsigned padding;
  union {
    char bytes[64];
    struct {
      unsigned x, y, z;
    } cluster;
  } value;
};
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned dynamic_shared_bytes;
  StreamHandle stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct alignas(128) TensorMapBits {
  std::uint64_t words[16];
};
enum class TensorMapType : unsigned { f16 = 6, f32 = 7, bf16 = 9, tf32 = 11 };
enum class TensorMapInterleave : unsigned { none = 0 };
enum class TensorMapSwizzle : unsigned { bytes_128 = 3 };
enum class TensorMapPromotion : unsigned { l2_256 = 3 };
enum class TensorMapFill : unsigned { zeros = 0 };

/// The loaded functions, called by their own names.
struct Functions {
#define KERF_CUDA(symbol, parameters) Result(*symbol) parameters = nullptr;
#include "runtime/cuda/functions.def"
#undef KERF_CUDA
};

}  // namespace kerf::cuda::api
