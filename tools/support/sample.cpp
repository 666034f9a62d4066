#include "tools/support/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "tools/support/problem.h"

namespace kerf::tools {
namespace {

std::vector<std::int64_t> choose(std::vector<std::int64_t> from, std::int64_t count, Random random) {
  const auto size = static_cast<std::int64_t>(from.size());
  count = std::min(count, size);
  for (std::int64_t i = 0; i < count; ++i)
    std::swap(from[static_cast<std::size_t>(i)], from[static_cast<std::size_t>(i + random.below(size - i))]);
  from.resize(static_cast<std::size_t>(count));
  std::sort(from.begin(), from.end());
  return from;
}

}  // namespace

Sample choose_rows(const LossProblem& p, std::uint64_t seed, double whole_limit, std::int64_t de_rows,
                   std::int64_t other_dc_rows) {
  Sample sample;
  std::vector<std::int64_t> valid, labels, others;
  std::vector<bool> is_label(static_cast<std::size_t>(p.vocabulary));
  for (std::int64_t n = 0; n < p.tokens; ++n) {
    if (p.target[n] == p.ignore_index) continue;
    valid.push_back(n);
    is_label[static_cast<std::size_t>(p.target[n])] = true;
  }
  const double size = static_cast<double>(p.tokens) * static_cast<double>(p.hidden) * static_cast<double>(p.vocabulary);
  if (size <= whole_limit) {
    sample.rows.de = std::move(valid);
    sample.rows.dc.resize(static_cast<std::size_t>(p.vocabulary));
    std::iota(sample.rows.dc.begin(), sample.rows.dc.end(), std::int64_t{0});
    sample.dc_weight.assign(sample.rows.dc.size(), 1);
    return sample;
  }
  for (std::int64_t v = 0; v < p.vocabulary; ++v)
    (is_label[static_cast<std::size_t>(v)] ? labels : others).push_back(v);
  const auto all_valid = valid.size(), all_others = others.size();
  sample.rows.de = choose(std::move(valid), de_rows, Random(seed, 1));
  others = choose(std::move(others), other_dc_rows, Random(seed, 2));
  sample.text = fmt::format("de: {} of {} rows; dc: all {} rows of targets and {} of the {} others, weighted",
                            sample.rows.de.size(), all_valid, labels.size(), others.size(), all_others);
  std::merge(labels.begin(), labels.end(), others.begin(), others.end(), std::back_inserter(sample.rows.dc));
  const double weight = static_cast<double>(all_others) / static_cast<double>(others.size());
  for (const std::int64_t v : sample.rows.dc)
    sample.dc_weight.push_back(is_label[static_cast<std::size_t>(v)] ? 1 : weight);
  return sample;
}

}  // namespace kerf::tools
