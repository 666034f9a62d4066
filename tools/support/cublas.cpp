#include "tools/support/cublas.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <limits>

#include "kerf/error.h"

namespace kerf::tools {
namespace {

// Source: cublas_api.h and library_types.h of CUDA 11 to 13.
enum DataType { cuda_r_32f = 0, cuda_r_16f = 2, cuda_r_16bf = 14 };
constexpr int op_n = 0, op_t = 1, compute_32f = 68, default_tensor_op = 99;

void check(int status, const char* call) {
  if (status != 0) throw DeviceError(fmt::format("cuBLAS: status {} from {}", status, call));
}

void* load(const std::string& file) {
  // A library named by its path need not be where the loader looks for the one that it asks for.
  const std::size_t at = file.rfind("libcublas.");
  if (at != std::string::npos && at > 0)
    dlopen((file.substr(0, at) + "libcublasLt." + file.substr(at + 10)).c_str(), RTLD_NOW | RTLD_GLOBAL);
  return dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
}

}  // namespace

std::optional<Cublas> Cublas::open(Stream stream) {
  std::string file;
  void* library = nullptr;
  if (const char* named = std::getenv("KERF_CUBLAS"); named != nullptr && *named != '\0') {
    file = named;
    library = load(file);
    if (library == nullptr) throw DeviceError(fmt::format("KERF_CUBLAS: {}", dlerror()));
  }
  for (const char* folder : {"", "/usr/local/cuda/lib64/"})
    for (const int version : {13, 12, 11}) {
      if (library != nullptr) break;
      file = fmt::format("{}libcublas.so.{}", folder, version);
      library = load(file);
    }
  if (library == nullptr) return std::nullopt;

  // The library stays loaded: it has threads and allocations of its own.
  const auto function = [&](const char* name) {
    void* const found = dlsym(library, name);
    if (found == nullptr) throw DeviceError(fmt::format("{}: has no {}; cuBLAS 11 or later is needed", file, name));
    return found;
  };
  const auto create = reinterpret_cast<int (*)(void**)>(function("cublasCreate_v2"));
  const auto destroy = reinterpret_cast<int (*)(void*)>(function("cublasDestroy_v2"));
  const auto set_stream = reinterpret_cast<int (*)(void*, void*)>(function("cublasSetStream_v2"));
  const auto get_version = reinterpret_cast<int (*)(void*, int*)>(function("cublasGetVersion_v2"));
  Cublas blas;
  blas.gemm_ = reinterpret_cast<Gemm>(function("cublasGemmEx"));
  void* handle = nullptr;
  check(create(&handle), "cublasCreate");
  blas.handle_.reset(handle, [destroy](void* h) { destroy(h); });
  check(set_stream(handle, stream.handle), "cublasSetStream");
  int version = 0;
  check(get_version(handle, &version), "cublasGetVersion");
  blas.description_ = fmt::format("cuBLAS {} ({})", version, file);
  return blas;
}

void Cublas::product(DType dtype, std::int64_t n, std::int64_t v, std::int64_t d, const void* e, const void* c,
                     void* z) const {
  for (const std::int64_t size : {n, v, d})
    if (size > std::numeric_limits<int>::max())
      throw DeviceError(fmt::format("cuBLAS counts in 32 bits, a size is {}", size));
  const float one = 1, zero = 0;
  const int type = dtype == bf16 ? cuda_r_16bf : dtype == f16 ? cuda_r_16f : cuda_r_32f;
  const auto rows = static_cast<int>(n), columns = static_cast<int>(v), depth = static_cast<int>(d);
  // Matrices are stored by columns there, so this reads z^T = c e^T.
  check(gemm_(handle_.get(), op_t, op_n, columns, rows, depth, &one, c, type, depth, e, type, depth, &zero, z, type,
              columns, compute_32f, default_tensor_op),
        "cublasGemmEx");
}

}  // namespace kerf::tools
