#include "runtime/tuner/loss_setup.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kerf/error.h"
#include "runtime/loss_route.h"

namespace kerf::runtime {

namespace {

using nlohmann::json;

/// A value of an enum whose last one is `last`.
template <class E>
E one_of(const json& number, E last) {
  const int x = number.get<int>();
  if (x < 0 || x > static_cast<int>(last))
    throw UsageError(fmt::format("tune-worker: {} is none of the {} there are", x, static_cast<int>(last) + 1));
  return static_cast<E>(x);
}

/// One part after the other, on one problem.
class MeasuringSubject : public TuneSubject {
 public:
  explicit MeasuringSubject(const LossSetup& s) : bench_(s.desc, s.tokens, s.memory, nullptr) {}
  void begin(const std::string& part) override {
    const LossStage stage = parse_stage(part);
    subject_ = nullptr;
    subject_ = std::make_unique<LossSubject>(bench_, stage.part, stage.others);
  }
  std::optional<KernelResources> compile(const TunePoint& point) override { return subject().compile(point); }
  std::string check(const TunePoint& point) override { return subject().check(point); }
  double run(const TunePoint& point) override { return subject().run(point); }
  void forget(const TunePoint& point) override { subject().forget(point); }
  Spent spent() override { return bench_.spent(); }

 private:
  LossSubject& subject() {
    if (!subject_) throw InternalError("tune-worker: no part was begun");
    return *subject_;
  }

  LossBench bench_;
  std::unique_ptr<LossSubject> subject_;
};

/// What it compiles stays in the caches, and loaded until the next candidate.
class CompilingSubject : public TuneSubject {
 public:
  explicit CompilingSubject(const LossSetup& s)
      : desc_(bench_desc(s.desc)),
        tokens_(s.tokens),
        pool_(std::make_shared<ThreadPool>(1)),
        cache_(std::make_shared<CodeCache>()) {
    if (desc_.device.type == DeviceType::cuda) device_ = cuda::Device::open(desc_.device.ordinal);
  }
  void begin(const std::string& part) override { stage_ = parse_stage(part); }
  std::optional<KernelResources> compile(const TunePoint& point) override {
    LossPoints points = stage_.others;
    points.of(stage_.part) = point;
    LoadedLoss next = load_loss(desc_, tokens_, stage_.part, points, pool_, cache_);
    last_ = std::move(next.route);
    return next.resources;
  }
  std::string check(const TunePoint&) override { throw InternalError("tune-worker: this one only compiles"); }
  double run(const TunePoint&) override { throw InternalError("tune-worker: this one only compiles"); }
  void forget(const TunePoint&) override {}

 private:
  PlanDesc desc_;
  std::int64_t tokens_;
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<CodeCache> cache_;
  std::shared_ptr<const cuda::Device> device_;
  LossStage stage_;
  std::shared_ptr<const LossRoute> last_;
};

}  // namespace

std::string to_text(const LossSetup& s) {
  const PlanDesc& d = s.desc;
  json text = {{"hidden", d.hidden},
               {"vocabulary", d.vocabulary},
               {"dtype", name_of(d.dtype)},
               {"strategy", static_cast<int>(d.strategy)},
               {"workspace_limit", d.workspace_limit},
               {"filter", static_cast<int>(d.filter)},
               {"filter_threshold", d.filter_threshold},
               {"filter_e", d.filter_e},
               {"filter_c", d.filter_c},
               {"correction", d.correction},
               {"order", static_cast<int>(d.order)},
               {"threads", d.threads},
               {"device", static_cast<int>(d.device.type)},
               {"ordinal", d.device.ordinal},
               {"arch", d.arch},
               {"tokens", s.tokens},
               {"memory", s.memory}};
  if (s.compiles_only) text["compiles_only"] = true;
  return text.dump();
}

std::string to_text(const LossStage& s) {
  return json({{"part", static_cast<int>(s.part)},
               {"forward", s.others.forward},
               {"backward", s.others.backward},
               {"filtered", s.others.filtered}})
      .dump();
}

LossSetup parse_setup(const std::string& text) {
  const json t = json::parse(text, nullptr, false);
  LossSetup s;
  PlanDesc& d = s.desc;
  try {
    t.at("hidden").get_to(d.hidden);
    t.at("vocabulary").get_to(d.vocabulary);
    d.dtype = dtype_from_name(t.at("dtype").get<std::string>());
    d.strategy = one_of(t.at("strategy"), Strategy::dense);
    t.at("workspace_limit").get_to(d.workspace_limit);
    d.filter = one_of(t.at("filter"), Filter::largest);
    t.at("filter_threshold").get_to(d.filter_threshold);
    t.at("filter_e").get_to(d.filter_e);
    t.at("filter_c").get_to(d.filter_c);
    t.at("correction").get_to(d.correction);
    d.order = one_of(t.at("order"), Order::identity);
    t.at("threads").get_to(d.threads);
    d.device = {one_of(t.at("device"), DeviceType::cuda), t.at("ordinal").get<int>()};
    t.at("arch").get_to(d.arch);
    t.at("tokens").get_to(s.tokens);
    t.at("memory").get_to(s.memory);
    s.compiles_only = t.value("compiles_only", false);
  } catch (const json::exception& e) {
    throw UsageError(std::string("tune-worker: this is no setup of a loss: ") + e.what());
  }
  return s;
}

LossStage parse_stage(const std::string& text) {
  const json t = json::parse(text, nullptr, false);
  LossStage s;
  try {
    s.part = one_of(t.at("part"), LossPart::filtered);
    t.at("forward").get_to(s.others.forward);
    t.at("backward").get_to(s.others.backward);
    t.at("filtered").get_to(s.others.filtered);
  } catch (const json::exception& e) {
    throw UsageError(std::string("tune-worker: this is no part of a loss: ") + e.what());
  }
  return s;
}

std::unique_ptr<TuneSubject> subject_of(const std::string& text) {
  const LossSetup setup = parse_setup(text);
  if (setup.compiles_only) return std::make_unique<CompilingSubject>(setup);
  return std::make_unique<MeasuringSubject>(setup);
}

}  // namespace kerf::runtime
