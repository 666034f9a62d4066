// Fourth walk: moments of a row. The mask matters here: outside the row `x - mean` is not 0, and in_bounds says where
// that is. When the block divides the axis the mask costs nothing, since a pass takes it out.
#include <cmath>

#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

namespace {

std::vector<double> reference(const Array& x, const Array& scale, const Array& shift) {
  const std::int64_t N = x.shape()[0], D = x.shape()[1];
  std::vector<double> y;
  for (std::int64_t n = 0; n < N; ++n) {
    double mean = 0, variance = 0;
    for (std::int64_t d = 0; d < D; ++d) mean += x[n * D + d] / static_cast<double>(D);
    for (std::int64_t d = 0; d < D; ++d) variance += std::pow(x[n * D + d] - mean, 2) / static_cast<double>(D);
    for (std::int64_t d = 0; d < D; ++d)
      y.push_back((x[n * D + d] - mean) / std::sqrt(variance + 1e-5) * scale[d] + shift[d]);
  }
  return y;
}

Program layer_norm(DType dtype) {
  ProgramBuilder p("layer_norm");
  Axis N = p.axis("N"), D = p.axis("D");
  Tensor x = p.input("x", dtype, {N, D}), y = p.output("y", dtype, {N, D});
  Tensor scale = p.input("scale", f32, {D}), shift = p.input("shift", f32, {D});
  Block n = p.parallel(N, 4);
  Tile size = cast(p.size(D), f32);
  Tile mean = p.loop(D, 32, zeros(n), [&](Block d, Tile s) { return s + reduce_sum(load(x, n, d), D); }) / size;
  auto centred = [&](Block d) { return where(d.in_bounds(), load(x, n, d) - mean, 0); };
  Tile square = p.loop(D, 32, zeros(n), [&](Block d, Tile s) { return s + reduce_sum(centred(d) * centred(d), D); });
  p.loop(D, 32, [&](Block d) {
    store(y, n, d, cast(centred(d) / sqrt(square / size + 1e-5) * load(scale, d) + load(shift, d), dtype));
  });
  return p.finish();
}

}  // namespace

TEST_CASE("layer_norm: mean and variance of rows of any length") {
  Random random(4);
  for (DType dtype : {f32, f16, bf16})
    for (std::int64_t D : {1, 31, 32, 100, 333})
      for (std::int64_t N : {1, 7}) {
        CAPTURE(name_of(dtype));
        CAPTURE(D);
        CAPTURE(N);
        Array x = normal(random, dtype, {N, D}), y(dtype, {N, D});
        Array scale = normal(random, f32, {D}), shift = normal(random, f32, {D});
        const double tolerance = dtype == f32 ? 1e-5 : dtype == f16 ? 1e-3 : 4e-3;
        on_each_backend(layer_norm(dtype), {{{"x", &x}, {"y", &y}, {"scale", &scale}, {"shift", &shift}}}, [&] {
          const auto e = error(y, reference(x, scale, shift));
          CHECK(e.norm < tolerance);
          CHECK(e.worst_row < tolerance);
        });
      }
}
