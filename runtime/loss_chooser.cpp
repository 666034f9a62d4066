#include "runtime/loss_chooser.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "kerf/error.h"

namespace kerf::runtime {

Tuning tuning_of(Tuning asked) {
  if (asked != Tuning::from_environment) return asked;
  const char* const set = std::getenv("KERF_TUNE");
  const std::string_view text = set != nullptr ? set : "";
  if (text.empty() || text == "lookup") return Tuning::lookup;
  if (text == "off") return Tuning::off;
  throw UsageError(fmt::format("KERF_TUNE is '{}'; it must be off or lookup", text));
}

LossChooser::LossChooser(const PlanDesc& desc, const Shared& shared, int threads)
    : desc_(desc),
      given_(shared.blocks),
      threads_(threads),
      tuning_(tuning_of(desc.tuning)),
      target_(target_of(desc)),
      layers_(shared.wisdom) {
  for (const LossPart part : {LossPart::forward, LossPart::backward, LossPart::filtered}) {
    const WisdomParameters& p = part == LossPart::forward    ? given_.forward
                                : part == LossPart::backward ? given_.backward
                                                             : given_.filtered;
    if (p.empty()) continue;
    if (const std::string reason = refusal(part, p); !reason.empty())
      throw UsageError(fmt::format("Plan: the blocks given for its {} part, {}, cannot be taken: {}", name_of(part),
                                   describe(p), reason));
  }
}

std::string LossChooser::refusal(LossPart part, const WisdomParameters& parameters) const {
  const auto point = from_wisdom(parameters);
  if (!point) return "its parameters are no integers";
  if (!has_part(desc_, part)) return "the plan does not filter";
  return loss_space(desc_, target_, part).refusal(*point);
}

const WisdomLayers& LossChooser::layers() {
  if (!layers_) layers_ = std::make_shared<const WisdomLayers>(WisdomLayers::open());
  return *layers_;
}

WisdomKey LossChooser::key(LossPart part, std::int64_t tokens) {
  std::optional<WisdomKey>& known = keys_[static_cast<std::size_t>(part)];
  if (!known) known = loss_key(desc_, target_, part, 1, threads_);
  WisdomKey key = *known;
  key.tokens = token_bucket(std::max<std::int64_t>(1, tokens));
  return key;
}

void LossChooser::choose(LossPart part, std::int64_t tokens, LossChoice& choice) {
  std::string& from = part == LossPart::forward    ? choice.forward_from
                      : part == LossPart::backward ? choice.backward_from
                                                   : choice.filtered_from;
  const WisdomParameters& given = part == LossPart::forward    ? given_.forward
                                  : part == LossPart::backward ? given_.backward
                                                               : given_.filtered;
  if (!given.empty()) {
    choice.points.of(part) = *from_wisdom(given);
    from = "given";
    return;
  }
  if (tuning_ == Tuning::off) return;
  // A key takes programs to be recorded: not for a plan of which nothing is known.
  const auto ours = [&](const WisdomRecord& r) {
    return r.key.hidden == desc_.hidden && r.key.vocabulary == desc_.vocabulary && r.key.part == name_of(part);
  };
  const bool any = std::any_of(layers().layers().begin(), layers().layers().end(), [&](const WisdomLayers::Layer& l) {
    return std::any_of(l.wisdom.records().begin(), l.wisdom.records().end(), ours);
  });
  if (!any) return;
  if (!here_) here_ = validators_of(desc_.device);
  const WisdomChoice found =
      layers().lookup(key(part, tokens), *here_, [&](const WisdomParameters& p) { return refusal(part, p); });
  for (const std::string& note : found.notes) choice.notes.push_back(fmt::format("{}: {}", name_of(part), note));
  if (!found.record) return;
  choice.points.of(part) = *from_wisdom(found.record->parameters);
  from = found.exact ? "wisdom" : "nearest bucket";
}

LossChoice LossChooser::choose(std::int64_t tokens) {
  LossChoice choice;
  for (const LossPart part : {LossPart::forward, LossPart::backward, LossPart::filtered})
    if (has_part(desc_, part)) choose(part, tokens, choice);
  return choice;
}

}  // namespace kerf::runtime
