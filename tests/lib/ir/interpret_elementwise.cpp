// What the interpreter says elementwise operations mean, against the same written out by hand, corners first.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "lib/ir/ir.h"

using namespace kerf;

namespace {

template <class T>
constexpr DType dtype_of = std::is_same_v<T, float>          ? f32
                           : std::is_same_v<T, std::int32_t> ? i32
                           : std::is_same_v<T, std::int64_t> ? i64
                                                             : boolean;
using Bool = std::uint8_t;
using I32 = std::int32_t;
using I64 = std::int64_t;

constexpr float nan_ = std::numeric_limits<float>::quiet_NaN(), inf_ = std::numeric_limits<float>::infinity();
const std::vector<float> floats = {nan_, inf_,  -inf_,   0.0f,       -0.0f, 1.0f,    -1.0f,          0.1f,
                                   2.5f, -3.5f, 1e-40f,  -1e-45f,    1e30f, -1e30f,  3.4e38f,        1e-30f,
                                   7.0f, 1e9f,  -1.5e9f, 16777217.f, 88.0f, -103.5f, 1.17549435e-38f};

/// y = op(a, ...) over one axis in blocks of 4, the last of them ragged.
template <class Out, class... In>
std::vector<Out> run(const std::string& op, const std::vector<In>&... in) {
  const std::int64_t n = static_cast<std::int64_t>(std::get<0>(std::tie(in...)).size());
  std::string inputs, loads, operands;
  LaunchArgs args;
  int i = 0;
  (
      [&] {
        const std::string name(1, static_cast<char>('a' + i++));
        inputs += fmt::format("input {} : {} [N]\n", name, name_of(dtype_of<In>));
        loads += fmt::format("%{} = load {} [%n] : tile<N:4, {}>\n", name, name, name_of(dtype_of<In>));
        operands += fmt::format("{}%{}", operands.empty() ? "" : ", ", name);
        args.tensors.emplace_back(name, TensorRef(in.data(), dtype_of<In>, {n}));
      }(),
      ...);
  std::vector<Out> y(static_cast<std::size_t>(n), Out{55});
  args.tensors.emplace_back("y", TensorRef(y.data(), dtype_of<Out>, {n}));
  const ir::Program p =
      ir::parse(fmt::format("program p axis N {} output y : {} [N] {{ %n = parallel N by 4 : block<N:4> {} %y = {} {} "
                            ": tile<N:4, {}> store y "
                            "[%n] %y }}",
                            inputs, name_of(dtype_of<Out>), loads, op, operands, name_of(dtype_of<Out>)));
  ir::interpret(p, ir::bind(p, args));
  return y;
}

/// All pairs of the values.
template <class T>
std::pair<std::vector<T>, std::vector<T>> pairs(const std::vector<T>& v) {
  std::vector<T> a, b;
  for (T x : v)
    for (T y : v) {
      a.push_back(x);
      b.push_back(y);
    }
  return {a, b};
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

template <class F>
void check_floats(const std::string& op, F&& meaning) {
  CAPTURE(op);
  const auto [a, b] = pairs(floats);
  const std::vector<float> y = run<float>(op, a, b);
  for (std::size_t i = 0; i < y.size(); ++i) {
    CAPTURE(a[i]);
    CAPTURE(b[i]);
    const float expected = meaning(a[i], b[i]);
    CAPTURE(expected);
    CHECK(same(y[i], expected));
  }
}

/// `meaning` is given and returns numbers without limits; what it returns wraps.
template <class T, class F>
void check_integers(const std::string& op, const std::vector<T>& values, F&& meaning) {
  CAPTURE(op);
  const auto [a, b] = pairs(values);
  const std::vector<T> y = run<T>(op, a, b);
  for (std::size_t i = 0; i < y.size(); ++i) {
    CAPTURE(a[i]);
    CAPTURE(b[i]);
    CHECK(y[i] == static_cast<T>(meaning(static_cast<__int128>(a[i]), static_cast<__int128>(b[i]))));
  }
}

const std::vector<I32> ints = {0, 1, -1, 2, -2, 3, 7, -7, 46341, 65536, -65536, 2147483647, -2147483647 - 1, 1234567};
const std::vector<I64> longs = {0, 1, -1, 2, 7, -7, I64{1} << 32, 3037000500, -(I64{1} << 62), INT64_MAX, INT64_MIN};

template <class T>
void check_integer_arithmetic(const std::vector<T>& values) {
  using Wide = __int128;
  check_integers(std::string("add"), values, [](Wide a, Wide b) { return a + b; });
  check_integers(std::string("sub"), values, [](Wide a, Wide b) { return a - b; });
  check_integers(std::string("mul"), values, [](Wide a, Wide b) { return a * b; });
  check_integers(std::string("div"), values, [](Wide a, Wide b) { return b == 0 ? Wide{0} : a / b; });
  check_integers(std::string("max"), values, [](Wide a, Wide b) { return a > b ? a : b; });
  check_integers(std::string("min"), values, [](Wide a, Wide b) { return a < b ? a : b; });
}

}  // namespace

TEST_CASE("interpret: f32 arithmetic rounds once and follows IEEE 754 with NaN, infinities, zeros and subnormals") {
  check_floats("add", [](float a, float b) { return a + b; });
  check_floats("sub", [](float a, float b) { return a - b; });
  check_floats("mul", [](float a, float b) { return a * b; });
  check_floats("div", [](float a, float b) { return a / b; });
  const std::vector<float> y = run<float>("neg", floats);
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(same(y[i], -floats[i]));
}

TEST_CASE("interpret: max and min are NaN if either operand is") {
  const auto [a, b] = pairs(floats);
  const std::vector<float> most = run<float>("max", a, b), least = run<float>("min", a, b);
  for (std::size_t i = 0; i < a.size(); ++i) {
    CAPTURE(a[i]);
    CAPTURE(b[i]);
    if (std::isnan(a[i]) || std::isnan(b[i])) {
      CHECK(std::isnan(most[i]));
      CHECK(std::isnan(least[i]));
    } else {
      CHECK(most[i] == (a[i] > b[i] ? a[i] : b[i]));
      CHECK(least[i] == (a[i] < b[i] ? a[i] : b[i]));
    }
  }
}

TEST_CASE("interpret: integers wrap, division goes towards zero and by zero gives 0") {
  check_integer_arithmetic(ints);
  check_integer_arithmetic(longs);
  const std::vector<I32> negated = run<I32>("neg", ints);
  for (std::size_t i = 0; i < ints.size(); ++i) CHECK(negated[i] == static_cast<I32>(-static_cast<I64>(ints[i])));
  const std::vector<I64> negated_longs = run<I64>("neg", longs);
  for (std::size_t i = 0; i < longs.size(); ++i)
    CHECK(negated_longs[i] == static_cast<I64>(-static_cast<__int128>(longs[i])));
}

TEST_CASE("interpret: exp, log, tanh and sqrt are those of double, rounded once") {
  std::vector<float> x = floats;
  for (int e = -149; e < 128; e += 3)
    for (float m : {1.0f, 1.37f, -1.9f}) x.push_back(m * std::ldexp(1.0f, e));
  const std::vector<float> e = run<float>("exp", x), l = run<float>("log", x), t = run<float>("tanh", x),
                           s = run<float>("sqrt", x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    CAPTURE(x[i]);
    CHECK(same(e[i], static_cast<float>(std::exp(static_cast<double>(x[i])))));
    CHECK(same(l[i], static_cast<float>(std::log(static_cast<double>(x[i])))));
    CHECK(same(t[i], static_cast<float>(std::tanh(static_cast<double>(x[i])))));
    CHECK(same(s[i], std::sqrt(x[i])));
  }
}

TEST_CASE("interpret: comparisons with NaN are false, except ne") {
  const auto [a, b] = pairs(floats);
  const std::vector<Bool> eq = run<Bool>("eq", a, b), ne = run<Bool>("ne", a, b), lt = run<Bool>("lt", a, b),
                          le = run<Bool>("le", a, b), gt = run<Bool>("gt", a, b), ge = run<Bool>("ge", a, b);
  for (std::size_t i = 0; i < a.size(); ++i) {
    CAPTURE(a[i]);
    CAPTURE(b[i]);
    const bool nan = std::isnan(a[i]) || std::isnan(b[i]);
    CHECK(eq[i] == (!nan && a[i] == b[i]));
    CHECK(ne[i] == (nan || a[i] != b[i]));
    CHECK(lt[i] == (!nan && a[i] < b[i]));
    CHECK(le[i] == (!nan && a[i] <= b[i]));
    CHECK(gt[i] == (!nan && a[i] > b[i]));
    CHECK(ge[i] == (!nan && a[i] >= b[i]));
  }
}

TEST_CASE("interpret: integers compare as signed numbers of their full width") {
  const auto [a, b] = pairs(longs);
  const std::vector<Bool> eq = run<Bool>("eq", a, b), ne = run<Bool>("ne", a, b), lt = run<Bool>("lt", a, b),
                          le = run<Bool>("le", a, b), gt = run<Bool>("gt", a, b), ge = run<Bool>("ge", a, b);
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(eq[i] == (a[i] == b[i]));
    CHECK(ne[i] == (a[i] != b[i]));
    CHECK(lt[i] == (a[i] < b[i]));
    CHECK(le[i] == (a[i] <= b[i]));
    CHECK(gt[i] == (a[i] > b[i]));
    CHECK(ge[i] == (a[i] >= b[i]));
  }
}

TEST_CASE("interpret: and, or, not, eq and ne of bools; any byte but 0 is true") {
  const std::vector<Bool> a = {0, 0, 1, 1, 2, 255}, b = {0, 1, 0, 1, 4, 0};
  CHECK(run<Bool>("and", a, b) == std::vector<Bool>{0, 0, 0, 1, 1, 0});
  CHECK(run<Bool>("or", a, b) == std::vector<Bool>{0, 1, 1, 1, 1, 1});
  CHECK(run<Bool>("not", a) == std::vector<Bool>{1, 1, 0, 0, 0, 0});
  CHECK(run<Bool>("eq", a, b) == std::vector<Bool>{1, 0, 0, 1, 1, 0});
  CHECK(run<Bool>("ne", a, b) == std::vector<Bool>{0, 1, 1, 0, 0, 1});
}

TEST_CASE("interpret: where takes one side and never looks at the other") {
  const std::vector<Bool> mask = {1, 0, 1, 0, 1};
  const std::vector<float> a = {1, nan_, -0.0f, nan_, inf_}, b = {nan_, 2, nan_, -inf_, nan_};
  const std::vector<float> y = run<float>("where", mask, a, b);
  const std::vector<float> expected = {1, 2, -0.0f, -inf_, inf_};
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(same(y[i], expected[i]));
  CHECK(run<I64>("where", mask, std::vector<I64>{1, 2, 3, 4, 5}, std::vector<I64>{-1, -2, -3, -4, INT64_MIN}) ==
        std::vector<I64>{1, -2, 3, -4, 5});
}

TEST_CASE("interpret: a cast from float to integer truncates, stops at the ends, and makes 0 of NaN") {
  const std::vector<float> x = {nan_,          inf_,         -inf_,         -0.0f,        0.9f,          -0.9f,
                                1.5f,          -1.5f,        2147483520.f,  2147483648.f, -2147483648.f, -2147483904.f,
                                9.2233715e18f, 9.223372e18f, -9.223372e18f, 1e38f};
  constexpr I32 low = -2147483647 - 1, high = 2147483647;
  CHECK(run<I32>("cast", x) ==
        std::vector<I32>{0, high, low, 0, 0, 0, 1, -1, 2147483520, high, low, low, high, high, low, high});
  CHECK(run<I64>("cast", x) == std::vector<I64>{0, INT64_MAX, INT64_MIN, 0, 0, 0, 1, -1, 2147483520, 2147483648,
                                                -2147483648, -2147483904, 9223371487098961920, INT64_MAX, INT64_MIN,
                                                INT64_MAX});
  CHECK(run<Bool>("cast", x) == std::vector<Bool>{1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
}

TEST_CASE("interpret: casts between integers wrap, to f32 round to nearest even, to bool ask for other than 0") {
  const std::vector<I64> x = {0,          1,           -1,        4294967296, 4294967295,
                              2147483648, -2147483649, INT64_MAX, INT64_MIN,  16777217};
  CHECK(run<I32>("cast", x) == std::vector<I32>{0, 1, -1, 0, -1, -2147483647 - 1, 2147483647, -1, 0, 16777217});
  CHECK(run<float>("cast", x) == std::vector<float>{0, 1, -1, 4294967296.f, 4294967296.f, 2147483648.f, -2147483648.f,
                                                    9223372036854775808.f, -9223372036854775808.f, 16777216.f});
  CHECK(run<Bool>("cast", x) == std::vector<Bool>{0, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  CHECK(run<I64>("cast", std::vector<I32>{-5, 7, -2147483647 - 1}) == std::vector<I64>{-5, 7, -2147483648});
  CHECK(run<float>("cast", std::vector<Bool>{0, 1, 3}) == std::vector<float>{0, 1, 1});
  CHECK(run<I32>("cast", std::vector<Bool>{0, 1, 3}) == std::vector<I32>{0, 1, 1});
}

TEST_CASE("interpret: a cast to bf16 or f16 rounds to nearest even, keeps NaN, and overflows to infinity") {
  for (const bool half : {false, true}) {
    const std::string t = half ? "f16" : "bf16";
    const ir::Program p = ir::parse(fmt::format(
        "program p axis N input x : f32 [N] output y : {0} [N] output z : f32 [N] {{ %n = parallel N by 8 : block<N:8> "
        "%x = load x [%n] : tile<N:8, f32> %y = cast %x : tile<N:8, {0}> %z = cast %y : tile<N:8, f32> store y [%n] %y "
        "store z [%n] %z }}",
        t));
    std::vector<float> x = floats;
    for (std::uint32_t bits = 0x33000000; bits < 0x47a00000; bits += 0x0012345) x.push_back(std::bit_cast<float>(bits));
    x.insert(x.end(), {1.00390625f, 1.01171875f, 65519.f, 65520.f, 3.39e38f, 5.9e-8f, 2.9e-8f, 2.9802322e-8f});
    const auto n = static_cast<std::int64_t>(x.size());
    std::vector<std::uint16_t> y(x.size(), 0xabcd);
    std::vector<float> z(x.size(), 55);
    LaunchArgs args;
    args.tensors = {{"x", TensorRef(x.data(), {n})},
                    {"y", TensorRef(y.data(), half ? f16 : bf16, {n})},
                    {"z", TensorRef(z.data(), {n})}};
    ir::interpret(p, ir::bind(p, args));
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(x[i]);
      const std::uint16_t bits = half ? to_f16(x[i]) : to_bf16(x[i]);
      CHECK(y[i] == bits);
      CHECK(same(z[i], half ? from_f16(bits) : from_bf16(bits)));
    }
  }
}
