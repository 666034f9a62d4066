// Spaces of parameters, and candidates as text and as wisdom.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "kerf/error.h"
#include "kerf/tuner.h"

namespace kerf {

std::string describe(const TunePoint& point) { return describe(to_wisdom(point)); }

WisdomParameters to_wisdom(const TunePoint& point) { return {point.begin(), point.end()}; }

std::optional<TunePoint> from_wisdom(const WisdomParameters& parameters) {
  TunePoint point;
  for (const auto& [name, value] : parameters) {
    if (!std::holds_alternative<std::int64_t>(value)) return {};
    point[name] = std::get<std::int64_t>(value);
  }
  return point;
}

Space& Space::parameter(const std::string& name, const std::vector<std::int64_t>& values) {
  if (name.empty()) throw UsageError("Space: a parameter has no name");
  for (const TuneParameter& p : parameters_)
    if (p.name == name) throw UsageError(fmt::format("Space: parameter '{}' is there twice", name));
  if (values.empty()) throw UsageError(fmt::format("Space: parameter '{}' has no values", name));
  if (std::set<std::int64_t>(values.begin(), values.end()).size() != values.size())
    throw UsageError(fmt::format("Space: parameter '{}' has a value twice: {}", name, fmt::join(values, " ")));
  parameters_.push_back({name, values});
  constexpr std::int64_t most = 10'000'000;
  if (size() > most)
    throw UsageError(
        fmt::format("Space: {} combinations with parameter '{}', at most {} are looked through; leave "
                    "values out",
                    size(), name, most));
  return *this;
}

Space& Space::rule(Rule why_not) {
  rules_.push_back(std::move(why_not));
  return *this;
}

std::int64_t Space::size() const {
  std::int64_t size = 1;
  for (const TuneParameter& p : parameters_)
    if (__builtin_mul_overflow(size, std::ssize(p.values), &size)) return std::numeric_limits<std::int64_t>::max();
  return size;
}

std::string Space::refusal(const TunePoint& point) const {
  for (const TuneParameter& p : parameters_) {
    const auto at = point.find(p.name);
    if (at == point.end()) return fmt::format("parameter '{}' is missing", p.name);
    if (std::find(p.values.begin(), p.values.end(), at->second) == p.values.end())
      return fmt::format("{}={} is not in the space, which has {}", p.name, at->second, fmt::join(p.values, ", "));
  }
  if (point.size() != parameters_.size())
    for (const auto& [name, value] : point)
      if (std::none_of(parameters_.begin(), parameters_.end(), [&](const auto& p) { return p.name == name; }))
        return fmt::format("there is no parameter '{}'", name);
  for (const Rule& rule : rules_)
    if (std::string reason = rule(point); !reason.empty()) return reason;
  return {};
}

void Space::for_each(const std::function<void(const TunePoint&)>& visit) const {
  TunePoint point;
  const std::function<void(std::size_t)> walk = [&](std::size_t i) {
    if (i == parameters_.size()) return visit(point);
    for (const std::int64_t value : parameters_[i].values) {
      point[parameters_[i].name] = value;
      walk(i + 1);
    }
  };
  walk(0);
}

std::string Space::text() const {
  std::string text;
  for (const TuneParameter& p : parameters_)
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", p.name, fmt::join(p.values, " "));
  return text;
}

}  // namespace kerf
