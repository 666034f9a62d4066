// What tells one kept piece of code from another.
#include "runtime/cache/key.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <functional>
#include <map>
#include <set>

#include "codegen/cpu/jit.h"
#include "codegen/nvptx/ptx.h"
#include "kerf/loss.h"
#include "lib/passes/passes.h"
#include "runtime/device_programs.h"
#include "runtime/loss_programs.h"
#include "tests/cache/support.h"

namespace kerf::test {

namespace {

using cache::Key;

Key example() { return cache::key_of(scale(2).ir(), Target::host(), {}); }

/// One for each of cache::fields, which does not compile without all of them.
std::vector<std::function<void(Key&)>> changes() {
  return {
      [](Key& k) { ++k.format; },
      [](Key& k) { k.kerf += "x"; },
      [](Key& k) { k.llvm += "x"; },
      [](Key& k) { k.program += "x"; },
      [](Key& k) { k.ir[31] ^= 1; },
      [](Key& k) { ++k.schedule.dot_rows; },
      [](Key& k) { ++k.schedule.dot_vectors; },
      [](Key& k) { k.schedule.stage = !k.schedule.stage; },
      [](Key& k) { ++k.schedule.stages; },
      [](Key& k) { ++k.schedule.band; },
      [](Key& k) { k.target.triple += "x"; },
      [](Key& k) { k.target.cpu += "x"; },
      [](Key& k) { k.target.features += "x"; },
      [](Key& k) { k.any_stride = !k.any_stride; },
      [](Key& k) { ++k.driver; },
      [](Key& k) { ++k.capability; },
  };
}

std::vector<PlanDesc> many_plans() {
  std::vector<PlanDesc> all;
  for (DType dtype : {f32, bf16, f16})
    for (std::int64_t hidden : {64, 72, 333})
      for (std::int64_t vocabulary : {1000, 50257})
        for (Filter filter : {Filter::off, Filter::mass}) {
          PlanDesc d;
          d.hidden = hidden;
          d.vocabulary = vocabulary;
          d.dtype = dtype;
          d.filter = filter;
          all.push_back(d);
        }
  return all;
}

}  // namespace

TEST_CASE("cache key: another value of any field is another key") {
  const Key key = example();
  std::set<std::string> digests{codegen::to_hex(cache::digest(key))};
  const auto all = changes();
  CHECK(all.size() == cache::fields(key).size());
  for (const auto& change : all) {
    Key changed = key;
    change(changed);
    CHECK(cache::to_text(changed) != cache::to_text(key));
    CHECK(digests.insert(codegen::to_hex(cache::digest(changed))).second);
  }
}

TEST_CASE("cache key: a value cannot look like the next field") {
  Key a = example(), b = a;
  a.target.cpu.assign("x\nfeatures: y");
  b.target.cpu.assign(1, 'x');
  b.target.features = fmt::format("y\nfeatures: {}", a.target.features);
  CHECK(cache::digest(a) != cache::digest(b));
}

TEST_CASE("cache key: sm_90a is not sm_90") {
  const ir::Program program = scale(2).ir();
  CHECK(cache::digest(cache::key_of(program, Target::cuda("sm_90"), {})) !=
        cache::digest(cache::key_of(program, Target::cuda("sm_90a"), {})));
}

TEST_CASE("cache key: no two programs of any plan share one, and equal programs have the same") {
  std::map<std::string, std::string> text_of;  // by digest
  std::set<std::string> texts;
  for (const PlanDesc& desc : many_plans()) {
    const Plan plan(desc, {.cache = no_folder()});
    for (const std::string& name : plan.program_names()) {
      const ir::Program program = ir::parse(plan.emit(name, Stage::tile), name);
      const std::string text = ir::print(program);
      texts.insert(text);
      const auto [at, fresh] =
          text_of.emplace(codegen::to_hex(cache::digest(cache::key_of(program, Target::host(), {}))), text);
      CHECK((fresh || at->second == text));
    }
  }
  CHECK(text_of.size() == texts.size());
  CHECK(texts.size() > 100);
}

TEST_CASE("cache key: the text of a program has all that code is made from") {
  const auto again = [](const ir::Program& p) { return ir::parse(ir::print(p), p.name); };
  for (DType dtype : {f32, bf16}) {
    const runtime::LossPrograms on_cpu({1000, 64, dtype}, nullptr);
    for (runtime::LossProgram which : on_cpu.all()) {
      const ir::Program program = passes::pipeline(on_cpu.record(which).ir(), true);
      CAPTURE(program.name);
      const auto code = [](const ir::Program& p) {
        return codegen::cpu::emit_text(p, Stage::llvm, Target::host(), {});
      };
      CHECK(code(program) == code(again(program)));
    }
    for (const char* arch : {"sm_80", "sm_90a"}) {
      PlanDesc desc{.hidden = 64, .vocabulary = 1000, .dtype = dtype, .filter = Filter::mass};
      desc.device = {DeviceType::cuda, 0};
      desc.arch = arch;
      const Target target = Target::cuda(arch);
      const kernels::Shape shape{1000, 64, dtype};
      const runtime::DevicePrograms on_gpu(desc,
                                           runtime::reads_in_boxes(desc, target)
                                               ? runtime::choose_boxed_blocks(shape, target)
                                               : runtime::choose_plain_blocks(shape),
                                           target, true);
      for (runtime::DeviceProgram which : on_gpu.all()) {
        const ir::Program program = passes::pipeline(on_gpu.record(which).ir(), false);
        CAPTURE(program.name);
        const auto code = [&](const ir::Program& p) {
          return codegen::nvptx::emit_text(p, Stage::llvm, target, on_gpu.schedule(which));
        };
        CHECK(code(program) == code(again(program)));
      }
    }
  }
}

TEST_CASE("cache key: another process finds the same") {
  const Key key = example();
  CHECK(run_helper("key").out == fmt::format("{}\n", codegen::to_hex(cache::digest(key))));
}

}  // namespace kerf::test
