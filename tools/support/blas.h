// OpenBLAS, opened at run time where it is installed: the ceiling that `kerf bench` measures against.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace kerf::tools {

class Blas {
 public:
  /// The library with `threads` threads, or nothing. Before it is loaded for the first time the environment is told,
  /// unless the user has said otherwise: the best kernels this processor can run (OPENBLAS_CORETYPE; releases older
  /// than the processor fall back to old ones), and to let idle threads sleep soon (OPENBLAS_THREAD_TIMEOUT; they spin
  /// for 26 ms otherwise, on the cores that are being measured).
  static std::optional<Blas> open(int threads);

  /// out [m, n] = a b: a is [m, k], or [k, m] read transposed; b is [k, n], or [n, k] read transposed. Rows, as they
  /// lie in memory, are a_row, b_row and out_row apart.
  void sgemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
             std::int64_t a_row, const float* b, std::int64_t b_row, float* out, std::int64_t out_row) const;

  /// "SkylakeX"
  const std::string& core() const { return core_; }
  /// Empty, or that OpenBLAS runs kernels below what this processor can.
  const std::string& warning() const { return warning_; }
  /// "OpenBLAS 0.3.21 ..."
  const std::string& config() const { return config_; }

 private:
  using Sgemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a,
                         int lda, const float* b, int ldb, float beta, float* c, int ldc);
  std::shared_ptr<void> handle_;
  Sgemm sgemm_ = nullptr;
  std::string core_, config_, warning_;
};

}  // namespace kerf::tools
