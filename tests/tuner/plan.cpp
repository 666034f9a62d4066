// Plans that take their blocks from the caller or from wisdom.
#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "kerf/error.h"
#include "runtime/loss_parts.h"
#include "runtime/processors.h"
#include "tests/loss/loss_case.h"

using namespace kerf;
using namespace kerf::test;
using runtime::LossPart;

namespace {

PlanDesc small(DType dtype = f32) {
  return {.hidden = 40, .vocabulary = 300, .dtype = dtype, .threads = 2, .tuning = Tuning::lookup};
}

TunePoint point(const PlanDesc& desc, LossPart part) { return runtime::default_point(desc, Target::host(), part, 100); }

WisdomRecord record(const PlanDesc& desc, LossPart part, TunePoint p, std::int64_t tokens, double ms) {
  WisdomRecord r;
  r.key = runtime::loss_key(desc, Target::host(), part, tokens, desc.threads);
  r.validators = validators_of();
  r.parameters = to_wisdom(p);
  r.median_ms = ms, r.samples = 9;
  return r;
}

Shared knowing(const std::vector<WisdomRecord>& records) {
  Wisdom wisdom;
  for (const WisdomRecord& r : records) wisdom.add(r);
  auto layers = std::make_shared<WisdomLayers>();
  layers->put_first("test", wisdom);
  return {.wisdom = layers};
}

void check_right(LossCase& c, Plan& plan) {
  c.run_forward(plan);
  c.run_backward(plan);
  c.check();
}

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("plan: blocks that are given are used, and the results are right") {
    for (const DType dtype : {f32, bf16}) {
      PlanDesc desc = small(dtype);
      Shared shared;
      TunePoint forward = point(desc, LossPart::forward), backward = point(desc, LossPart::backward);
      forward["n"] = 64, forward["v"] = 64, forward["split"] = 2, forward["rows"] = 4, forward["vectors"] = 3;
      forward["stage"] = 1 - forward["stage"];
      backward["n"] = 128, backward["v"] = 192, backward["rows"] = 4, backward["vectors"] = 1;
      shared.blocks = {.forward = to_wisdom(forward), .backward = to_wisdom(backward)};
      Plan plan(desc, shared);
      CHECK(plan.report(100).forward_from == "given");
      CHECK(plan.report(100).blocks == "n=64 v=64 d=48");
      LossCase c({100, 300, 40}, desc);
      check_right(c, plan);
    }
  }

  TEST_CASE("plan: filtered blocks are shared by both directions, and block_lse goes by them") {
    PlanDesc desc = small();
    desc.strategy = Strategy::filtered;
    TunePoint p = point(desc, LossPart::filtered);
    p["v"] = 64, p["bn"] = 64, p["n"] = 128, p["split"] = 1;
    Shared shared;
    shared.blocks = {.filtered = to_wisdom(p)};
    Plan plan(desc, shared);
    CHECK(plan.block_lse_shape(100)[0] == (300 + 63) / 64);
    CHECK(plan.report(100).backward_from == "given");
    for (const std::int64_t rows : {100, 1, 0}) {
      CAPTURE(rows);
      LossCase c({rows, 300, 40}, desc);
      c.filter(plan);
      c.run_forward(plan);
      c.poison_backward();
      const Workspace w(plan.workspace_bytes(rows, true));
      plan.backward(c.backward_args(w));
      const FilterReport report = plan.filter_report(w.ref());
      const std::int64_t valid = std::count_if(c.label.begin(), c.label.end(), [](auto y) { return y >= 0; });
      CHECK(report.tiles == 5 * ((valid + 63) / 64));
      CHECK(report.kept <= report.tiles);
    }
  }

  TEST_CASE("plan: blocks that are none of the plan's are refused") {
    Shared shared;
    TunePoint p = point(small(), LossPart::forward);
    p["n"] = 100;
    shared.blocks = {.forward = to_wisdom(p)};
    CHECK_THROWS_AS(Plan(small(), shared), UsageError);
    shared.blocks = {.filtered = to_wisdom(p)};
    CHECK_THROWS_WITH_AS(Plan(small(), shared), doctest::Contains("the blocks given for its filtered part"),
                         UsageError);
  }

  TEST_CASE("plan: wisdom's winner is taken, of the nearest bucket where its own is not known") {
    const PlanDesc desc = small();
    TunePoint fast = point(desc, LossPart::forward), slow = fast;
    fast["n"] = 64;
    Plan plan(desc,
              knowing({record(desc, LossPart::forward, slow, 512, 2), record(desc, LossPart::forward, fast, 512, 1)}));
    CHECK(plan.report(500).forward_from == "wisdom");
    CHECK(plan.report(500).backward_from == "default");
    CHECK(plan.report(500).blocks.starts_with("n=64 "));
    CHECK(plan.report(100).forward_from == "nearest bucket");
    PlanDesc off = desc;
    off.tuning = Tuning::off;
    CHECK(Plan(off, knowing({record(desc, LossPart::forward, fast, 512, 1)})).report(500).forward_from == "default");
    LossCase c({100, 300, 40}, desc);
    check_right(c, plan);
  }

  TEST_CASE("plan: a winner of wisdom outside the space is refused with the reason") {
    const PlanDesc desc = small();
    TunePoint p = point(desc, LossPart::backward);
    p["n"] = 100;
    Plan plan(desc, knowing({record(desc, LossPart::backward, p, 512, 1)}));
    const PlanReport report = plan.report(512);
    CHECK(report.backward_from == "default");
    REQUIRE(report.notes.size() == 1);
    CHECK(report.notes[0].find("n=100 is not in the space") != std::string::npos);
  }

  TEST_CASE("plan: wisdom of another machine is no choice") {
    const PlanDesc desc = small();
    WisdomRecord r = record(desc, LossPart::forward, point(desc, LossPart::forward), 512, 1);
    r.validators.units += 1;
    CHECK(Plan(desc, knowing({r})).report(512).forward_from == "default");
  }

  TEST_CASE("plan: a lookup compiles nothing and times nothing") {
    const PlanDesc desc = small();
    Shared shared = knowing({record(desc, LossPart::forward, point(desc, LossPart::forward), 512, 1)});
    shared.cache = std::make_shared<CodeCache>(CacheOptions{});
    Plan plan(desc, shared);
    CHECK(plan.report(512).forward_from == "wisdom");
    CHECK(plan.workspace_bytes(512, true) > 0);
    CHECK(shared.cache->status().compiled == 0);
  }

  TEST_CASE("plan: 32 threads that ask a cold plan at once compile each program once") {
    const PlanDesc desc = small();
    TunePoint p = point(desc, LossPart::forward);
    p["n"] = 64;
    Shared shared = knowing({record(desc, LossPart::forward, p, 128, 1)});
    shared.cache = std::make_shared<CodeCache>(CacheOptions{});
    Plan plan(desc, shared);
    const LossCase proto({100, 300, 40}, desc);
    std::vector<LossCase> cases(32, proto);
    {
      std::vector<std::jthread> threads;
      for (LossCase& c : cases) threads.emplace_back([&] { c.run_forward(plan); });
    }
    CHECK(shared.cache->status().compiled == 2);  // lse_forward, combine
    for (const LossCase& c : cases) CHECK(c.loss[0] == cases[0].loss[0]);
  }

  TEST_CASE("plan: prepare for numbers of tokens leaves nothing to compile to their calls") {
    const PlanDesc desc = small();
    TunePoint p = point(desc, LossPart::forward);
    p["n"] = 64;
    Shared shared = knowing({record(desc, LossPart::forward, p, 128, 1)});
    shared.cache = std::make_shared<CodeCache>(CacheOptions{});
    Plan plan(desc, shared);
    plan.prepare({100});
    const std::int64_t compiled = shared.cache->status().compiled;
    LossCase c({100, 300, 40}, desc);
    c.run_forward(plan);
    CHECK(shared.cache->status().compiled == compiled);
  }

  TEST_CASE("plan: where tokens are few, the default has blocks as short, on the CPU") {
    for (const DType dtype : {f32, bf16}) {
      PlanDesc desc = small(dtype);
      desc.tuning = Tuning::off;
      Plan plan(desc);
      for (const auto& [tokens, rows] : {std::pair(1, 16), std::pair(16, 16), std::pair(17, 32), std::pair(60, 64),
                                         std::pair(100, 128), std::pair(129, 256), std::pair(1000, 256)}) {
        CAPTURE(tokens);
        CHECK(plan.report(tokens).blocks.starts_with("n=" + std::to_string(rows) + " "));
        CHECK(plan.report(tokens).forward_from == "default");
        LossCase c({tokens, 300, 40}, desc);
        check_right(c, plan);
      }
      CHECK(plan.workspace_bytes(60, true) < plan.workspace_bytes(200, true));
    }
  }

  TEST_CASE("plan: every default is in its space, on a CPU and on GPUs") {
    for (const DType dtype : {f32, bf16, f16})
      for (const auto& [D, V] : {std::pair(768, 50257), std::pair(2304, 256000), std::pair(7, 5), std::pair(64, 100)})
        for (const Strategy strategy : {Strategy::filtered, Strategy::min_memory})
          for (const std::int64_t tokens : {1, 20, 100, 512, 8192})
            for (const Target& target : {Target::host(), Target::cuda("sm_80"), Target::cuda("sm_90a")}) {
              PlanDesc desc{.hidden = D, .vocabulary = V, .dtype = dtype, .strategy = strategy};
              if (target.is_cuda()) desc.device = {DeviceType::cuda, 0}, desc.arch = target.cpu;
              for (const LossPart part : {LossPart::forward, LossPart::backward, LossPart::filtered}) {
                if (!runtime::has_part(desc, part)) continue;
                const TunePoint p = runtime::default_point(desc, target, part, tokens);
                CAPTURE(describe(p));
                CAPTURE(target.cpu);
                CHECK(runtime::loss_space(desc, target, part).refusal(p) == "");
                const double ms = runtime::predicted_ms(desc, target, {.units = 2}, part, tokens, p);
                CHECK(ms > 0);
                CHECK(ms < 1e9);
              }
            }
  }
}
