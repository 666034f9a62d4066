#include "runtime/tuner/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <utility>

#include "kerf/error.h"
#include "runtime/tuner/compiler.h"
#include "runtime/tuner/samples.h"
#include "runtime/tuner/search_log.h"

namespace kerf::runtime {

namespace {

constexpr std::size_t first_runs = 3, second_runs = 6, finalists = 4, second_most = 8;
constexpr std::size_t least_turns = 9, most_turns = 60;
constexpr double given_up = 3;  // times the best, after one run
constexpr std::size_t passed_runs = 2;
constexpr double passed_over = 1.15;  // times the best, after both
constexpr double close_enough = 0.005, tie = 1.02;
constexpr double drift_limit = 0.05;  // of the default between its first runs and the finals
constexpr double share_of_first = 0.55, share_of_second = 0.7, share_of_finals = 0.9;  // of the budget

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
    Samples samples;
    Samples ratios;       // to the leader of the finals in the same turn
    bool ready = false;   // compiled, and its answers are right
    double first_ms = 0;  // median of the first runs
    std::int64_t rank = 0;
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

  void take_up(const Shortlist& list);
  void run_first();
  /// Of candidates from the first one on, at most so many; known ones have nothing to do.
  std::vector<const TunePoint*> points(std::size_t first, std::size_t most) const;
  /// Notes how compiling ended.
  void adopt(std::size_t i, const CandidateCompiler::Result& made);
  void judge(std::size_t i);
  void run_second(std::vector<std::size_t> these);
  /// The best four and the default, side by side from the start: what was measured before may be of a busier time.
  void finals();
  void run_finals(std::vector<std::size_t> last);
  /// Runs them in turns until it is known what each takes over the first; false: the first failed.
  bool race(const std::vector<std::size_t>& these, double share);
  /// Of a race's candidates those that had turns enough are of the finals; the others keep what was known.
  void settle_race(const std::vector<std::size_t>& these, const std::vector<Samples>& before);
  bool raced(std::size_t i) const { return std::find(raced_.begin(), raced_.end(), i) != raced_.end(); }
  /// Whoever would be chosen only since it was not run beside the others is no choice; a later search times it again.
  void pass_over_others();
  /// Of these, the fastest first, the first in the order of parameters within 2 % of the best.
  std::optional<std::size_t> choice(const std::vector<std::size_t>& order) const;
  /// Leaves out what was never taken up.
  void trim();
  /// Compiled and right; false: it is out.
  bool make_ready(std::size_t i);
  /// Milliseconds of one more run; nothing: it failed.
  std::optional<double> sample(std::size_t i);
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
  std::vector<std::size_t> raced_;     // in the finals, the leader first
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
    states_.emplace_back().rank = e.rank;
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
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return report_.candidates[a].median_ms < report_.candidates[b].median_ms;
  });
  return order;
}

void Search::drop(std::size_t i) {
  states_[i].ready = false;
  subject_.forget(report_.candidates[i].point);
}

void Search::settle(std::size_t i) {
  TuneCandidate& c = report_.candidates[i];
  const Samples& s = states_[i].samples;
  c.median_ms = s.median(), c.spread = s.spread(), c.samples = static_cast<std::int64_t>(s.size());
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
  states_[i].samples = {};
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

std::optional<double> Search::sample(std::size_t i) {
  try {
    const double ms = timed(report_.spent.running, [&] { return subject_.run(report_.candidates[i].point); });
    states_[i].samples.add(ms);
    return ms;
  } catch (...) {
    fail(i, std::current_exception(), WisdomStatus::fault);
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
  const auto order = by_time();
  const double best = order.empty() ? std::numeric_limits<double>::infinity() : report_.candidates[order[0]].median_ms;
  const Samples& s = states_[i].samples;
  while (s.size() < first_runs) {
    if (!sample(i)) return;
    if (s.size() == 1 && s.median() > given_up * best) {
      settle(i);
      c.status = WisdomStatus::slow;
      c.reason = fmt::format("its first run took {:.3g} ms, {:.1f} times the best", s.median(), s.median() / best);
      drop(i);
      return keep(i);
    }
    if (interrupted()) break;
    // Luck may take a fast one for slow once.
    if (s.size() == passed_runs && s.least() > passed_over * best) break;
  }
  settle(i);
  states_[i].first_ms = c.median_ms;
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
  // So few have no second runs.
  const auto share_of = [](std::size_t taken) { return taken < finalists ? share_of_second : share_of_first; };
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
    if (by_time().empty() && !over(share_of_second)) {
      c.status = WisdomStatus::ok;
      if (make_ready(i)) judge(i);
    } else {
      c.at_s = elapsed();
      keep(i);
    }
  }
}

void Search::run_second(std::vector<std::size_t> these) {
  std::erase_if(these, [&](std::size_t i) { return over(share_of_second) || !make_ready(i); });
  for (std::size_t turn = 0; turn < second_runs && !over(share_of_second); ++turn)
    for (const std::size_t i : these) {
      if (states_[i].samples.size() >= second_runs || report_.candidates[i].status != WisdomStatus::ok) continue;
      if (over(share_of_second)) break;
      sample(i);
    }
  for (const std::size_t i : these)
    if (report_.candidates[i].status == WisdomStatus::ok && states_[i].samples.size() > 0) settle(i);
}

bool Search::race(const std::vector<std::size_t>& these, double share) {
  const std::size_t leader = these[0];
  for (std::size_t turn = 0;; ++turn) {
    std::vector<std::size_t> open;
    for (const std::size_t i : these) {
      const Samples& s = i == leader ? states_[i].samples : states_[i].ratios;
      const bool enough = s.size() >= most_turns || (s.size() >= least_turns && s.standard_error() < close_enough);
      const bool asked = i != leader || these.size() == 1;
      if (asked && !enough && report_.candidates[i].status == WisdomStatus::ok) open.push_back(i);
    }
    if (open.empty()) return true;
    if (open[0] != leader) open.insert(open.begin(), leader);
    // There and back: a clock that falls all the while is no one's luck.
    if (turn % 2 == 1) std::reverse(open.begin(), open.end());
    std::vector<std::pair<std::size_t, double>> took;
    double of_leader = 0;
    for (const std::size_t i : open) {
      if (over(share)) break;
      const std::optional<double> ms = sample(i);
      if (i == leader && !ms) return false;
      if (i == leader) of_leader = *ms;
      if (i != leader && ms) took.emplace_back(i, *ms);
    }
    if (of_leader > 0)
      for (const auto& [i, ms] : took) states_[i].ratios.add(ms / of_leader);
    if (over(share)) return true;
  }
}

void Search::settle_race(const std::vector<std::size_t>& these, const std::vector<Samples>& before) {
  for (std::size_t k = 0; k < these.size(); ++k) {
    State& s = states_[these[k]];
    if (report_.candidates[these[k]].status != WisdomStatus::ok) continue;
    const bool leads = raced_.empty() ? k == 0 : raced_[0] == these[k];
    if (s.samples.size() >= first_runs && (leads || (!raced_.empty() && s.ratios.size() >= first_runs))) {
      if (!raced(these[k])) raced_.push_back(these[k]);
    } else {
      s.samples = before[k];
      if (before[k].size() > 0) settle(these[k]);
    }
  }
  for (const std::size_t i : raced_) {
    if (report_.candidates[i].status != WisdomStatus::ok) continue;
    settle(i);
    if (i != raced_[0])
      report_.candidates[i].median_ms = states_[raced_[0]].samples.median() * states_[i].ratios.median();
  }
}

void Search::run_finals(std::vector<std::size_t> last) {
  std::erase_if(last, [&](std::size_t i) { return over(share_of_finals) || !make_ready(i); });
  std::vector<Samples> before;
  for (const std::size_t i : last) before.push_back(std::exchange(states_[i].samples, {}));
  const auto failed = [&](std::size_t i) { return report_.candidates[i].status != WisdomStatus::ok; };
  while (!last.empty() && (failed(last[0]) || !race(last, share_of_finals))) {
    last.erase(last.begin()), before.erase(before.begin());
    for (const std::size_t i : last) states_[i].samples = states_[i].ratios = {};
  }
  settle_race(last, before);
}

void Search::finals() {
  std::vector<std::size_t> order = by_time();
  if (order.empty()) return;
  const std::size_t half_of_them = std::min(order.size() - order.size() / 2, second_most);
  std::vector<std::size_t> half(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(std::min(
                                                                   order.size(), std::max(half_of_them, finalists))));
  std::erase_if(half, [&](std::size_t i) { return report_.candidates[i].known; });
  if (order.size() > finalists) run_second(half);
  tell("second runs", states_.size());

  order = by_time();
  std::vector<std::size_t> last(order.begin(), order.begin() + std::min<std::ptrdiff_t>(std::ssize(order), finalists));
  const auto in_last = [&](std::size_t i) { return std::find(last.begin(), last.end(), i) != last.end(); };
  const std::optional<std::size_t> standard = report_.standard;
  if (standard && report_.candidates[*standard].status == WisdomStatus::ok && !in_last(*standard))
    last.push_back(*standard);
  for (const std::size_t i : order)
    if (!in_last(i)) drop(i);
  run_finals(last);

  // Few runs may have been lucky ones: who would be chosen by them is run beside the leader.
  for (std::size_t turn = 0; turn < finalists && !raced_.empty() && !over(1); ++turn) {
    const std::optional<std::size_t> late = choice(by_time());
    if (!late || raced(*late)) break;
    if (!make_ready(*late)) continue;
    const std::vector<Samples> before{std::exchange(states_[*late].samples, {})};
    if (!race({raced_[0], *late}, 1)) break;
    settle_race({*late}, before);
  }
  pass_over_others();
  bool noisy = false;
  if (standard && states_[*standard].first_ms > 0 && report_.candidates[*standard].median_ms > 0)
    noisy = std::abs(report_.candidates[*standard].median_ms / states_[*standard].first_ms - 1) > drift_limit;
  for (const std::size_t i : by_time()) {
    TuneCandidate& c = report_.candidates[i];
    if (raced(i))
      c.noisy = noisy, c.reason.clear();
    else if (c.known || c.samples <= static_cast<std::int64_t>(first_runs))
      continue;  // kept as it is
    keep(i);
  }
  tell("finals", states_.size());
}

std::optional<std::size_t> Search::choice(const std::vector<std::size_t>& order) const {
  std::optional<std::size_t> first;
  for (const std::size_t i : order) {
    if (report_.candidates[i].median_ms > report_.candidates[order[0]].median_ms * tie) break;
    if (!first || report_.candidates[i].point < report_.candidates[*first].point) first = i;
  }
  return first;
}

void Search::pass_over_others() {
  // Passed over by a search before, and not run beside the best in this one.
  for (std::size_t i = 0; i < states_.size(); ++i) {
    TuneCandidate& c = report_.candidates[i];
    if (c.known && c.status == WisdomStatus::ok && !c.reason.empty() && !raced(i)) c.status = WisdomStatus::slow;
  }
  std::vector<std::size_t> beside = by_time();
  std::erase_if(beside, [&](std::size_t i) { return !raced(i); });
  const std::optional<std::size_t> chosen = choice(beside);
  if (!chosen) return;
  const double best = report_.candidates[beside[0]].median_ms;
  for (const std::size_t i : by_time()) {
    TuneCandidate& c = report_.candidates[i];
    const bool before = c.median_ms <= best * tie && c.point < report_.candidates[*chosen].point;
    if (raced(i) || (c.median_ms >= best && !before)) continue;
    c.status = WisdomStatus::slow;
    c.reason = c.median_ms < best ? "others were faster beside it; they took longer in the finals, which it was not in"
                                  : "within 2 % of the best, beside which it was not run";
    keep(i);
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

double clock_of(const TuneOptions& options) {
  if (options.clock) return options.clock();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

TuneReport search(const TuneTask& task, TuneSubject& subject, const TuneOptions& options) {
  return Search(task, subject, options).run();
}

}  // namespace kerf::runtime
