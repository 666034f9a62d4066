// kerf tune --repeat: whether searches choose alike.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kerf/tuner.h"

namespace kerf::tools {

/// What several searches chose for a part, measured beside each other.
struct RepeatedPart {
  std::string part;
  struct Choice {
    TunePoint point;
    std::int64_t times = 0;  // that a search chose it
    double median_ms = 0;    // 0: it could not be measured
    double ratio = 0;        // to the fastest of them
  };
  std::vector<Choice> choices;  // the fastest first
  std::int64_t searches = 0;
  std::int64_t within = 0;  // that chose what is within 2 % of the fastest choice
  double seconds = 0;       // that measuring the choices took
};

/// `count` searches of a loss that know nothing of each other, then their winners beside each other for options.seconds
/// a part. `begun` is told which search begins, from 0, and `count` where the winners are measured. Nothing where
/// options.stop was asked.
std::vector<RepeatedPart> repeat_searches(const PlanDesc& desc, std::int64_t tokens, std::int64_t count,
                                          const TuneOptions& options, const std::function<void(std::int64_t)>& begun);

/// Whether 19 of 20 are within 2 %.
bool alike(const RepeatedPart& part);
void print(const RepeatedPart& part);
nlohmann::ordered_json to_json(const std::vector<RepeatedPart>& parts);

}  // namespace kerf::tools
