#include "runtime/tuner/race.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "runtime/wisdom/tie.h"

namespace kerf::runtime {

namespace {
constexpr std::size_t most_turns = 200;
constexpr std::size_t own_turns = 30;  // that tell how much an entrant's ratios vary
constexpr double longest_ms = 500;     // that may go by before anyone looks at the clock
constexpr double clearly = 3;          // standard errors
constexpr double close_enough = 0.003;
constexpr double no_closer = 0.0045;  // more turns would not decide who is as far from 2 % as that

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
}

std::optional<double> Race::run_between() {
  const std::optional<double> ms = run_(entrants_[0].candidate);
  if (ms) between_.add(*ms);
  return ms;
}

std::vector<Race::Entrant*> Race::running(double spent) {
  std::vector<Entrant*> best;
  for (Entrant& e : entrants_)
    if (e.open || e.ratios.size() > 0) best.push_back(&e);  // the others failed
  std::stable_sort(best.begin(), best.end(),
                   [](const Entrant* a, const Entrant* b) { return a->ratios.median() < b->ratios.median(); });
  if (turns_.halve) best.resize(std::min(best.size(), most_at(spent)));
  // What the others took is told by what the leader did.
  if (std::find(best.begin(), best.end(), entrants_.data()) == best.end()) best.push_back(entrants_.data());
  std::erase_if(best, [](const Entrant* e) { return !e->open; });
  std::sort(best.begin(), best.end());
  return best;
}

bool Race::turn_at_once(const std::vector<Entrant*>& open) {
  if (between_.size() == 0 || between_.median() * static_cast<double>(2 * open.size() + 1) > longest_ms) return false;
  std::vector<std::size_t> row = {entrants_[0].candidate};
  for (const Entrant* e : open) row.insert(row.end(), {e->candidate, entrants_[0].candidate});
  const std::optional<std::vector<double>> ms = run_each_(row);
  if (!ms) return false;
  for (std::size_t i = 0; i < row.size(); i += 2) between_.add((*ms)[i]);
  for (std::size_t i = 0; i < open.size(); ++i)
    open[i]->ratios.add((*ms)[2 * i + 1] / (((*ms)[2 * i] + (*ms)[2 * i + 2]) / 2));
  return true;
}

bool Race::turn(bool back, const std::function<double()>& spent) {
  std::vector<Entrant*> open = running(spent());
  if (back) std::reverse(open.begin(), open.end());
  if (turn_at_once(open)) return true;
  std::optional<double> before = run_between();
  if (!before) return false;
  for (Entrant* e : open) {
    if (spent() >= 1) return true;
    const std::optional<double> ms = run_(e->candidate);
    if (!ms) {
      if (e == entrants_.data()) return false;
      e->open = false;
      e->ratios = {};
      continue;
    }
    const std::optional<double> after = run_between();
    if (!after) return false;
    e->ratios.add(*ms / ((*before + *after) / 2));
    before = after;
  }
  return true;
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
  for (std::size_t turns = 0; spent() < 1; ++turns) {
    if (!turn(turns % 2 == 1, spent)) return false;
    close();
    if (running(spent()).empty()) break;
  }
  return true;
}

}  // namespace kerf::runtime
