#include "tools/support/blas.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <limits>

#include "kerf/error.h"

namespace kerf::tools {
namespace {

/// The best of OpenBLAS's kernels for this processor. Measured with release 0.3.21 on a processor newer than it, sgemm
/// on one core: SkylakeX 232 GFLOP/s, Cooperlake (its own choice there) 226, Haswell 123.
const char* best_core() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return nullptr;
}

}  // namespace

std::optional<Blas> Blas::open(int threads) {
  constexpr int keep_what_the_user_set = 0;
  if (const char* core = best_core()) setenv("OPENBLAS_CORETYPE", core, keep_what_the_user_set);
  setenv("OPENBLAS_THREAD_TIMEOUT", "18", keep_what_the_user_set);  // 2^18 cycles
  void* const handle = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return std::nullopt;
  Blas blas;
  blas.handle_.reset(handle, [](void*) {});  // its threads outlive any use, so it stays loaded
  blas.sgemm_ = reinterpret_cast<Sgemm>(dlsym(handle, "cblas_sgemm"));
  const auto set_threads = reinterpret_cast<void (*)(int)>(dlsym(handle, "openblas_set_num_threads"));
  const auto core = reinterpret_cast<char* (*)()>(dlsym(handle, "openblas_get_corename"));
  const auto config = reinterpret_cast<char* (*)()>(dlsym(handle, "openblas_get_config"));
  if (blas.sgemm_ == nullptr || set_threads == nullptr) return std::nullopt;
  set_threads(threads);
  if (core != nullptr) blas.core_ = core();
  const char* const best = best_core();
  if (best != nullptr && std::string(best) == "SkylakeX" &&
      (blas.core_ == "Haswell" || blas.core_ == "Zen" || blas.core_ == "Prescott"))
    blas.warning_ = fmt::format(
        "OPENBLAS_CORETYPE={} holds OpenBLAS back on this processor; unset it for a fair comparison", blas.core_);
  if (config != nullptr) blas.config_ = config();
  return blas;
}

void Blas::sgemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                 std::int64_t a_row, const float* b, std::int64_t b_row, float* out, std::int64_t out_row) const {
  for (const std::int64_t size : {m, n, k, a_row, b_row, out_row})
    if (size > std::numeric_limits<int>::max())
      throw DeviceError(fmt::format("OpenBLAS counts in 32 bits, a size is {}", size));
  constexpr int row_major = 101, plain = 111, transposed = 112;
  sgemm_(row_major, transpose_a ? transposed : plain, transpose_b ? transposed : plain, static_cast<int>(m),
         static_cast<int>(n), static_cast<int>(k), 1.0f, a, static_cast<int>(a_row), b, static_cast<int>(b_row), 0.0f,
         out, static_cast<int>(out_row));
}

}  // namespace kerf::tools
