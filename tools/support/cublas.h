// NVIDIA's matrix product, opened at run time where it is installed: the ceiling of `kerf bench --device cuda`.
// Declared here, so that building needs no toolkit.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "kerf/kernel.h"
#include "kerf/tensor.h"

namespace kerf::tools {

class Cublas {
 public:
  /// The library that KERF_CUBLAS names, else libcublas.so.13, .12 or .11 as the loader finds them or in
  /// /usr/local/cuda/lib64, else nothing. Works in the context that is current, which must outlive it.
  static std::optional<Cublas> open(Stream stream);

  /// Queues z [n, v] = e c^T with e [n, d] and c [v, d], dense and all of `dtype`, summed in f32 on tensor cores; for
  /// f32 without them.
  void product(DType dtype, std::int64_t n, std::int64_t v, std::int64_t d, const void* e, const void* c,
               void* z) const;
  /// "cuBLAS 130100 (libcublas.so.13)"
  const std::string& describe() const { return description_; }

 private:
  using Gemm = int (*)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                       const void* a, int a_type, int lda, const void* b, int b_type, int ldb, const void* beta,
                       void* c, int c_type, int ldc, int compute_type, int algorithm);
  std::shared_ptr<void> handle_;
  Gemm gemm_ = nullptr;
  std::string description_;
};

}  // namespace kerf::tools
