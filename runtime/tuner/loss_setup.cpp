#include "runtime/tuner/loss_setup.h"

#include <nlohmann/json.hpp>

#include "kerf/error.h"

namespace kerf::runtime {

namespace {

using nlohmann::json;

class OwningSubject : public TuneSubject {
 public:
  explicit OwningSubject(const LossSetup& s)
      : bench_(s.desc, s.tokens, s.memory, nullptr), subject_(bench_, s.part, s.others) {}
  std::optional<KernelResources> compile(const TunePoint& point) override { return subject_.compile(point); }
  std::string check(const TunePoint& point) override { return subject_.check(point); }
  double run(const TunePoint& point) override { return subject_.run(point); }
  void forget(const TunePoint& point) override { subject_.forget(point); }

 private:
  LossBench bench_;
  LossSubject subject_;
};

}  // namespace

std::string to_text(const LossSetup& s) {
  const PlanDesc& d = s.desc;
  const json text = {{"hidden", d.hidden},
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
                     {"memory", s.memory},
                     {"part", static_cast<int>(s.part)},
                     {"forward", s.others.forward},
                     {"backward", s.others.backward},
                     {"filtered", s.others.filtered}};
  return text.dump();
}

LossSetup parse_setup(const std::string& text) {
  const json t = json::parse(text, nullptr, false);
  LossSetup s;
  PlanDesc& d = s.desc;
  try {
    t.at("hidden").get_to(d.hidden);
    t.at("vocabulary").get_to(d.vocabulary);
    d.dtype = dtype_from_name(t.at("dtype").get<std::string>());
    d.strategy = static_cast<Strategy>(t.at("strategy").get<int>());
    t.at("workspace_limit").get_to(d.workspace_limit);
    d.filter = static_cast<Filter>(t.at("filter").get<int>());
    t.at("filter_threshold").get_to(d.filter_threshold);
    t.at("filter_e").get_to(d.filter_e);
    t.at("filter_c").get_to(d.filter_c);
    t.at("correction").get_to(d.correction);
    d.order = static_cast<Order>(t.at("order").get<int>());
    t.at("threads").get_to(d.threads);
    d.device = {static_cast<DeviceType>(t.at("device").get<int>()), t.at("ordinal").get<int>()};
    t.at("arch").get_to(d.arch);
    t.at("tokens").get_to(s.tokens);
    t.at("memory").get_to(s.memory);
    s.part = static_cast<LossPart>(t.at("part").get<int>());
    t.at("forward").get_to(s.others.forward);
    t.at("backward").get_to(s.others.backward);
    t.at("filtered").get_to(s.others.filtered);
  } catch (const json::exception& e) {
    throw UsageError(std::string("tune-worker: this is no setup of a loss: ") + e.what());
  }
  return s;
}

std::unique_ptr<TuneSubject> subject_of(const std::string& text) {
  return std::make_unique<OwningSubject>(parse_setup(text));
}

}  // namespace kerf::runtime
