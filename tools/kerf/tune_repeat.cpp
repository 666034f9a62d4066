#include "tools/kerf/tune_repeat.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace kerf::tools {

namespace {
constexpr double close = 1.02;
constexpr double share_alike = 0.95;
constexpr double comparing = 4;  // times the seconds of a search, so that it knows more than any of them

RepeatedPart measured(const TuneReport& report, const std::map<TunePoint, std::int64_t>& chosen, RepeatedPart part) {
  part.seconds = report.seconds;
  double best = 0;
  for (const TuneCandidate& c : report.candidates)
    if (c.status == WisdomStatus::ok && c.median_ms > 0 && (best == 0 || c.median_ms < best)) best = c.median_ms;
  for (const auto& [point, times] : chosen) {
    RepeatedPart::Choice choice{.point = point, .times = times};
    for (const TuneCandidate& c : report.candidates)
      if (c.point == point && c.status == WisdomStatus::ok && c.median_ms > 0)
        choice.median_ms = c.median_ms, choice.ratio = c.median_ms / best;
    if (choice.ratio > 0 && choice.ratio <= close) part.within += times;
    part.choices.push_back(choice);
  }
  std::stable_sort(part.choices.begin(), part.choices.end(), [](const auto& a, const auto& b) {
    return std::pair(a.ratio == 0, a.ratio) < std::pair(b.ratio == 0, b.ratio);
  });
  return part;
}

}  // namespace

std::vector<RepeatedPart> repeat_searches(const PlanDesc& desc, std::int64_t tokens, std::int64_t count,
                                          const TuneOptions& asked, const std::function<void(std::int64_t)>& begun) {
  TuneOptions options = asked;
  options.wisdom.clear();
  std::vector<std::string> parts;
  std::map<std::string, std::map<TunePoint, std::int64_t>> chosen;
  for (std::int64_t i = 0; i < count; ++i) {
    begun(i);
    for (const TuneReport& r : tune_loss(desc, tokens, options).parts) {
      if (std::find(parts.begin(), parts.end(), r.key.part) == parts.end()) parts.push_back(r.key.part);
      if (r.winner) ++chosen[r.key.part][r.candidates[*r.winner].point];
    }
    if (options.stop.stop_requested()) return {};
  }
  begun(count);
  options.seconds *= comparing;
  std::vector<RepeatedPart> all;
  for (const std::string& part : parts) {
    std::vector<TunePoint> points;
    for (const auto& [point, times] : chosen[part]) points.push_back(point);
    const RepeatedPart none{.part = part, .choices = {}, .searches = count};
    all.push_back(points.empty() ? none
                                 : measured(compare_loss(desc, tokens, part, points, options), chosen[part], none));
    if (options.stop.stop_requested()) return {};
  }
  return all;
}

bool alike(const RepeatedPart& part) {
  return static_cast<double>(part.within) >= share_alike * static_cast<double>(part.searches);
}

void print(const RepeatedPart& part) {
  fmt::print("{:<9}{} of {} searches chose within 2 % of the fastest choice, measured beside each other in {:.1f} s\n",
             part.part, part.within, part.searches, part.seconds);
  for (const RepeatedPart::Choice& c : part.choices)
    fmt::print("{:<9}{:>2} x  {}  {}\n", "", c.times,
               c.ratio > 0 ? fmt::format("{:.4g} ms  {:.3f}", c.median_ms, c.ratio) : "not measured",
               describe(c.point));
}

nlohmann::ordered_json to_json(const std::vector<RepeatedPart>& parts) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const RepeatedPart& p : parts) {
    nlohmann::ordered_json choices = nlohmann::ordered_json::array();
    for (const RepeatedPart::Choice& c : p.choices) {
      nlohmann::ordered_json one{
          {"parameters", c.point}, {"times", c.times}, {"median_ms", nullptr}, {"ratio", nullptr}};
      if (c.ratio > 0) one["median_ms"] = c.median_ms, one["ratio"] = c.ratio;
      choices.push_back(one);
    }
    all.push_back({{"part", p.part},
                   {"searches", p.searches},
                   {"within_2_percent", p.within},
                   {"seconds", p.seconds},
                   {"choices", choices}});
  }
  return all;
}

}  // namespace kerf::tools
