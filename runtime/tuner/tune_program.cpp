// A user's program as the subject of a search, on the CPU.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <map>
#include <mutex>

#include "kerf/error.h"
#include "lib/ir/ir.h"
#include "runtime/processors.h"
#include "runtime/tuner/search.h"
#include "runtime/tuner/space_hash.h"
#include "runtime/tuner/values.h"

namespace kerf {

namespace {

using runtime::relative_error;

constexpr double shortest_ms = 0.2;  // that a clock and a pool that wakes up leave well alone
constexpr int most_launches = 10000;

/// A tensor that the program writes.
struct Written {
  std::string name;
  TensorRef tensor;
  std::vector<std::byte> before;  // of an inout
  std::vector<double> expected;   // empty: not known yet
};

class ProgramSubject : public runtime::TuneSubject {
 public:
  ProgramSubject(const ProgramTuning& tuning, ThreadPool& pool, std::shared_ptr<CodeCache> cache,
                 const Program& standard)
      : tuning_(tuning), pool_(pool), cache_(std::move(cache)) {
    find_written(standard.ir());
    expect(standard);
  }

  std::optional<KernelResources> compile(const TunePoint& point) override {
    const ProgramTuning::Made made = tuning_.make(point);
    Kernel kernel = kerf::compile(made.program, Target::host(), made.schedule, {}, cache_);
    const std::lock_guard lock(mutex_);
    made_[point] = {std::move(kernel), 1};
    return {};
  }

  std::string check(const TunePoint& point) override {
    Candidate& c = candidate(point);
    reset(true);
    const double ms = launch(c.kernel);
    std::string wrong;
    for (Written& w : written_) {
      std::vector<double> ours = runtime::values(w.tensor);
      if (w.expected.empty() && first_)
        w.expected = std::move(ours);
      else if (const double error = relative_error(ours, w.expected); !(error <= tuning_.tolerance) && wrong.empty())
        wrong = fmt::format("{}: relative error {:.2e}, allowed are {:.2e}", w.name, error, tuning_.tolerance);
    }
    first_ = false;
    c.launches = ms < shortest_ms
                     ? static_cast<int>(std::min<double>(std::ceil(shortest_ms / std::max(ms, 1e-6)), most_launches))
                     : 1;
    return wrong;
  }

  double run(const TunePoint& point) override {
    const Candidate& c = candidate(point);
    double ms = 0;
    for (int i = 0; i < c.launches; ++i) {
      reset(false);
      ms += launch(c.kernel);
    }
    return ms / c.launches;
  }

  void forget(const TunePoint& point) override {
    const std::lock_guard lock(mutex_);
    made_.erase(point);
  }

 private:
  struct Candidate {
    Kernel kernel;
    int launches = 1;  // of one run
  };

  Candidate& candidate(const TunePoint& point) {
    const std::lock_guard lock(mutex_);
    return made_.at(point);
  }

  void find_written(const ir::Program& program) {
    const ir::Bound bound = ir::bind(program, tuning_.args);
    for (std::size_t i = 0; i < program.tensors.size(); ++i) {
      const ir::TensorInfo& info = program.tensors[i];
      if (info.access == ir::Access::input) continue;
      Written w{.name = info.name, .tensor = bound.tensors[i], .before = {}, .expected = {}};
      if (info.access == ir::Access::inout) w.before = runtime::copy_of(w.tensor);
      written_.push_back(std::move(w));
    }
    for (const auto& [name, given] : tuning_.expected) {
      const auto at = std::find_if(written_.begin(), written_.end(), [&](const Written& w) { return w.name == name; });
      if (at == written_.end())
        throw UsageError(fmt::format("tune: expected names '{}', which {} does not write", name, program.name));
      if (given.elements() != at->tensor.elements())
        throw UsageError(fmt::format("tune: expected '{}' is {}, and {} writes {}", name, given.describe(),
                                     program.name, at->tensor.describe()));
      at->expected = runtime::values(given);
    }
  }

  void expect(const Program& standard) {
    const auto unknown = [](const Written& w) { return w.expected.empty(); };
    if (!tuning_.interpreted || std::none_of(written_.begin(), written_.end(), unknown)) return;
    reset(true);
    interpret(standard, tuning_.args);
    for (Written& w : written_)
      if (unknown(w)) w.expected = runtime::values(w.tensor);
  }

  void reset(bool poisoned) {
    for (const Written& w : written_) {
      if (!w.before.empty())
        runtime::restore(w.tensor, w.before);
      else if (poisoned)
        runtime::poison(w.tensor);
    }
  }

  double launch(const Kernel& kernel) {
    const auto start = std::chrono::steady_clock::now();
    kernel.launch(tuning_.args, pool_);
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

  const ProgramTuning& tuning_;
  ThreadPool& pool_;
  std::shared_ptr<CodeCache> cache_;
  std::vector<Written> written_;
  bool first_ = true;
  std::mutex mutex_;
  std::map<TunePoint, Candidate> made_;
};

WisdomKey key_of(const ProgramTuning& tuning, const Program& standard, const ThreadPool& pool) {
  const ir::Program& program = standard.ir();
  const ir::Bound bound = ir::bind(program, tuning.args);
  WisdomKey key{.op = tuning.name.empty() ? program.name : tuning.name, .part = program.name};
  if (!program.tensors.empty()) key.dtype = name_of(program.tensors[0].dtype);
  for (std::size_t i = 0; i < program.axes.size(); ++i)
    key.options += fmt::format("{}{}={}", i == 0 ? "" : " ", program.axes[i].name, bound.axis_size[i]);
  if (pool.size() != runtime::processors()) key.options += fmt::format(" threads={}", pool.size());
  if (!tuning.options.empty()) key.options += " " + tuning.options;
  key.target = Target::host().level();
  key.space = runtime::space_hash(standard.text() + tuning.space.text());
  return key;
}

}  // namespace

TuneReport tune(const ProgramTuning& tuning, const TuneOptions& options) {
  if (!tuning.make) throw UsageError("tune: ProgramTuning::make is not given; it makes the program of a candidate");
  if (!options.worker.empty())
    throw UsageError("tune: TuneOptions::worker is given; candidates of the loss alone run in other processes");
  if (const std::string reason = tuning.space.refusal(tuning.standard); !reason.empty())
    throw UsageError(fmt::format("tune: the default {} is refused: {}", describe(tuning.standard), reason));
  const auto pool = tuning.pool ? tuning.pool : std::make_shared<ThreadPool>();
  const Program standard = tuning.make(tuning.standard).program;
  ProgramSubject subject(tuning, *pool, tuning.cache, standard);
  runtime::TuneTask task{.key = key_of(tuning, standard, *pool),
                         .validators = validators_of(),
                         .space = tuning.space,
                         .standard = tuning.standard,
                         .predicted_ms = tuning.predicted_ms};
  if (!options.wisdom.empty())
    for (const WisdomParameters& p : Wisdom::load(options.wisdom).wisdom.seeds(task.key, task.validators))
      if (const auto point = from_wisdom(p)) task.seeds.push_back(*point);
  return runtime::search(task, subject, options);
}

}  // namespace kerf
