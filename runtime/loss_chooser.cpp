#include "runtime/loss_chooser.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "kerf/error.h"
#include "runtime/tuner/misses.h"

namespace kerf::runtime {

namespace {

std::string& from_of(LossChoice& c, LossPart part) {
  return part == LossPart::forward ? c.forward_from : part == LossPart::backward ? c.backward_from : c.filtered_from;
}
const WisdomParameters& blocks_of(const LossBlocks& b, LossPart part) {
  return part == LossPart::forward ? b.forward : part == LossPart::backward ? b.backward : b.filtered;
}

}  // namespace

Tuning tuning_of(Tuning asked) {
  if (asked != Tuning::from_environment) return asked;
  const char* const set = std::getenv("KERF_TUNE");
  const std::string_view text = set != nullptr ? set : "";
  if (text.empty() || text == "lookup") return Tuning::lookup;
  if (text == "off") return Tuning::off;
  if (text == "record") return Tuning::record;
  if (text == "auto") return Tuning::on_first_use;
  throw UsageError(fmt::format("KERF_TUNE is '{}'; it must be off, lookup, record or auto", text));
}

LossChooser::LossChooser(const PlanDesc& desc, const Shared& shared, int threads)
    : desc_(desc),
      given_(shared.blocks),
      threads_(threads),
      tuning_(tuning_of(desc.tuning)),
      target_(target_of(desc)),
      layers_(shared.wisdom) {
  if (desc_.device.type == DeviceType::cpu) desc_.threads = threads;  // of a shared pool, whatever the description says
  for (const LossPart part : {LossPart::forward, LossPart::backward, LossPart::filtered}) {
    const WisdomParameters& p = blocks_of(given_, part);
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

void LossChooser::look_up(LossPart part, std::int64_t tokens, LossChoice& choice) {
  std::string& from = from_of(choice, part);
  const WisdomParameters& given = blocks_of(given_, part);
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

void LossChooser::look_up_all(std::int64_t tokens, LossChoice& choice) {
  for (const LossPart part : {LossPart::forward, LossPart::backward, LossPart::filtered})
    if (has_part(desc_, part)) look_up(part, tokens, choice);
}

void LossChooser::fill_in_default(std::int64_t tokens, LossChoice& choice) const {
  if (target_.is_cuda() || tokens >= many_tokens) return;
  for (const LossPart part : {LossPart::forward, LossPart::backward})
    if (TunePoint& p = choice.points.of(part); p.empty()) p = default_point(desc_, target_, part, tokens);
}

bool LossChooser::lacks(const LossChoice& choice, std::int64_t tokens) const {
  const auto settled = [](const std::string& from) { return from == "wisdom" || from == "given"; };
  return !settled(choice.forward_from) || !settled(choice.backward_from) ||
         (has_part(desc_, target_, LossPart::filtered, tokens) && !settled(choice.filtered_from));
}

bool LossChooser::would_measure(const LossChoice& choice, std::int64_t tokens) const {
  return tuning_ == Tuning::on_first_use && lacks(choice, tokens);
}

void LossChooser::measure(std::int64_t tokens, LossChoice& choice) {
  const std::lock_guard lock(measuring_);
  TuneOptions options;
  options.seconds = desc_.tuning_seconds;
  options.wisdom = user_wisdom_file();
  try {
    const LossTuning tuning = tune_loss(desc_, tokens, options);
    for (const TuneReport& r : tuning.parts) {
      for (const std::string& note : r.notes)
        if (std::ranges::find(choice.notes, note) == choice.notes.end()) choice.notes.push_back(note);
      for (const LossPart part : {LossPart::forward, LossPart::backward, LossPart::filtered}) {
        if (r.key.part != name_of(part) || !r.winner) continue;
        std::string& from = from_of(choice, part);
        if (from == "wisdom" || from == "given") continue;
        choice.points.of(part) = r.candidates[*r.winner].point;
        from = "tuned";
      }
    }
  } catch (const std::exception& e) {  // a loss that is not tuned is still a loss
    choice.notes.push_back(fmt::format("tuning on first use failed: {}", e.what()));
  }
}

LossChoice LossChooser::choose(std::int64_t tokens) {
  LossChoice choice;
  look_up_all(tokens, choice);
  fill_in_default(tokens, choice);
  if (tuning_ == Tuning::record && lacks(choice, tokens))
    if (const std::string file = user_misses_file(); file.empty() || !note_miss(file, desc_, tokens))
      choice.notes.push_back(fmt::format("'{}' cannot be written, so what wisdom lacks is not noted", file));
  return choice;
}

}  // namespace kerf::runtime
