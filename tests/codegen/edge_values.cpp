// Every elementwise operation on the values at the edges of each dtype, all pairs of them: the CPU gives the bits of
// the interpreter at every level of this machine.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/codegen/targets.h"
#include "tests/support/tensors.h"

using namespace kerf;
using kerf::test::Array;

namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

std::vector<double> edges(DType t) {
  switch (t) {
    case DType::f32:
      return {
          nan, inf,   -inf,     0.0,      -0.0,    1,         -1,         0x1p-149, -0x1p-126, 3.4028234663852886e38,
          0.1, 65504, 65519.99, 65520,    0x1p31,  -0x1p31,   2147483520, 0x1p63,   -0x1p63,   1.5,
          2.5, -2.5,  0x1.01p0, 0x1.03p0, 0x1p-25, 0x1.8p-24, 1e-40};
    case DType::bf16: return {nan, inf, -inf, 0.0, -0.0, 1, -1.5, 0x1p-133, 3.3895313892515355e38, 300, -7};
    case DType::f16: return {nan, inf, -inf, 0.0, -0.0, 1, -1.5, 0x1p-24, 65504, -0x1p-14, 300, -7};
    case DType::i32: return {0, 1, -1, 2, -2, 7, -7, 2147483647.0, -2147483648.0, 65536, 16777217};
    case DType::i64:
      return {0, 1, -1, 2, -7, 2147483648.0, -2147483649.0, 0x1p62, -0x1p63, 0x1p53 - 1, 4294967297.0, 0x1p24 + 1};
    case DType::boolean: return {0, 1};
  }
  return {};
}

/// A program of all operations that take the dtype, on a[N] and b[N], one output for each.
struct Sweep {
  Program program;
  std::vector<std::pair<std::string, DType>> outputs;
};

Sweep sweep(DType t) {
  ProgramBuilder p(std::string("edges_") + std::string(name_of(t)));
  Axis N = p.axis("N");
  Tensor a_in = p.input("a", t, {N}), b_in = p.input("b", t, {N});
  Block n = p.parallel(N, 24);
  Tile a = load(a_in, n), b = load(b_in, n);
  Sweep s;
  const auto out = [&](const std::string& name, DType dtype, Tile value) {
    store(p.output(name, dtype, {N}), n, value);
    s.outputs.emplace_back(name, dtype);
  };
  for (DType to : {f32, bf16, f16, i32, i64, boolean}) out("to_" + std::string(name_of(to)), to, cast(a, to));
  out("eq", boolean, a == b);
  out("ne", boolean, a != b);
  if (t == boolean) {
    out("and", boolean, a && b);
    out("or", boolean, a || b);
    out("not", boolean, !a);
    out("where", f32, where(a, 1, where(b, 2, 3)));
  } else {
    const DType r = is_float(t) ? f32 : t;
    out("lt", boolean, a < b);
    out("le", boolean, a <= b);
    out("gt", boolean, a > b);
    out("ge", boolean, a >= b);
    out("add", r, a + b);
    out("sub", r, a - b);
    out("mul", r, a * b);
    out("div", r, a / b);
    out("neg", r, -a);
    out("max", r, max(a, b));
    out("min", r, min(a, b));
    out("where", r, where(a < b, a, b));
    if (is_float(t)) out("sqrt", f32, sqrt(a));
  }
  s.program = p.finish();
  return s;
}

using Outputs = std::vector<std::unique_ptr<Array>>;

template <class Run>
Outputs outputs_of(const Sweep& s, Array& a, Array& b, Run run) {
  Outputs outputs;
  LaunchArgs args{.tensors = {{"a", a.ref()}, {"b", b.ref()}}};
  for (const auto& [name, dtype] : s.outputs) {
    outputs.push_back(std::make_unique<Array>(dtype, a.shape()));
    args.tensors.emplace_back(name, outputs.back()->ref());
  }
  run(args);
  for (const auto& out : outputs) CHECK(out->surroundings_intact());
  return outputs;
}

/// NaN is NaN whatever its bits; of zeros of different sign max and min may give either.
bool same(double x, double y, bool any_zero) {
  if (std::isnan(x) || std::isnan(y)) return std::isnan(x) && std::isnan(y);
  return x == y && (any_zero || std::signbit(x) == std::signbit(y));
}

}  // namespace

TEST_CASE("elementwise operations at the edges of every dtype: the CPU gives the bits of the interpreter") {
  ThreadPool pool(1);
  for (DType t : {f32, bf16, f16, i32, i64, boolean}) {
    const std::vector<double> values = edges(t);
    const auto count = static_cast<std::int64_t>(values.size());
    Array a(t, {count * count}), b(t, {count * count});
    for (std::int64_t i = 0; i < a.size(); ++i) {
      a.set(i, values[static_cast<std::size_t>(i / count)]);
      b.set(i, values[static_cast<std::size_t>(i % count)]);
    }
    const Sweep s = sweep(t);
    const Outputs want = outputs_of(s, a, b, [&](const LaunchArgs& args) { interpret(s.program, args); });
    for (const Target& target : test::runnable_targets()) {
      const Kernel kernel = compile(s.program, target);
      const Outputs got = outputs_of(s, a, b, [&](const LaunchArgs& args) { kernel.launch(args, pool); });
      for (std::size_t o = 0; o < got.size(); ++o) {
        const auto& [operation, dtype] = s.outputs[o];
        if (!is_float(dtype)) CHECK(got[o]->bytes() == want[o]->bytes());  // an i64 may have more digits than a double
        for (std::int64_t i = 0; i < a.size(); ++i) {
          const double x = (*got[o])[i], y = (*want[o])[i];
          if (same(x, y, operation == "max" || operation == "min")) continue;
          FAIL_CHECK(target.level() << ": " << name_of(t) << " " << operation << "(" << a[i] << ", " << b[i] << ") is "
                                    << x << ", not " << y);
        }
      }
    }
  }
}
