#include <doctest/doctest.h>

#include "kerf/error.h"
#include "kerf/tuner.h"
#include "tests/support/tensors.h"

using namespace kerf;
using namespace kerf::test;

namespace {

/// y = a b^T by blocks; `wrong` adds 1 to z, a second output, where n is 32.
Program product(std::int64_t m, std::int64_t n, bool wrong) {
  ProgramBuilder p("product");
  Axis M = p.axis("M"), N = p.axis("N"), K = p.axis("K");
  Tensor a = p.input("a", f32, {M, K}), b = p.input("b", f32, {N, K});
  Tensor y = p.output("y", f32, {M, N}), z = p.output("z", f32, {M, N});
  Block bm = p.parallel(M, m), bn = p.parallel(N, n);
  Tile sum = p.loop(K, 16, zeros(bm, bn), [&](Block k, Tile acc) { return acc + dot(load(a, bm, k), load(b, bn, k)); });
  store(y, bm, bn, sum);
  store(z, bm, bn, wrong ? sum + 1 : sum);
  return p.finish();
}

struct Case {
  Random random{5};
  Array a = normal(random, f32, {40, 24}), b = normal(random, f32, {50, 24}), y{f32, {40, 50}}, z{f32, {40, 50}};
  ProgramTuning tuning;
  TuneOptions options;
  Case() {
    tuning.space.parameter("m", {16, 32}).parameter("n", {16, 32});
    tuning.make = [](const TunePoint& p) { return ProgramTuning::Made{product(p.at("m"), p.at("n"), false)}; };
    tuning.standard = {{"m", 16}, {"n", 16}};
    tuning.args = {.tensors = {{"a", a.ref()}, {"b", b.ref()}, {"y", y.ref()}, {"z", z.ref()}}};
    tuning.pool = std::make_shared<ThreadPool>(1);
    options.seconds = 60;
  }
};

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("tune: a program of a user is compiled, checked by the interpreter and timed") {
    Case c;
    const TuneReport r = tune(c.tuning, c.options);
    CHECK(r.candidates.size() == 4);
    REQUIRE(r.winner);
    for (const TuneCandidate& t : r.candidates) {
      CHECK(t.status == WisdomStatus::ok);
      CHECK(t.samples >= 3);
      CHECK(t.compile_ms > 0);
    }
    CHECK(r.key.op == "product");
    CHECK(r.key.options.starts_with("M=40 N=50 K=24"));
    CHECK(r.validators.units >= 1);
  }

  TEST_CASE("tune: a candidate that is wrong in one output only is caught") {
    for (const bool interpreted : {true, false}) {
      Case c;
      c.tuning.interpreted = interpreted;
      c.tuning.make = [](const TunePoint& p) {
        return ProgramTuning::Made{product(p.at("m"), p.at("n"), p.at("n") == 32)};
      };
      const TuneReport r = tune(c.tuning, c.options);
      int wrong = 0;
      for (const TuneCandidate& t : r.candidates) {
        CHECK((t.status == WisdomStatus::wrong) == (t.point.at("n") == 32));
        wrong += t.reason.starts_with("z: relative error");
      }
      CHECK(wrong == 2);
      CHECK(r.candidates[*r.winner].point.at("n") == 16);
    }
  }

  TEST_CASE("tune: the caller's reference is what answers are compared with") {
    Case c;
    const std::vector<float> zeros(40 * 50);
    c.tuning.expected = {{"z", TensorRef(zeros.data(), {40, 50})}};
    const TuneReport r = tune(c.tuning, c.options);
    CHECK(!r.winner);
    for (const TuneCandidate& t : r.candidates) CHECK(t.status == WisdomStatus::wrong);
    c.tuning.expected = {{"w", TensorRef(zeros.data(), {40, 50})}};
    CHECK_THROWS_WITH_AS(tune(c.tuning, c.options), "tune: expected names 'w', which product does not write",
                         UsageError);
  }

  TEST_CASE("tune: a candidate whose program cannot be made is a record with the reason") {
    Case c;
    c.tuning.make = [](const TunePoint& p) {
      if (p.at("m") == 32) throw UsageError("m = 32 is not written yet");
      return ProgramTuning::Made{product(p.at("m"), p.at("n"), false)};
    };
    const TuneReport r = tune(c.tuning, c.options);
    CHECK(r.candidates.size() == 4);
    for (const TuneCandidate& t : r.candidates)
      if (t.point.at("m") == 32) {
        CHECK(t.status == WisdomStatus::compile);
        CHECK(t.reason == "m = 32 is not written yet");
      }
  }

  TEST_CASE("tune: a default outside the space is refused") {
    Case c;
    c.tuning.standard = {{"m", 16}, {"n", 8}};
    CHECK_THROWS_WITH_AS(tune(c.tuning, c.options),
                         "tune: the default m=16 n=8 is refused: n=8 is not in the space, which has 16, 32",
                         UsageError);
  }
}
