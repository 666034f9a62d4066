// The parts of the loss, one search after the other.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "kerf/error.h"
#include "runtime/processors.h"
#include "runtime/tuner/loss_setup.h"
#include "runtime/tuner/worker.h"

namespace kerf {

namespace {

using runtime::LossPart;

constexpr int most_compilers = 8;
constexpr std::int64_t most_on_gpu = 96;  // where processes compile beside what measures
constexpr std::int64_t most_ahead = 12;   // of the next part, compiled while this one's finalists are timed
constexpr double reserve = 0.05;          // of the budget: processes end

/// Of the time: what one run takes, and how many candidates there are.
double share_of(LossPart part) { return part == LossPart::forward ? 2 : 3; }

/// Stands there where nothing may be measured.
class NoSubject : public runtime::TuneSubject {
 public:
  std::optional<KernelResources> compile(const TunePoint&) override { throw runtime::TuneEnd("nothing is measured"); }
  std::string check(const TunePoint&) override { throw runtime::TuneEnd("nothing is measured"); }
  double run(const TunePoint&) override { throw runtime::TuneEnd("nothing is measured"); }
  void forget(const TunePoint&) override {}
};

/// What won the other parts, as far as the space has it.
void add_seed(runtime::TuneTask& task, const runtime::LossPoints& chosen) {
  TunePoint point = task.standard;
  const auto take = [&](const TunePoint& from, const char* name, const std::string& as) {
    const auto at = from.find(name);
    if (at == from.end()) return;
    for (const TuneParameter& p : task.space.parameters())
      if (p.name == as && std::count(p.values.begin(), p.values.end(), at->second) > 0) point[as] = at->second;
  };
  for (const char* name : {"n", "v", "split", "band"}) take(chosen.forward, name, name);
  take(chosen.backward, "n", "bn");
  for (const char* name : {"e_d", "c_d"}) take(chosen.backward, name, name);
  task.seeds.insert(task.seeds.begin(), point);
}

std::vector<LossPart> parts_of(const PlanDesc& desc, std::int64_t tokens) {
  if (desc.device.type == DeviceType::cpu && desc.strategy == Strategy::dense)
    throw UsageError("tune_loss: strategy is dense, whose blocks on the cpu are fixed; tune exact_recompute");
  std::vector<LossPart> parts = {LossPart::forward, LossPart::backward};
  if (runtime::has_part(desc, runtime::target_of(desc), LossPart::filtered, tokens))
    parts.push_back(LossPart::filtered);
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

/// What measures, and how many compile beside it.
std::unique_ptr<runtime::TuneSubject> subject_for(const PlanDesc& desc, std::int64_t tokens, TuneOptions& options) {
  runtime::LossSetup setup{.desc = desc, .tokens = tokens, .memory = options.memory};
  if (options.seconds <= 0) return std::make_unique<NoSubject>();
  if (options.worker.empty()) return runtime::subject_of(to_text(setup));
  runtime::CompilerProcesses compilers;
  if (desc.device.type == DeviceType::cuda) {
    compilers.count = options.compile_threads > 0 ? options.compile_threads
                                                  : std::clamp(runtime::processors() - 1, 1, most_compilers);
    runtime::LossSetup compiling = setup;
    compiling.compiles_only = true;
    compilers.setup = to_text(compiling);
    options.compile_threads = compilers.count;
  }
  return std::make_unique<runtime::WorkerSubject>(options.worker, to_text(setup), options.candidate_seconds, compilers);
}

/// Throws what keeps a whole tuning from its first step.
[[noreturn]] void rethrow_at_start() {
  try {
    throw;
  } catch (const runtime::TuneFailure& e) {
    throw DeviceError(fmt::format("tune: {}", e.what()));
  }
}

/// As tuning has it; throws UsageError for what makes no sense.
PlanDesc checked_desc(const PlanDesc& asked, std::int64_t tokens) {
  if (tokens < 1) throw UsageError(fmt::format("tune: {} tokens; tune for at least one", tokens));
  PlanDesc desc = runtime::bench_desc(asked);
  static_cast<void>(Plan(desc, {.pool = std::make_shared<ThreadPool>(1)}));
  return desc;
}

}  // namespace

LossTuning tune_loss(const PlanDesc& asked, std::int64_t tokens, const TuneOptions& options) {
  const PlanDesc desc = checked_desc(asked, tokens);
  const std::int64_t rounded = token_bucket(tokens);
  const std::vector<LossPart> parts = parts_of(desc, rounded);
  const bool on_gpu = desc.device.type == DeviceType::cuda;
  const auto seconds_since = [&, start = runtime::clock_of(options)] { return runtime::clock_of(options) - start; };

  TuneOptions of_part = options;
  const std::unique_ptr<runtime::TuneSubject> subject = subject_for(desc, rounded, of_part);
  if (on_gpu && options.candidates == 0) of_part.candidates = most_on_gpu;
  LossTuning tuning;
  runtime::LossPoints chosen;
  double all = 0;
  for (const LossPart part : parts) all += share_of(part);
  std::vector<runtime::TuneTask> tasks;
  for (const LossPart part : parts) tasks.push_back(task_of(desc, rounded, part, options.wisdom));
  for (std::size_t i = 0; i < parts.size(); ++i) {
    runtime::TuneTask& task = tasks[i];
    if (parts[i] == LossPart::filtered) add_seed(task, chosen);
    if (options.seconds > 0) {
      double shares = 0;
      for (std::size_t k = i; k < parts.size(); ++k) shares += share_of(parts[k]);
      task.seconds = [&, i, shares] {
        const double share = share_of(parts[i]), left = (1 - reserve) * options.seconds - seconds_since();
        return std::max(left * share / shares, options.seconds / 2 * share / all);
      };
      if (i + 1 < parts.size())
        task.first_runs_over = [&, i] {
          std::vector<TunePoint> first;
          for (const auto& e : runtime::shortlist(tasks[i + 1], most_ahead).entries) first.push_back(e.point);
          subject->expect(to_text(runtime::LossStage{.part = parts[i + 1], .others = {}}), first);
        };
      try {
        subject->begin(to_text(runtime::LossStage{.part = parts[i], .others = chosen}));
      } catch (const std::exception& e) {
        if (tuning.parts.empty()) rethrow_at_start();
        tuning.parts.back().notes.push_back(fmt::format("{} was not searched: {}", name_of(parts[i]), e.what()));
        tuning.parts.back().stopped = "fault";
        break;
      }
    }
    const TuneReport& report = tuning.parts.emplace_back(runtime::search(task, *subject, of_part));
    if (!report.winner && parts[i] == LossPart::forward) break;  // what follows from lse cannot be judged
    if (report.winner) chosen.of(parts[i]) = report.candidates[*report.winner].point;
    if (report.stopped == "interrupt" || report.stopped == "fault") break;
  }
  tuning.spent = subject->spent();
  return tuning;
}

TuneReport compare_loss(const PlanDesc& asked, std::int64_t tokens, const std::string& part,
                        const std::vector<TunePoint>& points, const TuneOptions& options) {
  const PlanDesc desc = checked_desc(asked, tokens);
  const std::int64_t rounded = token_bucket(tokens);
  const std::vector<LossPart> parts = parts_of(desc, rounded);
  const auto which = std::find_if(parts.begin(), parts.end(), [&](LossPart p) { return name_of(p) == part; });
  if (which == parts.end()) {
    std::string names;
    for (const LossPart p : parts) names += (names.empty() ? "" : ", ") + std::string(name_of(p));
    throw UsageError(fmt::format("compare_loss: there is no part '{}' of this plan; it has {}", part, names));
  }
  if (points.empty()) throw UsageError("compare_loss: no points; name one at least");
  runtime::TuneTask task = task_of(desc, rounded, *which, "");
  task.only = points;
  TuneOptions of_part = options;
  of_part.wisdom.clear();
  const std::unique_ptr<runtime::TuneSubject> subject = subject_for(desc, rounded, of_part);
  try {
    if (options.seconds > 0) subject->begin(to_text(runtime::LossStage{.part = *which, .others = {}}));
  } catch (const std::exception&) {
    rethrow_at_start();
  }
  return runtime::search(task, *subject, of_part);
}

}  // namespace kerf
