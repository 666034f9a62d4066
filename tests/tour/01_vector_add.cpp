// First walk: one axis, one block of it per instance of the program, and no care for the ragged last block.
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

namespace {

std::vector<double> reference(const Array& x, const Array& y) {
  std::vector<double> z;
  for (std::int64_t n = 0; n < x.size(); ++n) z.push_back(x[n] + y[n]);
  return z;
}

Program vector_add(DType dtype) {
  ProgramBuilder p("vector_add");
  Axis N = p.axis("N");
  Tensor x = p.input("x", dtype, {N}), y = p.input("y", dtype, {N}), z = p.output("z", f32, {N});
  Block n = p.parallel(N, 64);
  store(z, n, cast(load(x, n) + load(y, n), f32));
  return p.finish();
}

}  // namespace

TEST_CASE("vector_add: z = x + y, whatever N and dtype") {
  Random random(1);
  for (DType dtype : {f32, bf16, f16, i32})
    for (std::int64_t N : {1, 63, 64, 65, 1000}) {
      CAPTURE(name_of(dtype));
      CAPTURE(N);
      Array x = dtype == i32 ? integers(random, i32, {N}, -1000, 1000) : normal(random, dtype, {N});
      Array y = dtype == i32 ? integers(random, i32, {N}, -1000, 1000) : normal(random, dtype, {N});
      Array z(f32, {N});
      on_each_backend(vector_add(dtype), {{{"x", &x}, {"y", &y}, {"z", &z}}},
                      [&] { CHECK(error(z, reference(x, y)).norm < 1e-7); });
    }
}

TEST_CASE("vector_add: N = 0 writes nothing") {
  Array x(f32, {0}), y(f32, {0}), z(f32, {0});
  on_each_backend(vector_add(f32), {{{"x", &x}, {"y", &y}, {"z", &z}}}, [] {});
}
