#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <random>
#include <stdexcept>

#include "kerf/error.h"
#include "tests/tuner/scripted.h"

using namespace kerf;
using namespace kerf::test;
using runtime::search;

TEST_SUITE("tuner") {
  TEST_CASE("search: the fastest wins and every candidate is told") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return 10.0 + static_cast<double>((x - 5) * (x - 5)); };
    const TuneReport r = search(s.task(8), s, s.options());
    CHECK(winner(r) == 5);
    CHECK(r.candidates.size() == 8);
    CHECK(r.stopped == "");
    CHECK(r.candidates[*r.standard].point == at(0));
    CHECK(s.alive.empty());
  }

  TEST_CASE("search: who is slower by a seventh has two runs, the best four turns until it is known what they take") {
    Scripted s;
    s.ms = [](std::int64_t x, int k) { return (100.0 + 10 * static_cast<double>(x)) * (k % 2 == 0 ? 1 : 1.03); };
    const TuneReport r = search(s.task(16), s, s.options());
    CHECK(winner(r) == 0);
    for (std::int64_t x = 8; x < 16; ++x) CHECK(candidate(r, x).samples == 2);
    for (std::int64_t x = 4; x < 8; ++x) CHECK(candidate(r, x).samples <= 3);
    for (std::int64_t x = 1; x < 4; ++x) CHECK(candidate(r, x).samples >= 5);  // clearly slower then
    for (std::int64_t x = 2; x < 4; ++x) CHECK(candidate(r, x).samples <= 10);
    CHECK(candidate(r, 0).samples >= 9);
    CHECK(candidate(r, 0).samples <= 200);
  }

  TEST_CASE("search: what else runs while the first ones do keeps nobody from the finals") {
    Scripted s;  // for half of the candidates all takes twice as long
    int runs = 0;
    s.ms = [&](std::int64_t x, int) {
      const double busy = runs++ % 90 < 45 ? 2 : 1;
      return (x == 9 ? 9.5 : 10.0 + 0.02 * static_cast<double>(x)) * busy;
    };
    const TuneReport r = search(s.task(16), s, s.options());
    CHECK(winner(r) == 9);
    for (const TuneCandidate& c : r.candidates)
      CHECK(c.median_ms / candidate(r, 9).median_ms ==
            doctest::Approx((c.point == at(9) ? 9.5 : 10.0 + 0.02 * static_cast<double>(c.point.at("x"))) / 9.5)
                .epsilon(0.02));
  }

  TEST_CASE("search: twenty searches where times vary by a tenth choose within 2 % of the fastest") {
    // Candidates 1 % apart, neighbours that come and go, and outliers; the time for finals of a few.
    const auto alone = [](std::int64_t x) { return 24 * (1 + 0.01 * static_cast<double>((x * 7 + 5) % 32)); };
    int close = 0;
    for (std::uint32_t search_number = 0; search_number < 20; ++search_number) {
      std::mt19937 random(search_number);
      std::normal_distribution<double> normal;
      std::uniform_real_distribution<double> uniform;
      double busy = 0;
      Scripted s;
      s.ms = [&](std::int64_t x, int) {
        busy = 0.8 * busy + 0.04 * normal(random);
        const double outlier = uniform(random) < 0.05 ? 1.3 : 1;
        return alone(x) * std::max(0.8, 1 + busy + 0.04 * normal(random)) * outlier;
      };
      close += alone(winner(search(s.task(32), s, s.options(16)))) <= 1.02 * 24;  // the third among them
    }
    CHECK(close >= 19);
  }

  TEST_CASE("search: a slow moment for two of three first runs keeps nobody from the finals") {
    Scripted s;
    s.ms = [](std::int64_t x, int k) {
      const bool hindered = x == 11 && (k == 0 || k == 2);
      return (x == 11 ? 19.0 : 20.0 + 0.01 * static_cast<double>(x)) * (hindered ? 1.3 : 1);
    };
    const TuneReport r = search(s.task(12), s, s.options());
    CHECK(winner(r) == 11);
    CHECK(candidate(r, 11).median_ms == doctest::Approx(19).epsilon(0.001));
  }

  TEST_CASE("search: where the default fails beside a candidate another takes its place") {
    for (const double slower : {1, 20}) {  // short runs go together, long ones one by one
      Scripted s;
      s.ms = [&](std::int64_t x, int) { return slower * (x == 0 ? 4.0 : 5.0 - 0.1 * static_cast<double>(x)); };
      s.running[0] = [&] {
        if (s.runs[0] > 10) throw DeviceError("misaligned address");
      };
      const TuneReport r = search(s.task(12), s, s.options());
      CHECK(candidate(r, 0).status == WisdomStatus::fault);
      CHECK(winner(r) == 11);
      CHECK(candidate(r, 11).median_ms == doctest::Approx(slower * 3.9));
      for (std::int64_t x = 1; x < 12; ++x)
        CHECK(candidate(r, x).median_ms == doctest::Approx(slower * (5.0 - 0.1 * static_cast<double>(x))));
    }
  }

  TEST_CASE("search: who takes the place of a default that failed at once has its own time") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return x == 0 ? 4000.0 : 8000.0 + static_cast<double>(x); };
    s.running[0] = [&] {
      if (s.runs[0] >= 3) throw DeviceError("misaligned address");
    };
    const TuneReport r = search(s.task(12), s, s.options(60));  // no time for finals
    CHECK(candidate(r, 0).status == WisdomStatus::fault);
    CHECK(winner(r) == 1);
    for (const TuneCandidate& c : r.candidates)
      if (c.point != at(0)) CHECK(c.median_ms == doctest::Approx(8000.0 + static_cast<double>(c.point.at("x"))));
  }

  TEST_CASE("search: those that are only compared are all measured alike, and nothing else is") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return 10.0 + static_cast<double>(x); };
    auto task = s.task(16, 2);
    task.only = {at(5), at(3), at(9)};
    const TuneReport r = search(task, s, s.options());
    CHECK(r.candidates.size() == 3);
    CHECK(!r.standard);
    CHECK(winner(r) == 3);
    for (const std::int64_t x : {3, 5, 9}) {
      CHECK(candidate(r, x).samples >= 60);
      CHECK(candidate(r, x).median_ms == doctest::Approx(10.0 + static_cast<double>(x)));
    }
    CHECK(s.compiled == std::set<std::int64_t>{3, 5, 9});
    task.only = {at(5), at(17)};
    CHECK_THROWS_WITH_AS(search(task, s, s.options()), doctest::Contains("x=17 cannot be tried"), UsageError);
  }

  TEST_CASE("search: who takes three times the best in the first run is given up") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return x == 3 ? 31.0 : 10.0; };
    const TuneReport r = search(s.task(4), s, s.options());
    CHECK(candidate(r, 3).status == WisdomStatus::slow);
    CHECK(candidate(r, 3).samples == 1);
    CHECK(candidate(r, 3).reason == "its first run took 31 ms, 3.1 times the best");
    CHECK(s.runs[3] == 1);
  }

  TEST_CASE("search: within 2 % who was predicted to take the least wins, then the first in the order of parameters") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return x == 6 ? 10.0 : x == 2 ? 10.15 : x < 2 ? 10.5 : 10.19; };
    auto task = s.task(8, 4);
    task.predicted_ms = [](const TunePoint& p) { return p.at("x") < 2 ? 1.0 : 2.0; };
    CHECK(winner(search(task, s, s.options())) == 2);
    task.predicted_ms = [](const TunePoint& p) { return p.at("x") == 5 ? 1.0 : 2.0; };
    CHECK(winner(search(task, s, s.options())) == 5);
    Scripted far;
    far.ms = [](std::int64_t x, int) { return x == 0 ? 10.21 : x == 1 ? 10.19 : 10.0; };
    CHECK(winner(search(far.task(3), far, far.options())) == 1);
  }

  TEST_CASE("search: a clock that falls is no one's luck in the finals") {
    Scripted s;  // 5 % slower with every 20 runs, and quick again
    int runs = 0;
    s.ms = [&](std::int64_t x, int) {
      return (x == 3 ? 9.7 : 10.0 + 0.01 * static_cast<double>(x)) * (1 + 0.05 * (runs++ % 20) / 20.0);
    };
    const TuneReport r = search(s.task(6), s, s.options());
    CHECK(winner(r) == 3);
    const double best = candidate(r, 3).median_ms;
    for (const TuneCandidate& c : r.candidates)
      if (c.samples >= 9)
        CHECK(c.median_ms / best == doctest::Approx(c.point.at("x") == 3 ? 1 : 10.02 / 9.7).epsilon(0.01));
  }

  TEST_CASE("search: a leader that fails in the finals leaves them to the others") {
    Scripted s;
    s.running[0] = [&] {
      if (s.runs[0] == 8) throw DeviceError("misaligned address");
    };
    const TuneReport r = search(s.task(6), s, s.options());
    CHECK(candidate(r, 0).status == WisdomStatus::fault);
    CHECK(winner(r) == 1);
    CHECK(candidate(r, 1).samples >= 9);
    Scripted several;  // and so does another, before it
    several.running[1] = [&] {
      if (several.runs[1] == 6) throw DeviceError("misaligned address");
    };
    several.running[0] = [&] {
      if (several.runs[0] == 8) throw DeviceError("misaligned address");
    };
    several.ms = [](std::int64_t x, int) { return 10.0 + 0.3 * static_cast<double>(x); };
    const TuneReport left = search(several.task(8), several, several.options());
    CHECK(candidate(left, 1).status == WisdomStatus::fault);
    CHECK(winner(left) == 2);
    CHECK(candidate(left, 2).median_ms == doctest::Approx(10.6));
    CHECK(candidate(left, 3).median_ms == doctest::Approx(10.9));
  }

  TEST_CASE("search: a lucky loser of the first runs is timed again beside the best, or is no choice") {
    Scripted s;  // from 2 on all are 3 % faster than 1 as long as few look
    s.ms = [](std::int64_t x, int k) {
      return x == 0 ? 20.0 : x == 1 || k >= 4 ? 10.0 : 9.7 + 0.001 * static_cast<double>(x);
    };
    TuneOptions o = s.options();
    o.candidates = 40;
    const TuneReport r = search(s.task(40), s, o);
    CHECK(candidate(r, winner(r)).samples >= 9);
    CHECK(candidate(r, winner(r)).median_ms == doctest::Approx(10.0).epsilon(0.002));
    std::int64_t passed_over = 0;
    for (const TuneCandidate& c : r.candidates) {
      passed_over += c.status == WisdomStatus::slow;
      if (c.status == WisdomStatus::ok && c.point != at(0)) CHECK(c.median_ms >= 9.99);
      if (c.status == WisdomStatus::slow)
        CHECK(c.reason == (c.point == at(1)
                               ? "within 2 % of the best, beside which it was not run"
                               : "others were faster beside it; they took longer in the finals, which it was not in"));
    }
    CHECK(passed_over ==
          40 - 1 - 16 - 4);  // the default and the best 16 run beside each other, then four that would win
  }

  TEST_CASE("search: failures are told with status and reason, and the search goes on") {
    Scripted s;
    s.compiling[1] = [] { throw DeviceError("needs 300 KiB of shared memory, the GPU has 227 KiB"); };
    s.compiling[2] = [] { throw InternalError("emitter: no such layout"); };
    s.running[3] = [] { throw DeviceError("misaligned address"); };
    s.wrong[4] = "dc: relative error 1.0";
    s.compiling[5] = [] { throw std::bad_alloc(); };
    s.running[6] = [] { throw runtime::TuneFailure(WisdomStatus::timeout, "ran for 20 s"); };
    const TuneReport r = search(s.task(8), s, s.options());
    CHECK(winner(r) == 0);
    CHECK(candidate(r, 1).status == WisdomStatus::resources);
    CHECK(candidate(r, 1).reason == "needs 300 KiB of shared memory, the GPU has 227 KiB");
    CHECK(candidate(r, 2).status == WisdomStatus::compile);
    CHECK(candidate(r, 3).status == WisdomStatus::fault);
    CHECK(candidate(r, 4).status == WisdomStatus::wrong);
    CHECK(candidate(r, 5).status == WisdomStatus::resources);
    CHECK(candidate(r, 6).status == WisdomStatus::timeout);
    CHECK(candidate(r, 7).status == WisdomStatus::ok);
    CHECK(s.runs[4] == 0);
  }

  TEST_CASE("search: an error that outlives its candidate ends the search before others are blamed") {
    Scripted s;
    bool lost = false;
    for (std::int64_t x = 0; x < 8; ++x)
      s.running[x] = [&, x] {
        lost = lost || x == 2;
        if (lost) throw DeviceError("illegal address");
      };
    const TuneReport r = search(s.task(8), s, s.options());
    CHECK(r.stopped == "fault");
    CHECK(candidate(r, 2).status == WisdomStatus::fault);
    CHECK(r.candidates.size() == 3);
    CHECK(winner(r) == 0);
  }

  TEST_CASE("search: what spills is taken where nothing else is left") {
    Scripted s;
    for (std::int64_t x = 0; x < 3; ++x) s.resources[x] = {.registers = 255, .local_bytes = x == 1 ? 0 : 32};
    const TuneReport r = search(s.task(3), s, s.options());
    CHECK(winner(r) == 1);
    CHECK(candidate(r, 0).status == WisdomStatus::resources);
    CHECK(candidate(r, 0).reason == "spills 32 bytes of each thread");
    CHECK(s.runs[0] == 0);
    Scripted all;
    all.resources[0] = all.resources[1] = {.local_bytes = 8};
    CHECK(winner(search(all.task(2), all, all.options())) == 0);
  }

  TEST_CASE("search: nothing that runs rightly is no winner") {
    Scripted s;
    s.wrong[0] = s.wrong[1] = "de";
    const TuneReport r = search(s.task(2), s, s.options());
    CHECK(!r.winner);
    CHECK(r.candidates.size() == 2);
  }

  TEST_CASE("search: no budget measures nothing, little the default at least") {
    Scripted none;
    const TuneReport r = search(none.task(8), none, none.options(0));
    CHECK(r.candidates.empty());
    CHECK(!r.winner);
    CHECK(r.stopped == "budget");
    CHECK(none.compiled.empty());
    Scripted little;
    const TuneReport one = search(little.task(8), little, little.options(0.001));
    CHECK(one.candidates.size() == 1);
    CHECK(winner(one) == 0);
    CHECK(one.stopped == "budget");
  }

  TEST_CASE("search: no more candidates than asked for, the default among them") {
    Scripted s;
    TuneOptions o = s.options();
    o.candidates = 3;
    const TuneReport r = search(s.task(100, 50), s, o);
    CHECK(r.candidates.size() == 3);
    CHECK(r.candidates[*r.standard].point == at(50));
    CHECK(s.compiled.size() == 3);
  }

  TEST_CASE("search: half the budget brings a winner") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return 100.0 + static_cast<double>(x); };
    const TuneReport r = search(s.task(32), s, s.options(3));
    CHECK(r.stopped == "budget");
    CHECK(winner(r) == 0);
    CHECK(r.candidates.size() < 32);
    CHECK(s.seconds < 3.3);
  }

  TEST_CASE("search: a stop in the middle keeps what is known") {
    Scripted s;
    std::stop_source stop;
    s.running[3] = [&] { stop.request_stop(); };
    TuneOptions o = s.options();
    o.stop = stop.get_token();
    const TuneReport r = search(s.task(8), s, o);
    CHECK(r.stopped == "interrupt");
    CHECK(r.candidates.size() == 4);
    CHECK(winner(r) == 0);
  }

  TEST_CASE("search: 20 searches with noisy times choose within 2 % of the best at least 19 times") {
    int good = 0;
    std::uint64_t state = 7;
    const auto uniform = [&] {
      state = state * 6364136223846793005U + 1442695040888963407U;
      return static_cast<double>(state >> 33) / 2147483648.0;
    };
    const auto truth = [](std::int64_t x) { return 10.0 + 0.08 * static_cast<double>((x * 11) % 24); };
    for (int i = 0; i < 20; ++i) {
      Scripted s;  // 3 % of noise, and every tenth run half as slow again
      s.ms = [&](std::int64_t x, int) { return truth(x) * (1 + 0.03 * uniform()) * (uniform() < 0.1 ? 1.5 : 1); };
      good += truth(winner(search(s.task(24, 5), s, s.options()))) <= 10.0 * 1.02 + 0.02;
    }
    CHECK(good >= 19);
  }

  TEST_CASE("search: progress tells the best so far") {
    Scripted s;
    s.ms = [](std::int64_t x, int) { return 20.0 - static_cast<double>(x); };
    TuneOptions o = s.options();
    std::vector<double> best;
    o.progress = [&](const TuneProgress& p) { best.push_back(p.best_ms); };
    search(s.task(4), s, o);
    REQUIRE(best.size() == 5);
    for (std::size_t i = 0; i < 5; ++i) CHECK(best[i] == doctest::Approx(std::vector{20, 19, 18, 17, 17}[i]));
  }

  TEST_CASE("search: who was measured while the default's time moved is noisy") {
    Scripted s;
    s.ms = [](std::int64_t x, int k) { return (10.0 + static_cast<double>(x)) * (k < 3 ? 1 : 1.5); };
    CHECK(search(s.task(3), s, s.options()).candidates[0].noisy);
    Scripted calm;
    CHECK(!search(calm.task(3), calm, calm.options()).candidates[0].noisy);
  }

  TEST_CASE("search: candidates are compiled side by side") {
    Scripted s;
    TuneOptions o = s.options();
    o.compile_threads = 4;
    const TuneReport r = search(s.task(10), s, o);
    CHECK(r.candidates.size() == 10);
    CHECK(s.compiled.size() == 10);
    CHECK(s.alive.empty());
  }
}
