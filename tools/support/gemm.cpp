// Packed and register-blocked: k is cut into slices of 256, each slice of b is packed into panels as wide as the
// register block, each 128 rows of a into panels as high as it, and the micro-kernel multiplies one panel by another
// with all sums in registers. The micro-kernel is written once with vector types and compiled for three register files.
#include "tools/support/gemm.h"

#include <algorithm>
#include <cstring>

namespace kerf::tools {
namespace {

constexpr std::int64_t slice_k = 256, slice_m = 128;

/// out[rows x width] += panel a [k x rows] times panel b [k x width], both dense.
template <class T>
using Micro = void (*)(std::int64_t k, const T* a, const T* b, T* out, std::int64_t out_row);

template <class T, int lanes, int rows, int vectors>
[[gnu::always_inline]] inline void micro(std::int64_t k, const T* __restrict a, const T* __restrict b,
                                         T* __restrict out, std::int64_t out_row) {
  typedef T Vector __attribute__((vector_size(lanes * sizeof(T))));
  Vector sum[rows][vectors] = {};
  for (std::int64_t p = 0; p < k; ++p) {
    Vector right[vectors];
    for (int j = 0; j < vectors; ++j) std::memcpy(&right[j], b + p * lanes * vectors + j * lanes, sizeof(Vector));
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < vectors; ++j) sum[i][j] += a[p * rows + i] * right[j];
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) {
      Vector old;
      T* at = out + i * out_row + j * lanes;
      std::memcpy(&old, at, sizeof(Vector));
      old += sum[i][j];
      std::memcpy(at, &old, sizeof(Vector));
    }
  }
}

template <class T>
struct Engine {
  Micro<T> run;
  int rows, width;
};

template <class T>
void micro_plain(std::int64_t k, const T* a, const T* b, T* out, std::int64_t out_row) {
  micro<T, 16 / sizeof(T), 4, 2>(k, a, b, out, out_row);
}
#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2,fma")]] void micro_avx2(std::int64_t k, const T* a, const T* b, T* out, std::int64_t out_row) {
  micro<T, 32 / sizeof(T), 4, 3>(k, a, b, out, out_row);
}
template <class T>
[[gnu::target("avx512f,fma")]] void micro_avx512(std::int64_t k, const T* a, const T* b, T* out, std::int64_t out_row) {
  micro<T, 64 / sizeof(T), 8, 3>(k, a, b, out, out_row);
}
#endif

template <class T>
Engine<T> engine() {
  constexpr int word = sizeof(T);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {micro_avx512<T>, 8, 3 * 64 / word};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {micro_avx2<T>, 4, 3 * 32 / word};
#endif
  return {micro_plain<T>, 4, 2 * 16 / word};
}

/// Panels of `wide` indices i, each [k x wide], the last one padded with zeros.
template <class T>
void pack(MatrixView<T> from, std::int64_t count, std::int64_t k, int wide, T* to) {
  for (std::int64_t i0 = 0; i0 < count; i0 += wide, to += k * wide) {
    const std::int64_t here = std::min<std::int64_t>(wide, count - i0);
    const T* source = from.data + i0 * from.row;
    if (here < wide) std::fill(to, to + k * wide, T(0));
    if (from.row == 1) {
      for (std::int64_t p = 0; p < k; ++p)
        std::copy(source + p * from.column, source + p * from.column + here, to + p * wide);
    } else {
      constexpr std::int64_t run = 8;  // columns at a time, so that a cache line is read once
      for (std::int64_t p0 = 0; p0 < k; p0 += run)
        for (std::int64_t i = 0; i < here; ++i)
          for (std::int64_t p = p0; p < std::min(p0 + run, k); ++p)
            to[p * wide + i] = source[i * from.row + p * from.column];
    }
  }
}

}  // namespace

template <class T>
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, MatrixView<T> a, MatrixView<T> b, T* out,
          std::int64_t out_row, GemmScratch<T>& scratch) {
  static const Engine<T> best = engine<T>();
  const auto [run, rows, width] = best;
  const auto up = [](std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; };
  scratch.a.resize(static_cast<std::size_t>(up(std::min(m, slice_m), rows) * slice_k));
  scratch.b.resize(static_cast<std::size_t>(up(n, width) * slice_k));
  for (std::int64_t p = 0; p < k; p += slice_k) {
    const std::int64_t depth = std::min(slice_k, k - p);
    pack<T>({b.data + p * b.row, b.column, b.row}, n, depth, width, scratch.b.data());
    for (std::int64_t i0 = 0; i0 < m; i0 += slice_m) {
      const std::int64_t height = std::min(slice_m, m - i0);
      pack<T>({a.data + i0 * a.row + p * a.column, a.row, a.column}, height, depth, rows, scratch.a.data());
      for (std::int64_t j = 0; j < n; j += width) {
        const T* panel_b = scratch.b.data() + j * depth;
        for (std::int64_t i = 0; i < height; i += rows) {
          const T* panel_a = scratch.a.data() + i * depth;
          T* at = out + (i0 + i) * out_row + j;
          if (i + rows <= height && j + width <= n) {
            run(depth, panel_a, panel_b, at, out_row);
          } else {
            T edge[8 * 48] = {};
            run(depth, panel_a, panel_b, edge, width);
            for (std::int64_t r = 0; r < std::min<std::int64_t>(rows, height - i); ++r)
              for (std::int64_t s = 0; s < std::min<std::int64_t>(width, n - j); ++s)
                at[r * out_row + s] += edge[r * width + s];
          }
        }
      }
    }
  }
}

template void gemm<float>(std::int64_t, std::int64_t, std::int64_t, MatrixView<float>, MatrixView<float>, float*,
                          std::int64_t, GemmScratch<float>&);
template void gemm<double>(std::int64_t, std::int64_t, std::int64_t, MatrixView<double>, MatrixView<double>, double*,
                           std::int64_t, GemmScratch<double>&);

}  // namespace kerf::tools
