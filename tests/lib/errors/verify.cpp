// A pass that breaks a program is caught by the verifier: each case takes a sound program and breaks one rule.
#include <doctest/doctest.h>

#include <functional>

#include "lib/ir/ir.h"
#include "tests/support/errors.h"

namespace ir = kerf::ir;
using ir::OpKind;
using ir::Program;
using kerf::f32;
using kerf::i32;
using kerf::test::usage_error;

namespace {

constexpr const char* sample = R"(program sample
axis N
axis V = 64
axis D = 32
list kept : [N by 4, V by 16]
input x : f32 [N, D]
input c : bf16 [V, D]
input dz : f32 kept [N, V]
output y : f32 [N, D]
{
  %n = parallel N by 4 : block<N:4>
  %d = whole D : block<D:32>
  %zero = const 0 : f32
  %start = splat %zero : tile<N:4, f32>
  %x = load x [%n, %d] fill %zero : tile<N:4 x D:32, f32>
  %sum = loop V by 16 [%v : block<V:16>] (%acc = %start) {
    %c = load c [%v, %d] : tile<V:16 x D:32, bf16>
    %c32 = cast %c : tile<V:16 x D:32, f32>
    %z = dot %x, %c32 : tile<N:4 x V:16, f32>
    %m = reduce_max %z over V : tile<N:4, f32>
    %next = max %acc, %m : tile<N:4, f32>
    yield %next
  } : tile<N:4, f32>
  %size = size N : i64
  %three = const 3 : i64
  %large = gt %size, %three : bool
  when %large {
    %y = mul %x, %sum : tile<N:4 x D:32, f32>
    store y [%n, %d] %y
    yield
  }
}
)";

ir::Op& find(ir::Program& p, ir::OpKind kind) {
  ir::Op* found = nullptr;
  ir::walk(p.body, [&](ir::Op& op) {
    if (!found && op.kind == kind) found = &op;
  });
  REQUIRE(found);
  return *found;
}

ir::ValueId named(const ir::Program& p, std::string_view name) {
  for (std::size_t i = 0; i < p.value_names.size(); ++i)
    if (p.value_names[i] == name) return static_cast<ir::ValueId>(i);
  FAIL("no value " << name);
  return -1;
}

/// What the verifier says of the sample after `change`.
std::string broken(const std::function<void(ir::Program&)>& change) {
  ir::Program p = ir::parse(sample);
  ir::walk(p.body, [](ir::Op& op) { op.place = {}; });
  change(p);
  return usage_error([&] { ir::verify(p); });
}

}  // namespace

TEST_CASE("verify: the sample is sound") {
  CHECK(broken([](Program&) {}) == "no error");
}

TEST_CASE("verify: an operation is told with its place") {
  CHECK(broken([](Program& p) {
          find(p, OpKind::dot).place = {"loss.cpp", 41};
          find(p, OpKind::dot).operands[1] = named(p, "c");
        }) ==
        "loss.cpp:41: dot: the operands must be of one float dtype: tile<N:4 x D:32, f32> and tile<V:16 x D:32, bf16>");
}

TEST_CASE("verify: values and scopes") {
  CHECK(broken([](Program& p) { find(p, OpKind::max).operands[0] = 1000; }) == "max: there is no value 1000");
  CHECK(broken([](Program& p) { find(p, OpKind::max).operands[0] = -1; }) == "max: there is no value -1");
  CHECK(broken([](Program& p) { find(p, OpKind::max).results[0] = 1000; }) == "max: there is no value 1000");
  CHECK(broken([](Program& p) { find(p, OpKind::reduce_max).operands[0] = named(p, "y"); }) ==
        "reduce_max: %y is used before it is defined");
  CHECK(broken([](Program& p) { find(p, OpKind::mul).operands[1] = named(p, "m"); }) ==
        "mul: %m is used outside the loop or when it was made in");
  CHECK(broken([](Program& p) { find(p, OpKind::max).results[0] = named(p, "m"); }) ==
        "max: value %m is defined twice");
  CHECK(broken([](Program& p) { p.value_names.pop_back(); }).find("value names") != std::string::npos);
}

TEST_CASE("verify: types of results") {
  CHECK(broken([](Program& p) { p.values[static_cast<std::size_t>(named(p, "m"))].dtype = i32; }) ==
        "reduce_max: the result is tile<N:4, f32>, not tile<N:4, i32>");
  CHECK(broken([](Program& p) { find(p, OpKind::max).results.clear(); }) == "max: has 1 results, not 0");
  CHECK(broken([](Program& p) { find(p, OpKind::max).operands.pop_back(); }) == "max: takes 2 operands, not 1");
  CHECK(broken([](Program& p) { find(p, OpKind::constant).results[0] = named(p, "start"); }) ==
        "const: the result must be a scalar, not tile<N:4, f32>; splat spreads it");
  CHECK(broken([](Program& p) {
          std::swap(p.values[static_cast<std::size_t>(named(p, "x"))].axes[0],
                    p.values[static_cast<std::size_t>(named(p, "x"))].axes[1]);
        }) == "load: the result is tile<N:4 x D:32, f32>, not tile<D:32 x N:4, f32>");
}

TEST_CASE("verify: number takes a block and gives a scalar i64") {
  const auto number = [](ir::Type type, const char* of) {
    return broken([&](Program& p) {
      ir::Op op;
      op.kind = OpKind::number;
      op.operands = {named(p, of)};
      op.results = {p.new_value(type, "number")};
      p.body.ops.insert(p.body.ops.begin() + 5, op);
    });
  };
  CHECK(number(ir::tile_type(kerf::i64, {}), "n") == "no error");
  CHECK(number(ir::tile_type(kerf::i64, {}), "d") == "no error");
  CHECK(number(ir::tile_type(kerf::i64, {}), "zero") == "number: operand 0 must be a block, not tile<f32>");
  CHECK(number(ir::tile_type(i32, {}), "n") == "number: the result is tile<i64>, not tile<i32>");
  CHECK(number(ir::tile_type(kerf::i64, {{0, 4}}), "n") == "number: the result is tile<i64>, not tile<N:4, i64>");
  CHECK(number(ir::tile_type(kerf::i64, {}), "v") == "number: %v is used before it is defined");
}

TEST_CASE("verify: structure") {
  CHECK(broken([](Program& p) { std::swap(p.body.ops[0], p.body.ops[1]); }) ==
        "parallel: must come before every other operation");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).regions[0].ops.pop_back(); }) ==
        "loop: its region must end in a yield");
  CHECK(broken([](Program& p) { find(p, OpKind::when).regions[0].ops.clear(); }) ==
        "when: its region must end in a yield");
  CHECK(broken([](Program& p) {
          auto& ops = find(p, OpKind::loop).regions[0].ops;
          ops.insert(ops.begin(), ops.back());
          ops[0].operands = {named(p, "acc")};
        }) == "yield: must end the region of a loop or when");
  CHECK(broken([](Program& p) { p.body.ops.push_back(find(p, OpKind::when).regions[0].ops.back()); }) ==
        "yield: must end the region of a loop or when");
  CHECK(broken([](Program& p) { find(p, OpKind::max).regions.emplace_back(); }) == "max: has 0 regions, not 1");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).regions.clear(); }) == "loop: has 1 regions, not 0");
  CHECK(broken([](Program& p) { p.body.args = {0}; }) == "program sample: the body takes no arguments");
  CHECK(broken([](Program& p) { find(p, OpKind::when).operands[0] = named(p, "size"); }) ==
        "when: the condition must be a scalar bool, not tile<i64>");
}

TEST_CASE("verify: loops") {
  CHECK(broken([](Program& p) { find(p, OpKind::loop).regions[0].args.pop_back(); }) ==
        "loop: its region takes 2 arguments, not 1");
  CHECK(broken([](Program& p) { p.values[static_cast<std::size_t>(named(p, "v"))].axes[0].extent = 8; }) ==
        "loop: argument 0 of its region is block<V:16>, not block<V:8>");
  CHECK(broken([](Program& p) { find(p, OpKind::yield).operands.clear(); }) == "loop: its yield gives 0 values, not 1");
  CHECK(
      broken([](Program& p) { find(p, OpKind::yield).operands[0] = named(p, "z"); }) ==
      "loop: carried tile 0 starts as tile<N:4, f32> and its body gives tile<N:4 x V:16, f32>; both must be the same");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).over = ir::LoopOver::row; }) ==
        "loop: a loop over a row or column names a tile list, and no other loop does");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).list = 0; }) ==
        "loop: a loop over a row or column names a tile list, and no other loop does");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).over = ir::LoopOver::part; }) ==
        "loop: operand 0 must be a block, not tile<N:4, f32>");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).extent = 0; }) ==
        "loop: a block of V must hold 1 to 2147483647 indices, not 0");
}

TEST_CASE("verify: attributes that name nothing") {
  CHECK(broken([](Program& p) { find(p, OpKind::parallel).axis = 7; }) == "parallel: there is no axis 7");
  CHECK(broken([](Program& p) { find(p, OpKind::loop).axis = -1; }) == "loop: there is no axis -1");
  CHECK(broken([](Program& p) { find(p, OpKind::load).tensor = 4; }) == "load: there is no tensor 4");
  CHECK(broken([](Program& p) { find(p, OpKind::parallel).list = 1; }) == "parallel: there is no tile list 1");
  CHECK(broken([](Program& p) { find(p, OpKind::load).tensor = 2; }) ==
        "load: dz is packed; a kept tile of kept is its one subscript");
  CHECK(broken([](Program& p) { find(p, OpKind::whole).extent = 31; }) ==
        "whole: the extent is 31 and the size of D is 32");
}

TEST_CASE("verify: the fill of a load is a constant of the tensor's dtype") {
  CHECK(broken([](Program& p) {
          ir::Op copy = find(p, OpKind::constant);  // any scalar that is not a constant itself
          copy.kind = OpKind::neg;
          copy.operands = {named(p, "zero")};
          copy.results = {p.new_value(ir::tile_type(f32, {}), "minus")};
          p.body.ops.insert(p.body.ops.begin() + 3, copy);
          find(p, OpKind::load).operands[2] = named(p, "minus");
        }) == "load: the fill must be a constant");
  CHECK(broken([](Program& p) { find(p, OpKind::load).operands[2] = named(p, "start"); }).find("are given") !=
        std::string::npos);
}

TEST_CASE("verify: declarations") {
  CHECK(broken([](Program& p) { p.name.clear(); }) == "'' is no name for a program; names are letters, digits and _");
  CHECK(broken([](Program& p) { p.axes[1].name = p.axes[0].name; }) == "program sample: axis N is declared twice");
  CHECK(broken([](Program& p) { p.axes[1].size = 0; }) ==
        "program sample: axis V has size 0; a known size is at least 1");
  CHECK(broken([](Program& p) { p.tensors[0].axes[0] = 9; }) == "program sample: tensor x: there is no axis 9");
  CHECK(broken([](Program& p) { p.tensors[2].list = 9; }) == "program sample: tensor dz: there is no tile list 9");
  CHECK(broken([](Program& p) { p.lists[0].row_axis = -1; }) ==
        "program sample: tile list kept needs two different axes");
}

TEST_CASE("verify: stage and take") {
  const auto staged = [](const std::function<void(Program&, ir::Op&, ir::Op&)>& change) {
    return broken([&](Program& p) {
      ir::Op stage, take;  // x, whole along D in blocks of 8, and one block of it
      stage.kind = OpKind::stage;
      stage.tensor = 0;
      stage.axis = 2;
      stage.extent = 8;
      stage.operands = {named(p, "n")};
      ir::Type type = ir::tile_type(f32, {{0, 4}, {2, 8}});
      type.kind = ir::Type::Kind::staged;
      type.staged_axis = 2;
      stage.results = {p.new_value(type, "staged")};
      ir::Op loop = find(p, OpKind::loop);
      loop.axis = 2;
      loop.extent = 8;
      ir::Type block;
      block.kind = ir::Type::Kind::block;
      block.axes = {{2, 8}};
      loop.regions[0].args = {p.new_value(block, "d8"), p.new_value(ir::tile_type(f32, {{0, 4}}), "acc8")};
      take.kind = OpKind::take;
      take.operands = {stage.results[0], loop.regions[0].args[0]};
      take.results = {p.new_value(ir::tile_type(f32, {{0, 4}, {2, 8}}), "taken")};
      change(p, stage, take);
      ir::Op yield;
      yield.kind = OpKind::yield;
      yield.operands = {loop.regions[0].args[1]};
      loop.regions[0].ops = {take, yield};
      loop.results = {p.new_value(ir::tile_type(f32, {{0, 4}}), "result8")};
      const auto at = p.body.ops.begin() + 4;
      p.body.ops.insert(p.body.ops.insert(at, loop), stage);
    });
  };
  CHECK(staged([](Program&, ir::Op&, ir::Op&) {}) == "no error");
  CHECK(staged([](Program& p, ir::Op& stage, ir::Op&) { stage.operands.push_back(named(p, "zero")); }) == "no error");
  CHECK(staged([](Program&, ir::Op& stage, ir::Op&) { stage.operands.clear(); }) ==
        "stage: x[N, D] takes 1 subscript, 0 are given");
  CHECK(staged([](Program&, ir::Op& stage, ir::Op&) { stage.axis = 1; }) == "stage: x[N, D] has no axis V");
  CHECK(staged([](Program&, ir::Op& stage, ir::Op&) { stage.tensor = 3; }) ==
        "stage: y is an output; declare it inout to read it");
  CHECK(staged([](Program&, ir::Op& stage, ir::Op&) { stage.extent = 16; }) ==
        "stage: the result is staged<N:4 x D/16, f32>, not staged<N:4 x D/8, f32>");
  CHECK(staged([](Program& p, ir::Op&, ir::Op& take) { take.operands[1] = named(p, "d"); }) ==
        "take: staged<N:4 x D/8, f32> is taken by a block<D:8>, not by block<D:32>");
  CHECK(staged([](Program& p, ir::Op&, ir::Op& take) { take.operands[0] = named(p, "start"); }) ==
        "take: operand 0 must be staged, not tile<N:4, f32>");
}
