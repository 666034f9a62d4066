// Our declarations of the driver against the toolkit's own, where there is a toolkit. All of it is checked by the
// compiler.
#include "runtime/cuda/api.h"

#ifdef KERF_HAS_CUDA_H

#include <cuda.h>

#include <cstddef>
#include <type_traits>

namespace kerf::cuda::api {

namespace {

/// True where both are passed alike and point to alike things.
template <class A, class B>
constexpr bool alike() {
  if constexpr (std::is_same_v<A, B>) {
    return true;
  } else if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
    using To = std::remove_pointer_t<A>;
    using From = std::remove_pointer_t<B>;
    if constexpr (std::is_const_v<To> != std::is_const_v<From>) return false;
    return alike<std::remove_const_t<To>, std::remove_const_t<From>>();
  } else if constexpr (std::is_class_v<A> && std::is_class_v<B>) {
    if constexpr (requires { sizeof(A), sizeof(B); })
      return sizeof(A) == sizeof(B) && alignof(A) >= alignof(B);
    else
      return false;  // handles: the same or not
  } else if constexpr ((std::is_enum_v<A> || std::is_integral_v<A>)&&(std::is_enum_v<B> || std::is_integral_v<B>)) {
    return sizeof(A) == sizeof(B);
  } else {
    return false;
  }
}

template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  template <class S, class... B>
  static constexpr bool matches(S (*)(B...)) {
    if constexpr (sizeof...(A) != sizeof...(B))
      return false;
    else
      return alike<R, S>() && (alike<A, B>() && ...);
  }
};

}  // namespace

static_assert(!alike<int*, const int*>() && !alike<Context, Module>() && !alike<int, float>());

#define KERF_CUDA(symbol, parameters)                                            \
  static_assert(Signature<Result(*) parameters>::matches(decltype(&::symbol){}), \
                #symbol " is declared otherwise in cuda.h");
#include "runtime/cuda/functions.def"
#undef KERF_CUDA

static_assert(sizeof(LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(LaunchConfig, block_x) == offsetof(CUlaunchConfig, blockDimX));
static_assert(offsetof(LaunchConfig, dynamic_shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(LaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs));
static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(offsetof(LaunchAttribute, value.cluster) == offsetof(CUlaunchAttribute, value.clusterDim));
static_assert(sizeof(TensorMapBits) == sizeof(CUtensorMap) && sizeof(DevicePointer) == sizeof(CUdeviceptr));

#define SAME(ours, theirs) static_assert(static_cast<unsigned>(ours) == static_cast<unsigned>(theirs), #theirs)
SAME(Result::success, CUDA_SUCCESS);
SAME(Result::invalid_value, CUDA_ERROR_INVALID_VALUE);
SAME(Result::out_of_memory, CUDA_ERROR_OUT_OF_MEMORY);
SAME(Result::not_initialized, CUDA_ERROR_NOT_INITIALIZED);
SAME(Result::deinitialized, CUDA_ERROR_DEINITIALIZED);
SAME(Result::stub_library, CUDA_ERROR_STUB_LIBRARY);
SAME(Result::device_unavailable, CUDA_ERROR_DEVICE_UNAVAILABLE);
SAME(Result::no_device, CUDA_ERROR_NO_DEVICE);
SAME(Result::invalid_device, CUDA_ERROR_INVALID_DEVICE);
SAME(Result::invalid_image, CUDA_ERROR_INVALID_IMAGE);
SAME(Result::invalid_context, CUDA_ERROR_INVALID_CONTEXT);
SAME(Result::no_binary_for_gpu, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(Result::ecc_uncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE);
SAME(Result::invalid_ptx, CUDA_ERROR_INVALID_PTX);
SAME(Result::nvlink_uncorrectable, CUDA_ERROR_NVLINK_UNCORRECTABLE);
SAME(Result::jit_compiler_not_found, CUDA_ERROR_JIT_COMPILER_NOT_FOUND);
SAME(Result::unsupported_ptx_version, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME(Result::jit_disabled, CUDA_ERROR_JIT_COMPILATION_DISABLED);
SAME(Result::invalid_handle, CUDA_ERROR_INVALID_HANDLE);
SAME(Result::not_found, CUDA_ERROR_NOT_FOUND);
SAME(Result::illegal_address, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(Result::launch_out_of_resources, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
SAME(Result::launch_timeout, CUDA_ERROR_LAUNCH_TIMEOUT);
SAME(Result::context_is_destroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED);
SAME(Result::assertion, CUDA_ERROR_ASSERT);
SAME(Result::hardware_stack_error, CUDA_ERROR_HARDWARE_STACK_ERROR);
SAME(Result::illegal_instruction, CUDA_ERROR_ILLEGAL_INSTRUCTION);
SAME(Result::misaligned_address, CUDA_ERROR_MISALIGNED_ADDRESS);
SAME(Result::invalid_address_space, CUDA_ERROR_INVALID_ADDRESS_SPACE);
SAME(Result::invalid_pc, CUDA_ERROR_INVALID_PC);
SAME(Result::launch_failed, CUDA_ERROR_LAUNCH_FAILED);
SAME(Result::not_permitted, CUDA_ERROR_NOT_PERMITTED);
SAME(Result::not_supported, CUDA_ERROR_NOT_SUPPORTED);
SAME(Result::system_not_ready, CUDA_ERROR_SYSTEM_NOT_READY);
SAME(Result::driver_mismatch, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
SAME(Result::compatibility_not_supported, CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE);
SAME(Result::capture_unsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
SAME(Result::capture_invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
SAME(Result::capture_merge, CUDA_ERROR_STREAM_CAPTURE_MERGE);
SAME(Result::capture_unmatched, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
SAME(Result::capture_unjoined, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
SAME(Result::capture_isolation, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
SAME(Result::capture_implicit, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
SAME(Result::captured_event, CUDA_ERROR_CAPTURED_EVENT);
SAME(Result::capture_wrong_thread, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
SAME(Result::unknown, CUDA_ERROR_UNKNOWN);
SAME(DeviceAttribute::multiprocessor_count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(DeviceAttribute::l2_cache_size, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME(DeviceAttribute::compute_capability_major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(DeviceAttribute::compute_capability_minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(DeviceAttribute::max_shared_memory_per_block_optin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(FunctionAttribute::max_threads_per_block, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
SAME(FunctionAttribute::shared_size_bytes, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
SAME(FunctionAttribute::local_size_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES);
SAME(FunctionAttribute::num_regs, CU_FUNC_ATTRIBUTE_NUM_REGS);
SAME(FunctionAttribute::max_dynamic_shared_size_bytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(JitOption::info_log_buffer, CU_JIT_INFO_LOG_BUFFER);
SAME(JitOption::info_log_buffer_size_bytes, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES);
SAME(JitOption::error_log_buffer, CU_JIT_ERROR_LOG_BUFFER);
SAME(JitOption::error_log_buffer_size_bytes, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
SAME(JitOption::log_verbose, CU_JIT_LOG_VERBOSE);
SAME(JitInput::ptx, CU_JIT_INPUT_PTX);
SAME(PointerAttribute::memory_type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME(PointerAttribute::is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED);
SAME(PointerAttribute::device_ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(MemoryType::host, CU_MEMORYTYPE_HOST);
SAME(MemoryType::device, CU_MEMORYTYPE_DEVICE);
SAME(MemoryType::array, CU_MEMORYTYPE_ARRAY);
SAME(MemoryType::unified, CU_MEMORYTYPE_UNIFIED);
SAME(CaptureStatus::active, CU_STREAM_CAPTURE_STATUS_ACTIVE);
SAME(CaptureStatus::invalidated, CU_STREAM_CAPTURE_STATUS_INVALIDATED);
SAME(CaptureMode::global, CU_STREAM_CAPTURE_MODE_GLOBAL);
SAME(CaptureMode::thread_local_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
SAME(CaptureMode::relaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
SAME(stream_non_blocking, CU_STREAM_NON_BLOCKING);
SAME(LaunchAttributeId::cluster_dimension, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME(TensorMapType::f16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
SAME(TensorMapType::f32, CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
SAME(TensorMapType::bf16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
SAME(TensorMapType::tf32, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32);
SAME(TensorMapInterleave::none, CU_TENSOR_MAP_INTERLEAVE_NONE);
SAME(TensorMapSwizzle::bytes_128, CU_TENSOR_MAP_SWIZZLE_128B);
SAME(TensorMapPromotion::l2_256, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
SAME(TensorMapFill::zeros, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
#undef SAME

}  // namespace kerf::cuda::api

#endif
