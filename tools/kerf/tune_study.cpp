#include "tools/kerf/tune_study.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kerf/version.h"

namespace kerf::tools {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const TunePoint& point) {
  ordered_json json = ordered_json::object();
  for (const auto& [name, value] : point) json[name] = value;
  return json;
}

ordered_json to_json(const WisdomKey& k) {
  return {{"op", k.op},           {"part", k.part},     {"dtype", k.dtype}, {"D", k.hidden}, {"V", k.vocabulary},
          {"options", k.options}, {"target", k.target}, {"space", k.space}, {"N", k.tokens}};
}

ordered_json to_json(const TuneCandidate& c) {
  return {{"parameters", to_json(c.point)},
          {"predicted_ms", c.predicted_ms},
          {"median_ms", c.median_ms},
          {"spread", c.spread},
          {"samples", c.samples},
          {"status", name_of(c.status)},
          {"reason", c.reason},
          {"noisy", c.noisy},
          {"known", c.known},
          {"resources", resources_json(c.resources)},
          {"compile_ms", c.compile_ms},
          {"at_s", c.at_s}};
}

ordered_json to_json(const TuneReport& r) {
  ordered_json json = {{"part", r.key.part}, {"key", to_json(r.key)}, {"parameters", ordered_json::array()}};
  for (const TuneParameter& p : r.parameters) json["parameters"].push_back({{"name", p.name}, {"values", p.values}});
  json["space_size"] = r.space_size;
  json["pruned"] = ordered_json::array();
  for (const TunePruned& p : r.pruned)
    json["pruned"].push_back({{"parameters", to_json(p.point)}, {"reason", p.reason}});
  json["pruned_count"] = r.pruned_count;
  json["candidates"] = ordered_json::array();
  for (const TuneCandidate& c : r.candidates) json["candidates"].push_back(to_json(c));
  json["seconds"] = {{"all", r.seconds},
                     {"waiting", r.spent.waiting},
                     {"compiling", r.spent.compiling},
                     {"checking", r.spent.checking},
                     {"running", r.spent.running}};
  json["notes"] = r.notes;
  json["winner"] = r.winner ? ordered_json(*r.winner) : ordered_json(nullptr);
  json["default"] = r.standard ? ordered_json(*r.standard) : ordered_json(nullptr);
  return json;
}

}  // namespace

ordered_json to_json(const TuneStudy& s) {
  WisdomValidators here;
  std::string options, stopped;
  ordered_json parts = ordered_json::array();
  for (const TuneReport& r : s.tuning.parts) {
    here = r.validators;
    if (options.empty()) options = r.key.options;
    if (stopped.empty() || r.stopped == "interrupt") stopped = r.stopped;
    parts.push_back(to_json(r));
  }
  ordered_json shared = ordered_json::array();
  for (const auto& [what, seconds] : s.tuning.spent) shared.push_back({{"what", what}, {"seconds", seconds}});
  return {{"kerf", version()},
          {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::chrono::system_clock::now()))},
          {"shape", {s.tokens, s.desc.hidden, s.desc.vocabulary}},
          {"dtype", name_of(s.desc.dtype)},
          {"options", options},
          {"device", {{"name", here.device}, {"units", here.units}, {"driver", here.driver}, {"level", s.level}}},
          {"budget", {{"seconds", s.budget_seconds}, {"candidates", s.budget_candidates}}},
          {"seconds", s.seconds},
          {"shared_seconds", shared},
          {"stopped", stopped},
          {"parts", parts}};
}

}  // namespace kerf::tools
