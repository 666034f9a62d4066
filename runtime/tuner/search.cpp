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

constexpr std::size_t first_runs = 3, second_runs = 9, most_runs = 60, finalists = 4, second_most = 8;
constexpr double given_up = 3;  // times the best, after one run
constexpr std::size_t passed_runs = 2;
constexpr double passed_over = 1.15;  // times the best, after both
constexpr double close_enough = 0.005, tie = 0.02;
constexpr double drift_limit = 0.05;  // of the default between its first runs and the finals
constexpr double share_of_first = 0.6, share_of_second = 0.8, share_of_finals = 0.9;  // of the budget

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
    bool ready = false;   // compiled, and its answers are right
    double first_ms = 0;  // median of the first runs
    std::int64_t rank = 0;
  };

  double clock() const {
    if (options_.clock) return options_.clock();
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
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
  void run_more(std::vector<std::size_t> these, std::size_t most, double share);
  void finals();
  /// Whoever looks better only since it was measured before the finals is no choice; a later search times it again.
  void pass_over_lucky(const std::vector<std::size_t>& last);
  void choose();
  /// Leaves out what was never taken up.
  void trim();
  /// Compiled and right; false: it is out.
  bool make_ready(std::size_t i);
  /// One more run; false: it failed.
  bool sample(std::size_t i);
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
  std::vector<std::size_t> before_;    // who won before
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

bool Search::sample(std::size_t i) {
  try {
    states_[i].samples.add(timed(report_.spent.running, [&] { return subject_.run(report_.candidates[i].point); }));
    return true;
  } catch (...) {
    fail(i, std::current_exception(), WisdomStatus::fault);
    return false;
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
  timed(report_.spent.waiting, [&] { subject_.wait_ready(); });
  begun_ = clock();
  seconds_ = task_.seconds ? task_.seconds() : options_.seconds;
  std::size_t taken = 0, first = 0, end = 0;  // what is not taken up is not reported
  for (; taken < states_.size() && (taken == 0 ? !interrupted() && seconds_ > 0 : !over(share_of_first)); ++taken) {
    if (taken == end && !subject_.overlaps()) {
      compiler_ = std::make_unique<CandidateCompiler>(subject_, points(taken, width), width);
      first = taken, end = taken + compiler_->size();
      timed(report_.spent.compiling, [&] {
        for (std::size_t i = first; i < end; ++i) compiler_->wait(i - first, [] { return false; });
      });
    }
    // The default is timed however long compiling takes.
    const auto give_up = [&] { return taken > 0 && over(share_of_first); };
    if (!timed(report_.spent.compiling, [&] { return compiler_->wait(taken - first, give_up); })) break;
    if (taken > 0 && over(share_of_first)) break;
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

void Search::run_more(std::vector<std::size_t> these, std::size_t most, double share) {
  std::erase_if(these, [&](std::size_t i) { return over(share) || !make_ready(i); });
  for (std::size_t turn = 0; turn < most && !over(share); ++turn) {
    bool any = false;
    for (const std::size_t i : these) {
      Samples& s = states_[i].samples;
      const bool enough = s.size() >= most || (s.size() >= second_runs && s.standard_error() < close_enough);
      if (enough || report_.candidates[i].status != WisdomStatus::ok) continue;
      if (over(share)) break;
      any = sample(i) || any;
    }
    if (!any) break;
  }
  for (const std::size_t i : these)
    if (report_.candidates[i].status == WisdomStatus::ok && states_[i].samples.size() > 0) settle(i);
}

void Search::finals() {
  std::vector<std::size_t> order = by_time();
  if (order.empty()) return;
  const std::size_t half_of_them = std::min(order.size() - order.size() / 2, second_most);
  std::vector<std::size_t> half(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(std::min(
                                                                   order.size(), std::max(half_of_them, finalists))));
  std::erase_if(half, [&](std::size_t i) { return report_.candidates[i].known; });
  run_more(half, second_runs, share_of_second);
  tell("second runs", states_.size());

  order = by_time();
  std::vector<std::size_t> last(order.begin(), order.begin() + std::min<std::ptrdiff_t>(std::ssize(order), finalists));
  const auto in_last = [&](std::size_t i) { return std::find(last.begin(), last.end(), i) != last.end(); };
  const std::optional<std::size_t> standard = report_.standard;
  if (standard && report_.candidates[*standard].status == WisdomStatus::ok && !in_last(*standard))
    last.push_back(*standard);
  for (const std::size_t i : order)
    if (!in_last(i)) drop(i);
  // Side by side from the start: what was measured before may be of a busier time.
  std::vector<Samples> before;
  for (const std::size_t i : last) before.push_back(std::exchange(states_[i].samples, {}));
  run_more(last, most_runs, share_of_finals);
  for (std::size_t k = 0; k < last.size(); ++k) {
    const std::size_t i = last[k];
    if (report_.candidates[i].status != WisdomStatus::ok || states_[i].samples.size() >= first_runs) continue;
    states_[i].samples = before[k];
    if (before[k].size() > 0) settle(i);
  }

  // Few runs may have been lucky ones: whoever looks better than the best is timed beside them.
  for (std::size_t turn = 0; turn < finalists && !over(1); ++turn) {
    order = by_time();
    if (order.empty() || in_last(order[0])) break;
    states_[order[0]].samples = {};
    run_more({order[0]}, most_runs, 1);
    last.push_back(order[0]);
  }
  pass_over_lucky(last);
  bool noisy = false;
  if (standard && states_[*standard].first_ms > 0 && report_.candidates[*standard].median_ms > 0)
    noisy = std::abs(report_.candidates[*standard].median_ms / states_[*standard].first_ms - 1) > drift_limit;
  for (const std::size_t i : last) {
    TuneCandidate& c = report_.candidates[i];
    if (c.status != WisdomStatus::ok || c.known) continue;
    c.noisy = noisy;
    keep(i);
  }
  tell("finals", states_.size());
}

void Search::pass_over_lucky(const std::vector<std::size_t>& last) {
  const TuneCandidate* best = nullptr;
  for (const std::size_t i : last) {
    const TuneCandidate& c = report_.candidates[i];
    if (c.status == WisdomStatus::ok && (best == nullptr || c.median_ms < best->median_ms)) best = &c;
  }
  for (const std::size_t i : by_time()) {
    TuneCandidate& c = report_.candidates[i];
    const bool beside = std::find(last.begin(), last.end(), i) != last.end();
    if (best == nullptr || beside || c.known || c.median_ms >= best->median_ms) continue;
    c.status = WisdomStatus::slow;
    c.reason = "others were faster beside it; they took longer in the finals, which it was not in";
    keep(i);
  }
}

void Search::choose() {
  const auto order = by_time();
  if (order.empty()) return;
  const double limit = report_.candidates[order[0]].median_ms * (1 + tie);
  const auto place = [&](std::size_t i) {
    const bool won = std::find(before_.begin(), before_.end(), i) != before_.end();
    return std::pair(won ? 0 : report_.standard == i ? 1 : 2, states_[i].rank);
  };
  for (const std::size_t i : order)
    if (report_.candidates[i].median_ms <= limit && (!report_.winner || place(i) < place(*report_.winner)))
      report_.winner = i;
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
  before_ = log_.adopt(report_.candidates, options_.again);
  run_first();
  finals();
  choose();
  log_.end();
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

TuneReport search(const TuneTask& task, TuneSubject& subject, const TuneOptions& options) {
  return Search(task, subject, options).run();
}

}  // namespace kerf::runtime
