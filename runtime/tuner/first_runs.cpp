#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <thread>

#include "runtime/tuner/search_impl.h"

namespace kerf::runtime {

namespace {
constexpr double given_up = 3;                               // times the best, after one run
constexpr double passed_over = 1.15;                         // times the best, after two
constexpr double short_run_ms = 10;                          // so short, messages between runs would matter
constexpr double alike = 0.02;                               // so far apart, at most, two runs are enough
constexpr double share_of_first = 0.55, share_of_few = 0.7;  // of the budget
}  // namespace

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
  for (std::size_t r = 1; r < ms->size(); r += 2) states_[i].add_ratio((*ms)[r] / (((*ms)[r - 1] + (*ms)[r + 1]) / 2));
  return true;
}

bool Search::time_one_by_one(std::size_t i, double first_ms, double too_slow) {
  const std::size_t reference = *reference_;
  const Samples& ratios = states_[i].ratios;
  std::optional<double> ms = first_ms, before;
  for (std::size_t k = 0; k < first_runs; ++k) {
    if (k > 0) ms = run_once(i);
    if (!ms) return true;
    const std::optional<double> after = run_once(reference);
    if (!after) return false;
    states_[reference].samples.add(*after);
    states_[i].add_ratio(*ms / (before ? (*before + *after) / 2 : *after));
    before = after;
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

}  // namespace kerf::runtime
