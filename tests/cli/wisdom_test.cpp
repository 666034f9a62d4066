// kerf wisdom as a shell sees it.
#include "kerf/wisdom.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <vector>

#include "kerf/version.h"
#include "tests/cli/command.h"
#include "tests/wisdom/records.h"

using namespace cli;
using kerf::Wisdom;
using kerf::WisdomRecord;
using kerf::test::a_record;
using kerf::test::contents;
using kerf::test::Folder;
using kerf::test::wisdom_of;

namespace {

WisdomRecord too_large() {
  WisdomRecord r = a_record(512, 0);
  r.samples = 0;
  r.spread = 0;
  r.status = kerf::WisdomStatus::resources;
  r.reason = "needs 256 KiB of shared memory";
  return r;
}
WisdomRecord backward_on_h100() {
  WisdomRecord r = a_record(64, 3.0);
  r.key.part = "backward";
  r.validators.device = "NVIDIA H100";
  return r;
}

/// A folder with wisdom of the user.
struct Home : Folder {
  Home() { wisdom_of({a_record(128, 1.5), a_record(64, 1.8), too_large(), backward_on_h100()}).save(user()); }
  std::string user() const { return *this / "user.jsonl"; }
  std::string environment() const { return "KERF_WISDOM_PATH= KERF_WISDOM=" + user(); }
  Result run(const std::string& arguments, bool want_stderr = false) const {
    return cli::kerf("wisdom " + arguments, want_stderr, environment());
  }
  json run_json(const std::string& arguments) const {
    const Result r = run(arguments + " --json");
    CAPTURE(arguments);
    REQUIRE(r.code == 0);
    return json::parse(r.out);
  }
  void refused(const std::string& arguments, int code, const std::string& text) const {
    const Result r = run(arguments, true);
    CAPTURE(arguments);
    CAPTURE(r.out);
    CHECK(r.code == code);
    CHECK(r.out.find(text) != std::string::npos);
    CHECK(r.out.starts_with("kerf wisdom"));
  }
};

}  // namespace

TEST_CASE("kerf wisdom list has a line for each key, with what was tried and what won") {
  const Home home;
  const json j = home.run_json("list");
  REQUIRE(j["layers"].size() == 1);
  CHECK(j["layers"][0]["layer"] == home.user());
  CHECK(j["layers"][0]["records"] == 4);
  const json& keys = j["layers"][0]["keys"];
  REQUIRE(keys.size() == 2);
  CHECK(keys[0]["key"]["part"] == "backward");
  CHECK(keys[1]["tried"] == 3);
  CHECK(keys[1]["ok"] == 2);
  CHECK(keys[1]["winner"]["parameters"]["n"] == 128);
  CHECK(home.run_json("list --device H200")["layers"][0]["keys"].size() == 1);
  CHECK(home.run_json("list --op mine")["layers"].empty());

  const Result table = home.run("list");
  CHECK(table.code == 0);
  CHECK(table.out.find("     3     2     1.5000  n=128 v=256                      linear_cross_entropy forward bf16 "
                       "D=2304 V=256000 N=1024 sm_90a; NVIDIA H200\n") != std::string::npos);
  CHECK(home.run("list --op mine").out == "no wisdom in " + home.user() + "\n");
}

TEST_CASE("kerf wisdom show has every candidate, the winner first and failures with their reasons") {
  const Home home;
  const json records = home.run_json("show --part forward")["records"];
  REQUIRE(records.size() == 3);
  CHECK(records[0]["median_ms"] == 1.8);
  CHECK(records[0]["layer"] == home.user());
  const std::string out = home.run("show --part forward").out;
  const std::size_t winner = out.find("* ok             1.5000     1.0%       20          -  n=128 v=256\n");
  const std::size_t loser = out.find("  ok             1.8000     1.0%       20          -  n=64 v=256\n");
  const std::size_t failed = out.find("n=512 v=256: needs 256 KiB of shared memory\n");
  CHECK(winner < loser);
  CHECK(loser < failed);
  CHECK(failed != std::string::npos);
  CHECK(out.find("on NVIDIA H200, 132 units, driver 13.0, Kerf 0.1.0; space space1\n") != std::string::npos);
}

TEST_CASE("kerf wisdom export writes text that import reads") {
  const Home home;
  const Result all = home.run("export");
  CHECK(all.code == 0);
  CHECK(all.out == contents(home.user()));
  const std::string out = home / "model/kerf.jsonl";
  CHECK(home.run("export --device H200 --op linear_cross_entropy --dtype bf16 --out " + out).out ==
        "3 records written to " + out + "\n");
  CHECK(Wisdom::load(out).wisdom.records().size() == 3);

  const std::string other = home / "other.jsonl";
  const json first = home.run_json(fmt::format("import {} --file {}", out, other));
  CHECK(first == json({{"file", other}, {"read", 3}, {"new", 3}, {"records", 3}}));
  CHECK(home.run(fmt::format("import {} {} --file {}", home.user(), out, other)).out ==
        other + ": 4 records, 1 of them new\n");
  CHECK(contents(other) == contents(home.user()));

  const json records = home.run_json("export --dtype bf16")["records"];
  REQUIRE(records.size() == Wisdom::parse(all.out).wisdom.records().size());
  const std::string line = all.out.substr(all.out.find('\n') + 1);
  CHECK(records[0] == json::parse(line.substr(0, line.find('\n'))));
  CHECK(home.run_json("export --device H200 --out " + out) == json({{"file", out}, {"written", 3}}));
}

TEST_CASE("kerf wisdom merge makes one text of several files and touches none") {
  const Home home;
  const std::string a = home / "a.jsonl", b = home / "b.jsonl", out = home / "out.jsonl";
  wisdom_of({a_record(64, 1.0)}).save(a);
  wisdom_of({a_record(64, 2.0), a_record(128, 3.0)}).save(b);
  const std::string user = contents(home.user());
  const Result merged = home.run(fmt::format("merge {} {}", a, b));
  CHECK(merged.code == 0);
  CHECK(merged.out == wisdom_of({a_record(64, 1.0), a_record(128, 3.0)}).text());
  CHECK(home.run(fmt::format("merge {} {}", b, a)).out == merged.out);
  CHECK(home.run(fmt::format("merge {} {} --out {}", a, b, out)).code == 0);
  CHECK(contents(out) == merged.out);
  CHECK(home.run_json(fmt::format("merge {} {}", a, b))["records"].size() == 2);
  CHECK(home.run_json(fmt::format("merge {} {} --out {}", a, b, out)) == json({{"file", out}, {"written", 2}}));
  CHECK(contents(out) == merged.out);
  CHECK(contents(home.user()) == user);
}

TEST_CASE("kerf wisdom prune drops what is named, and nothing in a dry run") {
  const Home home;
  WisdomRecord other = a_record(32, 1.0);
  other.validators.kerf = "0.0.9";
  other.date = "2025-01-01";
  wisdom_of({other}).save(home.user());
  CHECK(home.run("prune --losers --dry-run").out == home.user() + ": 2 records would be dropped, 3 stay\n");
  CHECK(Wisdom::load(home.user()).wisdom.records().size() == 5);
  CHECK(std::string(kerf::version()) == "0.1.0");
  CHECK(home.run("prune --other-versions").out == home.user() + ": 1 records dropped, 4 stay\n");
  wisdom_of({other}).save(home.user());
  CHECK(home.run_json("prune --before 2025-06-01")["dropped"] == 1);
  CHECK(home.run_json("prune --losers")["records"] == 2);
  home.refused("prune", 2, "prune: says nothing of what to drop; add --other-versions, --before DATE or --losers");
  home.refused("prune --before yesterday", 2, "prune: 'yesterday' is no date");
  const std::string none = home / "none/none.jsonl";
  CHECK(cli::kerf("wisdom prune --losers", false, "KERF_WISDOM=" + none).out == none + ": 0 records dropped, 0 stay\n");
  CHECK(!std::filesystem::exists(home / "none"));
}

TEST_CASE("kerf wisdom tells which lines it could not read, uses the others, and exits with 1") {
  const Home home;
  const std::string damaged = contents(home.user()) + "<<<<<<< theirs\n";
  for (const std::string& verb :
       std::vector<std::string>{"list", "show", "export", "import " + home.user() + " --file " + (home / "x"),
                                "merge " + home.user(), "prune --losers --dry-run"}) {
    kerf::test::write(home.user(), damaged);
    home.refused(verb, 1, home.user() + ":6: no JSON at column 1");
  }
  CHECK(Wisdom::load(home / "x").wisdom.records().size() == 4);
  const Result r = home.run("import " + (home / "x"), true);
  CHECK(r.code == 1);
  CHECK(r.out.find("the file as it was is kept as " + home.user() + ".bad-1") != std::string::npos);
  CHECK(contents(home.user() + ".bad-1") == damaged);
  kerf::test::write(home.user(), contents(home.user()) + "{\"key\":{\"op");
  CHECK(home.run("list").code == 0);  // a torn last line loses nothing
  CHECK(home.run("list", true).out.find("the last line was not written to its end") != std::string::npos);
}

TEST_CASE("kerf wisdom refuses what makes no sense, in a line") {
  const Home home;
  home.refused("", 2, "A subcommand is required");
  home.refused("import", 2, "files is required");
  home.refused("import " + (home / "none"), 2, (home / "none") + " is not there; name a file of wisdom");
  home.refused("list --file " + (home / "none"), 2, (home / "none") + " is not there; name a file of wisdom");
  home.refused("export --out /dev/null", 2, "/dev/null is a character device");
  home.refused(fmt::format("import {} --file {}/user.jsonl/x", home.user(), home.path()), 2, "cannot be");
  const Result r = cli::kerf("wisdom import " + home.user(), true, "env -u HOME -u XDG_DATA_HOME -u KERF_WISDOM");
  CHECK(r.code == 2);
  CHECK(r.out.find("none of KERF_WISDOM, XDG_DATA_HOME and HOME is set") != std::string::npos);
}

TEST_CASE("kerf wisdom: every verb has help with an example") {
  for (const char* verb : {"", "list", "show", "export", "import", "merge", "prune"}) {
    const Result r = cli::kerf(fmt::format("wisdom {} --help", verb));
    CAPTURE(verb);
    CHECK(r.code == 0);
    CHECK(r.out.find(fmt::format("Example: kerf wisdom {}", verb)) != std::string::npos);
  }
}
