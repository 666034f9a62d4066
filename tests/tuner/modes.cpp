// What a plan does about blocks that wisdom does not have.
#include <doctest/doctest.h>

#include <algorithm>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "kerf/error.h"
#include "kerf/tuner.h"
#include "runtime/loss_parts.h"
#include "runtime/tuner/misses.h"
#include "tests/cuda/fake.h"
#include "tests/loss/loss_case.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;

namespace {

PlanDesc small(Tuning tuning) { return {.hidden = 40, .vocabulary = 300, .threads = 1, .tuning = tuning}; }

/// The user's files while it lives.
struct Home {
  Folder folder;
  Variable wisdom{"KERF_WISDOM", folder / "wisdom.jsonl"}, misses{"KERF_TUNE_MISSES", folder / "missing.jsonl"};
};

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("modes: KERF_TUNE names the mode of plans that name none") {
    const Home home;
    PlanDesc desc = small(Tuning::from_environment);
    {
      const Variable mode("KERF_TUNE", "record");
      CHECK(Plan(desc).report(64).forward_from == "default");
      CHECK(runtime::read_misses(user_misses_file()).size() == 1);
    }
    const Variable mode("KERF_TUNE", "fast");
    CHECK_THROWS_WITH_AS(Plan(desc).report(64), "KERF_TUNE is 'fast'; it must be off, lookup, record or auto",
                         UsageError);
  }

  TEST_CASE("modes: record notes each bucket that wisdom lacks once, and times nothing") {
    const Home home;
    const PlanDesc desc = small(Tuning::record);
    for (int i = 0; i < 2; ++i) {
      const Plan plan(desc);
      for (const std::int64_t tokens : {60, 64, 100}) CHECK(plan.report(tokens).forward_from == "default");
    }
    const auto misses = runtime::read_misses(user_misses_file());
    REQUIRE(misses.size() == 2);
    CHECK(misses[0].tokens == 64);
    CHECK(misses[1].tokens == 128);
    CHECK(misses[0].desc.hidden == 40);
    CHECK(!std::filesystem::exists(user_wisdom_file()));
    runtime::forget_miss(user_misses_file(), misses[0]);
    CHECK(runtime::read_misses(user_misses_file()).size() == 1);
    const Variable nowhere("KERF_TUNE_MISSES", "/proc/nowhere/missing.jsonl");
    CHECK(Plan(desc).report(64).notes.size() == 1);
  }

  TEST_CASE("modes: what a plan with a shared pool notes and measures is for the threads of the pool") {
    const Home home;
    const auto pool = std::make_shared<ThreadPool>(3);
    CHECK(Plan(small(Tuning::record), {.pool = pool}).report(64).forward_from == "default");
    const auto misses = runtime::read_misses(user_misses_file());
    REQUIRE(misses.size() == 1);
    CHECK(misses[0].desc.threads == 3);

    PlanDesc tuned = small(Tuning::on_first_use);
    tuned.tuning_seconds = 1;
    CHECK(Plan(tuned, {.pool = pool}).report(64).forward_from == "tuned");
    CHECK(Plan(small(Tuning::lookup), {.pool = pool}).report(64).forward_from == "wisdom");
    CHECK(Plan(small(Tuning::lookup)).report(64).forward_from == "default");
    PlanDesc three = small(Tuning::lookup);
    three.threads = 3;
    CHECK(Plan(three).report(64).forward_from == "wisdom");
  }

  TEST_CASE("modes: what several note and forget at once is neither lost nor kept") {
    const Home home;
    const std::string file = user_misses_file();
    constexpr std::int64_t threads = 4, each = 40;
    const auto numbered = [](std::int64_t i) { return PlanDesc{.hidden = 8, .vocabulary = 100 + i}; };
    {
      std::vector<std::jthread> all;
      for (std::int64_t t = 0; t < threads; ++t)
        all.emplace_back([&, t] {
          for (std::int64_t i = t * each; i < (t + 1) * each; ++i) {
            runtime::note_miss(file, numbered(i), 64);
            if (i % 2 == 0) runtime::forget_miss(file, {numbered(i), 64});
          }
        });
    }
    std::set<std::int64_t> left;
    for (const runtime::TuneMiss& m : runtime::read_misses(file)) left.insert(m.desc.vocabulary - 100);
    CHECK(left.size() == threads * each / 2);
    for (const std::int64_t i : left) CHECK(i % 2 == 1);
  }

  TEST_CASE("modes: on first use a plan tunes within its budget, and the next one finds it") {
    const Home home;
    PlanDesc desc = small(Tuning::on_first_use);
    desc.tuning_seconds = 2;
    Plan plan(desc);
    CHECK(plan.report(64).forward_from == "tuned");
    CHECK(plan.report(64).backward_from == "tuned");
    LossCase c({64, 300, 40}, desc);
    c.run_forward(plan);
    c.run_backward(plan);
    c.check();
    CHECK(Plan(small(Tuning::lookup)).report(64).forward_from == "wisdom");
    desc.tuning_seconds = 0;
    CHECK(Plan(desc).report(1000).forward_from == "nearest bucket");
  }

  TEST_CASE("modes: calls for other numbers of tokens do not wait for tuning on first use, those for as many do") {
    const Home home;
    PlanDesc desc = small(Tuning::on_first_use);
    desc.tuning_seconds = 1;
    Wisdom known;
    for (const runtime::LossPart part : {runtime::LossPart::forward, runtime::LossPart::backward}) {
      WisdomRecord r;
      r.key = runtime::loss_key(desc, Target::host(), part, 1000, desc.threads);
      r.validators = validators_of();
      r.parameters = to_wisdom(runtime::default_point(desc, Target::host(), part, 1000));
      r.median_ms = 1, r.samples = 9;
      known.add(r);
    }
    auto layers = std::make_shared<WisdomLayers>();
    layers->put_first("test", known);
    const Plan plan(desc, {.wisdom = layers});
    PlanReport first, second;
    std::optional<std::jthread> one, other;
    // A search cannot end while the file of wisdom is locked.
    update_wisdom(user_wisdom_file(), [&](Wisdom&) {
      one.emplace([&] { first = plan.report(64); });
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      other.emplace([&] { second = plan.report(60); });
      auto known_bucket = std::async(std::launch::async, [&] { return plan.report(1000).forward_from; });
      REQUIRE(known_bucket.wait_for(std::chrono::seconds(5)) == std::future_status::ready);
      CHECK(known_bucket.get() == "wisdom");
    });
    one.reset(), other.reset();
    CHECK(first.forward_from == "tuned");
    CHECK(second.forward_from == "tuned");
    CHECK(second.blocks == first.blocks);
  }

  TEST_CASE("modes: tuning on first use that fails leaves the default and a note") {
    const Home home;
    PlanDesc desc = small(Tuning::on_first_use);
    desc.hidden = 4096, desc.vocabulary = 1 << 30;  // no machine holds its c
    const PlanReport report = Plan(desc).report(64);
    CHECK(report.forward_from == "default");
    REQUIRE(report.notes.size() == 1);
    CHECK(report.notes[0].starts_with("tuning on first use failed: "));
  }

  TEST_CASE("modes: what is tuned on first use and cannot be kept is used, and notes say so") {
    const Home home;
    const Variable nowhere("KERF_WISDOM", "/proc/nowhere/wisdom.jsonl");
    const PlanReport report = Plan(small(Tuning::on_first_use)).report(64);
    CHECK(report.forward_from == "tuned");
    CHECK(std::ranges::count_if(report.notes, [](const std::string& note) {
            return note.starts_with("wisdom: /proc/nowhere cannot be made: ");
          }) == 1);
  }

  TEST_CASE("modes: nothing is tuned while the call's stream is captured") {
    Fake fake("9.0");
    const Home home;
    PlanDesc desc{.hidden = 64, .vocabulary = 512, .dtype = bf16, .filter = Filter::off};
    desc.device = {DeviceType::cuda, 0};
    desc.tuning = Tuning::on_first_use;
    {
      const auto gpu = cuda::Device::open(0);
      const cuda::OwnStream stream(gpu);
      const cuda::Current current(*gpu);
      auto* raw = static_cast<cuda::api::StreamHandle>(static_cast<Stream>(stream).handle);
      Plan plan(desc);
      CHECK(!cuda::is_capturing(*gpu, stream));
      REQUIRE(gpu->driver()->cuStreamBeginCapture_v2(raw, cuda::api::CaptureMode::global) ==
              cuda::api::Result::success);
      CHECK(cuda::is_capturing(*gpu, stream));
      const cuda::api::CaptureStatus active = cuda::api::CaptureStatus::active;
      CHECK_THROWS_AS(plan.forward({.target = TensorRef(static_cast<void*>(nullptr), i64, {256}, desc.device)}, stream),
                      UsageError);  // for its arguments, after the choice
      cuda::api::CaptureStatus status{};
      gpu->driver()->cuStreamIsCapturing(raw, &status);
      CHECK(status == active);
      const PlanReport report = plan.report(256);
      CHECK(report.forward_from == "default");
      REQUIRE(report.notes.size() == 1);
      CHECK(report.notes[0].find("is being captured") != std::string::npos);
      cuda::api::Graph graph{};
      gpu->driver()->cuStreamEndCapture(raw, &graph);
      if (graph) gpu->driver()->cuGraphDestroy(graph);
    }
    CHECK(!std::filesystem::exists(user_wisdom_file()));
  }

  TEST_CASE("plan: after a fork the child gets a clear error") {
    Plan plan(small(Tuning::off));
    plan.workspace_bytes(64, false);
    const pid_t child = fork();
    if (child == 0) {
      int code = 1;
      try {
        plan.workspace_bytes(64, false);
      } catch (const DeviceError& e) {
        code = std::string(e.what()).find("forked") != std::string::npos ? 0 : 2;
      } catch (...) {
        code = 3;
      }
      _exit(code);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
}
