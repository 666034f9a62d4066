// What the interpreter says reductions, dot, memory, loops and tile lists mean, against the same in plain loops.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "lib/ir/ir.h"
#include "tests/support/random_program.h"
#include "tests/support/tensors.h"

using namespace kerf;
using test::Array;

namespace {

constexpr double nan_ = std::numeric_limits<double>::quiet_NaN(), inf_ = std::numeric_limits<double>::infinity();

void run(std::string_view text, const test::NamedArrays& arrays,
         std::vector<std::pair<std::string, std::int64_t>> axes = {},
         std::vector<std::pair<std::string, TileListRef>> lists = {}) {
  const ir::Program p = ir::parse(text);
  LaunchArgs args;
  for (const auto& [name, array] : arrays) args.tensors.emplace_back(name, array->ref());
  args.axes = std::move(axes);
  args.lists = std::move(lists);
  ir::interpret(p, ir::bind(p, args));
  for (const auto& [name, array] : arrays) {
    CAPTURE(name);
    CHECK(array->surroundings_intact());
  }
}

Array array_of(DType dtype, const std::vector<double>& values) {
  Array a(dtype, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i) a.set(static_cast<std::int64_t>(i), values[i]);
  return a;
}

void check_values(const Array& a, const std::vector<double>& expected) {
  REQUIRE(static_cast<std::size_t>(a.size()) == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    const double x = a[static_cast<std::int64_t>(i)];
    CAPTURE(x);
    CAPTURE(expected[i]);
    CHECK((x == expected[i] || (std::isnan(x) && std::isnan(expected[i]))));
  }
}

}  // namespace

TEST_CASE("interpret: reduce_sum adds up in double and rounds once, padding included") {
  // The last block of V has two elements and two fills of 0.25.
  test::Random random(1);
  Array x = test::normal(random, f32, {5, 10}, 1, 3), rows(f32, {5}), columns(f32, {10});
  for (std::int64_t i = 0; i < x.size(); i += 7) x.set(i, 1e8);
  run("program p axis N axis V input x : f32 [N, V] output rows : f32 [N] {\n"
      "%n = parallel N by 2 : block<N:2> %f = const 0.25 : f32 %z = const 0 : f32 %zero = splat %z : tile<N:2, f32>\n"
      "%s = loop V by 4 [%v : block<V:4>] (%a = %zero) { %x = load x [%n, %v] fill %f : tile<N:2 x V:4, f32>\n"
      "%r = reduce_sum %x over V : tile<N:2, f32> %b = add %a, %r : tile<N:2, f32> yield %b } : tile<N:2, f32>\n"
      "store rows [%n] %s }",
      {{"x", &x}, {"rows", &rows}});
  run("program p axis N axis V input x : f32 [N, V] output columns : f32 [V] {\n"
      "%v = parallel V by 4 : block<V:4> %f = const 0.25 : f32 %z = const 0 : f32 %zero = splat %z : tile<V:4, f32>\n"
      "%s = loop N by 2 [%n : block<N:2>] (%a = %zero) { %x = load x [%n, %v] fill %f : tile<N:2 x V:4, f32>\n"
      "%r = reduce_sum %x over N : tile<V:4, f32> %b = add %a, %r : tile<V:4, f32> yield %b } : tile<V:4, f32>\n"
      "store columns [%v] %s }",
      {{"x", &x}, {"columns", &columns}});
  const auto at = [&](int n, int v) { return n < 5 && v < 10 ? x[n * 10 + v] : 0.25; };
  for (int n = 0; n < 5; ++n) {
    float sum = 0;
    for (int block = 0; block < 3; ++block) {
      double part = 0;
      for (int v = 4 * block; v < 4 * block + 4; ++v) part += at(n, v);
      sum += static_cast<float>(part);
    }
    CHECK(rows[n] == sum);
  }
  for (int v = 0; v < 10; ++v) {
    float sum = 0;
    for (int block = 0; block < 3; ++block) sum += static_cast<float>(at(2 * block, v) + at(2 * block + 1, v));
    CHECK(columns[v] == sum);
  }
}

TEST_CASE("interpret: reductions of f32: max passes NaN on, argmax is the first of the largest and NaN is largest") {
  const std::vector<std::vector<double>> rows = {{1, 5, 3, 5},          {-inf_, -inf_, -inf_, -inf_},
                                                 {1, nan_, inf_, nan_}, {-3, -0.0, 0.0, -1},
                                                 {7, 7, 7, 7},          {-5, -4, -9, -4}};
  Array x(f32, {6, 4}), most(f32, {6}), where(i32, {6}), sum(f32, {6});
  for (int n = 0; n < 6; ++n)
    for (int v = 0; v < 4; ++v) x.set(4 * n + v, rows[static_cast<std::size_t>(n)][static_cast<std::size_t>(v)]);
  run("program p axis N axis V = 4 input x : f32 [N, V] output most : f32 [N] output where : i32 [N] output sum : f32 "
      "[N]\n"
      "{ %n = parallel N by 4 : block<N:4> %v = whole V : block<V:4> %x = load x [%n, %v] : tile<N:4 x V:4, f32>\n"
      "%m = reduce_max %x over V : tile<N:4, f32> %a = reduce_argmax %x over V : tile<N:4, i32>\n"
      "%s = reduce_sum %x over V : tile<N:4, f32> store most [%n] %m store where [%n] %a store sum [%n] %s }",
      {{"x", &x}, {"most", &most}, {"where", &where}, {"sum", &sum}});
  check_values(most, {5, -inf_, nan_, 0, 7, -4});
  check_values(where, {1, 0, 1, 1, 0, 1});
  check_values(sum, {14, -inf_, nan_, -4, 28, -22});
}

TEST_CASE("interpret: reductions of integers wrap, reduce_any asks whether one holds") {
  Array x = array_of(i32, {2147483647, 1, 5, -2147483648., -1, 3}), y = array_of(boolean, {0, 0, 0, 0, 1, 0});
  Array sum(i32, {2}), most(i32, {2}), at(i32, {2}), any(boolean, {2});
  run("program p axis N = 6 axis M = 2 input x : i32 [N] input y : bool [N] output sum : i32 [M] output most : i32 "
      "[M]\n"
      "output at : i32 [M] output any : bool [M] { %m = parallel M by 1 : block<M:1>\n"
      "loop N by 3 part %m of 1 [%n : block<N:3>] { %x = load x [%n] : tile<N:3, i32> %y = load y [%n] : tile<N:3, "
      "bool>\n"
      "%s = reduce_sum %x over N : i32 %l = reduce_max %x over N : i32 %a = reduce_argmax %x over N : i32\n"
      "%b = reduce_any %y over N : bool store sum [%m] %s store most [%m] %l store at [%m] %a store any [%m] %b yield "
      "} }",
      {{"x", &x}, {"y", &y}, {"sum", &sum}, {"most", &most}, {"at", &at}, {"any", &any}});
  check_values(sum, {-2147483643, -2147483646});
  check_values(most, {2147483647, 3});
  check_values(at, {0, 2});
  check_values(any, {0, 1});
}

TEST_CASE("interpret: running_sum adds up to each element, along either axis; integers wrap") {
  Array x(i32, {2, 3}), along(i32, {2, 3}), across(i32, {2, 3});
  for (int i = 0; i < 6; ++i) x.set(i, std::vector<double>{1, 2, 3, 2147483647, -5, 6}[static_cast<std::size_t>(i)]);
  run("program p axis N = 2 axis M = 3 input x : i32 [N, M] output along : i32 [N, M] output across : i32 [N, M]\n"
      "{ %n = whole N : block<N:2> %m = whole M : block<M:3> %x = load x [%n, %m] : tile<N:2 x M:3, i32>\n"
      "%a = running_sum %x over M : tile<N:2 x M:3, i32> %b = running_sum %x over N : tile<N:2 x M:3, i32>\n"
      "store along [%n, %m] %a store across [%n, %m] %b }",
      {{"x", &x}, {"along", &along}, {"across", &across}});
  check_values(along, {1, 3, 6, 2147483647, 2147483642, -2147483648.});
  check_values(across, {1, 2, 3, -2147483648., -3, 9});
}

TEST_CASE("interpret: dot contracts the shared axis wherever it stands, in either order of the operands") {
  test::Random random(2);
  for (const DType t : {f32, bf16, f16}) {
    for (const bool k_first_in_a : {false, true})
      for (const bool k_first_in_b : {false, true})
        for (const bool swapped : {false, true}) {
          Array a =
              test::normal(random, t, k_first_in_a ? std::vector<std::int64_t>{7, 5} : std::vector<std::int64_t>{5, 7});
          Array b =
              test::normal(random, t, k_first_in_b ? std::vector<std::int64_t>{7, 6} : std::vector<std::int64_t>{6, 7});
          Array c = test::normal(random, f32, {5, 6}), y(f32, {5, 6}), z(f32, {5, 6});
          run(fmt::format(
                  "program p axis {0} axis {1} axis M axis D input a : {2} [{3}] input b : {2} [{4}] input c : f32 [N, "
                  "M]\n"
                  "output y : f32 [N, M] output z : f32 [N, M] {{ %n = parallel N by 2 : block<N:2>\n"
                  "%m = parallel M by 4 : block<M:4> %c = load c [%n, %m] : tile<{5}, f32>\n"
                  "%zero = const 0 : f32 %s = splat %zero : tile<{5}, f32>\n"
                  "%r, %r2 = loop D by 4 [%d : block<D:4>] (%u = %c, %w = %s) {{ %a = load a [{6}] : tile<N:2 x D:4, "
                  "{2}>\n"
                  "%b = load b [{7}] : tile<{8}, {2}> %q = dot {9}, %u : tile<{5}, f32> %p = dot {9} : tile<{5}, f32>\n"
                  "%w2 = add %w, %p : tile<{5}, f32> yield %q, %w2 }} : tile<{5}, f32>, tile<{5}, f32>\n"
                  "store y [%n, %m] %r store z [%n, %m] %r2 }}",
                  swapped ? "X" : "N", swapped ? "N" : "X", name_of(t), k_first_in_a ? "D, N" : "N, D",
                  k_first_in_b ? "D, M" : "M, D", "N:2 x M:4", k_first_in_a ? "%d, %n" : "%n, %d",
                  k_first_in_b ? "%d, %m" : "%m, %d", "M:4 x D:4", swapped ? "%b, %a" : "%a, %b"),
              {{"a", &a}, {"b", &b}, {"c", &c}, {"y", &y}, {"z", &z}}, {{"X", 1}});
          for (int n = 0; n < 5; ++n)
            for (int m = 0; m < 6; ++m) {
              float with = static_cast<float>(c[6 * n + m]), without = 0;
              for (int block = 0; block < 2; ++block) {
                double sum = 0, from = with;
                for (int d = 4 * block; d < 4 * block + 4; ++d) {
                  const double x = d >= 7 ? 0 : a[k_first_in_a ? 5 * d + n : 7 * n + d];
                  const double w = d >= 7 ? 0 : b[k_first_in_b ? 6 * d + m : 7 * m + d];
                  sum += x * w;
                  from += x * w;
                }
                with = static_cast<float>(from);
                without += static_cast<float>(sum);
              }
              CHECK(y[6 * n + m] == with);
              CHECK(z[6 * n + m] == without);
            }
        }
  }
}

TEST_CASE("interpret: dot of vectors is a scalar, and of tiles with three axes keeps all axes but one") {
  test::Random random(3);
  Array a = test::normal(random, f32, {2, 3, 4}), b = test::normal(random, f32, {3, 5}), y(f32, {2, 4, 5}), z(f32, {});
  run("program p axis A = 2 axis B = 3 axis C = 4 axis E = 5 input a : f32 [A, B, C] input b : f32 [B, E]\n"
      "output y : f32 [A, C, E] output z : f32 [] { %a = whole A : block<A:2> %b = whole B : block<B:3>\n"
      "%c = whole C : block<C:4> %e = whole E : block<E:5> %x = load a [%a, %b, %c] : tile<A:2 x B:3 x C:4, f32>\n"
      "%w = load b [%b, %e] : tile<B:3 x E:5, f32> %p = dot %w, %x : tile<A:2 x C:4 x E:5, f32>\n"
      "%u = reduce_sum %w over E : tile<B:3, f32> %q = dot %u, %u : f32 store y [%a, %c, %e] %p store z [] %q }",
      {{"a", &a}, {"b", &b}, {"y", &y}, {"z", &z}});
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int k = 0; k < 5; ++k) {
        double sum = 0;
        for (int m = 0; m < 3; ++m) sum += a[12 * i + 4 * m + j] * b[5 * m + k];
        CHECK(y[20 * i + 5 * j + k] == static_cast<float>(sum));
      }
  double square = 0;
  for (int m = 0; m < 3; ++m) {
    double u = 0;
    for (int k = 0; k < 5; ++k) u += b[5 * m + k];
    square += static_cast<double>(static_cast<float>(u)) * static_cast<float>(u);
  }
  CHECK(z[0] == static_cast<float>(square));
}

TEST_CASE("interpret: operands broadcast over the axes they lack, in the order of the declarations") {
  test::Random random(4);
  Array a = test::normal(random, f32, {3}), b = test::normal(random, f32, {4, 2}), c = test::normal(random, f32, {});
  Array y(f32, {2, 3, 4});
  run("program p axis N axis V axis D input a : f32 [N] input b : f32 [V, D] input c : f32 [] output y : f32 [D, N, V] "
      "{\n"
      "%n = parallel N by 2 : block<N:2> %v = parallel V by 3 : block<V:3> %d = parallel D by 2 : block<D:2>\n"
      "%a = load a [%n] : tile<N:2, f32> %b = load b [%v, %d] : tile<V:3 x D:2, f32> %c = load c [] : f32\n"
      "%s = sub %b, %a : tile<N:2 x V:3 x D:2, f32> %t = mul %c, %s : tile<N:2 x V:3 x D:2, f32>\n"
      "store y [%d, %n, %v] %t }",
      {{"a", &a}, {"b", &b}, {"c", &c}, {"y", &y}});
  for (int d = 0; d < 2; ++d)
    for (int n = 0; n < 3; ++n)
      for (int v = 0; v < 4; ++v) {
        const float s = static_cast<float>(b[2 * v + d]) - static_cast<float>(a[n]);
        CHECK(y[12 * d + 4 * n + v] == static_cast<float>(c[0]) * s);
      }
}

TEST_CASE("interpret: a load outside the tensor gives the fill, a store there is not done") {
  test::Random random(5);
  Array x = test::normal(random, bf16, {5, 7}, 1, 2), y(f32, {8, 9}, 1);
  // y is larger than x on both axes; its blocks cover x and what lies past it.
  run("program p axis N = 8 axis V = 9 axis n5 axis v7 input x : bf16 [n5, v7] output y : f32 [N, V] {\n"
      "%n = parallel N by 3 : block<N:3> %v = parallel V by 4 : block<V:4> %f = const -2.5 : bf16\n"
      "%i = index %n : tile<N:3, i32> %j = index %v : tile<V:4, i64>\n"
      "%x = load x [%i, %j] fill %f : tile<N:3 x V:4, bf16> %z = cast %x : tile<N:3 x V:4, f32> store y [%n, %v] %z }",
      {{"x", &x}, {"y", &y}});
  for (int n = 0; n < 8; ++n)
    for (int v = 0; v < 9; ++v) CHECK(y[9 * n + v] == (n < 5 && v < 7 ? x[7 * n + v] : -2.5));
}

TEST_CASE("interpret: without a fill what lies outside is 0 or false") {
  Array x = array_of(f32, {1, 2, 3}), k = array_of(i32, {1, 2, 3}), t = array_of(boolean, {1, 1, 1});
  Array rx(f32, {}), rk(i32, {}), rt(i32, {});
  run("program p axis N = 3 input x : f32 [N] input k : i32 [N] input t : bool [N] output rx : f32 [] output rk : i32 "
      "[]\n"
      "output rt : i32 [] { %z = const 0 : f32 %zi = const 0 : i32\n"
      "%a, %b, %c = loop N by 4 [%n : block<N:4>] (%a0 = %z, %b0 = %zi, %c0 = %zi) { %x = load x [%n] : tile<N:4, "
      "f32>\n"
      "%k = load k [%n] : tile<N:4, i32> %t = load t [%n] : tile<N:4, bool> %ti = cast %t : tile<N:4, i32>\n"
      "%sx = reduce_sum %x over N : f32 %sk = reduce_sum %k over N : i32 %st = reduce_sum %ti over N : i32\n"
      "%a1 = add %a0, %sx : f32 %b1 = add %b0, %sk : i32 %c1 = add %c0, %st : i32 yield %a1, %b1, %c1 } : f32, i32, "
      "i32\n"
      "store rx [] %a store rk [] %b store rt [] %c }",
      {{"x", &x}, {"k", &k}, {"t", &t}, {"rx", &rx}, {"rk", &rk}, {"rt", &rt}});
  CHECK(rx[0] == 6);
  CHECK(rk[0] == 6);
  CHECK(rt[0] == 3);
}

TEST_CASE("interpret: a gather outside the axis gives the fill, a scatter outside is skipped") {
  Array index = array_of(i64, {3, -1, 0, 4, 9007199254740992., 2, 1}), x = array_of(f32, {10, 11, 12, 13});
  Array y(f32, {7}), s(f32, {4});
  run("program p axis N axis M input index : i64 [N] input x : f32 [M] output y : f32 [N] output s : f32 [M] {\n"
      "%n = parallel N by 4 : block<N:4> %none = const -1 : i64 %f = const 0.5 : f32\n"
      "%i = load index [%n] fill %none : tile<N:4, i64> %x = load x [%i] fill %f : tile<N:4, f32>\n"
      "store y [%n] %x %at = index %n : tile<N:4, i64> %v = cast %at : tile<N:4, f32> store s [%i] %v }",
      {{"index", &index}, {"x", &x}, {"y", &y}, {"s", &s}});
  check_values(y, {13, 0.5, 10, 0.5, 0.5, 12, 11});
  check_values(s, {2, 6, 5, 0});
}

TEST_CASE("interpret: index and in_bounds count from the start of the axis, size is that of the launch") {
  Array at(i64, {7}), at32(i32, {5}), inside(i32, {7}), size(i64, {7});
  run("program p axis N axis M = 5 output at : i64 [N] output at32 : i32 [M] output inside : i32 [N] output size : i64 "
      "[N]\n"
      "{ %n = parallel N by 4 : block<N:4> %m = whole M : block<M:5> %i = index %n : tile<N:4, i64>\n"
      "%j = index %m : tile<M:5, i32> %b = in_bounds %n : tile<N:4, bool> %bi = cast %b : tile<N:4, i32>\n"
      "%c = reduce_sum %bi over N : i32 %s = size N : i64 store at [%n] %i store at32 [%m] %j store inside [%n] %c\n"
      "store size [%n] %s }",
      {{"at", &at}, {"at32", &at32}, {"inside", &inside}, {"size", &size}});
  check_values(at, {0, 1, 2, 3, 4, 5, 6});
  check_values(at32, {0, 1, 2, 3, 4});
  check_values(inside, {4, 4, 4, 4, 3, 3, 3});
  check_values(size, {7, 7, 7, 7, 7, 7, 7});
}

TEST_CASE("interpret: number counts the blocks before, in a grid, a loop and a part of one; of a whole axis it is 0") {
  Array grid(i64, {3}), walked(i64, {8}), parts(i64, {8}), all(i64, {});
  run("program p axis N axis S axis V axis B axis M = 5 output grid : i64 [B] output walked : i64 [V] output parts : "
      "i64 [V]\n"
      "output all : i64 [] { %n = parallel N by 4 : block<N:4> %s = parallel S by 1 : block<S:1>\n"
      "%m = whole M : block<M:5> %i = number %n : i64 %w = number %m : i64 store grid [%i] %i store all [] %w\n"
      "loop V by 3 [%v : block<V:3>] { %j = number %v : i64 store walked [%v] %j yield }\n"
      "loop V by 3 part %s of 2 [%u : block<V:3>] { %k = number %u : i64 store parts [%u] %k yield } }",
      {{"grid", &grid}, {"walked", &walked}, {"parts", &parts}, {"all", &all}}, {{"N", 9}, {"S", 2}});
  check_values(grid, {0, 1, 2});
  check_values(walked, {0, 0, 0, 1, 1, 1, 2, 2});
  check_values(parts, {0, 0, 0, 1, 1, 1, 2, 2});
  CHECK(all[0] == 0);
}

TEST_CASE("interpret: a scalar may be a subscript; outside the axis it loads the fill and stores nothing") {
  Array x(f32, {3, 2}), y(f32, {4, 2}), one(f32, {4});
  for (std::int64_t i = 0; i < 6; ++i) x.set(i, static_cast<double>(10 + i));
  run("program p axis N axis M = 2 axis K = 4 axis Q input x : f32 [N, M] output y : f32 [K, M] output one : f32 [K] "
      "{\n"
      "%q = parallel Q by 1 : block<Q:1> %m = whole M : block<M:2> %i = number %q : i64 %o = const 1 : i64\n"
      "%j = sub %i, %o : i64 %f = const 0.5 : f32 %t = load x [%j, %m] fill %f : tile<M:2, f32>\n"
      "store y [%i, %m] %t %s = reduce_sum %t over M : f32 store one [%i] %s }",
      {{"x", &x}, {"y", &y}, {"one", &one}}, {{"Q", 6}});
  check_values(y, {0.5, 0.5, 10, 11, 12, 13, 14, 15});
  check_values(one, {1, 21, 25, 29});
}

TEST_CASE("interpret: instances run in order, of several grids the last varies fastest") {
  Array count(i64, {}), log(i64, {12});
  count.set(0, 0);
  run("program p axis A axis B axis L inout count : i64 [] output log : i64 [L] { %a = parallel A by 2 : block<A:2>\n"
      "%b = parallel B by 1 : block<B:1> %i = index %a : tile<A:2, i64> %j = index %b : tile<B:1, i64>\n"
      "%x = reduce_max %i over A : i64 %y = reduce_max %j over B : i64 %ten = const 10 : i64 %t = mul %x, %ten : i64\n"
      "%w = add %t, %y : i64 %c = load count [] : i64 store log [%c] %w %one = const 1 : i64 %d = add %c, %one : i64\n"
      "store count [] %d }",
      {{"count", &count}, {"log", &log}}, {{"A", 5}, {"B", 4}});
  check_values(log, {10, 11, 12, 13, 30, 31, 32, 33, 50, 51, 52, 53});
  CHECK(count[0] == 12);
}

TEST_CASE("interpret: a loop carries all values at once, so a yield may swap them") {
  Array y(i64, {2});
  run("program p axis N axis M = 2 output y : i64 [M] { %m = whole M : block<M:2> %z = const 0 : i64 %o = const 1 : "
      "i64\n"
      "%a, %b = loop N by 1 [%n : block<N:1>] (%x = %z, %y = %o) { %s = add %x, %y : i64 yield %y, %s } : i64, i64\n"
      "%i = index %m : tile<M:2, i64> %e = eq %i, %z : tile<M:2, bool> %v = where %e, %a, %b : tile<M:2, i64>\n"
      "store y [%m] %v }",
      {{"y", &y}}, {{"N", 10}});
  check_values(y, {55, 89});  // Fibonacci
}

TEST_CASE("interpret: a loop over no blocks gives what it started with") {
  Array y(f32, {});
  run("program p axis N output y : f32 [] { %o = const 1.5 : f32 %a = loop N by 4 [%n : block<N:4>] (%x = %o) {\n"
      "%s = add %x, %x : f32 yield %s } : f32 store y [] %a }",
      {{"y", &y}}, {{"N", 0}});
  CHECK(y[0] == 1.5);
}

TEST_CASE("interpret: a loop over a part walks its blocks, the last part what is left, a part past the end nothing") {
  Array first(i64, {4}), blocks(i64, {4});
  run("program p axis S axis V output first : i64 [S] output blocks : i64 [S] { %s = parallel S by 1 : block<S:1>\n"
      "%z = const 0 : i64 %o = const 1 : i64 %f, %c = loop V by 3 part %s of 2 [%v : block<V:3>] (%a = %z, %b = %z) {\n"
      "%i = index %v : tile<V:3, i64> %t = reduce_sum %i over V : i64 %d = add %a, %t : i64 %e = add %b, %o : i64\n"
      "yield %d, %e } : i64, i64 store first [%s] %f store blocks [%s] %c }",
      {{"first", &first}, {"blocks", &blocks}}, {{"V", 13}});
  check_values(blocks, {2, 2, 1, 0});
  check_values(first, {0 + 1 + 2 + 3 + 4 + 5, 6 + 7 + 8 + 9 + 10 + 11, 12 + 13 + 14, 0});
}

TEST_CASE("interpret: when does its stores only where the condition holds, and a load sees the stores before it") {
  Array x = array_of(i32, {4, 9, 6}), y(i32, {3}), z(i32, {3});
  run("program p axis N input x : i32 [N] inout z : i32 [N] output y : i32 [N] { %n = parallel N by 1 : block<N:1>\n"
      "%x = load x [%n] : tile<N:1, i32> store z [%n] %x %s = reduce_sum %x over N : i32 %five = const 5 : i32\n"
      "%c = gt %s, %five : bool when %c { %a = load z [%n] : tile<N:1, i32> %b = add %a, %five : tile<N:1, i32>\n"
      "store z [%n] %b } %r = load z [%n] : tile<N:1, i32> store y [%n] %r }",
      {{"x", &x}, {"y", &y}, {"z", &z}});
  check_values(y, {4, 14, 11});
  check_values(z, {4, 14, 11});
}

TEST_CASE("interpret: tile lists: packed tiles lie in list order, rows and columns walk their own") {
  // Blocks of 2 x 3 over 5 x 7: 3 x 3 blocks, five of them kept, not in order.
  const test::OwnedTileList kept(3, 3, {{2, 1}, {0, 2}, {0, 0}, {1, 1}, {2, 2}});
  test::Random random(6);
  Array x = test::normal(random, f32, {5, 7}), dense(f32, {5, 7});
  Array by_row(f32, {30}), by_column(bf16, {30}), rows(f32, {5}), columns(f32, {7});
  run("program p axis N axis V list kept : [N by 2, V by 3] input x : f32 [N, V] output dense : f32 [N, V]\n"
      "output by_row : f32 kept [N, V] output by_column : bf16 kept [V, N] {\n"
      "%k, %n, %v = parallel kept : entry<kept>, block<N:2>, block<V:3> %f = const 9 : f32\n"
      "%x = load x [%n, %v] fill %f : tile<N:2 x V:3, f32> %h = cast %x : tile<N:2 x V:3, bf16>\n"
      "store dense [%n, %v] %x store_packed by_row [%k] %x store_packed by_column [%k] %h }",
      {{"x", &x}, {"dense", &dense}, {"by_row", &by_row}, {"by_column", &by_column}}, {}, {{"kept", kept.ref()}});
  const auto is_kept = [&](int r, int c) {
    for (std::size_t k = 0; k < kept.row.size(); ++k)
      if (kept.row[k] == r && kept.column[k] == c) return true;
    return false;
  };
  for (int n = 0; n < 5; ++n)
    for (int v = 0; v < 7; ++v) {
      CAPTURE(n);
      CAPTURE(v);
      CHECK((is_kept(n / 2, v / 3) ? dense[7 * n + v] == x[7 * n + v] : std::isnan(dense[7 * n + v])));
    }
  for (std::size_t k = 0; k < 5; ++k)
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 3; ++j) {
        const int n = 2 * kept.row[k] + i, v = 3 * kept.column[k] + j, at = 6 * static_cast<int>(k);
        const double expected = n < 5 && v < 7 ? x[7 * n + v] : 9;
        CHECK(by_row[at + 3 * i + j] == expected);
        CHECK(by_column[at + 2 * j + i] == from_bf16(to_bf16(static_cast<float>(expected))));
      }

  for (const bool row : {true, false}) {
    run(fmt::format(
            "program p axis N axis V list kept : [N by 2, V by 3] input by_column : bf16 kept [V, N]\n"
            "output y : f32 [{0}] {{ %a = parallel {0} by {1} : block<{0}:{1}> %zero = const 0 : f32\n"
            "%z = splat %zero : tile<{0}:{1}, f32>\n"
            "%s = loop {2} %a of kept [%k : entry<kept>, %b : block<{3}>] (%t = %z) {{\n"
            "%x = load_packed by_column [%k] : tile<N:2 x V:3, bf16> %f = cast %x : tile<N:2 x V:3, f32>\n"
            "%m = in_bounds %b : tile<{3}, bool> %w = where %m, %f, %zero : tile<N:2 x V:3, f32>\n"
            "%r = reduce_sum %w over {4} : tile<{0}:{1}, f32> %u = add %t, %r : tile<{0}:{1}, f32> yield %u }}\n"
            ": tile<{0}:{1}, f32> store y [%a] %s }}",
            row ? "N" : "V", row ? 2 : 3, row ? "row" : "column", row ? "V:3" : "N:2", row ? "V" : "N"),
        {{"by_column", &by_column}, {"y", row ? &rows : &columns}}, {{row ? "V" : "N", row ? 7 : 5}},
        {{"kept", kept.ref()}});
    for (int a = 0; a < (row ? 5 : 7); ++a) {
      float sum = 0;
      for (std::size_t k = 0; k < 5; ++k) {  // the list keeps its order inside a row or column
        if ((row ? kept.row[k] : kept.column[k]) != a / (row ? 2 : 3)) continue;
        double part = 0;
        for (int j = 0; j < (row ? 3 : 2); ++j) {
          const int b = (row ? 3 * kept.column[k] : 2 * kept.row[k]) + j;
          if (b < (row ? 7 : 5)) part += from_bf16(to_bf16(static_cast<float>(row ? x[7 * a + b] : x[7 * b + a])));
        }
        sum += static_cast<float>(part);
      }
      CHECK((row ? rows : columns)[a] == sum);
    }
  }
}

TEST_CASE("interpret: take gives the block of what was staged that a load would give, fills and gathers included") {
  test::Random random(8);
  Array x = test::normal(random, f16, {9, 11}), index = array_of(i32, {8, -3, 0, 20, 5});
  Array staged(f16, {5, 11}), loaded(f16, {5, 11});
  run("program p axis N axis D = 11 axis M input x : f16 [M, D] input index : i32 [N] output staged : f16 [N, D]\n"
      "output loaded : f16 [N, D] { %n = parallel N by 4 : block<N:4> %f = const 0.75 : f16\n"
      "%i = load index [%n] : tile<N:4, i32> %g = stage x [%i, *] D by 4 fill %f : staged<N:4 x D/4, f16>\n"
      "loop D by 4 [%d : block<D:4>] { %t = take %g, %d : tile<N:4 x D:4, f16>\n"
      "%l = load x [%i, %d] fill %f : tile<N:4 x D:4, f16> store staged [%n, %d] %t store loaded [%n, %d] %l yield } }",
      {{"x", &x}, {"index", &index}, {"staged", &staged}, {"loaded", &loaded}});
  CHECK(staged.bytes() == loaded.bytes());
  const int rows[] = {8, -1, 0, -1, 5};
  for (int n = 0; n < 5; ++n)
    for (int d = 0; d < 11; ++d) CHECK(staged[11 * n + d] == (rows[n] < 0 ? 0.75 : x[11 * rows[n] + d]));
}
