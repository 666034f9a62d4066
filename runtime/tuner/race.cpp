#include "runtime/tuner/race.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "runtime/wisdom/tie.h"

namespace kerf::runtime {

namespace {
constexpr std::size_t own_turns = 30;  // that tell how much an entrant's ratios vary
constexpr double longest_ms = 500;     // that may go by before anyone looks at the clock
constexpr double clearly = 3;          // standard errors
constexpr double close_enough = 0.003;
constexpr double no_closer = 0.0045;  // more turns would not decide who is as far from 2 % as that

constexpr std::size_t compared_rarely = 50;
constexpr double settled = 1e-9;      // of what a candidate takes, from one comparison to the next
constexpr int most_comparisons = 60;  // each takes about half of what is left off

std::size_t most_at(double spent) {
  if (spent < 0.25) return std::numeric_limits<std::size_t>::max();
  return spent < 0.5 ? 8 : spent < 0.75 ? 4 : 3;
}
}  // namespace

double noise_of(std::vector<const Samples*> samples) {
  std::erase_if(samples, [](const Samples* s) { return s->size() < 2; });
  Samples spreads;
  for (const Samples* s : samples) spreads.add(s->spread());
  return spreads.median() / normal_quartiles;
}

Race::Race(std::size_t leader, const std::vector<std::size_t>& others, Turns turns, Run run, RunEach run_each)
    : turns_(turns), run_(std::move(run)), run_each_(std::move(run_each)) {
  entrants_.push_back({.candidate = leader});
  for (const std::size_t i : others) entrants_.push_back({.candidate = i});
  relative_.assign(entrants_.size(), 1);
}

Samples Race::leader_ms() const {
  std::vector<double> all;
  for (const OneRun& r : runs_)
    if (r.counts) all.push_back(taken(r));
  return Samples(std::move(all));
}

std::vector<std::size_t> Race::running(double spent) {
  const auto there = [&](std::size_t i) { return entrants_[i].open || entrants_[i].ratios.size() > 0; };
  std::vector<std::size_t> best;
  for (std::size_t i = 0; i < entrants_.size(); ++i)
    if (there(i)) best.push_back(i);  // the others failed
  std::stable_sort(best.begin(), best.end(), [&](std::size_t a, std::size_t b) {
    return entrants_[a].ratios.median() < entrants_[b].ratios.median();
  });
  const std::vector<std::size_t> all = best;
  if (turns_.halve) best.resize(std::min(best.size(), most_at(spent)));
  // What the others took is told by what the leader did.
  if (std::find(best.begin(), best.end(), 0) == best.end()) best.push_back(0);
  std::erase_if(best, [&](std::size_t i) { return !entrants_[i].open; });
  // Nobody is compared with itself.
  if (best.size() == 1 && all.size() > 1) best.push_back(all[best[0] == all[0] ? 1 : 0]);
  return best;
}

void Race::mix(std::vector<std::size_t>& these) {
  for (std::size_t i = these.size(); i > 1; --i) std::swap(these[i - 1], these[random_() % i]);
  if (these.size() > 1 && !runs_.empty() && these[0] == runs_.back().entrant) std::swap(these.front(), these.back());
}

bool Race::turn_at_once(const std::vector<std::size_t>& these) {
  double ms_of_all = 0;
  for (const std::size_t i : these) {
    if (entrants_[i].ratios.size() == 0) return false;
    ms_of_all += relative_[i] * taken(runs_.back());
  }
  if (ms_of_all > longest_ms) return false;
  std::vector<std::size_t> row = {entrants_[these.back()].candidate};
  for (const std::size_t i : these) row.push_back(entrants_[i].candidate);
  const std::optional<std::vector<double>> ms = run_each_(row);
  if (!ms) return false;
  runs_.push_back({these.back(), (*ms)[0], false});
  for (std::size_t i = 0; i < these.size(); ++i) runs_.push_back({these[i], (*ms)[i + 1]});
  return true;
}

bool Race::turn(std::vector<std::size_t> these, const std::function<double()>& spent) {
  mix(these);
  if (turn_at_once(these)) return true;
  for (const std::size_t i : these) {
    if (spent() >= 1) return true;
    if (const std::optional<double> ms = run_(entrants_[i].candidate)) {
      runs_.push_back({i, *ms});
    } else {
      if (i == 0) return false;
      entrants_[i].open = false;
      std::erase_if(runs_, [&](const OneRun& r) { return r.entrant == i; });
    }
  }
  return true;
}

double Race::compare() {
  std::vector<std::vector<double>> told(entrants_.size());
  const bool alone =
      std::all_of(runs_.begin(), runs_.end(), [&](const OneRun& r) { return r.entrant == runs_[0].entrant; });
  for (std::size_t r = 0; r < runs_.size(); ++r) {
    if (!runs_[r].counts) continue;
    double sum = 0, count = 0;
    const auto beside = [&](std::size_t other) {
      if (other >= runs_.size() || (runs_[other].entrant == runs_[r].entrant && !alone)) return;
      sum += taken(runs_[other]), ++count;
    };
    beside(r - 1), beside(r + 1);
    if (count > 0) told[runs_[r].entrant].push_back(runs_[r].ms / (sum / count));
  }
  for (std::size_t i = 0; i < entrants_.size(); ++i) entrants_[i].ratios = Samples(std::move(told[i]));
  const double leader = entrants_[0].ratios.median();
  if (!(leader > 0)) return 0;
  double moved = 0;
  for (std::size_t i = 0; i < entrants_.size(); ++i) {
    const double ratio = entrants_[i].ratios.median() / leader;
    if (!(ratio > 0)) continue;
    const double now = std::sqrt(relative_[i] * ratio);  // two that told each other's would swap theirs without end
    moved = std::max(moved, std::abs(now / relative_[i] - 1));
    relative_[i] = now;
  }
  return moved;
}

void Race::close() {
  std::vector<const Samples*> all;
  for (const Entrant& e : entrants_) all.push_back(&e.ratios);
  const double noise = noise_of(all);
  const auto error_of = [&](const Entrant& e) {
    // Few lie together by chance.
    const double least = e.ratios.size() < own_turns ? error_of_median(normal_quartiles * noise, e.ratios.size()) : 0;
    return std::max(least, e.ratios.standard_error());
  };
  const Entrant* best = entrants_.data();
  for (const Entrant& e : entrants_)
    if (e.ratios.size() >= turns_.early && e.ratios.median() < best->ratios.median()) best = &e;
  for (Entrant& e : entrants_) {
    if (!e.open || e.ratios.size() == 0) continue;
    const std::size_t n = e.ratios.size();
    const double ratio = e.ratios.median() / best->ratios.median(), error = std::hypot(error_of(e), error_of(*best));
    const bool slower = n >= turns_.early && ratio * (1 - clearly * error) > tie;
    const bool decided = ratio * (1 + sure_errors * error) <= tie || ratio * (1 - sure_errors * error) > tie;
    const bool known = n >= turns_.least && error_of(e) < close_enough && (decided || error < no_closer);
    if (slower || known || n >= most_turns) e.open = false;
  }
}

bool Race::finish(const std::function<double()>& spent) {
  for (std::size_t turns = 1, due = 1;; ++turns) {
    const double gone = spent();
    if (gone >= 1) break;
    std::vector<std::size_t> these = running(gone);
    if (these.empty()) break;
    if (!turn(std::move(these), spent)) return false;
    if (turns < due) continue;
    due = turns + 1 + turns / compared_rarely;  // of many turns one more tells little, and looking at all takes long
    compare();
    close();
  }
  for (int i = 0; i < most_comparisons && compare() > settled; ++i) {
  }
  return true;
}

}  // namespace kerf::runtime
