// A study that kerf tune wrote, read back, and the page that shows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kerf/wisdom.h"

namespace kerf::tools {

struct ReportResources {
  std::int64_t registers = 0, threads = 0, blocks = 0;  // of a thread, of a block, at once on a multiprocessor
  std::int64_t shared_bytes = 0, local_bytes = 0;       // of a block, of a thread
};
struct ReportCandidate {
  WisdomParameters parameters;
  double predicted_ms = 0, median_ms = 0, spread = 0;  // 0: none
  std::int64_t samples = 0;
  std::string status, reason;
  bool noisy = false, known = false;  // known: from wisdom, not measured again
  std::optional<ReportResources> resources;
  double compile_ms = 0, at_s = 0;  // at_s: when it was known

  bool ok() const { return status == "ok"; }
};
struct ReportPruned {
  WisdomParameters parameters;
  std::string reason;
};
struct ReportParameter {
  std::string name;
  std::vector<WisdomParameters::mapped_type> values;
};
struct ReportPart {
  std::string part, key;  // "forward"; the fields of the key as text
  std::vector<ReportParameter> parameters;
  std::int64_t space_size = 0, pruned_count = 0;
  std::vector<ReportPruned> pruned;  // of them the first, perhaps
  std::vector<ReportCandidate> candidates;
  std::optional<std::size_t> winner, untuned;  // candidates; untuned: what is used without a study
};
struct ReportStudy {
  std::string kerf, date, dtype, options, device, driver, level, stopped;
  std::int64_t tokens = 0, hidden = 0, vocabulary = 0, units = 0;
  double budget_seconds = 0, seconds = 0;
  std::int64_t budget_candidates = 0;
  std::vector<ReportPart> parts;
};

/// Throws UsageError that names the file, the place in it and what stands there in place of what.
ReportStudy read_study(const std::string& file);
/// One HTML file that needs nothing else.
std::string report_page(const ReportStudy& study);
/// What the page holds, candidates by time.
nlohmann::ordered_json report_json(const ReportStudy& study);

}  // namespace kerf::tools
