// What the page and the JSON of a report say of a part beyond what the study says.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tools/kerf/report.h"

namespace kerf::tools {

/// How alike two rankings are: Spearman's, 1 where they are the same.
double rank_correlation(const std::vector<std::pair<double, double>>& points);
/// Predicted and measured times of the candidates that have both.
std::vector<std::pair<double, double>> predictions(const ReportPart& part);

/// Why some failed or were left out; reasons that differ in numbers alone are one.
struct ReportReason {
  std::string fate, reason;     // of the first
  WisdomParameters parameters;  // of the first
  std::size_t count = 0;
};
/// The most frequent first.
std::vector<ReportReason> reasons_of(const ReportPart& part);

/// The fastest first, what failed last.
std::vector<const ReportCandidate*> ranked(const ReportPart& part);

/// How many times as fast the winner is as the default; 0: one of them is not known.
double gain_of(const ReportPart& part);

}  // namespace kerf::tools
