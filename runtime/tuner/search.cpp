#include "runtime/tuner/search.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <new>
#include <tuple>
#include <utility>

#include "kerf/error.h"
#include "runtime/tuner/search_impl.h"

namespace kerf::runtime {

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

double Search::unit() const {
  if (known_unit_ > 0) return known_unit_;
  if (!reference_) return 1;
  const State& reference = states_[*reference_];
  return reference.samples.median() / reference.relative;
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
