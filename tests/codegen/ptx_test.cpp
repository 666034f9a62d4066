// Every program of the loss and random ones as PTX, for each architecture and dtype; assembled by ptxas where a toolkit
// is installed. A GPU is not needed.
#include <doctest/doctest.h>

#include <string>

#include "kerf/kernel.h"
#include "lib/kernels/kernels.h"
#include "runtime/device_programs.h"
#include "tests/support/random_program.h"
#include "tools/support/ptxas.h"

using namespace kerf;

namespace {

/// What ptxas says about the text, an empty string without ptxas.
std::string assembled(const std::string& ptx, const std::string& arch) {
  const std::string ptxas = tools::find_ptxas();
  if (ptxas.empty()) return "";
  const tools::Assembled result = tools::assemble(ptxas, ptx, arch);
  CHECK(result.ok);
  return result.said;
}

/// Assembles, keeps everything in registers, and lets products of tensor cores overlap.
void check_assembly(const Program& p, const std::string& text, const std::string& arch) {
  const std::string said = assembled(text, arch);
  CAPTURE(arch);
  CAPTURE(p.name());
  CAPTURE(said);
  for (const char* word : {"error", "C7508", "C7514", "C7517", "C7519"}) CHECK(said.find(word) == std::string::npos);
  if (!said.empty())
    CHECK(said.find(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") != std::string::npos);
}

bool has(const std::string& text, const std::string& word) { return text.find(word) != std::string::npos; }

}  // namespace

TEST_CASE("ptx: the programs of the loss assemble for the oldest architecture and multiply with mma.sync") {
  if (tools::find_ptxas().empty()) MESSAGE("SKIPPED in part, no ptxas: the PTX is made but not assembled");
  for (DType t : {f32, bf16, f16}) {
    const kernels::Shape shape{.vocabulary = 50257, .hidden = 333, .dtype = t};
    const kernels::Blocks blocks{.n = 64, .v = 64, .d = 64, .split = 16};
    for (const Program& p :
         {kernels::lse_forward(shape, blocks), kernels::lse_forward(shape, blocks, kernels::BlockStatistic::lse),
          kernels::combine(128, 8), kernels::grad_tiles(shape, blocks), kernels::grad_tiles(shape, blocks, true),
          kernels::grad_e(shape, blocks, true, false), kernels::grad_c(shape, blocks, t, true)}) {
      const std::string text = emit(p, Stage::assembly, Target::cuda("sm_80"));
      CHECK(has(text, "mma.sync.aligned.m16n8k16") == (t != f32 && p.name() != "combine"));
      check_assembly(p, text, "sm_80");
    }
  }
}

TEST_CASE("ptx: on sm_90a products of bf16 and f16 are read by TMA and multiplied by wgmma") {
  if (tools::find_ptxas().empty()) MESSAGE("SKIPPED in part, no ptxas: the PTX is made but not assembled");
  for (DType t : {bf16, f16})
    for (std::int64_t V : {256000, 50257}) {
      const kernels::Shape shape{.vocabulary = V, .hidden = 2304, .dtype = t, .compact = true};
      const kernels::Blocks logits{.n = 128, .v = 256, .d = 64, .split = 8},
          wide{.n = 192, .v = 256, .d = 64, .split = 8};
      const kernels::Blocks small{.n = 64, .v = 64, .d = 64, .split = 1};
      const kernels::Blocks rows{.n = 128, .v = 256, .d = 256, .split = 1},
          columns{.n = 128, .v = 256, .d = 128, .split = 1};
      for (const Program& p :
           {kernels::lse_forward(shape, logits, kernels::BlockStatistic::lse),
            kernels::lse_forward(shape, wide, kernels::BlockStatistic::lse),
            kernels::lse_forward(shape, wide, kernels::BlockStatistic::largest),
            kernels::grad_tiles(shape, logits, true), kernels::lse_forward(shape, logits),
            kernels::lse_forward(shape, wide), kernels::lse_forward(shape, small), kernels::grad_tiles(shape, logits),
            kernels::grad_tiles(shape, small), kernels::lse_tiles(shape, logits, true),
            kernels::lse_tiles(shape, logits, false), kernels::grad_e(shape, rows, false, false),
            kernels::grad_e(shape, rows, true, true), kernels::grad_c(shape, columns, t, false),
            kernels::grad_c(shape, columns, f32, true), kernels::grad_c_parts(shape, columns)}) {
        const std::string text = emit(p, Stage::assembly, Target::cuda("sm_90a"));
        CHECK(has(text, "wgmma.mma_async.sync.aligned"));
        CHECK(has(text, "cp.async.bulk.tensor.2d.shared::cluster.global"));
        CHECK(has(text, "stmatrix.sync.aligned.m8n8.x4.trans") ==
              (p.name() == "grad_tiles" || p.name() == "stash_tiles"));
        // Gradients leave in whole sectors: 16 bytes a thread, or two f32.
        if (p.name().starts_with("grad_e") || p.name().starts_with("grad_c"))
          CHECK((has(text, "st.global.v4.b32") || has(text, "st.global.v2.f32")));
        check_assembly(p, text, "sm_90a");
      }
    }
}

TEST_CASE("ptx: sums that begin with what a ragged tensor holds keep everything in registers") {
  const kernels::Blocks rows{.n = 128, .v = 256, .d = 256, .split = 1},
      columns{.n = 128, .v = 256, .d = 128, .split = 1};
  for (DType t : {bf16, f16})
    for (const auto& [vocabulary, hidden] : {std::pair<std::int64_t, std::int64_t>(255999, 2303), {50257, 333}}) {
      const kernels::Shape shape{.vocabulary = vocabulary, .hidden = hidden, .dtype = t, .compact = true};
      for (const std::string arch : {"sm_90a", "sm_80"})
        for (const Program& p :
             {kernels::grad_e(shape, rows, true, true, true), kernels::grad_c(shape, columns, t, true),
              kernels::grad_c(shape, columns, f32, true)}) {
          const std::string text = emit(p, Stage::assembly, Target::cuda(arch));
          CHECK(has(text, "wgmma.mma_async.sync.aligned") == (arch == "sm_90a"));
          CAPTURE(hidden);
          CAPTURE(name_of(t));
          check_assembly(p, text, arch);
        }
    }
}

TEST_CASE("ptx: what is stored before a sum is made is not what the sum reads") {
  const auto text = [](bool store_first) {
    ProgramBuilder p("late");
    const Axis N = p.axis("N");
    const Tensor x = p.input("x", f32, {N}), sum = p.inout("sum", f32, {N}), y = p.output("y", f32, {N});
    const Block n = p.parallel(N, 256);
    const Tile held = load(sum, n), more = load(x, n);
    if (store_first) store(sum, n, more);
    const Tile total = exp(more) + held;
    store(y, n, total);
    if (!store_first) store(sum, n, total);
    return emit(p.finish(), Stage::assembly, Target::cuda("sm_80"));
  };
  for (const bool store_first : {true, false}) {
    const std::string ptx = text(store_first);
    CHECK(ptx.rfind("ld.global") < ptx.find("st.global"));
    CHECK(ptx.find("st.global") != std::string::npos);
    // exp comes before the read that is added to it, unless something is stored.
    CHECK((ptx.find("ex2.approx") < ptx.rfind("ld.global")) == !store_first);
  }
}

TEST_CASE("ptx: on sm_90a what the product does not fit is multiplied as on older GPUs") {
  const kernels::Shape shape{.vocabulary = 1000, .hidden = 128, .dtype = bf16, .compact = true};
  const auto text = [](const Program& p) { return emit(p, Stage::assembly, Target::cuda("sm_90a")); };
  const auto scattered = [](kernels::Shape s) { return s.compact = false, s; };
  const auto single = [](kernels::Shape s) { return s.dtype = f32, s; };
  const kernels::Blocks good{.n = 64, .v = 64, .d = 64, .split = 1}, short_steps{.n = 64, .v = 64, .d = 32, .split = 1};
  CHECK(has(text(kernels::lse_forward(shape, good)), "wgmma"));
  CHECK(!has(text(kernels::lse_forward(scattered(shape), good)), "wgmma"));
  CHECK(!has(text(kernels::lse_forward(single(shape), short_steps)), "wgmma"));
  CHECK(!has(text(kernels::lse_forward(shape, short_steps)), "wgmma"));

  // Of 192 rows three warpgroups have a third each; a sum over them would ask a fourth.
  const auto sums = [](bool over_rows) {
    ProgramBuilder p("sums");
    const Axis N = p.axis("N"), V = p.axis("V", 1000), D = p.axis("D", 128);
    const Tensor e = p.input("e", bf16, {N, D}), c = p.input("c", bf16, {V, D}), y = p.output("y", f32, {N, V});
    const Block n = p.parallel(N, 192), v = p.parallel(V, 64);
    const Tile z =
        p.loop(D, 64, zeros(n, v), [&](Block d, Tile acc) { return acc + dot(load(e, n, d), load(c, v, d)); });
    store(y, n, v, z - reduce_sum(z, over_rows ? N : V));
    return p.finish();
  };
  CHECK(has(text(sums(false)), "wgmma"));
  CHECK(!has(text(sums(true)), "wgmma"));
}

TEST_CASE("ptx: packed tiles that no dot multiplies are read and written two elements at a time") {
  for (const std::string arch : {"sm_80", "sm_90a"})
    for (DType t : {f32, bf16, f16}) {
      const kernels::Shape shape{.vocabulary = 50257, .hidden = 64, .dtype = t, .compact = true};
      const kernels::Blocks large{.n = 128, .v = 256, .d = 64, .split = 1},
          small{.n = 64, .v = 64, .d = 64, .split = 1};
      const Program p = kernels::dz_of_stash(shape, t == f32 ? small : large);
      const std::string text = emit(p, Stage::assembly, Target::cuda(arch));
      CHECK(has(text, t == f32 ? "ld.global.v2.f32" : "ld.global.b32"));
      CHECK(!has(text, "ld.global.b16"));
      // In place: every thread has read before one writes.
      CHECK(text.rfind("bar.sync") > text.rfind("ld.global"));
      CHECK(text.rfind("bar.sync") < text.find("st.global"));
      check_assembly(p, text, arch);
    }
}

TEST_CASE("ptx: every program of a loss on a device assembles and keeps everything in registers") {
  for (const std::string arch : {"sm_80", "sm_90a"})
    for (DType t : {f32, bf16, f16})
      for (std::int64_t V : {256000, 100}) {
        const PlanDesc desc{.hidden = 2304, .vocabulary = V, .dtype = t, .shift = 1};
        const Target target = Target::cuda(arch);
        const kernels::Shape shape{V, 2304, t};
        const runtime::DevicePrograms programs(desc,
                                               runtime::reads_in_boxes(desc, target)
                                                   ? runtime::choose_boxed_blocks(shape, target)
                                                   : runtime::choose_plain_blocks(shape),
                                               target);
        for (runtime::DeviceProgram which : programs.all()) {
          CAPTURE(runtime::DevicePrograms::name(which));
          const Program p = programs.record(which);
          check_assembly(p, emit(p, Stage::assembly, target), arch);
        }
      }
}

TEST_CASE("ptx: random programs assemble for the oldest and the newest architecture") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const Target target = Target::cuda(seed % 2 ? "sm_90a" : "sm_80");
    CAPTURE(seed);
    const std::string said = assembled(emit(test::random_program(seed).program, Stage::assembly, target), target.cpu);
    CAPTURE(said);
    CHECK(said.find("error") == std::string::npos);
  }
}
