// A search while it runs: what is known of each candidate, and the steps, which are in search.cpp (candidates, times,
// failures), first_runs.cpp and finals.cpp.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/tuner/compiler.h"
#include "runtime/tuner/race.h"
#include "runtime/tuner/samples.h"
#include "runtime/tuner/search.h"
#include "runtime/tuner/search_log.h"

namespace kerf::runtime {

inline constexpr std::size_t first_runs = 3, finalists = 4;

class Search {
 public:
  Search(const TuneTask& task, TuneSubject& subject, const TuneOptions& options)
      : task_(task),
        subject_(subject),
        options_(options),
        start_(clock()),
        begun_(start_),
        log_(task, options.wisdom) {}
  TuneReport run();

 private:
  struct State {
    Samples samples;      // of who others are compared with
    Samples ratios;       // to runs of that one beside its own
    double relative = 0;  // what it takes, over the first who was compared with; 0: not timed in this search
    double apart = -1;    // the first two of ratios, over the lesser; negative: there were not as many
    bool ready = false;   // compiled, and its answers are right
    bool raced = false;   // in the finals
    double first_ms = 0;  // of the default: median of its first runs

    void add_ratio(double ratio) {
      ratios.add(ratio);
      if (ratios.size() == 2) apart = ratios.most() / ratios.least() - 1;
    }
  };

  double clock() const { return clock_of(options_); }
  double elapsed() const { return clock() - start_; }
  /// Adds what the step takes to `seconds`.
  template <class Step>
  auto timed(double& seconds, const Step& step) {
    struct Note {
      Search& search;
      double& seconds;
      double start = search.clock();
      ~Note() { seconds += search.clock() - start; }
    };
    const Note note{*this, seconds};
    return step();
  }
  bool interrupted() const { return options_.stop.stop_requested(); }
  /// Whether there is no time left for what may take this share of it; says why.
  bool over(double share) {
    if (report_.stopped == "fault") return true;
    if (!interrupted() && clock() - begun_ < share * seconds_) return false;
    report_.stopped = interrupted() ? "interrupt" : "budget";
    return true;
  }

  /// From 0 now to 1 when it is over.
  std::function<double()> spent_until(double share) {
    return [this, share, from = clock()] {
      return over(share) ? 1 : (clock() - from) / (begun_ + share * seconds_ - from);
    };
  }

  void take_up(const Shortlist& list);
  void run_first();
  /// Of candidates from the first one on, at most so many; known ones have nothing to do.
  std::vector<const TunePoint*> points(std::size_t first, std::size_t most) const;
  /// Notes how compiling ended.
  void adopt(std::size_t i, const CandidateCompiler::Result& made);
  void judge(std::size_t i);
  /// Whom others run beside: the default, or where it fails the fastest of those that are ready. False: nobody else.
  bool find_reference(std::size_t i);
  void time_reference(std::size_t i);
  /// These say false where the reference failed beside it, and nothing is known.
  bool time_first(std::size_t i);
  bool time_one_by_one(std::size_t i, double first_ms, double too_slow);
  bool time_at_once(std::size_t i);
  void give_up(std::size_t i, double ms, double times);
  /// Milliseconds of what is 1 in relative.
  double unit() const;
  /// The least that anyone took at most in its first runs, relative: the best of many medians of few is one of luck.
  double sure_best() const;
  /// Whoever may be the best by the first runs, the fastest first, and the default.
  std::vector<std::size_t> entrants();
  void finals();
  Race race_of(std::size_t leader, const std::vector<std::size_t>& others, Race::Turns turns);
  void run_finals(std::vector<std::size_t> last);
  /// What a race told; of whoever had too few turns what was known stays.
  void settle_race(const Race& race);
  /// Times of all that were run in this search are relative to `unit`.
  void rescale(double unit);
  /// Whoever would be chosen only since it was not run beside the others is no choice; a later search times it again.
  void pass_over_others();
  /// Of these, the fastest first, the first in the order of predicted times, then of parameters, that is surely within
  /// 2 % of who is the best for sure.
  std::optional<std::size_t> choice(const std::vector<std::size_t>& order) const;
  /// Leaves out what was never taken up.
  void trim();
  /// Compiled and right; false: it is out.
  bool make_ready(std::size_t i);
  /// Milliseconds of one run; nothing: it failed.
  std::optional<double> run_once(std::size_t i);
  /// Of several, one right after the other; nothing: one of them fails.
  std::optional<std::vector<double>> run_each(const std::vector<std::size_t>& these);
  void fail(std::size_t i, const Ending& ending);
  void fail(std::size_t i, const std::exception_ptr& error, WisdomStatus otherwise);
  void drop(std::size_t i);
  void settle(std::size_t i);
  void keep(std::size_t i) { log_.keep(report_.candidates[i]); }
  void tell(const char* step, std::size_t done) const;
  /// Those that ran rightly, the fastest first.
  std::vector<std::size_t> by_time() const;

  const TuneTask& task_;
  TuneSubject& subject_;
  const TuneOptions& options_;
  const double start_;
  double begun_;  // when there was something to measure with: the budget counts from there
  TuneReport report_;
  std::vector<State> states_;
  std::vector<std::size_t> spilling_;  // compiled, not run
  std::optional<std::size_t> reference_;
  std::optional<std::size_t> leader_;  // of the finals
  Samples unit_ms_;                    // what is 1 in relative took in them
  double known_unit_ = 0;              // where the reference was known before, or failed
  double seconds_ = 0;
  SearchLog log_;
  std::unique_ptr<CandidateCompiler> compiler_;  // last: it reads the others
};

}  // namespace kerf::runtime
