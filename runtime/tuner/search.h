// The search: candidates are left out by rules, ranked by a model, compiled in parallel, checked, timed, halved.
//
//   first runs   two or three of each that comes up, with runs of the default between them; one where it takes three
//                times the best
//   finals       whoever may be the best by these, 4 to 16 of them, and the default, in turns (race.h); then whoever
//                would be chosen by the few runs it had, beside the one that led
//
// What else runs on a machine moves the times of all, so candidates are compared by what they take over runs of one of
// them beside their own, and their times are this times the median of that one. Of those that are surely within 2 % of
// the best the first in the order of predicted times, then of parameters, wins, as where wisdom is looked up.
#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kerf/tuner.h"

namespace kerf::runtime {

/// How a candidate ended, where that is known better than its error tells.
class TuneFailure : public std::exception {
 public:
  TuneFailure(WisdomStatus status, std::string reason) : status(status), reason(std::move(reason)) {}
  const char* what() const noexcept override { return reason.c_str(); }
  WisdomStatus status;
  std::string reason;
};

/// There is nothing any more that could measure: no candidate is to blame.
class TuneEnd : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What is tuned: makes candidates, judges and times them. Whatever is thrown is what became of the candidate.
class TuneSubject {
 public:
  virtual ~TuneSubject() = default;
  /// What follows is about this part of what is tuned.
  virtual void begin(const std::string& part) { static_cast<void>(part); }
  /// That part comes next, with these first: they may be compiled ahead.
  virtual void expect(const std::string& part, const std::vector<TunePoint>& points) {
    static_cast<void>(part), static_cast<void>(points);
  }
  /// Returns once candidates can run; compile may be called before.
  virtual void wait_ready() {}
  /// Makes a candidate ready to run; of several at once, on threads of the search.
  virtual std::optional<KernelResources> compile(const TunePoint& point) = 0;
  /// Runs it on poisoned outputs; what is wrong with them, empty: nothing.
  virtual std::string check(const TunePoint& point) = 0;
  /// Milliseconds of one run.
  virtual double run(const TunePoint& point) = 0;
  /// The same of several, one right after the other; nothing where one fails: `run` tells which.
  virtual std::optional<std::vector<double>> run_each(const std::vector<TunePoint>& points);
  /// What compile made is not needed any more.
  virtual void forget(const TunePoint& point) = 0;
  /// Seconds that went by for all candidates alike, by what for.
  using Spent = std::vector<std::pair<std::string, double>>;
  virtual Spent spent() { return {}; }
  /// Whether compiling does not disturb what is timed at the same time.
  virtual bool overlaps() const { return false; }
  /// Whether what a candidate breaks is whole again for the next.
  virtual bool isolated() const { return false; }
};

struct TuneTask {
  WisdomKey key = {};
  WisdomValidators validators = {};
  Space space = {};
  TunePoint standard = {};                                    // legal in the space
  std::function<double(const TunePoint&)> predicted_ms = {};  // may be empty
  std::vector<TunePoint> seeds = {};                          // taken up first, whatever their rank
  std::vector<TunePoint> only = {};                           // nothing else is taken up, and all are in the finals
  std::function<void()> first_runs_over = {};                 // called when no more candidates are compiled
  std::function<double()> seconds = {};  // in place of the options', asked once there is something to measure with
};

/// Seconds by the options' clock, or by one that never goes back.
double clock_of(const TuneOptions& options);

TuneReport search(const TuneTask& task, TuneSubject& subject, const TuneOptions& options);

/// What is tried, in this order, and what is left out.
struct Shortlist {
  struct Entry {
    TunePoint point;
    double predicted_ms = 0;
    std::int64_t rank = 0;  // by the model, among all that the rules leave
  };
  std::vector<Entry> entries;  // the default, the seeds, the best by the model, a few at random
  std::vector<TunePruned> pruned;
  std::int64_t pruned_count = 0;
};
Shortlist shortlist(const TuneTask& task, std::int64_t most);

inline constexpr std::int64_t default_candidates = 32;

}  // namespace kerf::runtime
