#include "tools/support/compare.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kerf::tools {

void RowErrors::set(std::size_t i, const double* ours, const double* reference, std::int64_t columns) {
  double error = 0, norm = 0;
  for (std::int64_t d = 0; d < columns; ++d) {
    const double difference = ours[d] - reference[d];
    error += difference * difference;
    norm += reference[d] * reference[d];
  }
  error2[i] = error;
  norm2[i] = norm;
}

GradientError summarize(const RowErrors& rows, double scale) {
  double error2 = 0, norm2 = 0, weights = 0;
  std::vector<std::pair<double, double>> relative;  // error, weight
  GradientError result;
  for (std::size_t i = 0; i < rows.error2.size(); ++i) {
    error2 += rows.weight[i] * rows.error2[i];
    norm2 += rows.weight[i] * rows.norm2[i];
    if (rows.norm2[i] == 0) continue;
    relative.emplace_back(std::sqrt(rows.error2[i] / rows.norm2[i]), rows.weight[i]);
    weights += rows.weight[i];
  }
  const double norm = norm2 > 0 ? std::sqrt(norm2) : scale;
  result.norm = error2 == 0 ? 0 : std::sqrt(error2) / norm;
  // NaN sorts last, so that it shows up as the worst row.
  std::sort(relative.begin(), relative.end(), [](const auto& a, const auto& b) {
    return std::isnan(b.first) ? !std::isnan(a.first) : a.first < b.first;
  });
  double below = 0;
  for (const auto& [error, weight] : relative) {
    result.worst_row = error;
    if (below < weights / 2) result.median_row = error;
    below += weight;
  }
  return result;
}

}  // namespace kerf::tools
