// Text to program to text: nothing is lost, nothing is added.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "lib/ir/ir.h"
#include "lib/passes/passes.h"
#include "tests/support/random_program.h"

using namespace kerf;

namespace {

// Every operation, every form of a loop, every kind of tensor and type.
constexpr std::string_view everything = R"(program everything
axis N
axis V = 1000
axis D = 7
axis S
list kept : [N by 4, V by 8]
input e : bf16 [N, D]
input h : f16 [N, D]
input target : i32 [N]
input wide : i64 [V]
input flag : bool [N]
input total : f32 []
input packed : f32 kept [N, V]
output dz : bf16 kept [V, N]
output lse : f32 [N]
inout de : f32 [N, D]
{
  %n = parallel N by 4 : block<N:4>
  %s = parallel S by 1 : block<S:1>
  %d = whole D : block<D:7>
  %3 = const -inf : f32
  %4 = const -100 : i32
  %5 = const true : bool
  %6 = const 0.1 : bf16
  %zero = const 0 : f32
  %rows = size N : i64
  %y = load target [%n] fill %4 : tile<N:4, i32>
  %x = load e [%n, %d] fill %6 : tile<N:4 x D:7, bf16>
  %t = load total [] : f32
  %g = load e [%y, %d] : tile<N:4 x D:7, bf16>
  %g_1 = splat %zero : tile<N:4, f32>
  %14 = stage e [%n, *] D by 2 : staged<N:4 x D/2, bf16>
  %15 = stage e [*, %d] N by 4 fill %6 : staged<N/4 x D:7, bf16>
  %m, %17 = loop V by 8 [%v : block<V:8>] (%m0 = %g_1, %20 = %t) {
    %i = index %v : tile<V:8, i32>
    %22 = in_bounds %v : tile<V:8, bool>
    %23 = splat %zero : tile<N:4 x V:8, f32>
    %24 = where %22, %23, %3 : tile<N:4 x V:8, f32>
    %25 = reduce_max %24 over V : tile<N:4, f32>
    %26 = max %m0, %25 : tile<N:4, f32>
    %27 = add %20, %t : f32
    yield %26, %27
  } : tile<N:4, f32>, f32
  %28 = loop V by 8 part %s of 3 [%29 : block<V:8>] (%30 = %m) {
    yield %30
  } : tile<N:4, f32>
  %31 = loop row %n of kept [%k : entry<kept>, %33 : block<V:8>] (%34 = %m) {
    %35 = load_packed packed [%k] : tile<N:4 x V:8, f32>
    %36 = cast %35 : tile<N:4 x V:8, bf16>
    store_packed dz [%k] %36
    %37 = reduce_sum %35 over V : tile<N:4, f32>
    %38 = add %34, %37 : tile<N:4, f32>
    yield %38
  } : tile<N:4, f32>
  loop D by 2 [%39 : block<D:2>] {
    %40 = take %14, %39 : tile<N:4 x D:2, bf16>
    %q = load e [%rows, %39] : tile<D:2, bf16>
    %42 = dot %40, %q : tile<N:4, f32>
    %w = dot %40, %q, %42 : tile<N:4, f32>
    yield
  }
  %44 = exp %31 : tile<N:4, f32>
  %45 = cast %44 : tile<N:4, bool>
  %46 = not %45 : tile<N:4, bool>
  %47 = reduce_any %46 over N : bool
  %48 = running_sum %44 over N : tile<N:4, f32>
  %nth = number %n : i64
  %c = load wide [%nth] : i64
  when %47 {
    store lse [%n] %48
    when %5 {
      store de [%n, %d] %zero
    }
  }
}
)";

}  // namespace

TEST_CASE("print gives back the text that was parsed, operation by operation") {
  const std::string once = ir::print(ir::parse(everything));
  CHECK(once == everything);
}

namespace {

/// Where two programs differ in more than the numbers and names of their values and the places; empty: nowhere.
class Comparison {
 public:
  Comparison(const ir::Program& a, const ir::Program& b) : a_(a), b_(b) {}

  std::string run() {
    check("name", a_.name == b_.name);
    check("tables", a_.axes.size() == b_.axes.size() && a_.tensors.size() == b_.tensors.size() &&
                        a_.lists.size() == b_.lists.size());
    if (!difference_.empty()) return difference_;
    for (std::size_t i = 0; i < a_.axes.size(); ++i)
      check("axis", a_.axes[i].name == b_.axes[i].name && a_.axes[i].size == b_.axes[i].size);
    for (std::size_t i = 0; i < a_.tensors.size(); ++i) {
      const ir::TensorInfo &x = a_.tensors[i], &y = b_.tensors[i];
      check("tensor",
            x.name == y.name && x.dtype == y.dtype && x.access == y.access && x.axes == y.axes && x.list == y.list);
    }
    for (std::size_t i = 0; i < a_.lists.size(); ++i) {
      const ir::ListInfo &x = a_.lists[i], &y = b_.lists[i];
      check("list", x.name == y.name && x.row_axis == y.row_axis && x.column_axis == y.column_axis &&
                        x.row_extent == y.row_extent && x.column_extent == y.column_extent);
    }
    region(a_.body, b_.body);
    return difference_;
  }

 private:
  void check(const std::string& what, bool same) {
    if (!same && difference_.empty()) difference_ = what;
  }
  void region(const ir::Region& x, const ir::Region& y) {
    define(x.args, y.args);
    check("operations in a region", x.ops.size() == y.ops.size());
    for (std::size_t i = 0; i < std::min(x.ops.size(), y.ops.size()); ++i) operation(x.ops[i], y.ops[i]);
  }
  void operation(const ir::Op& x, const ir::Op& y) {
    const std::string name(ir::info(x.kind).text);
    const bool numbers = std::bit_cast<std::uint64_t>(x.number) == std::bit_cast<std::uint64_t>(y.number);
    check("attributes of " + name, x.kind == y.kind && x.axis == y.axis && x.tensor == y.tensor && x.list == y.list &&
                                       x.extent == y.extent && x.count == y.count && x.over == y.over && numbers &&
                                       x.integer == y.integer);
    check("operands of " + name, x.operands.size() == y.operands.size());
    for (std::size_t i = 0; i < std::min(x.operands.size(), y.operands.size()); ++i)
      check("operand of " + name, stands_for_[x.operands[i]] == y.operands[i]);
    check("regions of " + name, x.regions.size() == y.regions.size());
    for (std::size_t i = 0; i < std::min(x.regions.size(), y.regions.size()); ++i) region(x.regions[i], y.regions[i]);
    define(x.results, y.results);
  }
  void define(const std::vector<ir::ValueId>& x, const std::vector<ir::ValueId>& y) {
    check("number of values", x.size() == y.size());
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      check("type of a value", a_.type(x[i]) == b_.type(y[i]));
      stands_for_[x[i]] = y[i];
    }
  }

  const ir::Program &a_, &b_;
  std::map<ir::ValueId, ir::ValueId> stands_for_;
  std::string difference_;
};

/// A program that stores one constant.
ir::Program storing(double x, DType dtype) {
  ir::Program p = ir::parse(fmt::format(
      "program p axis N output y : {0} [N] {{ %n = parallel N by 4 : block<N:4> %x = const 1 : {0} store y [%n] %x }}",
      name_of(dtype)));
  p.body.ops[1].number = x;
  return p;
}

}  // namespace

TEST_CASE("parse(print(p)) is p, attribute by attribute: random programs as recorded and after the passes") {
  int changed = 0;  // by the passes: the comparison does see differences
  for (std::uint64_t seed = 1000; seed < 1200; ++seed) {
    CAPTURE(seed);
    const ir::Program recorded = test::random_program(seed).program.ir();
    CHECK(Comparison(recorded, ir::parse(ir::print(recorded))).run() == "");
    const ir::Program after = passes::pipeline(recorded);
    CHECK(Comparison(after, ir::parse(ir::print(after))).run() == "");
    changed += Comparison(after, recorded).run() != "";
  }
  CHECK(changed > 150);
}

TEST_CASE("doubles come back with the same bits") {
  std::vector<double> values = {0.0,
                                -0.0,
                                0.1,
                                1.0 / 3,
                                1e300,
                                5e-324,
                                -2.2250738585072014e-308,
                                1e22,
                                123456789012345680.0,
                                std::numeric_limits<double>::infinity(),
                                -std::numeric_limits<double>::infinity(),
                                std::numeric_limits<double>::max()};
  test::Random random(3);
  while (values.size() < 500) {
    const double x = std::bit_cast<double>(random.bits());
    if (!std::isnan(x)) values.push_back(x);
  }
  for (double x : values) {
    CAPTURE(x);
    const double y = ir::parse(ir::print(storing(x, f32))).body.ops[1].number;
    CHECK(std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y));
  }
  CHECK(std::isnan(ir::parse(ir::print(storing(std::numeric_limits<double>::quiet_NaN(), bf16))).body.ops[1].number));
}

TEST_CASE("values that share a name, or have one that is none, print under names of their own") {
  ir::Program p = ir::parse(
      "program p axis N output y : f32 [N] { %n = parallel N by 4 : block<N:4> %a = const 1 : f32 %b = const 2 : f32 "
      "%c = const 3 : f32 %d = add %a, %b : f32 %e = add %d, %c : f32 store y [%n] %e }");
  p.value_names = {"n", "x", "x_1", "x", "no name", "x"};
  const std::string text = ir::print(p);
  CHECK(text ==
        "program p\naxis N\noutput y : f32 [N]\n{\n  %n = parallel N by 4 : block<N:4>\n  %x = const 1 : f32\n"
        "  %x_1 = const 2 : f32\n  %x_2 = const 3 : f32\n  %4 = add %x, %x_1 : f32\n  %x_3 = add %4, %x_2 : f32\n"
        "  store y [%n] %x_3\n}\n");
  CHECK(ir::print(ir::parse(text)) == text);
}

TEST_CASE("numbers for names are positions in the text, whatever numbers were written") {
  const std::string text =
      ir::print(ir::parse("program p axis N output y : f32 [N] { %7 = parallel N by 4 : block<N:4> %x = const 1 : f32 "
                          "%0 = neg %x : f32 store y [%7] %0 }"));
  CHECK(text ==
        "program p\naxis N\noutput y : f32 [N]\n{\n  %0 = parallel N by 4 : block<N:4>\n  %x = const 1 : f32\n"
        "  %2 = neg %x : f32\n  store y [%0] %2\n}\n");
}

TEST_CASE("words of the form are names like others") {
  const std::string text =
      "program program\naxis by\naxis row = 8\naxis x = 3\nlist column : [by by 4, row by 2]\n"
      "input input : f32 [by, row]\ninput fill : f32 [row, x]\noutput store : f32 [by]\n{\n"
      "  %by = parallel by by 4 : block<by:4>\n  %f32 = const 0 : f32\n  %2 = splat %f32 : tile<by:4, f32>\n"
      "  %3 = loop row by 2 [%over : block<row:2>] (%5 = %2) {\n"
      "    %load = load input [%by, %over] fill %f32 : tile<by:4 x row:2, f32>\n"
      "    %7 = reduce_sum %load over row : tile<by:4, f32>\n    yield %7\n  } : tile<by:4, f32>\n"
      "  loop row %by of column [%k : entry<column>, %9 : block<row:2>] {\n    yield\n  }\n"
      "  store store [%by] %3\n}\n";
  CHECK(ir::print(ir::parse(text)) == text);
}

TEST_CASE("with places each operation ends in the caller's file and line, and parses as before") {
  const test::RandomProgram r = test::random_program(5);
  const std::string text = ir::print(r.program.ir(), true);
  CHECK(text.find("  // random_") != std::string::npos);
  CHECK(ir::print(ir::parse(text)) == ir::print(r.program.ir()));
  CHECK(ir::parse("program p\naxis N\noutput y : f32 [N]\n{\n%n = parallel N by 4 : block<N:4>\n%x = const 1 : f32\n"
                  "store y [%n] %x\n}",
                  "a.tile")
            .body.ops[2]
            .place.line == 7);
}
