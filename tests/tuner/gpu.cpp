// The loss as it is timed on a GPU, on the stand-in driver, which computes nothing.
#include <doctest/doctest.h>

#include "kerf/error.h"
#include "runtime/tuner/loss_subject.h"
#include "tests/cuda/fake.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;
using runtime::LossBench;
using runtime::LossPart;
using runtime::LossSubject;

namespace {

PlanDesc on_gpu() {
  PlanDesc desc{.hidden = 64, .vocabulary = 512, .dtype = bf16, .filter = Filter::off, .threads = 1};
  desc.device = {DeviceType::cuda, 0};
  return desc;
}

}  // namespace

TEST_SUITE("tuner") {
  TEST_CASE("gpu: a run is timed by events behind a flush of the L2 cache") {
    Fake fake("9.0");
    {
      LossBench bench(on_gpu(), 256, 0, nullptr);
      LossSubject subject(bench, LossPart::forward, {});
      const TunePoint point = runtime::default_point(bench.desc(), Target::cuda("sm_90a"), LossPart::forward, 256);
      const auto resources = subject.compile(point);
      REQUIRE(resources);
      CHECK(resources->registers == 40);
      CHECK(resources->threads > 128);
      const auto memsets = fake->calls["cuMemsetD8Async"], records = fake->calls["cuEventRecord"];
      subject.run(point);
      CHECK(fake->calls["cuMemsetD8Async"] == memsets + 1);
      CHECK(fake->calls["cuEventRecord"] == records + 2);
      CHECK(fake->launches.size() > 3);
      std::size_t most = 0;
      for (const auto& [pointer, memory] : fake->memory) most = std::max(most, memory.bytes);
      CHECK(most >= std::size_t{128} << 20);
      CHECK(subject.check(point).find("nan, right is") != std::string::npos);
    }
  }

  TEST_CASE("gpu: what was compiled of a candidate is all that its calls launch") {
    Fake fake("9.0");
    for (const Strategy strategy : {Strategy::automatic, Strategy::min_memory, Strategy::exact_stash}) {
      PlanDesc desc = on_gpu();
      desc.strategy = strategy;
      const Folder folder;
      LossBench bench(desc, 256, 0,
                      std::make_shared<CodeCache>(CacheOptions{.folder = folder / "cache", .read_only = {}}));
      for (const LossPart part : {LossPart::forward, LossPart::backward}) {
        CAPTURE(name_of(strategy));
        CAPTURE(name_of(part));
        bench.reference().dc.resize(1);  // of a forward that computes
        LossSubject subject(bench, part, {});
        const TunePoint point = runtime::default_point(bench.desc(), Target::cuda("sm_90a"), part, 256);
        subject.compile(point);
        const auto loaded = fake->calls["cuModuleLoadDataEx"];
        subject.run(point);
        CHECK(fake->calls["cuModuleLoadDataEx"] == loaded);
        subject.forget(point);
      }
    }
  }

  TEST_CASE("gpu: a device that computes wrongly leaves no winner, and the search ends with reasons") {
    Fake fake("9.0");
    TuneOptions o;
    o.seconds = 60, o.candidates = 1;  // the stand-in is for one thread
    const LossTuning tuning = tune_loss(on_gpu(), 256, o);
    REQUIRE(tuning.parts.size() == 1);
    const TuneReport& r = tuning.parts[0];
    CHECK(!r.winner);
    CHECK(r.validators.units == 132);
    CHECK(r.key.target == "sm_90a");
    for (const TuneCandidate& c : r.candidates) CHECK(c.status == WisdomStatus::wrong);
  }

  TEST_CASE("gpu: what spills is not run while something else is left") {
    Fake fake("9.0");
    fake->local_bytes = 64;
    TuneOptions o;
    o.seconds = 60, o.candidates = 1;  // the stand-in is for one thread
    const TuneReport r = tune_loss(on_gpu(), 256, o).parts.at(0);
    for (const TuneCandidate& c : r.candidates) {
      CHECK((c.status == WisdomStatus::wrong || c.status == WisdomStatus::resources));
      REQUIRE(c.resources);
      CHECK(c.resources->local_bytes == 64);
    }
  }
}
