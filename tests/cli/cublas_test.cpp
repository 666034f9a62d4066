#include <doctest/doctest.h>

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "kerf/error.h"
#include "tools/support/cublas.h"
#include "tools/support/parallel.h"
#include "tools/support/problem.h"

using namespace kerf;
using namespace kerf::tools;

namespace {
/// The library named by KERF_CUBLAS while this lives.
struct Named {
  explicit Named(const char* library) { setenv("KERF_CUBLAS", library, 1); }
  ~Named() { unsetenv("KERF_CUBLAS"); }
};
}  // namespace

TEST_CASE("cublas: z = e c^T as the rows of e, c and z lie in memory") {
  const Named library(KERF_FAKE_CUBLAS);
  constexpr std::int64_t n = 5, v = 7, d = 3;
  for (const DType dtype : {f32, bf16}) {
    const auto size = static_cast<std::size_t>(size_of(dtype));
    std::vector<float> e(n * d), c(v * d);
    Random random(3, 1);
    for (float& x : e) x = static_cast<float>(random.below(9)) - 4;
    for (float& x : c) x = static_cast<float>(random.below(9)) - 4;
    std::vector<std::byte> e_data(n * d * size), c_data(v * d * size), z_data(n * v * size);
    from_float(e.data(), n * d, dtype, e_data.data());
    from_float(c.data(), v * d, dtype, c_data.data());
    {
      const std::optional<Cublas> blas = Cublas::open({});
      REQUIRE(blas);
      CHECK(blas->describe() == std::string("cuBLAS 130100 (") + KERF_FAKE_CUBLAS + ")");
      blas->product(dtype, n, v, d, e_data.data(), c_data.data(), z_data.data());
    }
    std::vector<double> z(n * v);
    to_double(z_data.data(), dtype, n * v, z.data());
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < v; ++j) {
        double sum = 0;
        for (std::size_t p = 0; p < d; ++p) sum += e[i * d + p] * c[j * d + p];
        CHECK(z[i * v + j] == sum);
      }
  }
  const auto alive = reinterpret_cast<int (*)()>(dlsym(dlopen(KERF_FAKE_CUBLAS, RTLD_NOW), "kerf_fake_cublas_alive"));
  const bool found = alive != nullptr;
  REQUIRE(found);
  CHECK(alive() == 0);
}

TEST_CASE("cublas: a library that KERF_CUBLAS names and that is not there is an error") {
  const Named library("/nonexistent/libcublas.so.13");
  CHECK_THROWS_WITH_AS(Cublas::open({}), doctest::Contains("KERF_CUBLAS: /nonexistent/libcublas.so.13"), DeviceError);
}
