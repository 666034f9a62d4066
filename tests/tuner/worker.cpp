#include <doctest/doctest.h>

#include <chrono>

#include "kerf/error.h"
#include "runtime/tuner/loss_setup.h"
#include "runtime/tuner/worker.h"
#include "tests/cuda/fake.h"
#include "tests/tuner/scripted.h"

using namespace kerf;
using namespace kerf::test;
using runtime::WorkerSubject;

namespace {

TuneReport search_in_worker(const std::string& setup, std::int64_t count, double seconds = 0.5,
                            const runtime::CompilerProcesses& compilers = {}) {
  WorkerSubject subject(beside_tests("kerf_tuner_helper"), setup, seconds, compilers);
  TuneOptions o;
  o.seconds = 60;
  o.compile_threads = 4;
  return runtime::search(Scripted().task(count), subject, o);
}

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("worker: candidates are measured in another process") {
    const TuneReport r = search_in_worker("wrong=1", 6);
    CHECK(winner(r) == 0);
    CHECK(r.candidates.size() == 6);
    CHECK(candidate(r, 5).median_ms == doctest::Approx(15).epsilon(1e-7));
    CHECK(candidate(r, 5).resources->registers == 40);
    CHECK(candidate(r, 1).status == WisdomStatus::wrong);
    CHECK(candidate(r, 1).reason == "dc: wrong");
  }

  TEST_CASE("worker: a candidate that hangs is killed and told, and the search goes on") {
    const auto start = std::chrono::steady_clock::now();
    const TuneReport r = search_in_worker("hang=2 compile-hang=4", 6);
    CHECK(winner(r) == 0);
    for (const std::int64_t x : {2, 4}) {
      CHECK(candidate(r, x).status == WisdomStatus::timeout);
      CHECK(candidate(r, x).reason == "took more than 0.5 s and was ended");
    }
    for (const std::int64_t x : {0, 1, 3, 5}) CHECK(candidate(r, x).status == WisdomStatus::ok);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
  }

  TEST_CASE("worker: after a candidate that hung at the end of a part the next begins in another process") {
    WorkerSubject subject(beside_tests("kerf_tuner_helper"), "hang=2", 0.3);
    subject.begin("first");
    CHECK(subject.check({{"x", 1}}).empty());
    CHECK_THROWS_AS(subject.check({{"x", 2}}), runtime::TuneFailure);
    CHECK_NOTHROW(subject.begin("second"));
    CHECK(subject.run({{"x", 1}}) == 11);
  }

  TEST_CASE("worker: who is compiled after one that hangs is not blamed") {
    runtime::CompilerProcesses one{.setup = "compile-hang=2", .count = 1};
    WorkerSubject subject(beside_tests("kerf_tuner_helper"), "compile-hang=2", 0.3, one);
    subject.begin("first");
    for (int turn = 0; turn < 5; ++turn) {
      CHECK_THROWS_AS(subject.compile({{"x", 2}}), runtime::TuneFailure);
      CHECK(subject.compile({{"x", 1}})->registers == 40);
    }
  }

  TEST_CASE("worker: a candidate that faults or exits is told, and the others are not blamed") {
    const TuneReport r = search_in_worker("fault=1 exit=2 compile-fault=3 compile-error=4", 8, 10);
    CHECK(winner(r) == 0);
    CHECK(candidate(r, 1).status == WisdomStatus::fault);
    CHECK(candidate(r, 1).reason.starts_with("its process was ended by signal 11"));
    CHECK(candidate(r, 2).reason == "its process exited with code 7");
    CHECK(candidate(r, 3).status == WisdomStatus::fault);
    CHECK(candidate(r, 4).status == WisdomStatus::resources);
    CHECK(candidate(r, 4).reason == "needs 300 KiB");
    for (const std::int64_t x : {0, 5, 6, 7}) CHECK(candidate(r, x).status == WisdomStatus::ok);
    CHECK(r.stopped == "");
  }

  TEST_CASE("worker: processes that only compile take the faults of compiling, and are done without") {
    const TuneReport r = search_in_worker("wrong=1", 8, 10, {.setup = "compile-fault=3 compile-error=4", .count = 3});
    CHECK(winner(r) == 0);
    CHECK(candidate(r, 1).status == WisdomStatus::wrong);
    CHECK(candidate(r, 3).status == WisdomStatus::fault);
    CHECK(candidate(r, 4).reason == "needs 300 KiB");
    for (const std::int64_t x : {2, 5, 6, 7}) CHECK(candidate(r, x).status == WisdomStatus::ok);
    const TuneReport none = search_in_worker("compile-error=2", 4, 10, {.setup = "refuse=0", .count = 2});
    CHECK(winner(none) == 0);
    CHECK(candidate(none, 2).status == WisdomStatus::resources);
    for (const std::int64_t x : {1, 3}) CHECK(candidate(none, x).status == WisdomStatus::ok);
  }

  TEST_CASE("worker: what comes next is compiled ahead, and told when it is asked for") {
    WorkerSubject subject(beside_tests("kerf_tuner_helper"), "", 10, {.setup = "compile-error=2", .count = 2});
    subject.begin("first");
    subject.expect("second", {at(1), at(2), at(3)});
    CHECK(subject.compile(at(1))->registers == 40);
    subject.begin("second");
    CHECK(subject.compile(at(1))->registers == 40);
    CHECK_THROWS_AS(subject.compile(at(2)), runtime::TuneFailure);
    subject.expect("third", {at(1), at(3)});
  }

  TEST_CASE("worker: runs of several in a row, also by a process that is new, and none where one of them fails") {
    WorkerSubject subject(beside_tests("kerf_tuner_helper"), "fault=2 exit=3", 10);
    subject.begin("first");
    CHECK(subject.run_each({at(1), at(4), at(1)}) == std::vector<double>{11, 14, 11});
    CHECK_THROWS_AS(subject.check(at(2)), runtime::TuneFailure);
    CHECK(subject.run_each({at(4), at(1)}) == std::vector<double>{14, 11});
    WorkerSubject compiling(beside_tests("kerf_tuner_helper"), "compile-error=2 compile-exit=3", 10);
    compiling.begin("first");
    CHECK(!compiling.run_each({at(1), at(2)}));
    CHECK(!compiling.run_each({at(3), at(1)}));
    CHECK(compiling.run_each({at(1)}) == std::vector<double>{11});
  }

  TEST_CASE("worker: a program that is not there or refuses is an error") {
    WorkerSubject none("/nowhere/kerf", "", 1);
    CHECK_THROWS_AS(none.wait_ready(), DeviceError);
    WorkerSubject refuses(beside_tests("kerf_tuner_helper"), "refuse=0", 1);
    CHECK_THROWS_WITH_AS(refuses.wait_ready(), "there is no such device", DeviceError);
    WorkerSubject exits("/bin/true", "", 1);
    CHECK_THROWS_WITH_AS(exits.wait_ready(), doctest::Contains("did not get ready"), DeviceError);
  }

  TEST_CASE("worker: a setup of the loss survives the way there") {
    runtime::LossSetup s{.desc = {.hidden = 64, .vocabulary = 512, .dtype = bf16, .strategy = Strategy::filtered},
                         .tokens = 256,
                         .memory = 1 << 20,
                         .compiles_only = true};
    s.desc.filter_threshold = 0.25, s.desc.arch = "sm_80", s.desc.device = {DeviceType::cuda, 1};
    s.desc.workspace_limit = std::size_t{1} << 40;
    const runtime::LossSetup back = runtime::parse_setup(to_text(s));
    CHECK(to_text(back) == to_text(s));
    CHECK(back.desc.device == s.desc.device);
    CHECK(back.compiles_only);
    const runtime::LossStage stage{.part = runtime::LossPart::filtered,
                                   .others = {.forward = {{"n", 64}}, .backward = {}, .filtered = {}}};
    CHECK(runtime::parse_stage(to_text(stage)).others == stage.others);
    CHECK(runtime::parse_stage(to_text(stage)).part == stage.part);
    CHECK_THROWS_AS(runtime::parse_stage("{}"), UsageError);
    CHECK_THROWS_AS(runtime::parse_setup("{}"), UsageError);
    CHECK_THROWS_AS(runtime::parse_setup("no"), UsageError);
  }
}
