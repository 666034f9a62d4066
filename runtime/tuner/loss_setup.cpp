#include "runtime/tuner/loss_setup.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kerf/error.h"

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
    s.part = one_of(t.at("part"), LossPart::filtered);
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
