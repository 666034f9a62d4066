#include <doctest/doctest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kerf/error.h"
#include "kerf/kernel.h"

using namespace kerf;

namespace {

/// Sets a variable of the environment until it goes out of scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = std::make_unique<std::string>(before);
    setenv(name, value, 1);
  }
  ~Variable() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::unique_ptr<std::string> before_;
};

}  // namespace

TEST_CASE("ThreadPool: disjoint ranges cover the count, each on a thread of the pool") {
  for (int threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    for (std::int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<int> times(static_cast<std::size_t>(count));
      std::atomic<bool> inside = true;
      pool.run(count, [&](std::int64_t begin, std::int64_t end, int thread) {
        if (begin < 0 || begin >= end || end > count || thread < 0 || thread >= threads) inside = false;
        for (std::int64_t i = begin; i < end; ++i) ++times[static_cast<std::size_t>(i)];
      });
      CHECK(inside);
      CHECK(times == std::vector<int>(static_cast<std::size_t>(count), 1));
    }
  }
}

TEST_CASE("ThreadPool: every thread may take part") {
  ThreadPool pool(3);
  std::atomic<int> arrived = 0;
  // Each range waits for the two others: this ends only if three threads are at work at once.
  pool.run(3, [&](std::int64_t begin, std::int64_t end, int) {
    arrived += static_cast<int>(end - begin);
    while (arrived < 3) std::this_thread::yield();
  });
  CHECK(arrived == 3);
}

TEST_CASE("ThreadPool: the first exception reaches the caller and the pool lives on") {
  for (int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      CHECK_THROWS_WITH_AS(pool.run(100, [](std::int64_t, std::int64_t, int) { throw UsageError("no"); }), "no",
                           UsageError);
      std::atomic<std::int64_t> done = 0;
      pool.run(100, [&](std::int64_t begin, std::int64_t end, int) { done += end - begin; });
      CHECK(done == 100);
    }
  }
}

TEST_CASE("ThreadPool: callers take turns") {
  ThreadPool pool(2);
  std::int64_t sum = 0;  // not atomic: calls that overlapped would lose additions
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) pool.run(1, [&](std::int64_t, std::int64_t, int) { ++sum; });
    });
  for (std::thread& t : callers) t.join();
  CHECK(sum == 800);
}

TEST_CASE("ThreadPool: a call from inside its own work is refused") {
  for (int threads : {1, 2}) {
    ThreadPool pool(threads);
    const auto nested = [&](std::int64_t, std::int64_t, int) { pool.run(1, [](std::int64_t, std::int64_t, int) {}); };
    CHECK_THROWS_WITH_AS(pool.run(8, nested),
                         "ThreadPool::run: called from inside its own work; a pool runs one call at a time",
                         UsageError);
  }
}

TEST_CASE("ThreadPool: KERF_NUM_THREADS sets the default, and must be a number that makes sense") {
  {
    Variable three("KERF_NUM_THREADS", "3");
    CHECK(ThreadPool().size() == 3);
    CHECK(ThreadPool(2).size() == 2);
  }
  for (const char* bad : {"0", "-2", "two", "3 ", "2.5", "99999", "123456789012345678901"}) {
    Variable set("KERF_NUM_THREADS", bad);
    const std::string message =
        "KERF_NUM_THREADS is '" + std::string(bad) + "'; it must be a whole number from 1 to 1024";
    CHECK_THROWS_WITH_AS(ThreadPool(), message.c_str(), UsageError);
    CHECK(ThreadPool(1).size() == 1);
  }
  {
    Variable empty("KERF_NUM_THREADS", "");
    CHECK(ThreadPool().size() >= 1);
  }
  CHECK_THROWS_WITH_AS(ThreadPool(-1), "ThreadPool: -1 threads; it must be from 1 to 1024, or 0 for all processors",
                       UsageError);
}

TEST_CASE("ThreadPool: the default is the number of processors this process may run on") {
  Variable none("KERF_NUM_THREADS", "");
  cpu_set_t before, one;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  CHECK(ThreadPool().size() == CPU_COUNT(&before));
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i)
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  const int size = ThreadPool().size();
  sched_setaffinity(0, sizeof before, &before);
  CHECK(size == 1);
}

TEST_CASE("ThreadPool: after a fork the child gets a clear error and can end") {
  auto pool = std::make_unique<ThreadPool>(2);
  const pid_t child = fork();
  if (child == 0) {
    int code = 1;
    try {
      pool->run(4, [](std::int64_t, std::int64_t, int) {});
    } catch (const DeviceError& e) {
      code = std::string(e.what()).find("forked") != std::string::npos ? 0 : 2;
    }
    pool.reset();
    _exit(code);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  std::atomic<std::int64_t> done = 0;
  pool->run(10, [&](std::int64_t begin, std::int64_t end, int) { done += end - begin; });
  CHECK(done == 10);
}
