#include <doctest/doctest.h>

#include "kerf/error.h"
#include "tests/support/errors.h"
#include "tests/tuner/scripted.h"

using namespace kerf;
using namespace kerf::test;

namespace {
Space blocks() {
  Space space;
  space.parameter("n", {64, 128, 256}).parameter("v", {64, 128});
  space.rule([](const TunePoint& p) {
    return p.at("n") * p.at("v") > 128 * 128 ? "the tile has more elements than registers hold" : "";
  });
  return space;
}
}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("space: every combination is visited, the last parameter first") {
    std::vector<std::string> all;
    blocks().for_each([&](const TunePoint& p) { all.push_back(describe(p)); });
    CHECK(all == std::vector<std::string>{"n=64 v=64", "n=64 v=128", "n=128 v=64", "n=128 v=128", "n=256 v=64",
                                          "n=256 v=128"});
    CHECK(blocks().size() == 6);
    CHECK(blocks().text() == "n: 64 128 256; v: 64 128");
  }

  TEST_CASE("space: a point outside is refused with the reason") {
    CHECK(blocks().refusal({{"n", 64}, {"v", 128}}) == "");
    CHECK(blocks().refusal({{"n", 64}}) == "parameter 'v' is missing");
    CHECK(blocks().refusal({{"n", 96}, {"v", 64}}) == "n=96 is not in the space, which has 64, 128, 256");
    CHECK(blocks().refusal({{"n", 64}, {"v", 64}, {"w", 1}}) == "there is no parameter 'w'");
    CHECK(blocks().refusal({{"n", 256}, {"v", 128}}) == "the tile has more elements than registers hold");
  }

  TEST_CASE("space: parameters and values are there once") {
    CHECK_THROWS_WITH_AS(blocks().parameter("n", {1}), "Space: parameter 'n' is there twice", UsageError);
    CHECK_THROWS_WITH_AS(blocks().parameter("w", {}), "Space: parameter 'w' has no values", UsageError);
    CHECK_THROWS_WITH_AS(blocks().parameter("w", {1, 2, 1}), "Space: parameter 'w' has a value twice: 1 2 1",
                         UsageError);
  }

  TEST_CASE("shortlist: what a rule leaves out is told and never compiled") {
    Scripted s;
    auto task = s.task(6);
    task.space.rule([](const TunePoint& p) { return p.at("x") > 2 ? "too large" : ""; });
    const TuneReport r = runtime::search(task, s, s.options());
    CHECK(r.pruned_count == 3);
    REQUIRE(r.pruned.size() == 3);
    CHECK(r.pruned[0].point == at(3));
    CHECK(r.pruned[0].reason == "too large");
    CHECK(r.space_size == 6);
    CHECK(s.compiled == std::set<std::int64_t>{0, 1, 2});
  }

  TEST_CASE("shortlist: the default, then seeds, then the best by the model, then a few others") {
    Scripted s;
    auto task = s.task(100, 70);
    task.predicted_ms = [](const TunePoint& p) { return 1000.0 - static_cast<double>(p.at("x")); };
    task.seeds = {at(5), at(1000)};
    const runtime::Shortlist list = runtime::shortlist(task, 16);
    REQUIRE(list.entries.size() == 16);
    CHECK(list.entries[0].point == at(70));
    CHECK(list.entries[1].point == at(5));
    CHECK(list.entries[2].point == at(99));
    CHECK(list.entries[2].predicted_ms == 901);
    CHECK(list.entries[2].rank == 0);
    CHECK(list.entries[11].point == at(90));
    CHECK(list.entries[12].rank > 10);
    CHECK(runtime::shortlist(task, 16).entries[13].point == list.entries[13].point);
  }

  TEST_CASE("shortlist: of those that the model takes for alike a few come first, near the default") {
    Scripted s;
    auto task = s.task(30, 20);
    task.predicted_ms = [](const TunePoint& p) { return p.at("x") < 20 ? 1.0 : 2.0; };
    const runtime::Shortlist list = runtime::shortlist(task, 20);
    std::vector<std::int64_t> first;
    for (std::size_t i = 0; i < 8; ++i) first.push_back(list.entries[i].point.at("x"));
    CHECK(first == std::vector<std::int64_t>{20, 0, 1, 2, 3, 21, 22, 23});
    CHECK(list.entries.size() == 20);
  }

  TEST_CASE("shortlist: a default that the rules leave out is refused") {
    Scripted s;
    auto task = s.task(4, 9);
    CHECK_THROWS_WITH_AS(
        runtime::shortlist(task, 4),
        "tune scripted: the default x=9 cannot be tried: x=9 is not in the space, which has 0, 1, 2, 3", UsageError);
  }
}
