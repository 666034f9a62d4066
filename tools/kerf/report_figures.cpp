#include "tools/kerf/report_figures.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string_view>

namespace kerf::tools {
namespace {

std::string pattern_of(std::string_view reason) {
  std::string out;
  for (const char c : reason) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit)
      out += c;
    else if (!out.ends_with('#'))
      out += '#';
  }
  return out;
}

}  // namespace

double rank_correlation(const std::vector<std::pair<double, double>>& points) {
  const auto ranks = [&](auto get) {
    std::vector<std::size_t> order(points.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return get(points[a]) < get(points[b]); });
    std::vector<double> rank(points.size());
    for (std::size_t i = 0, end = 0; i < order.size(); i = end) {
      while (end < order.size() && get(points[order[end]]) == get(points[order[i]])) ++end;
      for (std::size_t k = i; k < end; ++k) rank[order[k]] = static_cast<double>(i + end - 1) / 2;  // ties share
    }
    return rank;
  };
  const std::vector<double> a = ranks([](const auto& p) { return p.first; });
  const std::vector<double> b = ranks([](const auto& p) { return p.second; });
  const double mean = static_cast<double>(points.size() - 1) / 2;
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < points.size(); ++i) {
    ab += (a[i] - mean) * (b[i] - mean);
    aa += (a[i] - mean) * (a[i] - mean);
    bb += (b[i] - mean) * (b[i] - mean);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

std::vector<std::pair<double, double>> predictions(const ReportPart& part) {
  std::vector<std::pair<double, double>> points;
  for (const ReportCandidate& c : part.candidates)
    if (c.ok() && c.predicted_ms > 0) points.emplace_back(c.predicted_ms, c.median_ms);
  return points;
}

std::vector<ReportReason> reasons_of(const ReportPart& part) {
  std::map<std::pair<std::string, std::string>, ReportReason> groups;
  const auto add = [&](const std::string& fate, const std::string& reason, const WisdomParameters& parameters) {
    ReportReason& g = groups[{fate, pattern_of(reason)}];
    if (g.count++ == 0) g = {fate, reason, parameters, 1};
  };
  for (const ReportPruned& p : part.pruned) add("left out", p.reason, p.parameters);
  for (const ReportCandidate& c : part.candidates)
    if (!c.ok()) add(c.status, c.reason, c.parameters);
  std::vector<ReportReason> sorted;
  for (const auto& [key, g] : groups) sorted.push_back(g);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const ReportReason& a, const ReportReason& b) { return a.count > b.count; });
  return sorted;
}

std::vector<const ReportCandidate*> ranked(const ReportPart& part) {
  std::vector<const ReportCandidate*> sorted;
  for (const ReportCandidate& c : part.candidates) sorted.push_back(&c);
  std::stable_sort(sorted.begin(), sorted.end(), [](const ReportCandidate* a, const ReportCandidate* b) {
    return std::pair(!a->ok(), a->median_ms) < std::pair(!b->ok(), b->median_ms);
  });
  return sorted;
}

double gain_of(const ReportPart& part) {
  if (!part.winner || !part.untuned || !part.candidates[*part.untuned].ok()) return 0;
  return part.candidates[*part.untuned].median_ms / part.candidates[*part.winner].median_ms;
}

}  // namespace kerf::tools
