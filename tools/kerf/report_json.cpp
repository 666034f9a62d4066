// What the page of kerf report holds, as JSON.
#include <algorithm>
#include <variant>

#include "tools/kerf/report.h"
#include "tools/kerf/report_figures.h"
#include "tools/kerf/tune_study.h"

namespace kerf::tools {
namespace {

using nlohmann::ordered_json;

/// As the page shows it: what was not measured is null.
ordered_json positive(double x) { return x > 0 ? ordered_json(x) : ordered_json(nullptr); }

ordered_json json_of(const WisdomParameters::mapped_type& value) {
  return std::visit([](const auto& x) { return ordered_json(x); }, value);
}

ordered_json json_of(const WisdomParameters& parameters) {
  ordered_json json = ordered_json::object();
  for (const auto& [name, value] : parameters) json[name] = json_of(value);
  return json;
}

ordered_json json_of(const ReportCandidate& c) {
  return {{"parameters", json_of(c.parameters)},
          {"median_ms", positive(c.median_ms)},
          {"spread", c.spread},
          {"samples", c.samples},
          {"predicted_ms", positive(c.predicted_ms)},
          {"compile_ms", c.compile_ms},
          {"at_s", c.at_s},
          {"status", c.status},
          {"reason", c.reason},
          {"noisy", c.noisy},
          {"known", c.known},
          {"resources", resources_json(c.resources)}};
}

ordered_json json_of(const ReportPart& part) {
  const auto points = predictions(part);
  const auto chosen = [&](const std::optional<std::size_t>& i) {
    return i ? json_of(part.candidates[*i]) : ordered_json(nullptr);
  };
  ordered_json json = {
      {"part", part.part},
      {"key", part.key},
      {"combinations", part.space_size},
      {"left_out", part.pruned_count},
      {"tried", part.candidates.size()},
      {"ok", std::count_if(part.candidates.begin(), part.candidates.end(), [](const auto& c) { return c.ok(); })},
      {"times_as_fast", positive(gain_of(part))},
      {"rank_correlation", points.size() < 2 ? ordered_json(nullptr) : ordered_json(rank_correlation(points))},
      {"winner", chosen(part.winner)},
      {"default", chosen(part.untuned)},
      {"parameters", ordered_json::array()},
      {"reasons", ordered_json::array()},
      {"candidates", ordered_json::array()}};
  for (const ReportParameter& p : part.parameters) {
    ordered_json values = ordered_json::array();
    for (const auto& v : p.values) values.push_back(json_of(v));
    json["parameters"].push_back({{"name", p.name}, {"values", values}});
  }
  for (const ReportReason& r : reasons_of(part))
    json["reasons"].push_back(
        {{"count", r.count}, {"fate", r.fate}, {"reason", r.reason}, {"parameters", json_of(r.parameters)}});
  for (const ReportCandidate* c : ranked(part)) json["candidates"].push_back(json_of(*c));
  return json;
}

}  // namespace

ordered_json report_json(const ReportStudy& s) {
  ordered_json parts = ordered_json::array();
  for (const ReportPart& part : s.parts) parts.push_back(json_of(part));
  return {{"kerf", s.kerf},
          {"date", s.date},
          {"shape", {s.tokens, s.hidden, s.vocabulary}},
          {"dtype", s.dtype},
          {"options", s.options},
          {"device", {{"name", s.device}, {"units", s.units}, {"driver", s.driver}, {"level", s.level}}},
          {"budget", {{"seconds", s.budget_seconds}, {"candidates", s.budget_candidates}}},
          {"seconds", s.seconds},
          {"stopped", s.stopped},
          {"parts", parts}};
}

}  // namespace kerf::tools
