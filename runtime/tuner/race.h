// Candidates in turns, in another order each time.
//
// What else a machine does moves the times of all that runs then, by a few percent on a GPU whose clock falls and by
// half on a shared host. What a candidate takes over the runs right before and after its own, each divided by what its
// candidate takes, is known to a percent after ten turns all the same: of whoever runs beside whom, every run tells
// something of both.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "runtime/tuner/samples.h"

namespace kerf::runtime {

class Race {
 public:
  /// Milliseconds of one run of a candidate; nothing: it failed.
  using Run = std::function<std::optional<double>(std::size_t candidate)>;
  /// The same of several, one right after the other; nothing: one of them failed.
  using RunEach = std::function<std::optional<std::vector<double>>(const std::vector<std::size_t>& candidates)>;
  struct Entrant {
    std::size_t candidate = 0;
    Samples ratios = {};  // to what the leader would have taken, by the runs before and after
    bool open = true;     // more of its runs would tell something
  };
  static constexpr std::size_t most_turns = 600;
  struct Turns {
    std::size_t early = 5;  // after which who is clearly slower stops
    std::size_t least = 9;  // of the others
    bool halve = true;      // where time falls short, it goes to the best eight, then four, then three
  };
  Race(std::size_t leader, const std::vector<std::size_t>& others, Turns turns, Run run, RunEach run_each);

  /// Turns until it is known of each to 0.3 % what it takes and, as far as more turns would tell, whether it is within
  /// 2 % of the best, or there were `most_turns`; or until `spent`, the share of the time that has gone, is 1. False:
  /// the leader failed, and what is known is of no use.
  bool finish(const std::function<double()>& spent);

  /// Milliseconds that the leader would have taken, of each run.
  Samples leader_ms() const;
  /// The leader first.
  const std::vector<Entrant>& entrants() const { return entrants_; }

 private:
  struct OneRun {
    std::size_t entrant = 0;
    double ms = 0;
    bool counts = true;  // not the one that a row begins with
  };
  /// Who has a turn next; nobody: more turns would tell nothing.
  std::vector<std::size_t> running(double spent);
  /// In another order, so that everyone follows everyone else.
  void mix(std::vector<std::size_t>& these);
  /// Of each of these; false: the leader failed.
  bool turn(std::vector<std::size_t> these, const std::function<double()>& spent);
  /// All at once; false: nothing is known of it.
  bool turn_at_once(const std::vector<std::size_t>& these);
  /// What each run took over those beside it, by what is known of these; by how much this moved what is known of them.
  double compare();
  void close();
  double taken(const OneRun& run) const { return run.ms / relative_[run.entrant]; }

  Turns turns_;
  Run run_;
  RunEach run_each_;
  std::mt19937 random_;
  std::vector<OneRun> runs_;
  std::vector<Entrant> entrants_;
  std::vector<double> relative_;  // of each, to the leader
};

/// Of the times of candidates that were measured alike, relative: the median of their spreads, as of normal errors.
double noise_of(std::vector<const Samples*> samples);

}  // namespace kerf::runtime
