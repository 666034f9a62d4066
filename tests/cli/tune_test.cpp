// kerf tune as a shell sees it.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "kerf/wisdom.h"
#include "tests/cli/command.h"
#include "tests/wisdom/records.h"

using cli::Result;
using kerf::Wisdom;
using kerf::test::contents;
using kerf::test::Folder;

TEST_SUITE("tune") {
  TEST_CASE("tune: a study of every part, records in wisdom, and a second run that knows them") {
    const Folder folder;
    const std::string wisdom = folder / "w.jsonl", study = folder / "study.json";
    const std::string call =
        fmt::format("tune --shape 32,32,500 --threads 1 --budget 8 --candidates 3 --wisdom {} --out {}", wisdom, study);
    for (const bool again : {false, true}) {
      const Result r = cli::kerf(call);
      CHECK(r.code == 0);
      const auto json = nlohmann::json::parse(contents(study));
      CHECK(json["shape"] == nlohmann::json({32, 32, 500}));
      CHECK(json["stopped"] == "");
      REQUIRE(json["parts"].size() == 2);
      for (const auto& part : json["parts"]) {
        CHECK(part["candidates"].size() == 3);
        CHECK(part["default"] == 0);
        CHECK(part["winner"].is_number());
        CHECK(part["space_size"].get<int>() > 100);
        CHECK(part["pruned"].size() == std::min(1000, part["pruned_count"].get<int>()));
        CHECK(part["candidates"][0]["parameters"].contains("n"));
        for (const auto& c : part["candidates"]) CHECK((c["compile_ms"].get<double>() > 0) == (!again));
      }
      CHECK(Wisdom::load(wisdom).wisdom.records().size() == 6);
    }
  }

  TEST_CASE("tune: what contradicts itself is refused") {
    CHECK(cli::kerf("tune").code == 2);
    CHECK(cli::kerf("tune --shape 8,8,8 --tokens 4 --dry-run").code == 2);
    CHECK(cli::kerf("tune --missing --shape 8,8,8 --dry-run").code == 2);
    CHECK(cli::kerf("tune --shape 8,8,8 --device cuda --dry-run").code == 3);
  }

  TEST_CASE("tune: repeated searches tell what they chose, and whether they chose alike") {
    const Folder folder;
    const std::string wisdom = folder / "w.jsonl";
    const std::string call = "tune --shape 32,32,500 --threads 1 --budget 2 --candidates 2 --repeat 3 --json";
    const Result r = cli::kerf(call, false, "KERF_WISDOM=" + wisdom);
    const auto json = nlohmann::json::parse(r.out);
    REQUIRE(json["parts"].size() == 2);
    bool alike = true;
    for (const auto& part : json["parts"]) {
      std::int64_t times = 0, within = 0;
      for (const auto& choice : part["choices"]) {
        times += choice["times"].get<std::int64_t>();
        within += choice["ratio"].get<double>() <= 1.02 ? choice["times"].get<std::int64_t>() : 0;
        CHECK(choice["median_ms"].get<double>() > 0);
        CHECK(choice["parameters"].contains("n"));
      }
      CHECK(part["choices"][0]["ratio"] == 1.0);
      CHECK(times == 3);
      CHECK(part["searches"] == 3);
      CHECK(part["within_2_percent"] == within);
      alike = alike && within == 3;
    }
    CHECK(r.code == (alike ? 0 : 1));
    CHECK(!std::filesystem::exists(wisdom));
    CHECK(cli::kerf("tune --shape 8,8,8 --repeat 2 --out study.json").code == 2);
    CHECK(cli::kerf("tune --shape 8,8,8 --repeat 0").code == 2);
    CHECK(cli::kerf("tune --shape 8,8,8 --repeat 2 --budget 0").code == 1);
  }

  TEST_CASE("tune: a budget of nothing measures nothing and says so") {
    CHECK(cli::kerf("tune --shape 8,8,8 --budget 0 --dry-run").code == 1);
  }
}
