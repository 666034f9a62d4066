// exp, log, tanh, the half formats, max and min as generated code, on every level the machine at hand can run.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kerf/dsl.h"
#include "kerf/kernel.h"
#include "tests/codegen/targets.h"

using namespace kerf;
using namespace kerf::test;

namespace {

constexpr float inf_value = std::numeric_limits<float>::infinity(), nan_value = std::numeric_limits<float>::quiet_NaN();

using Body = std::function<Tile(Tile)>;
/// y[i] = body(x[i]) in blocks of `extent`.
Program elementwise(DType from, DType to, std::int64_t extent, const Body& body) {
  ProgramBuilder p("elementwise");
  Axis N = p.axis("N");
  Tensor x = p.input("x", from, {N}), y = p.output("y", to, {N});
  Block n = p.parallel(N, extent);
  store(y, n, body(load(x, n)));
  return p.finish();
}

template <class Out, class In>
std::vector<Out> apply(const Program& program, DType from, DType to, const std::vector<In>& in, const Target& target) {
  std::vector<Out> out(in.size());
  std::ranges::fill(std::as_writable_bytes(std::span(out)), std::byte{0xff});
  ThreadPool pool(1);
  const auto n = static_cast<std::int64_t>(in.size());
  compile(program, target)
      .launch({{{"x", TensorRef(in.data(), from, {n})}, {"y", TensorRef(out.data(), to, {n})}}}, pool);
  return out;
}

/// Every exponent with the ends and the middle of its mantissas, steps through all floats, and runs around the places
/// where a method changes.
std::vector<float> many_floats() {
  std::vector<float> x;
  for (std::uint64_t u = 0; u < 1ull << 32; u += 8191) x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(u)));
  for (std::uint32_t sign : {0u, 1u << 31})
    for (std::uint32_t exponent = 0; exponent < 256; ++exponent)
      for (std::uint32_t mantissa : {0u, 1u, 0x3504f2u, 0x3504f3u, 0x3504f4u, 0x400000u, 0x7ffffeu, 0x7fffffu})
        x.push_back(std::bit_cast<float>(sign | exponent << 23 | mantissa));
  // exp: overflow, first subnormal result, last nonzero result; the parts of tanh; log near 0.
  for (float at : {88.7228f, -87.3365f, -103.972f, -103.279f, 0.625f, -0.625f, 1.0f})
    for (int d = -300; d <= 300; ++d)
      x.push_back(std::bit_cast<float>(std::bit_cast<std::uint32_t>(at) + static_cast<std::uint32_t>(d)));
  return x;
}

/// How many floats lie between two of them, -0 and 0 being neighbours; 0 for NaN beside NaN.
std::int64_t distance(float a, float b) {
  if (std::isnan(a) || std::isnan(b))
    return std::isnan(a) && std::isnan(b) ? 0 : std::numeric_limits<std::int64_t>::max();
  const auto place = [](float x) {
    const auto u = static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(x));
    return u < 1ll << 31 ? u : (1ll << 31) - 1 - u;
  };
  return std::abs(place(a) - place(b));
}

bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

struct Function {
  std::string name;
  Body tile;
  double (*reference)(double);
};
const std::vector<Function>& functions() {
  static const std::vector<Function> all{{"exp", [](Tile t) { return exp(t); }, std::exp},
                                         {"log", [](Tile t) { return log(t); }, std::log},
                                         {"tanh", [](Tile t) { return tanh(t); }, std::tanh}};
  return all;
}

}  // namespace

TEST_CASE(
    "exp, log, tanh: within 2 ulp of correctly rounded over all exponents, at each level, in vectors and one by one") {
  const std::vector<float> x = many_floats();
  for (const Function& f : functions()) {
    std::vector<float> want;
    for (float v : x) want.push_back(static_cast<float>(f.reference(v)));
    for (const Target& target : runnable_targets())
      for (std::int64_t extent : {256, 1}) {
        CAPTURE(f.name);
        CAPTURE(target.level());
        CAPTURE(extent);
        const auto got = apply<float>(elementwise(f32, f32, extent, f.tile), f32, f32, x, target);
        std::int64_t worst = -1;
        float worst_at = 0;
        for (std::size_t i = 0; i < x.size(); ++i)
          if (const std::int64_t d = distance(got[i], want[i]); d > worst) worst = d, worst_at = x[i];
        CAPTURE(worst_at);
        CHECK(worst <= 2);
      }
  }
}

TEST_CASE("exp, log, tanh: special values are exact") {
  struct Case {
    std::size_t function;
    float x, y;
  };
  const std::vector<Case> cases{
      {0, 0.0f, 1.0f},           {0, -0.0f, 1.0f},          {0, -inf_value, 0.0f},     {0, inf_value, inf_value},
      {0, 1e4f, inf_value},      {0, -1e4f, 0.0f},          {0, 1e38f, inf_value},     {0, -1e38f, 0.0f},
      {0, -103.5f, 0x1p-149f},   {0, 88.8f, inf_value},     {1, 1.0f, 0.0f},           {1, 0.0f, -inf_value},
      {1, -0.0f, -inf_value},    {1, inf_value, inf_value}, {1, -1.0f, nan_value},     {1, -inf_value, nan_value},
      {1, -1e-45f, nan_value},   {2, 0.0f, 0.0f},           {2, -0.0f, -0.0f},         {2, inf_value, 1.0f},
      {2, -inf_value, -1.0f},    {2, 50.0f, 1.0f},          {2, -1e30f, -1.0f},        {2, 1e-45f, 1e-45f},
      {0, nan_value, nan_value}, {1, nan_value, nan_value}, {2, nan_value, nan_value}, {2, -0x1p-130f, -0x1p-130f},
  };
  for (std::size_t f = 0; f < functions().size(); ++f)
    for (const Target& target : runnable_targets()) {
      std::vector<float> x, want;
      for (const Case& c : cases)
        if (c.function == f) x.push_back(c.x), want.push_back(c.y);
      const auto got = apply<float>(elementwise(f32, f32, 16, functions()[f].tile), f32, f32, x, target);
      for (std::size_t i = 0; i < x.size(); ++i) {
        CAPTURE(functions()[f].name);
        CAPTURE(target.level());
        CAPTURE(x[i]);
        CAPTURE(got[i]);
        CHECK((std::isnan(want[i]) ? std::isnan(got[i]) : same_bits(got[i], want[i])));
      }
    }
}

TEST_CASE("bf16 and f16: every bit pattern loads as the number it stands for, and stores back as it was") {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  for (DType half : {bf16, f16})
    for (const Target& target : runnable_targets())
      for (std::int64_t extent : {64, 1}) {
        CAPTURE(name_of(half));
        CAPTURE(target.level());
        CAPTURE(extent);
        const Program widen = elementwise(half, f32, extent, [](Tile t) { return cast(t, f32); });
        const Program narrow = elementwise(f32, half, extent, [&](Tile t) { return cast(t, half); });
        const auto wide = apply<float>(widen, half, f32, bits, target);
        const auto back = apply<std::uint16_t>(narrow, f32, half, wide, target);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < bits.size(); ++i) {
          const float want = half == bf16 ? from_bf16(bits[i]) : from_f16(bits[i]);
          if (std::isnan(want)) {
            const float again = half == bf16 ? from_bf16(back[i]) : from_f16(back[i]);
            wrong += !std::isnan(wide[i]) || !std::isnan(again) || std::signbit(wide[i]) != std::signbit(want);
          } else {
            wrong += !same_bits(wide[i], want) || back[i] != bits[i];
          }
        }
        CHECK(wrong == 0);
      }
}

TEST_CASE("bf16 and f16: storing rounds to nearest even, subnormals and halfway cases too") {
  std::vector<float> x = many_floats();
  for (std::uint64_t u = 0; u < 1ull << 32; u += 0x1000)  // halfway between two f16, and either side of it
    for (std::uint32_t d : {~0u, 0u, 1u}) x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(u) + d));
  for (DType half : {bf16, f16})
    for (const Target& target : runnable_targets()) {
      CAPTURE(name_of(half));
      CAPTURE(target.level());
      const Program narrow = elementwise(f32, half, 64, [&](Tile t) { return cast(t, half); });
      const auto got = apply<std::uint16_t>(narrow, f32, half, x, target);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const std::uint16_t want = half == bf16 ? to_bf16(x[i]) : to_f16(x[i]);
        const float number = half == bf16 ? from_bf16(got[i]) : from_f16(got[i]);
        wrong += std::isnan(x[i]) ? !std::isnan(number) : got[i] != want;
      }
      CHECK(wrong == 0);
    }
}

TEST_CASE("max and min: NaN if either is, else the larger and the smaller") {
  const std::vector<float> values{nan_value, -nan_value, inf_value, -inf_value, 0.0f,
                                  1.5f,      -1.5f,      1e-45f,    3e38f,      -3e38f};
  for (const Target& target : runnable_targets())
    for (float other : values)
      for (bool largest : {true, false})
        for (bool first : {true, false}) {
          const auto body = [&](Tile t) {
            if (largest) return first ? max(t, other) : max(other, t);
            return first ? min(t, other) : min(other, t);
          };
          const auto got = apply<float>(elementwise(f32, f32, 16, body), f32, f32, values, target);
          for (std::size_t i = 0; i < values.size(); ++i) {
            const bool is_nan = std::isnan(values[i]) || std::isnan(other);
            const float want = largest ? std::max(values[i], other) : std::min(values[i], other);
            CAPTURE(target.level());
            CAPTURE(values[i]);
            CAPTURE(other);
            CAPTURE(largest);
            CHECK((is_nan ? std::isnan(got[i]) : got[i] == want));
          }
        }
}
