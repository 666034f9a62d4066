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
#include "tests/cuda/fake.h"

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

TEST_CASE("cache key: other processes find the same") {
  const Key key = example();
  CHECK(run_helper("key").out == fmt::format("{}\n", codegen::to_hex(cache::digest(key))));

  std::string here;
  const runtime::LossPrograms programs({1000, 64, bf16}, nullptr);
  for (runtime::LossProgram which : programs.all()) {
    const ir::Program program = passes::pipeline(programs.record(which).ir(), true);
    here +=
        fmt::format("{} {}\n", program.name,
                    codegen::to_hex(cache::digest(cache::key_of(program, Target::host(), programs.schedule(which)))));
  }
  CHECK(run_helper("keys").out == here);
  const Variable home("HOME", "/elsewhere"), language("LC_ALL", "de_DE.UTF-8"), threads("KERF_NUM_THREADS", "3");
  CHECK(run_helper("keys").out == here);
}

TEST_CASE("cache key: an option of a plan that changes its code compiles anew, others find the same") {
  using Change = std::function<void(PlanDesc&)>;
  const auto check = [](const PlanDesc& base, const std::vector<std::pair<std::string, Change>>& all, bool anew) {
    const auto cache = no_folder();
    Plan(base, {.cache = cache}).prepare();
    for (const auto& [name, change] : all) {
      PlanDesc desc = base;
      change(desc);
      CAPTURE(name);
      const std::int64_t before = cache->status().compiled;
      Plan(desc, {.cache = cache}).prepare();
      CHECK((cache->status().compiled > before) == anew);
    }
  };
  const std::vector<std::pair<std::string, Change>> to_code = {
      {"hidden", [](PlanDesc& d) { d.hidden = 72; }},
      {"vocabulary", [](PlanDesc& d) { d.vocabulary = 999; }},
      {"dtype bf16", [](PlanDesc& d) { d.dtype = bf16; }},
      {"dtype f16", [](PlanDesc& d) { d.dtype = f16; }},
      {"filter", [](PlanDesc& d) { d.filter = Filter::mass; }},
      {"strategy", [](PlanDesc& d) { d.strategy = Strategy::dense; }},
  };
  const std::vector<std::pair<std::string, Change>> beside_code = {
      {"reduction", [](PlanDesc& d) { d.reduction = Reduction::none; }},
      {"ignore_index", [](PlanDesc& d) { d.ignore_index = 5; }},
      {"workspace_limit", [](PlanDesc& d) { d.workspace_limit = 1 << 20; }},
      {"threads", [](PlanDesc& d) { d.threads = 3; }},
  };
  check({.hidden = 64, .vocabulary = 1000}, to_code, true);
  check({.hidden = 64, .vocabulary = 1000, .strategy = Strategy::exact_recompute}, beside_code, false);
}

TEST_CASE("cache key: a schedule that changes code compiles anew") {
  const Fake fake("8.0");
  const auto cache = no_folder();
  const kernels::Shape shape{1000, 64, f32};
  const Program on_cpu = runtime::LossPrograms(shape, nullptr).record(runtime::LossProgram::grad_c);
  const Target target = Target::cuda("sm_80");
  const Program on_gpu =
      runtime::DevicePrograms({.hidden = 64, .vocabulary = 1000}, runtime::choose_plain_blocks(shape), target, true)
          .record(runtime::DeviceProgram::lse_forward);
  std::vector<Kernel> held;  // what is on a device is kept in memory no longer than that
  const auto compiled = [&](const Program& program, const Target& target, Device device, const Schedule& schedule) {
    const std::int64_t before = cache->status().compiled;
    held.push_back(compile(program, target, schedule, device, cache));
    return cache->status().compiled - before;
  };
  for (const Schedule& s :
       {Schedule{}, Schedule{.dot_rows = 2}, Schedule{.dot_vectors = 1}, Schedule{.stage = false}}) {
    CHECK(compiled(on_cpu, Target::host(), {}, s) == 1);
    CHECK(compiled(on_cpu, Target::host(), {}, s) == 0);
  }
  for (const Schedule& s : {Schedule{}, Schedule{.stages = 2}, Schedule{.stages = 3}, Schedule{.band = 4}}) {
    CHECK(compiled(on_gpu, target, {DeviceType::cuda, 0}, s) > 0);
    CHECK(compiled(on_gpu, target, {DeviceType::cuda, 0}, s) == 0);
  }
}

}  // namespace kerf::test
