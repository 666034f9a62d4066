// exp on a GPU, which is ex2.approx.ftz of x log2(e), against the C library's in double.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kerf/kernel.h"
#include "tests/support/cuda_run.h"

namespace kerf::test {

TEST_CASE(
    "gpu: exp is within 2 + 1.25 |x| ulp wherever its result is normal, and 0, infinity or NaN where it should be") {
  const auto device = gpu();
  if (!device) return;
  ProgramBuilder p("exps");
  const Axis N = p.axis("N");
  const Tensor x = p.input("x", f32, {N}), y = p.output("y", f32, {N});
  const Block n = p.parallel(N, 256);
  store(y, n, exp(load(x, n)));
  const Program program = p.finish();

  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> in = {0.0f, -0.0f, inf, -inf, std::nanf(""), 89.0f, -104.0f, 1e30f, -1e30f};
  const std::size_t special = in.size();
  for (int i = -870000; i <= 880000; ++i) in.push_back(static_cast<float>(i) * 1e-4f + 3e-5f);  // the normal results
  for (float tiny = 1; tiny > 0; tiny /= 2) in.insert(in.end(), {tiny, -tiny});
  std::vector<float> out(in.size(), std::nanf(""));
  const auto size = static_cast<std::int64_t>(in.size());
  for (const Target& target : gpu_targets()) {
    CAPTURE(target.cpu);
    launch_on_gpu(device, compile(program, target, {}, device->tag()), program.ir(),
                  {{{"x", {in.data(), {size}}}, {"y", {out.data(), {size}}}}});
    const float specials[] = {1, 1, inf, 0, 0, inf, 0, inf, 0};
    for (std::size_t i = 0; i < special; ++i) {
      CAPTURE(in[i]);
      CHECK((std::isnan(in[i]) ? std::isnan(out[i]) : out[i] == specials[i]));
    }
    double worst = 0;
    for (std::size_t i = special; i < in.size(); ++i) {
      const double exact = std::exp(static_cast<double>(in[i]));
      const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
      worst = std::max(worst, std::abs(out[i] - exact) / ulp / (2 + 1.25 * std::abs(in[i])));
    }
    CHECK(worst <= 1);
    MESSAGE(target.cpu, ": largest error ", worst, " of what is allowed");
  }
}

}  // namespace kerf::test
