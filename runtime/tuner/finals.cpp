#include <algorithm>
#include <cmath>

#include "runtime/tuner/search_impl.h"
#include "runtime/wisdom/tie.h"

namespace kerf::runtime {

namespace {
constexpr std::size_t most_finalists = 16;
constexpr double normal_apart = 0.954;   // median of how far two normal errors of deviation 1 lie apart
constexpr double chance = 2;             // standard errors of the first runs that keep nobody from the finals
constexpr double turns_that_fit = 5;     // of the finals, or there are fewer in them
constexpr double drift_limit = 0.05;     // of the default between its first runs and the finals
constexpr double share_of_finals = 0.9;  // of the budget
}  // namespace

std::vector<std::size_t> Search::entrants() {
  const std::vector<std::size_t> order = by_time();
  if (order.empty()) return {};
  Samples apart;  // of two, since those that lay together by chance were run no more
  for (const State& s : states_)
    if (s.apart >= 0) apart.add(s.apart);
  const double error = error_of_median(normal_quartiles * apart.median() / normal_apart, first_runs);
  const double best = sure_best() * unit(), limit = best * (tie + chance * error);
  const auto may_be_best = [&](std::size_t i) {
    const Samples& s = states_[i].ratios;
    const double ms = report_.candidates[i].median_ms;
    // A moment may have been slow for most of few runs.
    return ms <= limit || (s.size() > 0 && ms * s.least() / s.median() <= best * tie);
  };
  std::vector<std::size_t> all;
  for (const std::size_t i : order)
    if (!task_.only.empty() || all.size() < finalists || (all.size() < most_finalists && may_be_best(i)))
      all.push_back(i);
  const double left = begun_ + share_of_finals * seconds_ - clock();
  double turn = 0;  // seconds
  for (const std::size_t i : all) turn += 1e-3 * report_.candidates[i].median_ms;
  while (task_.only.empty() && all.size() > finalists && turns_that_fit * turn > left) {
    turn -= 1e-3 * report_.candidates[all.back()].median_ms;
    all.pop_back();
  }
  const std::optional<std::size_t> standard = report_.standard;
  if (standard && report_.candidates[*standard].status == WisdomStatus::ok &&
      std::find(all.begin(), all.end(), *standard) == all.end() &&
      std::count(order.begin(), order.end(), *standard) > 0)
    all.push_back(*standard);
  return all;
}

void Search::settle_race(const Race& race) {
  const std::vector<Race::Entrant>& entrants = race.entrants();
  const auto counts = [&](const Race::Entrant& e) {
    return e.ratios.size() >= first_runs && report_.candidates[e.candidate].status == WisdomStatus::ok;
  };
  if (!counts(entrants[0])) return;
  // Who leads was lucky in the first runs; what it takes over the default is known better now.
  const Race::Entrant* anchor = entrants.data();
  for (const Race::Entrant& e : entrants)
    if (!leader_ && e.candidate == reference_ && counts(e)) anchor = &e;
  State& state = states_[anchor->candidate];
  if (state.relative == 0) state.relative = report_.candidates[anchor->candidate].median_ms / unit();
  const double between = state.relative / anchor->ratios.median();
  const Samples leader_ms = race.leader_ms();
  for (const double ms : leader_ms.all()) unit_ms_.add(ms / between);
  for (const Race::Entrant& e : entrants) {
    if (!counts(e) || leader_ == e.candidate) continue;
    State& s = states_[e.candidate];
    s.ratios = e.ratios;
    s.relative = e.ratios.median() * between;
    s.raced = true;
    settle(e.candidate);
  }
  leader_ = entrants[0].candidate;
  rescale(unit_ms_.median());
}

void Search::rescale(double unit) {
  for (std::size_t i = 0; i < states_.size(); ++i) {
    TuneCandidate& c = report_.candidates[i];
    if (states_[i].relative > 0 && c.status == WisdomStatus::ok && !c.known) c.median_ms = states_[i].relative * unit;
  }
}

Race Search::race_of(std::size_t leader, const std::vector<std::size_t>& others, Race::Turns turns) {
  return {leader, others, turns, [this](std::size_t i) { return run_once(i); },
          [this](const std::vector<std::size_t>& these) { return run_each(these); }};
}

void Search::run_finals(std::vector<std::size_t> last) {
  std::erase_if(last, [&](std::size_t i) { return over(share_of_finals) || !make_ready(i); });
  const auto failed = [&](std::size_t i) { return report_.candidates[i].status != WisdomStatus::ok; };
  for (; !last.empty(); last.erase(last.begin())) {
    if (failed(last[0])) continue;
    const Race::Turns turns =
        task_.only.empty() ? Race::Turns{} : Race::Turns{Race::most_turns, Race::most_turns, false};
    Race race = race_of(last[0], {last.begin() + 1, last.end()}, turns);
    const bool whole = race.finish(spent_until(share_of_finals));
    std::erase_if(last, [&](std::size_t i) { return i != last[0] && failed(i); });
    if (!whole) continue;
    settle_race(race);
    break;
  }
}

void Search::finals() {
  if (reference_) rescale(unit());
  const std::vector<std::size_t> last = entrants();
  if (last.empty()) return;
  for (const std::size_t i : by_time())
    if (std::find(last.begin(), last.end(), i) == last.end()) drop(i);
  run_finals(last);

  // Few runs may have been lucky ones: who would be chosen by them is run beside the leader.
  for (std::size_t turn = 0; turn < finalists && leader_ && states_[*leader_].raced && !over(1); ++turn) {
    const std::optional<std::size_t> late = choice(by_time());
    if (!late || states_[*late].raced) break;
    if (!make_ready(*late)) continue;
    Race race = race_of(*leader_, {*late}, {});
    if (!race.finish(spent_until(1))) break;
    settle_race(race);
  }
  pass_over_others();
  const std::optional<std::size_t> standard = report_.standard;
  bool noisy = false;
  if (standard && states_[*standard].first_ms > 0 && report_.candidates[*standard].median_ms > 0)
    noisy = std::abs(report_.candidates[*standard].median_ms / states_[*standard].first_ms - 1) > drift_limit;
  for (const std::size_t i : by_time()) {
    TuneCandidate& c = report_.candidates[i];
    if (states_[i].raced) c.noisy = noisy, c.reason.clear();
    if (!c.known) keep(i);
  }
  tell("finals", states_.size());
}

std::optional<std::size_t> Search::choice(const std::vector<std::size_t>& order) const {
  if (order.empty()) return {};
  return *chosen(
      order.begin(), order.end(),
      [&](std::size_t i) {
        const TuneCandidate& c = report_.candidates[i];
        return Timed{c.median_ms, c.spread, static_cast<std::size_t>(c.samples), c.predicted_ms};
      },
      [&](std::size_t i) -> const TunePoint& { return report_.candidates[i].point; });
}

void Search::pass_over_others() {
  // Passed over by a search before, and not run beside the best in this one.
  for (std::size_t i = 0; i < states_.size(); ++i) {
    TuneCandidate& c = report_.candidates[i];
    if (c.known && c.status == WisdomStatus::ok && !c.reason.empty() && !states_[i].raced)
      c.status = WisdomStatus::slow;
  }
  for (;;) {
    const std::vector<std::size_t> order = by_time();
    const std::optional<std::size_t> chosen = choice(order);
    if (!chosen || (states_[order[0]].raced && states_[*chosen].raced)) return;
    if (std::none_of(order.begin(), order.end(), [&](std::size_t i) { return states_[i].raced; })) return;
    const std::size_t out = states_[order[0]].raced ? *chosen : order[0];
    TuneCandidate& c = report_.candidates[out];
    c.status = WisdomStatus::slow;
    c.reason = out == order[0] ? "others were faster beside it; they took longer in the finals, which it was not in"
                               : "within 2 % of the best, beside which it was not run";
    keep(out);
  }
}

}  // namespace kerf::runtime
