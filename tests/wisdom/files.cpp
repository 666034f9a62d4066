// Wisdom in files: what is refused, what two writers lose of each other, what a death leaves behind.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <thread>

#include "kerf/error.h"
#include "tests/support/errors.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;

namespace {

namespace fs = std::filesystem;

/// Runs in a child, which ends with 0 if `work` returns.
pid_t in_child(const std::function<void()>& work) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child > 0) return child;
  int code = 1;
  try {
    work();
    code = 0;
  } catch (const std::exception& e) {
    fprintf(stderr, "child: %s\n", e.what());
  }
  _exit(code);
}
int status_of(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

std::string the_problem(const WisdomRead& read) {
  REQUIRE(read.problems.size() == 1);
  return read.problems[0].text();
}

std::size_t files_in(const std::string& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

/// The user that runs the test may write everywhere; another one may not.
void as_nobody(const std::function<void()>& work) {
  CHECK(status_of(in_child([&] {
          if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) throw std::runtime_error("setuid");
          work();
        })) == 0);
}

void expect(bool fact, const char* what) {
  if (!fact) throw std::runtime_error(what);
}

}  // namespace

TEST_CASE("wisdom: a file that is not there holds nothing, and saving makes it with its folders") {
  const Folder folder;
  const std::string file = folder / "a/b/wisdom.jsonl";
  CHECK(Wisdom::load(file).problems.empty());
  CHECK(Wisdom::load(file).wisdom.records().empty());
  const Wisdom w = wisdom_of(random_records(50, 1));
  CHECK(w.save(file).empty());
  CHECK(contents(file) == w.text());
  CHECK(Wisdom::load(file).wisdom == w);
  CHECK(files_in(folder / "a/b") == 2);  // with its lock
}

TEST_CASE("wisdom: saving adds to what the file holds and keeps its rights") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  wisdom_of({a_record(64, 1.0)}).save(file);
  REQUIRE(chmod(file.c_str(), 0640) == 0);
  wisdom_of({a_record(128, 2.0)}).save(file);
  CHECK(Wisdom::load(file).wisdom == wisdom_of({a_record(64, 1.0), a_record(128, 2.0)}));
  struct stat s {};
  REQUIRE(stat(file.c_str(), &s) == 0);
  CHECK((s.st_mode & 0777) == 0640);
}

TEST_CASE("wisdom: an update changes what is in the file then, and an exception leaves the file as it was") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  wisdom_of({a_record(64, 1.0), a_record(128, 2.0)}).save(file);
  update_wisdom(file, [](Wisdom& w) { w.prune({.losers = true}); });
  CHECK(Wisdom::load(file).wisdom == wisdom_of({a_record(64, 1.0)}));
  const std::string before = contents(file);
  CHECK_THROWS_AS(update_wisdom(file,
                                [](Wisdom& w) {
                                  w = {};
                                  throw UsageError("no");
                                }),
                  UsageError);
  CHECK(contents(file) == before);
}

TEST_CASE("wisdom: eight processes that save at once lose nothing") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  constexpr int processes = 8, saves = 20;
  std::vector<pid_t> children;
  for (int p = 0; p < processes; ++p)
    children.push_back(in_child([&] {
      for (int i = 0; i < saves; ++i) wisdom_of({a_record(1 + p * saves + i, 1.0 + i)}).save(file);
    }));
  for (const pid_t child : children) CHECK(status_of(child) == 0);
  const WisdomRead read = Wisdom::load(file);
  CHECK(read.problems.empty());
  CHECK(read.wisdom.records().size() == processes * saves);
  CHECK(files_in(folder.path()) == 2);
}

TEST_CASE("wisdom: processes that append and save at once lose nothing") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  constexpr int processes = 8, records = 40;
  std::vector<pid_t> children;
  for (int p = 0; p < processes; ++p)
    children.push_back(in_child([&] {
      WisdomAppender appender(file);
      for (int i = 0; i < records; ++i) {
        const WisdomRecord r = a_record(1 + p * records + i, 1.0 + i);
        if (p % 2 == 0)
          appender.append(r);
        else
          wisdom_of({r}).save(file);
      }
    }));
  for (const pid_t child : children) CHECK(status_of(child) == 0);
  const WisdomRead read = Wisdom::load(file);
  CHECK(read.problems.empty());
  CHECK(read.wisdom.records().size() == processes * records);
}

TEST_CASE("wisdom: threads that save at once lose nothing") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) wisdom_of({a_record(1 + t * 10 + i, 1.0)}).save(file);
    });
  for (std::thread& t : threads) t.join();
  CHECK(Wisdom::load(file).wisdom.records().size() == 40);
}

TEST_CASE("wisdom: a killed appender leaves all it had appended but perhaps the last") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  int progress[2];
  REQUIRE(pipe(progress) == 0);
  const pid_t child = in_child([&] {
    WisdomAppender appender(file);
    for (std::int64_t i = 1;; ++i) {
      WisdomRecord r = a_record(i, 1.0);
      r.reason = std::string(20000, 'x');  // several pages
      appender.append(r);
      if (write(progress[1], &i, sizeof i) != sizeof i) return;
    }
  });
  std::int64_t appended = 0;
  while (appended < 50) REQUIRE(read(progress[0], &appended, sizeof appended) == sizeof appended);
  REQUIRE(kill(child, SIGKILL) == 0);
  CHECK(WTERMSIG(status_of(child)) == SIGKILL);
  close(progress[1]);
  for (std::int64_t i; read(progress[0], &i, sizeof i) == sizeof i;) appended = i;
  close(progress[0]);
  const WisdomRead read = Wisdom::load(file);
  CHECK(!read.damaged());
  CHECK(read.wisdom.records().size() >= static_cast<std::size_t>(appended));
  WisdomAppender(file).append(a_record(1'000'000, 1.0));  // the lock went with its holder
  CHECK(Wisdom::load(file).problems.empty());
}

TEST_CASE("wisdom: the next append takes a torn line away and ends a whole one") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  WisdomAppender appender(file);
  appender.append(a_record(64, 1.0));
  const std::string one = contents(file);
  CHECK(one.starts_with("{\"kerf_wisdom\":1}\n{\"key\":"));
  write(file, one + R"({"key":{"op":"linear_)");
  appender.append(a_record(128, 2.0));
  CHECK(Wisdom::load(file).problems.empty());
  CHECK(Wisdom::load(file).wisdom.records().size() == 2);
  const std::string two = contents(file);
  write(file, two.substr(0, two.size() - 1));
  appender.append(a_record(256, 3.0));
  CHECK(Wisdom::load(file).problems.empty());
  CHECK(Wisdom::load(file).wisdom.records().size() == 3);
}

TEST_CASE("wisdom: a torn line and no header are no reason to keep a file aside") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  const std::string text = wisdom_of({a_record(64, 1.0)}).text();
  write(file, text.substr(text.find('\n') + 1) + "{\"key\":");
  CHECK(wisdom_of({a_record(128, 2.0)}).save(file).size() == 2);
  CHECK(Wisdom::load(file).wisdom.records().size() == 2);
  CHECK(files_in(folder.path()) == 2);
}

TEST_CASE("wisdom: a damaged file is kept aside as it was, and what could be read is kept") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  for (int n = 1; n <= 3; ++n) {
    const std::string damaged =
        wisdom_of({a_record(64 * n, 1.0)}).text() + "<<<<<<< theirs " + std::to_string(n) + "\n";
    write(file, (n > 1 ? contents(file) : "") + damaged);
    const std::string whole = contents(file);
    const std::vector<WisdomProblem> problems = wisdom_of({a_record(1, 2.0)}).save(file);
    REQUIRE(problems.size() == 2);
    CHECK(!problems[0].note);
    const std::string aside = file + ".bad-" + std::to_string(n);
    CHECK(problems[1].text() == file + ": the file as it was is kept as " + aside);
    CHECK(contents(aside) == whole);
    CHECK(Wisdom::load(file).problems.empty());
    CHECK(Wisdom::load(file).wisdom.records().size() == static_cast<std::size_t>(n) + 1);
  }
}

TEST_CASE("wisdom: a file of a newer schema is never written") {
  const Folder folder;
  const std::string file = folder / "w.jsonl", text = "{\"kerf_wisdom\":2}\n{\"new\":1}\n";
  write(file, text);
  const std::string said =
      "wisdom: " + file +
      ":1: the file is of schema 2, this Kerf reads schema 1; use a newer Kerf; it was left as it is";
  check_error([&] { wisdom_of({a_record(64, 1.0)}).save(file); }, said);
  check_error([&] { WisdomAppender a(file); }, said);
  CHECK(contents(file) == text);
}

TEST_CASE("wisdom: what is no regular file is refused at once") {
  const Folder folder;
  const std::string pipe = folder / "pipe", link = folder / "link", real = folder / "real";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  wisdom_of({a_record(64, 1.0)}).save(real);
  fs::create_symlink(real, link);
  const auto start = std::chrono::steady_clock::now();
  CHECK(the_problem(Wisdom::load(pipe)) == pipe + ": is a pipe; wisdom is read from regular files alone");
  CHECK(the_problem(Wisdom::load(folder.path())) ==
        folder.path() + ": is a folder; wisdom is read from regular files alone");
  CHECK(the_problem(Wisdom::load("/dev/zero")) ==
        "/dev/zero: is a character device; wisdom is read from regular files alone");
  CHECK(the_problem(Wisdom::load(real + "/x")) == real + "/x: cannot be opened: Not a directory");
  CHECK(Wisdom::load(link).wisdom.records().size() == 1);

  const Wisdom w = wisdom_of({a_record(128, 1.0)});
  const auto refused = [&](const std::string& file, const std::string& why) {
    check_error([&] { w.save(file); }, "wisdom: " + file + why);
    check_error([&] { WisdomAppender a(file); }, "wisdom: " + file + why);
  };
  refused(pipe, " is a pipe; wisdom is written to regular files alone: name another");
  refused(folder.path(), " is a folder; wisdom is written to regular files alone: name another");
  refused(link, " is a symbolic link; wisdom is written to regular files alone: name what it points to");
  refused("/dev/zero", " is a character device; wisdom is written to regular files alone: name another");

  const std::string other = folder / "other";
  fs::create_symlink(real, other + ".lock");
  check_error([&] { w.save(other); },
              "wisdom: " + other +
                  ".lock is a symbolic link; wisdom is written to regular files alone: name what it points to");
  fs::remove(real + ".lock");
  REQUIRE(mkfifo((real + ".lock").c_str(), 0600) == 0);
  check_error([&] { w.save(real); },
              "wisdom: " + real + ".lock is a pipe; wisdom is written to regular files alone: name another");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}

TEST_CASE("wisdom: a link planted at the temporary name is not written through") {
  const Folder folder;
  const std::string file = folder / "w.jsonl", victim = folder / "victim";
  write(victim, "mine");
  fs::create_symlink(victim, file + ".tmp");
  wisdom_of({a_record(64, 1.0)}).save(file);
  CHECK(contents(victim) == "mine");
  CHECK(Wisdom::load(file).wisdom.records().size() == 1);
}

TEST_CASE("wisdom: a folder that cannot be written is said, and its files are read") {
  const Folder folder;
  const std::string inside = folder / "ro", file = inside + "/w.jsonl";
  wisdom_of({a_record(64, 1.0)}).save(file);
  fs::remove(file + ".lock");
  REQUIRE(chmod(inside.c_str(), 0555) == 0);
  as_nobody([&] {
    expect(Wisdom::load(file).wisdom.records().size() == 1, "is read");
    try {
      wisdom_of({a_record(128, 1.0)}).save(file);
      expect(false, "throws");
    } catch (const UsageError& e) {
      expect(e.what() == "wisdom: " + file +
                             ".lock cannot be opened: Permission denied; name a file that can be written, in "
                             "KERF_WISDOM for example",
             e.what());
    }
    try {
      wisdom_of({a_record(128, 1.0)}).save(inside + "/deeper/w.jsonl");
      expect(false, "throws");
    } catch (const UsageError& e) {
      expect(std::string(e.what()).find("/deeper cannot be made: Permission denied") != std::string::npos, e.what());
    }
  });
  REQUIRE(chmod(inside.c_str(), 0755) == 0);
  REQUIRE(chmod(file.c_str(), 0000) == 0);
  as_nobody([&] {
    const WisdomRead read = Wisdom::load(file);
    expect(read.problems.size() == 1 && read.problems[0].what == "cannot be opened: Permission denied", "is said");
  });
}

TEST_CASE("wisdom: a disk that is full leaves the file as it was") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  wisdom_of({a_record(64, 1.0)}).save(file);
  const std::string before = contents(file);
  CHECK(status_of(in_child([&] {
          signal(SIGXFSZ, SIG_IGN);
          const rlimit few{.rlim_cur = before.size() + 100, .rlim_max = before.size() + 100};
          expect(setrlimit(RLIMIT_FSIZE, &few) == 0, "setrlimit");
          WisdomAppender appender(file);
          for (int way = 0; way < 2; ++way) {
            try {
              way == 0 ? appender.append(a_record(128, 1.0))
                       : static_cast<void>(wisdom_of({a_record(128, 1.0)}).save(file));
              expect(false, "throws");
            } catch (const Error& e) {
              expect(std::string(e.what()).find("cannot be written") != std::string::npos, e.what());
            }
          }
        })) == 0);
  CHECK(contents(file) == before);
  CHECK(files_in(folder.path()) == 2);
}

TEST_CASE("wisdom: a line of 1 GiB is passed over without holding it") {
  const Folder folder;
  const std::string file = folder / "w.jsonl";
  const std::string text = wisdom_of({a_record(64, 1.0)}).text();
  constexpr std::int64_t gib = std::int64_t{1} << 30;
  const auto sized = [&](std::int64_t size) {
    write(file, text);
    REQUIRE(truncate(file.c_str(), size) == 0);
  };
  struct rusage before {
  }, after{};
  REQUIRE(getrusage(RUSAGE_SELF, &before) == 0);
  const auto start = std::chrono::steady_clock::now();
  sized(gib);
  const WisdomRead read = Wisdom::load(file);
  CHECK(the_problem(read) == file + ":3: the line has more than 65536 bytes; nothing that Kerf writes has");
  CHECK(read.wisdom.records().size() == 1);
  sized(gib + 1);
  CHECK(the_problem(Wisdom::load(file)) ==
        file + ": has 1073741825 bytes, at most 1073741824 are read; prune it or take it apart");
  sized(gib * 1000);
  CHECK(the_problem(Wisdom::load(file)).find("has 1073741824000 bytes") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
  REQUIRE(getrusage(RUSAGE_SELF, &after) == 0);
  CHECK(after.ru_maxrss - before.ru_maxrss < 64 << 10);  // KiB
}
