// kerf cache, and the folder as other verbs fill it.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "tests/cli/command.h"

using namespace cli;
namespace fs = std::filesystem;

namespace {

/// A folder for this test alone, named to the commands.
struct Cache {
  fs::path at = fs::canonical(fs::temp_directory_path()) / fmt::format("kerf-cli-cache-{}", getpid());
  Cache() { fs::remove_all(at); }
  ~Cache() { fs::remove_all(at); }
  std::string environment() const { return fmt::format("KERF_CACHE= KERF_CACHE_DIR='{}'", at.string()); }
  Result run(const std::string& arguments, bool want_stderr = false) const {
    return kerf(arguments, want_stderr, environment());
  }
  json run_json(const std::string& arguments, int code = 0) const {
    const Result r = run(arguments + " --json");
    CAPTURE(r.out);
    REQUIRE(r.code == code);
    return json::parse(r.out);
  }
  fs::path entry(const json& list, std::size_t i) const {
    return at / "v1" / list["entries"][i]["file"].get<std::string>();
  }
};

}  // namespace

TEST_CASE("kerf cache shows, checks and removes what other verbs left") {
  const Cache cache;
  CHECK(cache.run_json("cache list")["entries"].empty());
  CHECK(cache.run_json("cache gc")["removed"] == 0);
  CHECK(!fs::exists(cache.at));
  CHECK(cache.run("cache path").out == cache.at.string() + "\n");
  CHECK(cache.run_json("cache path")["folder"] == cache.at.string());

  CHECK(cache.run("check --shape 61,37,1031").code == 0);
  const json list = cache.run_json("cache list");
  REQUIRE(list["entries"].size() >= 5);
  std::uint64_t bytes = 0;
  for (const json& e : list["entries"]) {
    CHECK(e["kind"] == "object");
    CHECK(e["kerf"].get<std::string>().find('+') != std::string::npos);
    CHECK(e["target"].is_string());
    CHECK(e["used"].get<std::string>().ends_with("Z"));
    bytes += e["bytes"].get<std::uint64_t>();
  }
  CHECK(list["bytes"] == bytes);
  const std::string table = cache.run("cache list").out;
  CHECK(table.find("lse_forward") != std::string::npos);
  CHECK(table.find(fmt::format("{} entries", list["entries"].size())) != std::string::npos);

  CHECK(cache.run_json("cache verify")["good"] == list["entries"].size());
  fs::resize_file(cache.entry(list, 0), 50);
  const json verified = cache.run_json("cache verify", 1);
  CHECK(verified["damaged"] == json({cache.entry(list, 0).string()}));
  CHECK(!fs::exists(cache.entry(list, 0)));
  CHECK(cache.run("cache verify").code == 0);
  CHECK(cache.run("check --shape 61,37,1031").code == 0);
  CHECK(cache.run_json("cache list")["entries"].size() == list["entries"].size());

  CHECK(cache.run_json("cache gc")["removed"] == 0);
  const json swept = cache.run_json("cache gc --limit-mib 0.02");
  CHECK(swept["removed"].get<int>() > 0);
  CHECK(swept["bytes"].get<std::uint64_t>() <= 20971);
  CHECK(cache.run("cache clear").code == 0);
  CHECK(cache.run_json("cache list")["entries"].empty());
  CHECK(!fs::is_empty(cache.at));  // locks; the folder itself stays
  CHECK(cache.run_json("doctor")["cache_folder"] == cache.at.string());
}

TEST_CASE("kerf cache: a folder that others may write is refused, and every other verb works without") {
  const Cache cache;
  fs::create_directory(cache.at);
  fs::permissions(cache.at, fs::perms::all);
  for (const char* verb : {"list", "verify", "gc", "clear"}) {
    const Result r = cache.run(fmt::format("cache {}", verb), true);
    CHECK(r.code == 3);
    CHECK(r.out.find("can be written by other users") != std::string::npos);
  }
  CHECK(cache.run("check --shape 8,8,90").code == 0);
  CHECK(fs::is_empty(cache.at));
  CHECK(cache.run("doctor").out.find("-> cache: code is kept in memory alone: ") != std::string::npos);
}

TEST_CASE("kerf cache: wrong calls say what to change") {
  refused("cache list", 2, "there is no folder: KERF_CACHE is off");
  refused("cache", 2, "A subcommand is required");
  refused("cache lsit", 2, "A subcommand is required");
  refused("cache gc --limit-mib -1", 2, "--limit-mib");
  for (const char* verb : {"", "list", "verify", "gc", "path", "clear"}) {
    const Result r = kerf(fmt::format("cache {} --help", verb));
    CHECK(r.code == 0);
    CHECK(r.out.find("Example: kerf cache") != std::string::npos);
  }
}
