// What a search tries: rules first, which cost nothing, then the model.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kerf/error.h"
#include "runtime/tuner/search.h"

namespace kerf::runtime {

namespace {
constexpr std::size_t pruned_told = 1000;
constexpr std::int64_t at_random = 4;  // the model may be wrong
}  // namespace

Shortlist shortlist(const TuneTask& task, std::int64_t most) {
  Shortlist list;
  if (const std::string reason = task.space.refusal(task.standard); !reason.empty())
    throw UsageError(
        fmt::format("tune {}: the default {} cannot be tried: {}", task.key.op, describe(task.standard), reason));
  std::vector<Shortlist::Entry> legal;
  task.space.for_each([&](const TunePoint& point) {
    std::string reason = task.space.refusal(point);
    if (reason.empty()) {
      const double ms = task.predicted_ms ? task.predicted_ms(point) : 0;
      legal.push_back({point, std::isfinite(ms) && ms > 0 ? ms : 0, 0});
      return;
    }
    ++list.pruned_count;
    if (list.pruned.size() < pruned_told) list.pruned.push_back({point, std::move(reason)});
  });
  std::stable_sort(legal.begin(), legal.end(),
                   [](const auto& a, const auto& b) { return a.predicted_ms < b.predicted_ms; });
  for (std::size_t i = 0; i < legal.size(); ++i) legal[i].rank = static_cast<std::int64_t>(i);

  std::vector<bool> taken(legal.size(), false);
  const auto take = [&](std::size_t i) {
    if (taken[i] || std::ssize(list.entries) >= most) return;
    taken[i] = true;
    list.entries.push_back(legal[i]);
  };
  const auto take_point = [&](const TunePoint& point) {
    const auto at = std::find_if(legal.begin(), legal.end(), [&](const auto& e) { return e.point == point; });
    if (at != legal.end()) take(static_cast<std::size_t>(at - legal.begin()));
  };
  take_point(task.standard);
  for (const TunePoint& seed : task.seeds) take_point(seed);
  const bool all = std::ssize(legal) <= most;
  const std::int64_t ranked = all || most <= 2 * at_random ? most : most - at_random;
  for (std::size_t i = 0; i < legal.size() && std::ssize(list.entries) < ranked; ++i) take(i);
  std::mt19937_64 random(legal.size());  // the same ones each time
  for (int i = 0; !all && i < 8 * at_random && std::ssize(list.entries) < most; ++i) take(random() % legal.size());
  return list;
}

}  // namespace kerf::runtime
