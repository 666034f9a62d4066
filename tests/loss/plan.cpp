// What a plan promises beside its numbers: workspace, ranges, the same bits whatever the threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "kerf/error.h"
#include "tests/loss/loss_case.h"

using namespace kerf;
using namespace kerf::test;

TEST_CASE("plan: the same bits with 1, 2 and 7 threads and on every call") {
  for (DType dtype : {f32, bf16, f16}) {
    CAPTURE(name_of(dtype));
    LossCase x({300, 1031, 129}, {.dtype = dtype, .workspace_limit = 1 << 20});
    std::vector<std::vector<std::byte>> first;
    for (int threads : {1, 2, 7}) {
      CAPTURE(threads);
      x.desc.threads = threads;
      Plan plan(x.desc);
      for (int call = 0; call < 2; ++call) {
        x.run(plan);
        if (first.empty()) first = x.bits();
        CHECK(x.bits() == first);
      }
    }
    x.check();
  }
}

TEST_CASE("plan: a small workspace_limit makes more ranges and the same gradients") {
  for (DType dtype : {f32, bf16, f16}) {
    CAPTURE(name_of(dtype));
    // Scratch of many threads would leave the limits below nothing to cut.
    LossCase x({200, 3000, 40}, {.dtype = dtype, .threads = 2});
    x.run();
    x.check();
    const auto bits = x.bits();
    Plan wide(x.desc);
    CHECK(wide.report(x.N).ranges == 1);
    std::size_t before = wide.workspace_bytes(x.N, true);
    x.desc.workspace_limit = 1;
    const std::size_t least = Plan(x.desc).workspace_bytes(x.N, true);
    int ranges = 1;
    for (std::size_t limit : {before - 1, least + (before - least) / 4, std::size_t{1}}) {
      CAPTURE(limit);
      x.desc.workspace_limit = limit;
      Plan plan(x.desc);
      const PlanReport report = plan.report(x.N);
      CHECK(report.ranges > ranges);
      CHECK(report.backward_workspace <= before);
      CHECK(report.backward_workspace < wide.workspace_bytes(x.N, true));
      if (limit > 1) CHECK(report.backward_workspace <= limit);
      x.run(plan);
      CHECK(x.bits() == bits);
      before = report.backward_workspace;
      ranges = report.ranges;
    }
  }
}

TEST_CASE("plan: a frozen side and accumulation work across ranges") {
  LossCase x({200, 1500, 40}, {.dtype = bf16, .workspace_limit = 1});
  x.dc = Array(f32, {1500, 40});
  Plan plan(x.desc);
  CHECK(plan.report(x.N).ranges > 2);
  x.run(plan);
  const auto de = x.de.bytes();
  const Doubles once = x.dc.values();
  x.accumulate_dc = true;
  x.run(plan);
  for (std::int64_t i = 0; i < x.dc.size(); ++i)
    CHECK(x.dc[i] == doctest::Approx(2 * once[static_cast<std::size_t>(i)]).epsilon(1e-6));
  for (bool only_e : {true, false}) {
    const Workspace w(plan.workspace_bytes(x.N, true));
    BackwardArgs args = x.backward_args(w);
    args.accumulate_dc = false;
    (only_e ? args.dc : args.de) = {};
    x.de.poison();
    plan.backward(args);
    CHECK((only_e ? x.de.bytes() == de : x.dc.values() == once));
  }
}

TEST_CASE("plan: calls from several threads at once give each its own result") {
  LossCase x({200, 600, 40}, {.threads = 2}), y({70, 600, 40}, {.threads = 2}, 2);
  x.run();
  y.run();
  const auto bx = x.bits(), by = y.bits();
  Plan plan(x.desc);  // not prepared: both threads meet in its first compilation
  std::vector<std::thread> threads;
  for (LossCase* k : {&x, &y})
    threads.emplace_back([&plan, k] {
      for (int i = 0; i < 5; ++i) {
        const Workspace f(plan.workspace_bytes(k->N, false)), b(plan.workspace_bytes(k->N, true));
        plan.forward(k->forward_args(f));
        plan.backward(k->backward_args(b));
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(x.bits() == bx);
  CHECK(y.bits() == by);
}

TEST_CASE("plan: one pool may serve several plans") {
  const auto pool = std::make_shared<ThreadPool>(3);
  LossCase x({40, 50, 8}, {}), y({40, 60, 9}, {.dtype = bf16});
  Plan a(x.desc, {.pool = pool}), b(y.desc, {.pool = pool});
  x.run(a);
  y.run(b);
  x.check();
  y.check();
  CHECK(a.report(40).threads == 3);
}

TEST_CASE("plan: prepare, moving and reuse for other numbers of rows change no bit") {
  LossCase x({130, 300, 40}, {}), y({1, 300, 40}, {}, 2);
  x.run();
  y.run();
  const auto bx = x.bits(), by = y.bits();
  Plan made(x.desc);
  made.prepare();
  Plan plan = std::move(made);
  y.run(plan);
  x.run(plan);
  CHECK(x.bits() == bx);
  CHECK(y.bits() == by);
}

TEST_CASE("plan: the forward at 1024 rows of a vocabulary of 50257 needs less than 2 MiB") {
  const Plan plan({.hidden = 768, .vocabulary = 50257, .threads = 2});
  CHECK(plan.workspace_bytes(1024, false) < std::size_t{2} << 20);
}

TEST_CASE("plan: nothing of the size N x V is asked for") {
  const Plan plan({.hidden = 64, .vocabulary = 256000, .workspace_limit = std::size_t{16} << 20, .threads = 2});
  const std::int64_t N = 4096;
  CHECK(plan.workspace_bytes(N, true) <= std::size_t{16} << 20);
  CHECK(plan.workspace_bytes(N, false) <= std::size_t{16} << 20);
}

TEST_CASE("plan: each program is readable by name at each stage") {
  const Plan plan({.hidden = 40, .vocabulary = 100, .dtype = bf16});
  const std::vector<std::string> names = plan.program_names();
  for (const char* name : {"lse_forward", "combine", "grad_tiles", "grad_e", "grad_c"})
    CHECK(std::find(names.begin(), names.end(), name) != names.end());
  for (const std::string& name : names) {
    CAPTURE(name);
    CHECK(plan.emit(name, Stage::dsl).find(".cpp:") != std::string::npos);
    CHECK(plan.emit(name, Stage::tile).find("parallel") != std::string::npos);
    CHECK(plan.emit(name, Stage::llvm).find("define") != std::string::npos);
  }
  CHECK_THROWS_WITH_AS(plan.emit("softmax", Stage::dsl),
                       "Plan::emit: no program 'softmax'; this plan has lse_forward, combine, grad_tiles, grad_e, "
                       "grad_e_begin, grad_e_end, grad_c, grad_c_add, grad_c_f32, grad_c_f32_add",
                       UsageError);
}

TEST_CASE("linear_cross_entropy: gives what a plan gives, with memory of its own") {
  for (Reduction reduction : {Reduction::none, Reduction::mean}) {
    LossCase x({70, 90, 12}, {.dtype = bf16, .reduction = reduction});
    for (std::int64_t i = 0; i < x.grad.size(); ++i) x.grad.set(i, 1);
    x.de = Array(bf16, {70, 12});
    x.dc = Array(bf16, {90, 12});
    x.run();
    const LossResult r = linear_cross_entropy(x.e.ref(), x.c.ref(), x.target.ref(), {.reduction = reduction});
    CHECK(r.de == x.de.bytes());
    CHECK(r.dc == x.dc.bytes());
    CHECK(std::equal(r.loss.begin(), r.loss.end(), static_cast<const float*>(x.loss.ref().data)));
    CHECK(r.loss.size() == static_cast<std::size_t>(x.loss.size()));
    CHECK(std::equal(r.lse.begin(), r.lse.end(), static_cast<const float*>(x.lse.ref().data)));

    Plan plan(x.desc);
    const LossResult frozen =
        linear_cross_entropy(plan, x.e.ref(), x.c.ref(), x.target.ref(), {.de = true, .dc = false});
    CHECK(frozen.de == r.de);
    CHECK(frozen.dc.empty());
  }
  LossCase none({0, 9, 4}, {});
  const LossResult empty = linear_cross_entropy(none.e.ref(), none.c.ref(), none.target.ref());
  CHECK(empty.lse.empty());
  CHECK(std::isnan(empty.loss[0]));
  CHECK(empty.dc == std::vector<std::byte>(9 * 4 * sizeof(float)));
}
