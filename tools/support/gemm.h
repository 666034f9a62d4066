// A matrix product in plain C++ for what must not lean on generated code: the double reference and the benchmark's
// baseline on machines without OpenBLAS.
#pragma once

#include <cstdint>
#include <vector>

namespace kerf::tools {

/// A matrix as someone else stores it: element (i, j) at data[i * row + j * column].
template <class T>
struct MatrixView {
  const T* data;
  std::int64_t row, column;
};

/// Packing space, reused from call to call; one for each thread.
template <class T>
struct GemmScratch {
  std::vector<T> a, b;
};

/// out[i, j] += sum over p of a(i, p) b(p, j), i < m, j < n, p < k; rows of `out` are `out_row` apart. One thread;
/// vectors as wide as the machine has.
template <class T>
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, MatrixView<T> a, MatrixView<T> b, T* out,
          std::int64_t out_row, GemmScratch<T>& scratch);

extern template void gemm<float>(std::int64_t, std::int64_t, std::int64_t, MatrixView<float>, MatrixView<float>, float*,
                                 std::int64_t, GemmScratch<float>&);
extern template void gemm<double>(std::int64_t, std::int64_t, std::int64_t, MatrixView<double>, MatrixView<double>,
                                  double*, std::int64_t, GemmScratch<double>&);

}  // namespace kerf::tools
