#include "runtime/tuner/race.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "runtime/wisdom/tie.h"

using namespace kerf::runtime;

namespace {

/// Runs that take what a test says, one by one or several at once.
struct Track {
  std::function<double(std::size_t candidate, int run)> ms;  // of any candidate's runs, from 0 on
  std::map<std::size_t, int> runs = {};
  bool at_once = false;
  int all = 0, rows = 0;
  double limit = 1e9, time = 0;  // milliseconds

  std::optional<double> run(std::size_t i) {
    ++runs[i];
    const double t = ms(i, all++);
    time += t;
    return t < 0 ? std::nullopt : std::optional(t);
  }
  Race race(std::size_t leader, const std::vector<std::size_t>& others, Race::Turns turns = {}) {
    return {leader, others, turns, [this](std::size_t i) { return run(i); },
            [this](const std::vector<std::size_t>& these) -> std::optional<std::vector<double>> {
              if (!at_once) return {};
              ++rows;
              std::vector<double> all_ms;
              for (const std::size_t i : these)
                if (const auto t = run(i)) all_ms.push_back(*t);
              return all_ms.size() == these.size() ? std::optional(all_ms) : std::nullopt;
            }};
  }
  std::function<double()> spent() {
    return [this] { return time / limit; };
  }
};

double ratio(const Race& race, std::size_t candidate) {
  for (const Race::Entrant& e : race.entrants())
    if (e.candidate == candidate) return e.ratios.median();
  return 0;
}
std::size_t turns(const Race& race, std::size_t candidate) {
  for (const Race::Entrant& e : race.entrants())
    if (e.candidate == candidate) return e.ratios.size();
  return 0;
}

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("race: what else a machine does for a while is no one's luck") {
    for (const bool at_once : {false, true}) {
      Track t{.ms = [](std::size_t i, int run) {
        const double busy = run / 37 % 2 == 0 ? 1 : 1.6;  // and slower all the while
        return (10 + 0.1 * static_cast<double>(i)) * busy * (1 + 0.001 * run);
      }};
      t.at_once = at_once;
      Race race = t.race(3, {0, 1, 2});
      CHECK(race.finish(t.spent()));
      CHECK((t.rows > 0) == at_once);
      for (const std::size_t i : {0, 1, 2, 3})
        CHECK(ratio(race, i) == doctest::Approx((10 + 0.1 * static_cast<double>(i)) / 10.3).epsilon(0.002));
    }
  }

  TEST_CASE("race: nobody has an advantage of following itself, or always the same other") {
    std::size_t last = 9;
    int itself = 0;
    Track t{.ms = [&](std::size_t i, int) {
      itself += i == last;
      const double after_a_fast_one = last == 1 ? 0.98 : 1;
      last = i;
      return 10 * after_a_fast_one;
    }};
    Race race = t.race(0, {1, 2, 3, 4}, {.early = 60, .least = 60, .halve = false});
    CHECK(race.finish(t.spent()));
    CHECK(itself == 0);
    for (const std::size_t i : {2, 3, 4}) CHECK(ratio(race, i) / ratio(race, 0) == doctest::Approx(1).epsilon(0.003));
  }

  TEST_CASE("race: what each takes is known by the runs beside, whoever's they are") {
    for (const bool at_once : {false, true}) {
      std::mt19937 random(2);
      std::normal_distribution<double> normal;
      Track t{.ms = [&](std::size_t i, int) { return (20 + static_cast<double>(i)) * (1 + 0.02 * normal(random)); }};
      t.at_once = at_once;
      Race race = t.race(2, {0, 1, 3, 4, 5, 6, 7}, {.early = 100, .least = 100, .halve = false});
      CHECK(race.finish(t.spent()));
      for (std::size_t i = 0; i < 8; ++i)
        CHECK(ratio(race, i) / ratio(race, 2) == doctest::Approx((20 + static_cast<double>(i)) / 22).epsilon(0.004));
      CHECK(race.leader_ms().median() == doctest::Approx(22).epsilon(0.005));
    }
  }

  TEST_CASE("race: without noise ratios are exact, also after few turns") {
    Track t{.ms = [](std::size_t i, int) { return 10 * (1 + 0.07 * static_cast<double>(i)); }};
    Race race = t.race(0, {1, 2, 3, 4, 5, 6, 7, 8}, {.early = 3, .least = 3, .halve = false});
    CHECK(race.finish(t.spent()));
    CHECK(turns(race, 8) == 3);
    for (std::size_t i = 0; i <= 8; ++i)
      CHECK(ratio(race, i) / ratio(race, 0) == doctest::Approx(1 + 0.07 * static_cast<double>(i)).epsilon(1e-7));
  }

  TEST_CASE("race: who is clearly slower stops after five turns, who is not when it is known") {
    Track t{.ms = [](std::size_t i, int run) { return (i == 2 ? 12.0 : 10.0) * (1 + 0.001 * (run * 7 % 5)); }};
    Race race = t.race(0, {1, 2});
    CHECK(race.finish(t.spent()));
    CHECK(turns(race, 2) == 5);
    CHECK(turns(race, 0) == 9);
    CHECK(turns(race, 1) == 9);
  }

  TEST_CASE("race: who may be on either side of 2 % goes on until it is known what it takes, and no longer") {
    std::uint64_t state = 5;
    const auto noise = [&] {
      state = state * 6364136223846793005U + 1442695040888963407U;
      return 1 + 0.02 * static_cast<double>(state >> 33) / 2147483648.0;
    };
    Track t{.ms = [&](std::size_t i, int) { return (i == 1 ? 10.2 : 10.0) * noise(); }};
    Race race = t.race(0, {1});
    CHECK(race.finish(t.spent()));
    CHECK(ratio(race, 1) / ratio(race, 0) == doctest::Approx(1.02).epsilon(0.006));
    CHECK(turns(race, 1) > 9);
    CHECK(turns(race, 1) < 60);
  }

  TEST_CASE("race: where time falls short it goes to the best eight, then four, then three") {
    std::uint64_t state = 11;
    const auto noise = [&] {
      state = state * 6364136223846793005U + 1442695040888963407U;
      return 1 + 0.3 * static_cast<double>(state >> 33) / 2147483648.0;
    };
    Track t{.ms = [&](std::size_t i, int) { return (10 + 0.3 * static_cast<double>(i)) * noise(); }};
    std::vector<std::size_t> others;
    for (std::size_t i = 1; i < 16; ++i) others.push_back(i);
    t.limit = 8000;
    Race race = t.race(0, others);
    CHECK(race.finish(t.spent()));
    CHECK(t.time < 8100);
    std::size_t most = 0, least = 1000, many = 0;
    for (const Race::Entrant& e : race.entrants()) {
      most = std::max(most, e.ratios.size()), least = std::min(least, e.ratios.size());
      many += e.ratios.size() > 40;
    }
    CHECK(least >= 5);
    CHECK(most > 50);
    CHECK(many <= 5);
    Track fair = t;  // and where all are to have as many, none is left behind
    fair.time = 0;
    Race alike = fair.race(0, others, {.early = 60, .least = 60, .halve = false});
    CHECK(alike.finish(fair.spent()));
    for (const Race::Entrant& e : alike.entrants()) CHECK(e.ratios.size() >= turns(alike, 15) - 1);
  }

  TEST_CASE("race: a leader that others overtake has its turns all the same") {
    Track t{.ms = [](std::size_t i, int run) { return (i == 0 ? 100.0 : 98.0) * (1 + 0.002 * (run * 7 % 5)); }};
    std::vector<std::size_t> others;
    for (std::size_t i = 1; i < 16; ++i) others.push_back(i);
    t.limit = 8300;  // five turns
    Race race = t.race(0, others);
    CHECK(race.finish(t.spent()));
    CHECK(turns(race, 0) >= 5);
    CHECK(std::count_if(others.begin(), others.end(), [&](std::size_t i) { return turns(race, i) <= 3; }) >= 8);
  }

  TEST_CASE("race: an entrant that fails is out, a leader that fails is the end") {
    for (const bool at_once : {false, true}) {
      Track t{.ms = [](std::size_t i, int run) { return i == 2 && run > 8 ? -1 : 10.0; }};
      t.at_once = at_once;
      Race race = t.race(0, {1, 2});
      CHECK(race.finish(t.spent()));
      CHECK(turns(race, 2) == 0);
      CHECK(turns(race, 1) >= 9);
      Track first{.ms = [](std::size_t i, int run) { return i == 0 && run > 8 ? -1 : 10.0; }};
      first.at_once = at_once;
      CHECK(!first.race(0, {1, 2}).finish(first.spent()));
    }
  }

  TEST_CASE("race: a leader whose others all fail is timed alone") {
    Track t{.ms = [](std::size_t i, int) { return i == 0 ? 10.0 : -1; }};
    Race race = t.race(0, {1, 2});
    CHECK(race.finish(t.spent()));
    CHECK(turns(race, 0) >= 9);
    CHECK(race.leader_ms().median() == doctest::Approx(10));
  }

  TEST_CASE("race: long runs go one by one, so that the clock is looked at") {
    Track t{.ms = [](std::size_t, int) { return 200.0; }};
    t.at_once = true;
    t.limit = 2000;
    Race race = t.race(0, {1, 2, 3});
    CHECK(race.finish(t.spent()));
    CHECK(t.rows == 0);
    CHECK(t.time <= 2200);
  }

  TEST_CASE("samples: the spread of a few is in the mean that of many") {
    std::mt19937 random(3);
    std::normal_distribution<double> normal(100, 1);
    for (const int n : {3, 4, 5, 6, 7, 8, 9, 12, 30}) {
      double sum = 0;
      for (int trial = 0; trial < 4000; ++trial) {
        Samples s;
        for (int i = 0; i < n; ++i) s.add(normal(random));
        sum += s.spread();
      }
      CAPTURE(n);
      CHECK(100 * sum / 4000 / normal_quartiles == doctest::Approx(1).epsilon(0.05));
    }
    Samples one;
    CHECK(one.spread() == 0);
    one.add(5);
    CHECK(one.spread() == 0);
    CHECK(one.standard_error() == 1);
    one.add(7);
    CHECK(one.spread() == doctest::Approx(2.0 / 6));
  }

  TEST_CASE("tie: within 2 %, and twice the standard error of both medians") {
    const Timed best{.median_ms = 10, .spread = 0, .samples = 9};
    CHECK(ties({10.19, 0, 9}, best));
    // The best is not who was lucky in a few.
    CHECK(surely({10, 0.1, 9}) > surely({10.1, 0.02, 50}));
    CHECK(surely({10, 0.1, 1}) == 10);
    CHECK(!ties({10.21, 0, 9}, best));
    CHECK(ties({10.0, 0, 1}, best));
    // 4 % apart are the quartiles, so the median of 100 is known to 0.37 %.
    CHECK(error_of_median(0.04, 100) == doctest::Approx(0.00372).epsilon(0.01));
    CHECK(ties({10.11, 0.04, 100}, best));
    CHECK(!ties({10.14, 0.04, 100}, best));
    CHECK(ties({10.14, 0.04, 1000}, best));
    CHECK(!ties({10.11, 0.04, 100}, {10, 0.04, 100}));
  }
}
