// Random programs through the text form and through the interpreter.
#include <doctest/doctest.h>

#include <set>
#include <string>

#include "lib/ir/ir.h"
#include "lib/passes/passes.h"
#include "tests/support/random_program.h"

using namespace kerf;

TEST_CASE("random programs: text and back is the same text, and the program that comes back does the same") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    test::RandomProgram recorded = test::random_program(seed);
    const std::string text = ir::print(recorded.program.ir());
    CAPTURE(text);
    const ir::Program parsed = ir::parse(text);
    CHECK(ir::print(parsed) == text);
    test::RandomProgram again = recorded;
    ir::interpret(recorded.program.ir(), ir::bind(recorded.program.ir(), recorded.args()));
    ir::interpret(parsed, ir::bind(parsed, again.args()));
    CHECK(recorded.difference(again) == "");
  }
}

TEST_CASE("random programs: each pass, and all of them in order, leave what a program does") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    test::RandomProgram recorded = test::random_program(seed);
    const ir::Program& p = recorded.program.ir();
    const auto run = [&](const ir::Program& q) {
      test::RandomProgram copy = recorded;
      ir::interpret(q, ir::bind(q, copy.args()));
      return copy;
    };
    const test::RandomProgram expected = run(p);
    passes::pipeline(p, true, [&](std::string_view pass, const ir::Program& after) {
      CAPTURE(pass);
      ir::verify(after);
      const std::string text = ir::print(after);
      CAPTURE(text);
      CHECK(ir::print(ir::parse(text)) == text);
      CHECK(expected.difference(run(after)) == "");
    });
  }
}

TEST_CASE("random programs: together they have every operation, both before and after the passes") {
  std::set<ir::OpKind> recorded, optimized;
  std::set<ir::LoopOver> loops;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const test::RandomProgram r = test::random_program(seed);
    ir::walk(r.program.ir().body, [&](const ir::Op& op) {
      recorded.insert(op.kind);
      if (op.kind == ir::OpKind::loop) loops.insert(op.over);
    });
    const ir::Program after = passes::pipeline(r.program.ir());
    ir::walk(after.body, [&](const ir::Op& op) { optimized.insert(op.kind); });
  }
  CHECK(loops.size() == 4);
  for (int k = 0; k <= static_cast<int>(ir::OpKind::running_sum); ++k) {
    const auto kind = static_cast<ir::OpKind>(k);
    CAPTURE(ir::info(kind).text);
    const bool from_passes_only = kind == ir::OpKind::stage || kind == ir::OpKind::take;
    CHECK(recorded.contains(kind) != from_passes_only);
    CHECK(optimized.contains(kind));
  }
}
