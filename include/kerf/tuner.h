// The tuner: which parameters make a program, or the loss, fast on the machine at hand, found by measuring.
//
// A Space names the parameters and says which combinations are out of the question, a search measures the best of the
// rest within a budget, and each candidate's record goes to a file of wisdom as soon as it is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "kerf/kernel.h"
#include "kerf/loss.h"
#include "kerf/wisdom.h"

namespace [[gnu::visibility("default")]] kerf {

/// A candidate: the value of each parameter.
using TunePoint = std::map<std::string, std::int64_t>;
/// "n=128 v=256"
std::string describe(const TunePoint& point);
/// As wisdom keeps it; and back, nothing where a value is no integer.
WisdomParameters to_wisdom(const TunePoint& point);
std::optional<TunePoint> from_wisdom(const WisdomParameters& parameters);

struct TuneParameter {
  std::string name;
  std::vector<std::int64_t> values;
};

/// Parameters, the values each may have, and the combinations that are left out, with a reason.
class Space {
 public:
  using Rule = std::function<std::string(const TunePoint&)>;

  /// Throws UsageError for a name that is there, for no values or one that is there twice.
  Space& parameter(const std::string& name, const std::vector<std::int64_t>& values);
  /// `why_not` gives the reason to leave a point out before anything of it is compiled; empty: it may be tried.
  Space& rule(Rule why_not);

  const std::vector<TuneParameter>& parameters() const { return parameters_; }
  /// Combinations, also those that a rule leaves out.
  std::int64_t size() const;
  /// Why a point is not of this space, or left out; empty: it may be tried.
  std::string refusal(const TunePoint& point) const;
  /// Every combination, the last parameter changing first.
  void for_each(const std::function<void(const TunePoint&)>& visit) const;
  /// "n: 64 128; v: 128 256", for a hash of what can be tried.
  std::string text() const;

 private:
  std::vector<TuneParameter> parameters_;
  std::vector<Rule> rules_;
};

/// A candidate and what became of it.
struct TuneCandidate {
  TunePoint point = {};
  double predicted_ms = 0;  // by the model that ranked it; 0: none
  double median_ms = 0;     // of `samples` runs; 0: not measured
  double spread = 0;        // from the first quarter of the samples to the third, relative to the median
  std::int64_t samples = 0;
  WisdomStatus status = WisdomStatus::ok;
  std::string reason = {};                        // of another status than ok
  bool noisy = false;                             // something else ran meanwhile
  bool known = false;                             // from wisdom, not measured again
  std::optional<KernelResources> resources = {};  // of a GPU's kernel
  double compile_ms = 0;
  double at_s = 0;  // when it was known, since the search began
};

struct TunePruned {
  TunePoint point;
  std::string reason;
};

/// All that a search did.
struct TuneReport {
  WisdomKey key = {};
  WisdomValidators validators = {};
  std::vector<TuneParameter> parameters = {};
  std::int64_t space_size = 0;
  std::vector<TunePruned> pruned = {};  // the first 1000
  std::int64_t pruned_count = 0;
  std::vector<TuneCandidate> candidates = {};  // as they were taken up
  /// Of `candidates` the first in the order of predicted times, then of parameters, that is surely within 2 % of the
  /// best, as a Wisdom's winner is; none: nothing ran rightly.
  std::optional<std::size_t> winner = {};
  std::optional<std::size_t> standard = {};  // the default
  std::string stopped = {};                  // "", "budget", "interrupt", or "fault": nothing measures any more
  std::vector<std::string> notes = {};       // records that could not be kept, and why
  double seconds = 0;
  /// Of these: until something could measure, for code that was not there yet, for answers, for times.
  struct Spent {
    double waiting = 0, compiling = 0, checking = 0, running = 0;
  } spent = {};
};

/// How a search goes on.
struct TuneProgress {
  std::string part = {};  // of the key
  std::string step = {};  // "first runs", "finals"
  std::int64_t done = 0, candidates = 0;
  double seconds = 0;
  std::optional<TunePoint> best = {};
  double best_ms = 0, standard_ms = 0;  // 0: not known yet
};

struct TuneOptions {
  double seconds = 10;          // of each search, of tune_loss all together; 0: nothing is measured
  std::int64_t candidates = 0;  // most that are taken up; 0: 32, of tune_loss on a GPU 96
  /// Bytes that inputs, outputs and workspace may take where the kernels compute; 0: 2 GiB on the CPU, on a GPU half of
  /// what is free.
  std::size_t memory = 0;
  std::stop_token stop = {};  // what is known then is reported
  std::function<void(const TuneProgress&)> progress = {};
  /// Records are appended there as soon as they are known, and what it holds of the same key and machine is not
  /// measured again, but for finalists. A file that cannot be written is told in the report's notes. Empty: nothing is
  /// read or written.
  std::string wisdom = {};
  bool again = false;       // measure all anew
  int compile_threads = 0;  // 0: the processors, at most 8
  /// Measures candidates in processes of this program, so that one that hangs or faults ends its process alone; it is
  /// run as `worker tune-worker`, as the `kerf` command understands. Empty: in this process. Of tune_loss alone.
  std::string worker = {};
  double candidate_seconds = 20;       // with `worker`: that a candidate may take for a step
  std::function<double()> clock = {};  // seconds since any time; empty: the system's
};

/// A program of a user's to tune.
struct ProgramTuning {
  struct Made {
    Program program;
    Schedule schedule = {};
  };
  std::string name = {};  // of the op in wisdom; empty: the program's
  Space space = {};
  std::function<Made(const TunePoint&)> make = {};  // may throw: the candidate is then out, with the reason
  TunePoint standard = {};                          // what is used without tuning
  LaunchArgs args = {};                             // for every candidate
  /// What outputs must come out as, by name, in the host's memory and dense. Of what is not named: what the interpreter
  /// makes, or with `interpreted` off, what the first candidate that runs makes.
  std::vector<std::pair<std::string, TensorRef>> expected = {};
  bool interpreted = true;
  double tolerance = 1e-3;  // norm of the error over the norm of what is expected
  /// Ranks candidates and decides ties; empty: they are tried in the space's order.
  std::function<double(const TunePoint&)> predicted_ms = {};
  std::string options = {};  // of the key: what else the choice depends on
  std::shared_ptr<ThreadPool> pool = nullptr;
  std::shared_ptr<CodeCache> cache = nullptr;
};
/// Measures candidates of a program on the CPU. Outputs are filled with NaN before each candidate's answer is looked
/// at. Throws UsageError where the default is not of the space or arguments do not fit.
TuneReport tune(const ProgramTuning& tuning, const TuneOptions& options = {});

/// What tune_loss measured, by parts: "forward", "backward", and of a plan that filters "filtered", the forward and
/// backward of calls with block_lse together.
struct LossTuning {
  std::vector<TuneReport> parts = {};
  std::vector<std::pair<std::string, double>> spent = {};  // seconds on what all share: "problem", "reference", ..
};
/// Measures the blocks of a plan for `tokens`, rounded up to their bucket, on random input made for it. Making it is on
/// options.seconds, and the parts share the rest, at least half of all. With options.wisdom plans that read that file
/// find the choice. Of desc the shapes, dtype, device, strategy, filter, workspace_limit and threads count. Throws
/// UsageError where there can be no such plan, DeviceError where the device is not there or memory is short.
LossTuning tune_loss(const PlanDesc& desc, std::int64_t tokens, const TuneOptions& options = {});

/// Measures these points of a part, "forward", "backward" or "filtered", beside each other, 600 times each or
/// until the seconds are over: which one is the fastest, and by how much. Of options wisdom, again and candidates do
/// not count. Throws as tune_loss, and UsageError for a part that the plan does not have or a point that is not of its
/// space.
TuneReport compare_loss(const PlanDesc& desc, std::int64_t tokens, const std::string& part,
                        const std::vector<TunePoint>& points, const TuneOptions& options = {});

/// Where Tuning::record notes what wisdom lacks, for kerf tune --missing: the file that KERF_TUNE_MISSES names, else
/// missing.jsonl beside the user's wisdom. Empty where there is no place for either.
std::string user_misses_file();

/// Where measurements of this process are valid: the processor and the number of cores, or a GPU with its driver.
WisdomValidators validators_of(Device device = {});

}  // namespace kerf
