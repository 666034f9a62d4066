#include <doctest/doctest.h>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "tests/tuner/scripted.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;
using runtime::search;

namespace {

struct WisdomFile {
  std::string path =
      (std::filesystem::temp_directory_path() / ("kerf-tuner-" + std::to_string(getpid()) + ".jsonl")).string();
  WisdomFile() { remove(); }
  ~WisdomFile() { remove(); }
  void remove() const {
    std::filesystem::remove(path);
    std::filesystem::remove(path + ".lock");
  }
};

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("resume: what is known is not measured again, but for finalists") {
    const WisdomFile file;
    Scripted s;
    s.wrong[3] = "de";
    TuneOptions o = s.options();
    o.wisdom = file.path;
    search(s.task(16), s, o);
    CHECK(Wisdom::load(file.path).wisdom.records().size() == 16);

    Scripted again;
    TuneOptions p = again.options();
    p.wisdom = file.path;
    const TuneReport r = search(again.task(16), again, p);
    CHECK(winner(r) == 0);
    CHECK(candidate(r, 3).status == WisdomStatus::wrong);
    CHECK(candidate(r, 3).known);
    CHECK(candidate(r, 12).known);
    CHECK(!candidate(r, 0).known);
    CHECK(again.compiled == std::set<std::int64_t>{0, 1, 2, 4});

    Scripted all;
    TuneOptions q = all.options();
    q.wisdom = file.path, q.again = true;
    search(all.task(16), all, q);
    CHECK(all.compiled.size() == 16);
  }

  TEST_CASE("resume: what is measured anew takes the place of what was known, better or worse") {
    const WisdomFile file;
    Scripted s;
    s.wrong[3] = "de";
    s.ms = [](std::int64_t x, int) { return x == 1 ? 1.0 : 10.0 + static_cast<double>(x); };
    TuneOptions o = s.options();
    o.wisdom = file.path;
    CHECK(winner(search(s.task(8), s, o)) == 1);

    Scripted again;  // 1 was fast in a quiet minute, and 3 is right again; fewer runs tell it
    again.ms = [](std::int64_t x, int) { return x == 3 ? 5.0 : 10.0 + static_cast<double>(x); };
    TuneOptions p = again.options();
    p.wisdom = file.path, p.again = true;
    CHECK(winner(search(again.task(8), again, p)) == 3);
    const auto choice = Wisdom::load(file.path).wisdom.lookup(s.task(8).key, s.task(8).validators);
    REQUIRE(choice.record);
    CHECK(from_wisdom(choice.record->parameters) == at(3));
    CHECK(choice.record->median_ms == doctest::Approx(5).epsilon(1e-7));
  }

  TEST_CASE("resume: a search and the file it leaves choose alike, also where many are as fast") {
    std::uint64_t state = 3;
    const auto noise = [&] {
      state = state * 6364136223846793005U + 1442695040888963407U;
      return 1 + 0.08 * static_cast<double>(state >> 33) / 2147483648.0;
    };
    for (const double budget : {1000.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.2}) {
      const WisdomFile file;
      for (int turn = 0; turn < 3; ++turn) {
        Scripted s;
        s.ms = [&](std::int64_t x, int) { return (10.0 + 0.05 * static_cast<double>((x * 7) % 20)) * noise(); };
        TuneOptions o = s.options(budget);
        o.wisdom = file.path;
        const TuneReport r = search(s.task(20, 12), s, o);
        const auto found = Wisdom::load(file.path).wisdom.lookup(s.task(20).key, s.task(20).validators);
        CAPTURE(budget);
        CAPTURE(turn);
        REQUIRE(found.record);
        CHECK(from_wisdom(found.record->parameters) == at(winner(r)));
      }
    }
  }

  TEST_CASE("resume: a tie goes by what was predicted when it was measured, as in the file") {
    const WisdomFile file;
    Scripted s;
    TuneOptions o = s.options();
    o.wisdom = file.path;
    s.ms = [](std::int64_t, int) { return 10.0; };
    auto task = s.task(4);
    task.predicted_ms = [](const TunePoint& p) { return p.at("x") == 2 ? 1.0 : 2.0; };
    CHECK(winner(search(task, s, o)) == 2);
    Scripted again;  // another model, and no time to run anything
    again.ms = s.ms;
    TuneOptions none = again.options(0);
    none.wisdom = file.path;
    task = again.task(4);
    task.predicted_ms = [](const TunePoint& p) { return p.at("x") == 3 ? 1.0 : 2.0; };
    CHECK(winner(search(task, again, none)) == 2);
  }

  TEST_CASE("resume: records of another key or machine are not taken") {
    const WisdomFile file;
    Scripted s;
    TuneOptions o = s.options();
    o.wisdom = file.path;
    search(s.task(4), s, o);
    auto task = s.task(4);
    task.validators.units = 2;
    Scripted other;
    TuneOptions p = other.options();
    p.wisdom = file.path;
    search(task, other, p);
    CHECK(other.compiled.size() == 4);
  }

  TEST_CASE("resume: a search that is killed loses one candidate at most") {
    const WisdomFile file;
    const pid_t child = fork();
    if (child == 0) {
      Scripted s;
      s.running[6] = [] { kill(getpid(), SIGKILL); };
      TuneOptions o = s.options();
      o.wisdom = file.path;
      search(s.task(12), s, o);
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(Wisdom::load(file.path).wisdom.records().size() == 6);

    Scripted s;
    TuneOptions o = s.options();
    o.wisdom = file.path;
    const TuneReport r = search(s.task(12), s, o);
    CHECK(r.candidates.size() == 12);
    for (const std::int64_t x : {4, 5}) CHECK(s.compiled.count(x) == 0);
    for (const std::int64_t x : {6, 7, 11}) CHECK(s.compiled.count(x) == 1);
  }

  TEST_CASE("resume: a folder that cannot be written and a full disk are told, and the search goes on") {
    const Folder folder;
    const std::string inside = folder / "ro", there = inside + "/w.jsonl";
    std::filesystem::create_directories(inside);
    REQUIRE(chmod(inside.c_str(), 0555) == 0);
    const auto searched = [](const std::string& file) {
      Scripted s;
      TuneOptions o = s.options();
      o.wisdom = file;
      return search(s.task(8), s, o);
    };
    const auto in_child = [](const std::function<bool()>& holds) {
      const pid_t child = fork();
      if (child == 0) _exit(holds() ? 0 : 1);
      int status = -1;
      REQUIRE(waitpid(child, &status, 0) == child);
      return status == 0;
    };
    CHECK(in_child([&] {  // root may write everywhere
      if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return false;
      const TuneReport r = searched(there);
      return winner(r) == 0 && r.candidates.size() == 8 && r.notes.size() == 2 &&
             r.notes[0].find("cannot be opened: Permission denied") != std::string::npos;
    }));
    CHECK(Wisdom::load(there).wisdom.records().empty());
    const std::string small = folder / "small.jsonl";
    CHECK(in_child([&] {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit few{.rlim_cur = 1000, .rlim_max = 1000};
      if (setrlimit(RLIMIT_FSIZE, &few) != 0) return false;
      const TuneReport r = searched(small);
      return winner(r) == 0 && r.candidates.size() == 8 && r.notes.size() == 2 &&
             r.notes[0].find("cannot be written") != std::string::npos;
    }));
    const WisdomRead read = Wisdom::load(small);
    CHECK(read.problems.empty());
    CHECK((!read.wisdom.records().empty() && read.wisdom.records().size() < 8));
    const TuneReport device = searched("/dev/full");
    CHECK(winner(device) == 0);
    CHECK(device.notes.at(0).find("is a character device") != std::string::npos);
  }
}
