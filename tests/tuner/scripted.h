// A subject whose candidates take the times, and fail in the ways, that a test says; and its clock.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "runtime/tuner/search.h"

namespace kerf::test {

/// One parameter, x, from 0 on.
inline Space numbers(std::int64_t count) {
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(i);
  Space space;
  space.parameter("x", values);
  return space;
}
inline TunePoint at(std::int64_t x) { return {{"x", x}}; }

class Scripted : public runtime::TuneSubject {
 public:
  /// Milliseconds of the k-th run of x, from 0.
  std::function<double(std::int64_t x, int k)> ms = [](std::int64_t x, int) { return 10.0 + static_cast<double>(x); };
  std::map<std::int64_t, std::function<void()>> compiling, running;  // what happens then
  std::map<std::int64_t, std::string> wrong;
  std::map<std::int64_t, KernelResources> resources;
  std::atomic<double> seconds = 0;  // the clock, which runs and compiling move on
  double compile_seconds = 0;
  std::map<std::int64_t, int> runs;
  std::set<std::int64_t> alive, compiled;

  std::optional<KernelResources> compile(const TunePoint& point) override {
    const std::lock_guard lock(mutex_);
    const std::int64_t x = point.at("x");
    compiled.insert(x);
    seconds += compile_seconds;
    if (const auto at = compiling.find(x); at != compiling.end()) at->second();
    alive.insert(x);
    const auto at = resources.find(x);
    return at == resources.end() ? std::nullopt : std::optional(at->second);
  }
  std::string check(const TunePoint& point) override {
    const auto at = wrong.find(point.at("x"));
    return at == wrong.end() ? "" : at->second;
  }
  double run(const TunePoint& point) override {
    const std::int64_t x = point.at("x");
    if (const auto at = running.find(x); at != running.end()) at->second();
    const double time = ms(x, runs[x]++);
    seconds += time / 1000;
    return time;
  }
  void forget(const TunePoint& point) override {
    const std::lock_guard lock(mutex_);
    alive.erase(point.at("x"));
  }

  runtime::TuneTask task(std::int64_t count, std::int64_t standard = 0) const {
    return {.key = {.op = "scripted", .part = "forward", .dtype = "f32", .target = "none", .space = "s", .tokens = 16},
            .validators = {.device = "none", .units = 1, .driver = "", .kerf = "0"},
            .space = numbers(count),
            .standard = at(standard)};
  }
  TuneOptions options(double budget = 1000) {
    TuneOptions o;
    o.seconds = budget;
    o.compile_threads = 1;
    o.clock = [this] { return seconds.load(); };
    return o;
  }

 private:
  std::mutex mutex_;
};

inline const TuneCandidate& candidate(const TuneReport& report, std::int64_t x) {
  for (const TuneCandidate& c : report.candidates)
    if (c.point.at("x") == x) return c;
  static const TuneCandidate none{.reason = "not there"};
  return none;
}
inline std::int64_t winner(const TuneReport& report) {
  return report.winner ? report.candidates[*report.winner].point.at("x") : -1;
}

}  // namespace kerf::test
