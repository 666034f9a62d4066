// A stand-in for cuBLAS: multiplies matrices in host memory in plain loops and refuses what the real one would.
#include <cstdint>
#include <cstring>

namespace {

enum Status { success = 0, not_initialized = 1, invalid_value = 7, not_supported = 15 };
int alive = 0;

float read(const void* data, int type, std::int64_t i) {
  if (type == 0) return static_cast<const float*>(data)[i];
  const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(data)[i]) << 16;
  float x = 0;
  std::memcpy(&x, &bits, 4);
  return x;
}

void write(void* data, int type, std::int64_t i, float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, 4);
  if (type == 0)
    static_cast<float*>(data)[i] = x;
  else
    static_cast<std::uint16_t*>(data)[i] = static_cast<std::uint16_t>(bits >> 16);
}

}  // namespace

#define EXPORTED extern "C" [[gnu::visibility("default")]]

EXPORTED int cublasCreate_v2(void** handle) {
  *handle = &alive;
  ++alive;
  return success;
}
EXPORTED int cublasDestroy_v2(void* handle) {
  if (handle != &alive || alive == 0) return not_initialized;
  --alive;
  return success;
}
EXPORTED int cublasSetStream_v2(void* handle, void*) { return handle == &alive ? success : not_initialized; }
EXPORTED int cublasGetVersion_v2(void* handle, int* version) {
  *version = 130100;
  return handle == &alive ? success : not_initialized;
}
/// How many handles there are.
EXPORTED int kerf_fake_cublas_alive() { return alive; }

/// out [m, n] = op(a) op(b), all stored by columns; bf16 and f32 alone.
EXPORTED int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                          const void* a, int a_type, int lda, const void* b, int b_type, int ldb, const void* beta,
                          void* c, int c_type, int ldc, int compute_type, int) {
  if (handle != &alive || alive == 0) return not_initialized;
  if (m < 0 || n < 0 || k < 0 || lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m)
    return invalid_value;
  if (compute_type != 68 || (a_type != 0 && a_type != 14) || a_type != b_type || a_type != c_type) return not_supported;
  float scale = 0, keep = 0;
  std::memcpy(&scale, alpha, 4);
  std::memcpy(&keep, beta, 4);
  for (std::int64_t j = 0; j < n; ++j)
    for (std::int64_t i = 0; i < m; ++i) {
      float sum = 0;
      for (std::int64_t p = 0; p < k; ++p)
        sum += read(a, a_type, transpose_a ? p + i * lda : i + p * lda) *
               read(b, b_type, transpose_b ? j + p * ldb : p + j * ldb);
      const float old = keep == 0 ? 0 : keep * read(c, c_type, i + j * ldc);
      write(c, c_type, i + j * ldc, scale * sum + old);
    }
  return success;
}
