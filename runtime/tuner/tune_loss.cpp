// The parts of the loss, one search after the other.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "kerf/error.h"
#include "runtime/tuner/loss_setup.h"
#include "runtime/tuner/worker.h"

namespace kerf {

namespace {

using runtime::LossPart;

std::vector<LossPart> parts_of(const PlanDesc& desc) {
  if (desc.device.type == DeviceType::cpu && desc.strategy == Strategy::dense)
    throw UsageError("tune_loss: strategy is dense, whose blocks on the cpu are fixed; tune exact_recompute");
  std::vector<LossPart> parts = {LossPart::forward, LossPart::backward};
  if (runtime::has_part(desc, LossPart::filtered)) parts.push_back(LossPart::filtered);
  return parts;
}

runtime::TuneTask task_of(const PlanDesc& desc, std::int64_t tokens, LossPart part, const std::string& wisdom) {
  const Target target = runtime::target_of(desc);
  const int threads = desc.device.type == DeviceType::cpu ? ThreadPool(desc.threads).size() : 0;
  runtime::TuneTask task;
  task.key = runtime::loss_key(desc, target, part, tokens, threads);
  task.validators = validators_of(desc.device);
  task.space = runtime::loss_space(desc, target, part);
  task.standard = runtime::default_point(desc, target, part, tokens);
  task.predicted_ms = [=, machine = runtime::machine_of(desc, threads)](const TunePoint& p) {
    return runtime::predicted_ms(desc, target, machine, part, tokens, p);
  };
  WisdomLayers layers = WisdomLayers::open();
  if (!wisdom.empty()) layers.put_first(wisdom, Wisdom::load(wisdom).wisdom);
  constexpr std::size_t most_seeds = 4;
  for (const WisdomParameters& p : layers.seeds(task.key, task.validators))
    if (const auto point = from_wisdom(p); point && task.seeds.size() < most_seeds) task.seeds.push_back(*point);
  return task;
}

}  // namespace

LossTuning tune_loss(const PlanDesc& asked, std::int64_t tokens, const TuneOptions& options) {
  if (tokens < 1) throw UsageError(fmt::format("tune_loss: {} tokens; tune for at least one", tokens));
  const PlanDesc desc = runtime::bench_desc(asked);
  static_cast<void>(Plan(desc, {.pool = std::make_shared<ThreadPool>(1)}));  // refuses what makes no sense
  const std::vector<LossPart> parts = parts_of(desc);
  const std::int64_t rounded = token_bucket(tokens);
  std::optional<runtime::LossBench> bench;
  if (options.worker.empty()) bench.emplace(desc, rounded, options.memory, nullptr);
  LossTuning tuning;
  runtime::LossPoints chosen;
  double left = options.seconds;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    TuneOptions of_part = options;
    of_part.seconds = left / static_cast<double>(parts.size() - i);
    std::unique_ptr<runtime::TuneSubject> subject;
    if (bench) {
      subject = std::make_unique<runtime::LossSubject>(*bench, parts[i], chosen);
    } else {
      auto worker = std::make_unique<runtime::WorkerSubject>(
          options.worker,
          to_text(runtime::LossSetup{
              .desc = desc, .tokens = rounded, .memory = options.memory, .part = parts[i], .others = chosen}),
          options.candidate_seconds, desc.device.type == DeviceType::cuda);
      worker->start();  // not on the budget
      subject = std::move(worker);
    }
    const TuneReport& report =
        tuning.parts.emplace_back(runtime::search(task_of(desc, rounded, parts[i], options.wisdom), *subject, of_part));
    left = std::max(0.0, left - report.seconds);
    if (!report.winner && parts[i] == LossPart::forward) break;  // what follows from lse cannot be judged
    if (report.winner) chosen.of(parts[i]) = report.candidates[*report.winner].point;
    if (report.stopped == "interrupt" || report.stopped == "fault") break;
  }
  return tuning;
}

}  // namespace kerf
