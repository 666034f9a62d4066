// Third walk: a product of two matrices in blocks. `dot` contracts the axis its operands share, so nothing is ever
// transposed, and what follows the loop works on the sum while it is still at hand.
#include <cmath>

#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

namespace {

std::vector<double> reference(const Array& a, const Array& b, const Array& bias) {
  const std::int64_t M = a.shape()[0], K = a.shape()[1], N = b.shape()[0];
  std::vector<double> y;
  for (std::int64_t m = 0; m < M; ++m)
    for (std::int64_t n = 0; n < N; ++n) {
      double sum = bias[n];
      for (std::int64_t k = 0; k < K; ++k) sum += a[m * K + k] * b[n * K + k];
      y.push_back(std::tanh(sum));
    }
  return y;
}

Program matmul_epilogue(DType dtype, int block_m, int block_n, int block_k) {
  ProgramBuilder p("matmul_epilogue");
  Axis M = p.axis("M"), N = p.axis("N"), K = p.axis("K");
  Tensor a = p.input("a", dtype, {M, K}), b = p.input("b", dtype, {N, K}), bias = p.input("bias", f32, {N});
  Tensor y = p.output("y", f32, {M, N});
  Block m = p.parallel(M, block_m), n = p.parallel(N, block_n);
  Tile sum = p.loop(K, block_k, zeros(m, n), [&](Block k, Tile acc) {
    return acc + dot(load(a, m, k), load(b, n, k));  // contracts K
  });
  store(y, m, n, tanh(sum + load(bias, n)));
  return p.finish();
}

}  // namespace

TEST_CASE("matmul_epilogue: y = tanh(a b^T + bias) on shapes that no block divides") {
  struct {
    std::int64_t M, N, K;
  } shapes[] = {{1, 1, 1}, {64, 64, 64}, {33, 65, 127}, {100, 37, 5}};
  for (DType dtype : {f32, bf16, f16})
    for (auto [M, N, K] : shapes)
      for (int block : {16, 48}) {
        CAPTURE(name_of(dtype));
        CAPTURE(M);
        CAPTURE(N);
        CAPTURE(K);
        CAPTURE(block);
        Random random(3);
        const double deviation = 1 / std::sqrt(static_cast<double>(K));
        Array a = normal(random, dtype, {M, K}, 1, /*padding=*/3), b = normal(random, dtype, {N, K}, deviation);
        Array bias = normal(random, f32, {N}), y(f32, {M, N});
        on_each_backend(matmul_epilogue(dtype, block, 2 * block, block),
                        {{{"a", &a}, {"b", &b}, {"bias", &bias}, {"y", &y}}}, [&] {
                          const auto e = error(y, reference(a, b, bias));
                          CHECK(e.norm < 1e-6);
                          CHECK(e.worst_row < 1e-5);
                        });
      }
}
