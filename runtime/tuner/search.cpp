#include "runtime/tuner/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <tuple>
#include <utility>

#include "kerf/error.h"
#include "runtime/tuner/compiler.h"
#include "runtime/tuner/race.h"
#include "runtime/tuner/samples.h"
#include "runtime/tuner/search_log.h"
#include "runtime/wisdom/tie.h"

namespace kerf::runtime {

namespace {

constexpr std::size_t first_runs = 3, finalists = 4, most_finalists = 16;
constexpr double given_up = 3;          // times the best, after one run
constexpr double passed_over = 1.15;    // times the best, after two
constexpr double short_run_ms = 10;     // so short, messages between runs would matter
constexpr double normal_apart = 0.954;  // median of how far two normal errors of deviation 1 lie apart
constexpr double alike = 0.02;          // so far apart, at most, two runs are enough
constexpr double chance = 2;            // standard errors of the first runs that keep nobody from the finals
constexpr double turns_that_fit = 5;    // of the finals, or there are fewer in them
constexpr std::size_t compared = 600;   // turns of those that are only compared
constexpr double drift_limit = 0.05;    // of the default between its first runs and the finals
constexpr double share_of_first = 0.55, share_of_few = 0.7, share_of_finals = 0.9;  // of the budget

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

void Search::take_up(const Shortlist& list) {
  report_.pruned = list.pruned;
  report_.pruned_count = list.pruned_count;
  report_.candidates.reserve(list.entries.size());
  for (const Shortlist::Entry& e : list.entries) {
    TuneCandidate c;
    c.point = e.point;
    c.predicted_ms = e.predicted_ms;
    if (e.point == task_.standard) report_.standard = report_.candidates.size();
    report_.candidates.push_back(std::move(c));
    states_.emplace_back();
  }
}

void Search::tell(const char* step, std::size_t done) const {
  if (!options_.progress) return;
  TuneProgress p{.part = task_.key.part, .step = step, .done = static_cast<std::int64_t>(done)};
  p.candidates = std::ssize(states_);
  p.seconds = elapsed();
  if (const auto order = by_time(); !order.empty()) {
    p.best = report_.candidates[order[0]].point;
    p.best_ms = report_.candidates[order[0]].median_ms;
  }
  if (report_.standard) p.standard_ms = report_.candidates[*report_.standard].median_ms;
  options_.progress(p);
}

std::vector<std::size_t> Search::by_time() const {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const TuneCandidate& c = report_.candidates[i];
    if (c.status == WisdomStatus::ok && c.samples > 0) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const TuneCandidate &x = report_.candidates[a], &y = report_.candidates[b];
    return std::tie(x.median_ms, x.point) < std::tie(y.median_ms, y.point);
  });
  return order;
}

void Search::drop(std::size_t i) {
  states_[i].ready = false;
  subject_.forget(report_.candidates[i].point);
}

void Search::settle(std::size_t i) {
  TuneCandidate& c = report_.candidates[i];
  const State& state = states_[i];
  const Samples& s = state.ratios.size() > 0 ? state.ratios : state.samples;
  c.median_ms = state.relative > 0 ? state.relative * unit() : 0;
  c.spread = s.spread(), c.samples = static_cast<std::int64_t>(s.size());
  c.at_s = elapsed();
  c.known = false;
}

void Search::fail(std::size_t i, const std::exception_ptr& error, WisdomStatus otherwise) {
  try {
    std::rethrow_exception(error);
  } catch (const TuneEnd&) {
    report_.stopped = "fault";
  } catch (...) {
    fail(i, ending_of(error, otherwise));
  }
}

void Search::fail(std::size_t i, const Ending& ending) {
  TuneCandidate& c = report_.candidates[i];
  if (reference_ == i) {
    known_unit_ = unit();
    reference_.reset();
  }
  states_[i].samples = states_[i].ratios = {};
  states_[i].relative = 0, states_[i].raced = false;
  settle(i);
  c.status = ending.status, c.reason = ending.reason;
  drop(i);
  // An error that outlives its candidate would be told of all that follow.
  const auto order = by_time();
  const auto well = std::find_if(order.begin(), order.end(), [&](std::size_t o) { return states_[o].ready; });
  if (c.status == WisdomStatus::fault && !subject_.isolated() && well != order.end()) {
    try {
      subject_.run(report_.candidates[*well].point);
    } catch (...) {
      report_.stopped = "fault";
    }
  }
  keep(i);
}

std::optional<double> Search::run_once(std::size_t i) {
  try {
    return timed(report_.spent.running, [&] { return subject_.run(report_.candidates[i].point); });
  } catch (...) {
    fail(i, std::current_exception(), WisdomStatus::fault);
    return {};
  }
}

std::optional<std::vector<double>> Search::run_each(const std::vector<std::size_t>& these) {
  if (!subject_.isolated()) return {};  // whoever runs after one that faults would be blamed
  std::vector<TunePoint> points;
  for (const std::size_t i : these) points.push_back(report_.candidates[i].point);
  try {
    return timed(report_.spent.running, [&] { return subject_.run_each(points); });
  } catch (const std::exception&) {  // each by itself will tell
    return {};
  }
}

bool Search::make_ready(std::size_t i) {
  TuneCandidate& c = report_.candidates[i];
  if (c.status != WisdomStatus::ok) return false;
  if (states_[i].ready) return true;
  try {
    // Again, or known from before.
    c.resources = timed(report_.spent.compiling, [&] { return subject_.compile(c.point); });
    if (const std::string wrong = timed(report_.spent.checking, [&] { return subject_.check(c.point); });
        !wrong.empty())
      throw TuneFailure(WisdomStatus::wrong, wrong);
  } catch (...) {
    fail(i, std::current_exception(), WisdomStatus::fault);
    return false;
  }
  states_[i].ready = true;
  return true;
}

void Search::judge(std::size_t i) {
  TuneCandidate& c = report_.candidates[i];
  try {
    if (const std::string wrong = timed(report_.spent.checking, [&] { return subject_.check(c.point); });
        !wrong.empty())
      return fail(i, {WisdomStatus::wrong, wrong});
  } catch (...) {
    return fail(i, std::current_exception(), WisdomStatus::fault);
  }
  states_[i].ready = true;
  while (report_.stopped != "fault") {
    if (find_reference(i)) {
      if (time_first(i)) return;
    } else {
      if (report_.stopped != "fault") time_reference(i);
      return;
    }
  }
}

double Search::unit() const {
  if (known_unit_ > 0) return known_unit_;
  if (!reference_) return 1;
  const State& reference = states_[*reference_];
  return reference.samples.median() / reference.relative;
}

bool Search::find_reference(std::size_t i) {
  if (reference_) return true;
  for (const std::size_t o : by_time()) {
    if (report_.stopped == "fault") return false;
    const bool there = states_[o].ready || o == report_.standard;
    if (o == i || !there || !make_ready(o)) continue;
    if (states_[o].relative == 0) {
      if (known_unit_ == 0) known_unit_ = report_.candidates[o].median_ms;
      states_[o].relative = report_.candidates[o].median_ms / known_unit_;
    }
    time_reference(o);
    if (reference_) return true;
  }
  return false;
}

void Search::time_reference(std::size_t i) {
  State& state = states_[i];
  while (state.samples.size() < first_runs) {
    const std::optional<double> ms = run_once(i);
    if (!ms) return;
    state.samples.add(*ms);
    if (interrupted()) break;
  }
  reference_ = i;
  if (state.relative > 0) return;
  state.relative = known_unit_ > 0 ? state.samples.median() / known_unit_ : 1;
  settle(i);
  state.first_ms = state.samples.median();
  keep(i);
}

double Search::sure_best() const {
  double best = std::numeric_limits<double>::infinity();
  for (const std::size_t i : by_time()) {
    const State& s = states_[i];
    const double luck = s.ratios.size() > 0 ? s.ratios.most() / s.ratios.median() : 1;
    best = std::min(best, s.relative > 0 ? s.relative * luck : report_.candidates[i].median_ms / unit());
  }
  return best;
}

bool Search::time_first(std::size_t i) {
  const std::size_t reference = *reference_;
  const double base = states_[reference].relative;
  const double best = sure_best() / base;  // over the reference
  const std::optional<double> first = run_once(i);
  if (!first) return true;
  if (const double fastest = best * states_[reference].samples.median();
      task_.only.empty() && *first > given_up * fastest) {
    give_up(i, *first, *first / fastest);
    return true;
  }
  State& state = states_[i];
  if (*first > short_run_ms || !time_at_once(i)) {
    if (!time_one_by_one(i, *first, passed_over * best)) {
      state.ratios = {};
      return false;
    }
    if (state.ratios.size() == 0) return true;
  }
  state.relative = state.ratios.median() * base;
  settle(i);
  keep(i);
  return true;
}

bool Search::time_at_once(std::size_t i) {
  const std::size_t reference = *reference_;
  const std::optional<std::vector<double>> ms = run_each({reference, i, reference, i, reference, i, reference});
  if (!ms) return false;
  for (std::size_t r = 0; r < ms->size(); r += 2) states_[reference].samples.add((*ms)[r]);
  Samples& ratios = states_[i].ratios;
  for (std::size_t r = 1; r < ms->size(); r += 2) {
    ratios.add((*ms)[r] / (((*ms)[r - 1] + (*ms)[r + 1]) / 2));
    if (ratios.size() == 2) states_[i].apart = ratios.most() / ratios.least() - 1;
  }
  return true;
}

bool Search::time_one_by_one(std::size_t i, double first_ms, double too_slow) {
  const std::size_t reference = *reference_;
  Samples& ratios = states_[i].ratios;
  std::optional<double> ms = first_ms, before;
  for (std::size_t k = 0; k < first_runs; ++k) {
    if (k > 0) ms = run_once(i);
    if (!ms) return true;
    const std::optional<double> after = run_once(reference);
    if (!after) return false;
    states_[reference].samples.add(*after);
    ratios.add(*ms / (before ? (*before + *after) / 2 : *after));
    before = after;
    if (k == 1) states_[i].apart = ratios.most() / ratios.least() - 1;
    // Luck may take a fast one for slow once; two that agree are no luck.
    if (interrupted() || (k == 1 && (ratios.least() > too_slow || ratios.spread() < alike))) break;
  }
  return true;
}

void Search::give_up(std::size_t i, double ms, double times) {
  TuneCandidate& c = report_.candidates[i];
  c.median_ms = ms, c.spread = 0, c.samples = 1, c.at_s = elapsed(), c.known = false;
  c.status = WisdomStatus::slow;
  c.reason = fmt::format("its first run took {:.3g} ms, {:.1f} times the best", ms, times);
  drop(i);
  keep(i);
}

std::vector<const TunePoint*> Search::points(std::size_t first, std::size_t most) const {
  std::vector<const TunePoint*> points;
  for (std::size_t i = first; i < states_.size() && points.size() < most; ++i)
    points.push_back(report_.candidates[i].known ? nullptr : &report_.candidates[i].point);
  return points;
}

void Search::adopt(std::size_t i, const CandidateCompiler::Result& made) {
  TuneCandidate& c = report_.candidates[i];
  if (c.known) return;
  c.compile_ms = made.ms;
  if (made.error) return fail(i, made.error, WisdomStatus::compile);
  c.resources = made.resources;
  if (!c.resources || c.resources->local_bytes == 0) return;
  c.status = WisdomStatus::resources;
  c.reason = fmt::format("spills {} bytes of each thread", c.resources->local_bytes);
  spilling_.push_back(i);
  drop(i);
}

void Search::run_first() {
  const int wanted = options_.compile_threads;
  const auto processors = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const auto width = static_cast<std::size_t>(wanted > 0 ? wanted : std::min(8, processors));
  if (options_.seconds <= 0 && !task_.seconds) return static_cast<void>(over(0));
  if (subject_.overlaps()) compiler_ = std::make_unique<CandidateCompiler>(subject_, points(0, states_.size()), width);
  try {
    timed(report_.spent.waiting, [&] { subject_.wait_ready(); });
  } catch (const TuneEnd&) {
    report_.stopped = "fault";
    if (compiler_) compiler_->stop();
    return;
  }
  begun_ = clock();
  seconds_ = task_.seconds ? task_.seconds() : options_.seconds;
  // So few have short finals.
  const auto share_of = [](std::size_t taken) { return taken < finalists ? share_of_few : share_of_first; };
  std::size_t taken = 0, first = 0, end = 0;  // what is not taken up is not reported
  for (; taken < states_.size() && (taken == 0 ? !interrupted() && seconds_ > 0 : !over(share_of(taken))); ++taken) {
    if (taken == end && !subject_.overlaps()) {
      compiler_ = std::make_unique<CandidateCompiler>(subject_, points(taken, width), width);
      first = taken, end = taken + compiler_->size();
      timed(report_.spent.compiling, [&] {
        for (std::size_t i = first; i < end; ++i) compiler_->wait(i - first, [] { return false; });
      });
    }
    // The default is timed however long compiling takes.
    const auto give_up = [&] { return taken > 0 && over(share_of(taken)); };
    if (!timed(report_.spent.compiling, [&] { return compiler_->wait(taken - first, give_up); })) break;
    if (taken > 0 && over(share_of(taken))) break;
    adopt(taken, (*compiler_)[taken - first]);
    const TuneCandidate& c = report_.candidates[taken];
    if (!c.known && c.status == WisdomStatus::ok && report_.stopped != "fault") judge(taken);
    tell("first runs", taken + 1);
  }
  if (taken == 0) static_cast<void>(over(0));
  if (compiler_) compiler_->stop();
  if (task_.first_runs_over && taken > 0) task_.first_runs_over();
  // Compiled, and no time to run.
  for (std::size_t i = taken; i < end; ++i) drop(i);
  for (const std::size_t i : spilling_) {
    if (i >= taken) continue;
    TuneCandidate& c = report_.candidates[i];
    if (by_time().empty() && !over(share_of_few)) {
      c.status = WisdomStatus::ok;
      if (make_ready(i)) judge(i);
    } else {
      c.at_s = elapsed();
      keep(i);
    }
  }
}

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
    const Race::Turns turns = task_.only.empty() ? Race::Turns{} : Race::Turns{compared, compared, false};
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
  const auto timed = [&](std::size_t i) {
    const TuneCandidate& c = report_.candidates[i];
    return Timed{c.median_ms, c.spread, static_cast<std::size_t>(c.samples)};
  };
  const std::size_t best = *std::min_element(
      order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return surely(timed(a)) < surely(timed(b)); });
  const auto before = [&](std::size_t a, std::size_t b) {
    const TuneCandidate &x = report_.candidates[a], &y = report_.candidates[b];
    return std::tie(x.predicted_ms, x.point) < std::tie(y.predicted_ms, y.point);
  };
  std::size_t first = best;
  for (const std::size_t i : order)
    if (before(i, first) && ties(timed(i), timed(best))) first = i;
  return first;
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

void Search::trim() {
  std::vector<TuneCandidate> told;
  std::optional<std::size_t> standard, winner;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    TuneCandidate& c = report_.candidates[i];
    if (c.samples == 0 && c.status == WisdomStatus::ok) continue;
    if (report_.standard == i) standard = told.size();
    if (report_.winner == i) winner = told.size();
    told.push_back(std::move(c));
  }
  report_.candidates = std::move(told);
  report_.standard = standard, report_.winner = winner;
}

TuneReport Search::run() {
  report_.key = task_.key, report_.validators = task_.validators;
  report_.parameters = task_.space.parameters();
  report_.space_size = task_.space.size();
  seconds_ = options_.seconds;
  const std::int64_t most = options_.candidates > 0 ? options_.candidates : default_candidates;
  take_up(shortlist(task_, most));
  log_.adopt(report_.candidates, options_.again);
  run_first();
  finals();
  report_.winner = choice(by_time());
  log_.end();
  report_.notes = log_.notes();
  compiler_ = nullptr;
  for (std::size_t i = 0; i < states_.size(); ++i) drop(i);
  trim();
  report_.seconds = elapsed();
  return std::move(report_);
}

}  // namespace

Ending ending_of(const std::exception_ptr& error, WisdomStatus otherwise) {
  try {
    std::rethrow_exception(error);
  } catch (const TuneFailure& e) {
    return {e.status, e.reason};
  } catch (const DeviceError& e) {
    return {otherwise == WisdomStatus::compile ? WisdomStatus::resources : otherwise, e.what()};
  } catch (const std::bad_alloc&) {
    return {WisdomStatus::resources, "out of memory"};
  } catch (const std::exception& e) {
    return {otherwise, e.what()};
  }
}

std::optional<std::vector<double>> TuneSubject::run_each(const std::vector<TunePoint>& points) {
  std::vector<double> ms;
  try {
    for (const TunePoint& p : points) ms.push_back(run(p));
  } catch (const std::exception&) {
    return {};
  }
  return ms;
}

double clock_of(const TuneOptions& options) {
  if (options.clock) return options.clock();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

TuneReport search(const TuneTask& task, TuneSubject& subject, const TuneOptions& options) {
  return Search(task, subject, options).run();
}

}  // namespace kerf::runtime
