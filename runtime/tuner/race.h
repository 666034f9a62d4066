// Candidates in turns, each between two runs of the leader.
//
// What else a machine does moves the times of all that runs then, by a few percent on a GPU whose clock falls and by
// half on a shared host. What a candidate takes over the runs of the leader beside it is known to a percent after ten
// turns all the same. The leader has turns as the others: all begin on what it left in the caches.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
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
    Samples ratios = {};  // to the mean of the leader's runs before and after
    bool open = true;     // more of its runs would tell something
  };
  struct Turns {
    std::size_t early = 5;  // after which who is clearly slower stops
    std::size_t least = 9;  // of the others
    bool halve = true;      // where time falls short, it goes to the best eight, then four, then three
  };
  Race(std::size_t leader, const std::vector<std::size_t>& others, Turns turns, Run run, RunEach run_each);

  /// Turns until it is known of each whether it is within 2 % of the best, and to 0.3 % what it takes, or there were
  /// 200; or until `spent`, the share of the time that has gone, is 1. False: the leader failed, and what is known is
  /// of no use.
  bool finish(const std::function<double()>& spent);

  /// Milliseconds of the leader's runs between those of entrants.
  const Samples& between() const { return between_; }
  /// The leader first.
  const std::vector<Entrant>& entrants() const { return entrants_; }

 private:
  std::optional<double> run_between();
  /// Who has a turn next.
  std::vector<Entrant*> running(double spent);
  bool turn(bool back, const std::function<double()>& spent);
  /// All at once; false: nothing is known of it.
  bool turn_at_once(const std::vector<Entrant*>& open);
  void close();

  Turns turns_;
  Run run_;
  RunEach run_each_;
  Samples between_;
  std::vector<Entrant> entrants_;
};

/// Of the times of candidates that were measured alike, relative: the median of their spreads, as of normal errors.
double noise_of(std::vector<const Samples*> samples);

}  // namespace kerf::runtime
