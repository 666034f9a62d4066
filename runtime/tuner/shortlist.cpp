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
constexpr std::int64_t at_random = 4;   // the model may be wrong
constexpr std::int64_t most_alike = 4;  // of which it says the same, before others have their turn

int differences(const TunePoint& point, const TuneTask& task) {
  int count = 0;
  for (const auto& [name, value] : point) count += task.standard.at(name) != value;
  return count;
}

}  // namespace

Shortlist shortlist(const TuneTask& task, std::int64_t asked) {
  Shortlist list;
  const std::int64_t most = std::max(asked, std::ssize(task.only));
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
  // Where the model sees no difference, those first that differ least from the default.
  const auto order = [&](const Shortlist::Entry& e) { return std::pair(e.predicted_ms, differences(e.point, task)); };
  std::stable_sort(legal.begin(), legal.end(), [&](const auto& a, const auto& b) { return order(a) < order(b); });
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
  if (!task.only.empty()) {
    for (const TunePoint& point : task.only) {
      if (const std::string reason = task.space.refusal(point); !reason.empty())
        throw UsageError(fmt::format("tune {}: {} cannot be tried: {}", task.key.op, describe(point), reason));
      take_point(point);
    }
    return list;
  }
  take_point(task.standard);
  for (const TunePoint& seed : task.seeds) take_point(seed);
  const bool all = std::ssize(legal) <= most;
  const std::int64_t ranked = all || most <= 2 * at_random ? most : most - at_random;
  std::int64_t alike = 0;
  for (std::size_t i = 0; i < legal.size() && std::ssize(list.entries) < ranked; ++i) {
    const bool same = i > 0 && task.predicted_ms && legal[i].predicted_ms == legal[i - 1].predicted_ms;
    alike = same ? alike + 1 : 1;
    if (all || alike <= most_alike) take(i);
  }
  for (std::size_t i = 0; i < legal.size() && std::ssize(list.entries) < ranked; ++i) take(i);
  std::mt19937_64 random(legal.size());  // the same ones each time
  for (int i = 0; !all && i < 8 * at_random && std::ssize(list.entries) < most; ++i) take(random() % legal.size());
  return list;
}

}  // namespace kerf::runtime
