// Passes on whole programs: those of the loss.
#include <doctest/doctest.h>

#include "lib/kernels/kernels.h"
#include "lib/passes/passes.h"
#include "tests/lib/passes/same_meaning.h"

namespace kerf {

namespace {

/// Every program of the loss; blocks divide neither V nor D, or both.
std::vector<Program> loss_programs(DType dtype, bool divides) {
  const kernels::Shape s{.vocabulary = divides ? 32 : 27, .hidden = divides ? 24 : 19, .dtype = dtype};
  const kernels::Blocks b{.n = 4, .v = 8, .d = 8, .split = 2};
  return {kernels::lse_forward(s, b),          kernels::combine(4, 2),
          kernels::grad_tiles(s, b),           kernels::grad_e(s, b, false, false),
          kernels::grad_e(s, b, true, true),   kernels::grad_e(s, b, true, false),
          kernels::grad_c(s, b, dtype, false), kernels::grad_c(s, b, DType::f32, true)};
}

int count(const ir::Program& p, ir::OpKind kind) {
  int n = 0;
  ir::walk(p.body, [&](const ir::Op& op) { n += op.kind == kind; });
  return n;
}

}  // namespace

TEST_CASE("passes: the programs of the loss compute the same after each pass") {
  for (bool divides : {false, true})
    for (const Program& program : loss_programs(f32, divides)) {
      CAPTURE(program.name());
      for (const passes::NamedPass& pass : passes::all()) {
        CAPTURE(pass.name);
        ir::Program after = program.ir();
        passes::run_pass(after, pass);
        test::check_same_meaning(program.ir(), after, 6);
      }
    }
}

TEST_CASE("pipeline: every sum of products in the loss ends up in its dot") {
  for (DType dtype : {f32, bf16, f16})
    for (const Program& program : loss_programs(dtype, false)) {
      CAPTURE(program.name());
      const ir::Program after = passes::pipeline(program.ir());
      CHECK(test::accumulating_dots(after) == count(program.ir(), ir::OpKind::dot));
    }
}

TEST_CASE("pipeline: blocks that divide the vocabulary leave no mask and no where on it in the logits") {
  const kernels::Blocks b{.n = 4, .v = 8, .d = 8, .split = 2};
  const auto masks = [&](std::int64_t vocabulary) {
    return count(passes::pipeline(kernels::lse_forward({vocabulary, 19, f32}, b).ir()), ir::OpKind::in_bounds);
  };
  CHECK(masks(32) == 0);
  CHECK(masks(27) == 1);
}

TEST_CASE("pipeline: lse_forward keeps the rows of e for all blocks of the vocabulary; without staging it does not") {
  const Program forward = kernels::lse_forward({27, 19, f32}, {.n = 4, .v = 8, .d = 8, .split = 2});
  CHECK(count(passes::pipeline(forward.ir()), ir::OpKind::stage) == 1);
  CHECK(count(passes::pipeline(forward.ir(), false), ir::OpKind::stage) == 0);
  test::check_same_meaning(passes::pipeline(forward.ir(), false), passes::pipeline(forward.ir()));
}

TEST_CASE("pipeline: shows the program after each pass, in order") {
  std::vector<std::string> names, expected;
  for (const passes::NamedPass& pass : passes::all()) expected.emplace_back(pass.name);
  passes::pipeline(kernels::combine(4, 2).ir(), true, [&](std::string_view pass, const ir::Program& p) {
    names.emplace_back(pass);
    CHECK(p.name == "combine");
  });
  CHECK(names == expected);
}

}  // namespace kerf
