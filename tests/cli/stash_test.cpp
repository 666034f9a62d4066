// --strategy exact-stash and dense, and --stash, of the kerf command.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstddef>
#include <string>

#include "tests/cli/command.h"

using namespace cli;

TEST_CASE("kerf check holds with every strategy, written with - or _") {
  for (const char* strategy :
       {"automatic", "exact-recompute", "min-memory", "exact-stash", "exact_stash", "dense", "filtered"})
    for (const char* dtype : {"f32", "bf16"}) {
      CAPTURE(strategy);
      const json j = kerf_json(fmt::format("check --shape 61,37,1031 --dtype {} --strategy {}", dtype, strategy));
      CHECK(j["pass"] == true);
      std::string name = strategy;
      for (char& c : name)
        if (c == '-') c = '_';
      CHECK(j["strategy"] == (name == "automatic" ? "exact_recompute" : name));
      const bool stashes = name == "exact_stash" || name == "dense";
      CHECK((j["stash_bytes"].get<std::size_t>() > 0) == stashes);
    }
}

TEST_CASE("kerf bench counts a stash as workspace, and --stash gives it less") {
  const std::string bench = "bench --shape 300,64,3000 --seconds 0 --strategy exact-stash ";
  const json all = kerf_json(bench), some = kerf_json(bench + "--stash 1"), none = kerf_json(bench + "--stash 0");
  CHECK(all["strategy"] == "exact_stash");
  CHECK(all["stash_bytes"].get<std::size_t>() >= std::size_t{300} * 3000 * 4);
  CHECK(all["workspace_bytes"].get<std::size_t>() > all["stash_bytes"].get<std::size_t>());
  CHECK(some["stash_bytes"] == 1 << 20);
  CHECK(none["stash_bytes"] == 0);
  CHECK(kerf(bench).out.find(", stash of ") != std::string::npos);
  CHECK(kerf(bench + "--stash 0").out.find("stash of") == std::string::npos);
}

TEST_CASE("kerf bench --workspace lets automatic share it out between ranges and a stash") {
  const json j = kerf_json("bench --shape 300,64,3000 --seconds 0 --workspace 8");
  CHECK(j["strategy"] == "exact_stash");
  CHECK(j["stash_bytes"].get<std::size_t>() > 1 << 20);
  CHECK(j["workspace_bytes"].get<std::size_t>() <= 8 << 20);
}

TEST_CASE("kerf: what contradicts a stash is refused before any work") {
  const std::string check = "check --shape 9,8,1000 ";
  refused(check + "--filter mass --strategy exact-stash", 2,
          "--filter mass: --strategy exact-stash filters nothing; leave one of the two out");
  refused(check + "--order norms --strategy dense", 2, "nothing is filtered with --strategy dense; leave it out");
  refused(check + "--stash 1 --strategy min_memory", 2,
          "--stash 1: --strategy min_memory keeps no stash; take --strategy exact_stash or leave --stash out");
  refused(check + "--stash 1 --strategy filtered", 2, "--strategy filtered keeps no stash");
  refused(check + "--stash 1 --strategy dense", 2, "--strategy dense holds everything");
  refused(check + "--stash 1", 2, "--strategy automatic shares --workspace out itself");
}
