// What kerf tune measured, as JSON.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "kerf/tuner.h"

namespace kerf::tools {

struct TuneStudy {
  PlanDesc desc;
  std::int64_t tokens = 0;
  std::string level;  // "avx512bf16"
  double budget_seconds = 0;
  std::int64_t budget_candidates = 0;
  double seconds = 0;
  LossTuning tuning;
};

/// KernelResources, or what a report read of them; null where nobody knows.
template <class Resources>
nlohmann::ordered_json resources_json(const std::optional<Resources>& r) {
  if (!r) return nullptr;
  return {{"registers", r->registers},
          {"threads", r->threads},
          {"blocks", r->blocks},
          {"shared_bytes", r->shared_bytes},
          {"local_bytes", r->local_bytes}};
}

/// For kerf report, and for whoever looks into what a search did.
nlohmann::ordered_json to_json(const TuneStudy& study);

}  // namespace kerf::tools
