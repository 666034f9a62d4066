// The loss as it is tuned: real kernels on the CPU, small shapes.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "kerf/error.h"
#include "runtime/tuner/loss_subject.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;
using runtime::LossBench;
using runtime::LossPart;
using runtime::LossSubject;

namespace {

PlanDesc small(DType dtype = f32) { return {.hidden = 48, .vocabulary = 700, .dtype = dtype, .threads = 2}; }

TuneOptions quick() {
  TuneOptions o;
  o.seconds = 20;
  o.candidates = 4;
  return o;
}

/// Overwrites the last sampled row of dc where n is not the default's.
class BadDc : public LossSubject {
 public:
  BadDc(LossBench& bench) : LossSubject(bench, LossPart::backward, {}), bench_(bench) {}
  double run(const TunePoint& point) override {
    const double ms = LossSubject::run(point);
    if (point == runtime::default_point(bench_.desc(), Target::host(), LossPart::backward, 64)) return ms;
    const Plan plan(bench_.desc());
    const TensorRef dc = bench_.backward_args(bench_.forward_args(plan, {.backward = true}), {.backward = true}).dc;
    for (const std::int64_t v : bench_.reference().columns)
      std::memset(static_cast<float*>(dc.data) + v * dc.shape[1], 0, static_cast<std::size_t>(dc.shape[1]) * 4);
    return ms;
  }

 private:
  LossBench& bench_;
};

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("compare_loss: points beside each other, and what it cannot compare is refused") {
    const Space space = runtime::loss_space(small(), Target::host(), LossPart::backward);
    std::vector<TunePoint> points = {runtime::default_point(small(), Target::host(), LossPart::backward, 128)};
    points.push_back(points[0]);
    points[1]["n"] = 16;
    const TuneReport r = compare_loss(small(), 100, "backward", points, quick());
    CHECK(r.key.part == "backward");
    CHECK(r.key.tokens == 128);
    REQUIRE(r.candidates.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(r.candidates[i].point == points[i]);
      CHECK(r.candidates[i].status == WisdomStatus::ok);
      CHECK(r.candidates[i].median_ms > 0);
      CHECK(r.candidates[i].samples >= 60);
    }
    CHECK(r.winner);
    CHECK_THROWS_WITH_AS(compare_loss(small(), 100, "sideways", points),
                         "compare_loss: there is no part 'sideways' of this plan; it has forward, backward",
                         UsageError);
    CHECK_THROWS_WITH_AS(compare_loss(small(), 100, "backward", {}), "compare_loss: no points; name one at least",
                         UsageError);
    CHECK_THROWS_AS(compare_loss(small(), 0, "backward", points), UsageError);
    points[1]["n"] = 17;
    CHECK_THROWS_WITH_AS(compare_loss(small(), 100, "backward", points), doctest::Contains("cannot be tried"),
                         UsageError);
  }

  TEST_CASE("tune_loss: every part has candidates whose answers are right, and a winner") {
    for (const DType dtype : {f32, bf16}) {
      PlanDesc desc = small(dtype);
      desc.strategy = Strategy::filtered;
      const LossTuning tuning = tune_loss(desc, 100, quick());
      REQUIRE(tuning.parts.size() == 3);
      for (const TuneReport& r : tuning.parts) {
        CAPTURE(r.key.part);
        CHECK(r.key.tokens == 128);
        CHECK(r.winner);
        CHECK(r.candidates.size() == 4);
        REQUIRE(r.standard);
        for (const TuneCandidate& c : r.candidates) {
          CAPTURE(describe(c.point));
          CAPTURE(c.reason);
          CHECK((c.status == WisdomStatus::ok || c.status == WisdomStatus::slow));
          CHECK(c.predicted_ms > 0);
        }
      }
    }
  }

  TEST_CASE("tune_loss: a stash, min_memory and shapes that no block divides") {
    for (const Strategy strategy : {Strategy::exact_stash, Strategy::min_memory}) {
      PlanDesc desc{.hidden = 33, .vocabulary = 101, .dtype = f16, .strategy = strategy, .threads = 1};
      for (const TuneReport& r : tune_loss(desc, 17, quick()).parts) CHECK(r.winner);
    }
    PlanDesc dense = small();
    dense.strategy = Strategy::dense;
    CHECK_THROWS_AS(tune_loss(dense, 16, quick()), UsageError);
  }

  TEST_CASE("tune_loss: what was found is what a plan takes") {
    const Folder folder;
    TuneOptions o = quick();
    o.wisdom = folder / "wisdom.jsonl";
    const LossTuning tuning = tune_loss(small(), 64, o);
    PlanDesc desc = small();
    desc.tuning = Tuning::lookup;
    auto layers = std::make_shared<WisdomLayers>();
    layers->put_first("tuned", Wisdom::load(o.wisdom).wisdom);
    const PlanReport report = Plan(desc, {.wisdom = layers}).report(64);
    CHECK(report.forward_from == "wisdom");
    CHECK(report.backward_from == "wisdom");
    CHECK(report.notes.empty());
    for (const TuneReport& r : tuning.parts) CHECK(!r.candidates[*r.winner].known);
  }

  TEST_CASE("tune_loss: a candidate that is wrong in dc only is caught") {
    LossBench bench(small(), 64, 0, nullptr);
    BadDc subject(bench);
    const Target host = Target::host();
    runtime::TuneTask task{.key = runtime::loss_key(bench.desc(), host, LossPart::backward, 64, 2),
                           .validators = validators_of(),
                           .space = runtime::loss_space(bench.desc(), host, LossPart::backward),
                           .standard = runtime::default_point(bench.desc(), host, LossPart::backward, 64)};
    const TuneReport r = runtime::search(task, subject, quick());
    REQUIRE(r.candidates.size() == 4);
    CHECK(r.candidates[0].status == WisdomStatus::ok);
    CHECK(*r.winner == 0);
    for (std::size_t i = 1; i < 4; ++i) {
      CHECK(r.candidates[i].status == WisdomStatus::wrong);
      CHECK(r.candidates[i].reason.starts_with("dc: relative error"));
    }
  }

  TEST_CASE("load_loss: what takes more than workspace_limit is out, unless the default does too") {
    PlanDesc desc = runtime::bench_desc({.hidden = 64, .vocabulary = 4096, .dtype = f32, .threads = 1});
    const auto pool = std::make_shared<ThreadPool>(1);
    const auto cache = std::make_shared<CodeCache>();
    const auto least = [&](const TunePoint& point) {
      PlanDesc tight = desc;
      tight.workspace_limit = 1;
      LossBlocks blocks;
      blocks.backward = to_wisdom(point);
      return Plan(tight, {.pool = pool, .cache = cache, .wisdom = nullptr, .blocks = blocks})
          .workspace_bytes(512, true);
    };
    const Space space = runtime::loss_space(desc, Target::host(), LossPart::backward);
    TunePoint large;
    space.for_each([&](const TunePoint& p) {
      if (large.empty() && space.refusal(p).empty() && least(p) > least({})) large = p;
    });
    REQUIRE(!large.empty());
    const auto load = [&](const TunePoint& point) {
      runtime::load_loss(desc, 512, LossPart::backward, {.forward = {}, .backward = point, .filtered = {}}, pool,
                         cache);
    };
    desc.workspace_limit = least({});
    CHECK_NOTHROW(load({}));
    try {
      load(large);
      FAIL("is out");
    } catch (const runtime::TuneFailure& e) {
      CHECK(e.status == WisdomStatus::resources);
      CHECK(e.reason.starts_with("needs a workspace of "));
    }
    desc.workspace_limit = 1;
    CHECK_NOTHROW(load(large));
  }

  TEST_CASE("tune_loss: memory that does not hold the problem is an error that says how much") {
    TuneOptions o = quick();
    o.memory = 1 << 20;
    PlanDesc desc = small();
    desc.vocabulary = 100000;
    CHECK_THROWS_WITH_AS(tune_loss(desc, 64, o), doctest::Contains("and tuning may take 1 MiB"), DeviceError);
  }

  TEST_CASE("problem: a filtered backward keeps of it what it keeps of a trained model's softmax") {
    PlanDesc desc{.hidden = 16, .vocabulary = 256000, .dtype = bf16, .threads = 2};
    const LossBench::Calls calls{.forward = true, .backward = true, .block_lse = true};
    for (const Order order : {Order::automatic, Order::identity}) {
      desc.order = order;
      LossBench bench(desc, 2048, 0, nullptr);
      PlanDesc as_asked = bench.desc();
      as_asked.order = order;
      Plan plan(as_asked);
      const ForwardArgs forward = bench.forward_args(plan, calls);
      plan.forward(forward);
      plan.backward(bench.backward_args(forward, calls));
      const double kept = plan.filter_report(forward.workspace).kept_share;
      CAPTURE(kept);
      if (order == Order::automatic) CHECK((kept > 0.15 && kept < 0.35));
      if (order == Order::identity) CHECK(kept > 0.5);
    }
  }

  TEST_CASE("reference: rows and columns follow from the definition") {
    ThreadPool pool(1);
    const runtime::LossProblem p = runtime::make_problem(5, 3, 7, f32, pool);
    runtime::LossReference r = runtime::reference_rows(p, pool);
    REQUIRE(r.rows.size() == 5);
    const auto* e = reinterpret_cast<const float*>(p.e.get());
    const auto* c = reinterpret_cast<const float*>(p.c.get());
    std::vector<float> lse(5);
    std::vector<double> de(3), dc(7 * 3);
    for (int n = 0; n < 5; ++n) {
      double z[7], sum = 0;
      for (int v = 0; v < 7; ++v) {
        z[v] = 0;
        for (int d = 0; d < 3; ++d) z[v] += double(e[n * 3 + d]) * c[v * 3 + d];
        sum += std::exp(z[v]);
      }
      lse[static_cast<std::size_t>(n)] = static_cast<float>(std::log(sum));
      CHECK(r.lse[static_cast<std::size_t>(n)] == doctest::Approx(std::log(sum)));
      const auto t = p.target[static_cast<std::size_t>(n)];
      CHECK(r.loss[static_cast<std::size_t>(n)] == doctest::Approx(std::log(sum) - z[t]));
      for (int v = 0; v < 7; ++v) {
        const double g = std::exp(z[v]) / sum - (v == t ? 1 : 0);
        for (int d = 0; d < 3; ++d) {
          dc[static_cast<std::size_t>(v * 3 + d)] += g * e[n * 3 + d];
          if (n == 2) de[static_cast<std::size_t>(d)] += g * c[v * 3 + d];
        }
      }
    }
    runtime::expect_columns(r, p, lse, pool);
    for (std::size_t d = 0; d < 3; ++d) CHECK(r.de[2 * 3 + d] == doctest::Approx(de[d]).epsilon(1e-5));
    for (std::size_t i = 0; i < r.columns.size(); ++i)
      for (std::size_t d = 0; d < 3; ++d)
        CHECK(r.dc[i * 3 + d] == doctest::Approx(dc[static_cast<std::size_t>(r.columns[i]) * 3 + d]).epsilon(1e-5));
  }
}
