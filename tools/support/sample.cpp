#include "tools/support/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "tools/support/problem.h"

namespace kerf::tools {
namespace {

/// One of each of `count` equal parts.
std::vector<std::int64_t> choose(const std::vector<std::int64_t>& from, std::int64_t count, Random random) {
  const auto size = static_cast<std::int64_t>(from.size());
  count = std::min(count, size);
  std::vector<std::int64_t> chosen;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t begin = i * size / count, end = (i + 1) * size / count;
    chosen.push_back(from[static_cast<std::size_t>(begin + random.below(end - begin))]);
  }
  return chosen;
}

}  // namespace

Sample choose_rows(const LossProblem& p, std::uint64_t seed, const SampleLimits& limits) {
  Sample sample;
  std::vector<std::int64_t> valid, often(static_cast<std::size_t>(p.vocabulary), 0);
  for (std::int64_t n = 0; n < p.tokens; ++n) {
    if (p.target[n] == p.ignore_index) continue;
    valid.push_back(n);
    ++often[static_cast<std::size_t>(p.target[n])];
  }
  const double row = static_cast<double>(p.tokens) * static_cast<double>(p.hidden);
  const double size = row * static_cast<double>(p.vocabulary);
  if (size <= limits.whole) {
    sample.rows.de = std::move(valid);
    sample.rows.dc.resize(static_cast<std::size_t>(p.vocabulary));
    std::iota(sample.rows.dc.begin(), sample.rows.dc.end(), std::int64_t{0});
    sample.dc_weight.assign(sample.rows.dc.size(), 1);
    return sample;
  }
  sample.whole_lse = size <= limits.whole_lse;
  sample.rows.de = choose(valid, limits.de_rows, Random(seed, 1));

  std::vector<std::int64_t> labels, others;
  for (std::int64_t v = 0; v < p.vocabulary; ++v)
    (often[static_cast<std::size_t>(v)] > 0 ? labels : others).push_back(v);
  const auto most = std::max<std::int64_t>(static_cast<std::int64_t>(limits.dc_rows / row), 96);
  const std::vector<std::int64_t> some = choose(others, std::min(limits.other_dc_rows, most / 3), Random(seed, 2));
  std::vector<std::pair<std::int64_t, double>> dc;  // row, weight
  const auto add = [&dc](const std::vector<std::int64_t>& rows, double stand_for) {
    for (const std::int64_t v : rows) dc.emplace_back(v, stand_for / static_cast<double>(rows.size()));
  };
  add(some, static_cast<double>(others.size()));
  std::string of_labels = fmt::format("all {} rows of targets", labels.size());
  const std::int64_t label_rows = most - most / 3;
  if (std::ssize(labels) <= label_rows) {
    add(labels, static_cast<double>(labels.size()));
  } else {
    of_labels = fmt::format("{} of the {} rows of targets", label_rows, labels.size());
    std::stable_sort(labels.begin(), labels.end(), [&](std::int64_t a, std::int64_t b) {
      return often[static_cast<std::size_t>(a)] > often[static_cast<std::size_t>(b)];
    });
    const auto rare = labels.begin() + label_rows / 2;
    add({labels.begin(), rare}, static_cast<double>(label_rows / 2));
    add(choose({rare, labels.end()}, label_rows - label_rows / 2, Random(seed, 3)),
        static_cast<double>(labels.end() - rare));
  }
  std::sort(dc.begin(), dc.end());
  for (const auto& [v, weight] : dc) {
    sample.rows.dc.push_back(v);
    sample.dc_weight.push_back(weight);
  }
  sample.text =
      fmt::format("{}de: {} of {} rows; dc: {} and {} of the {} others, weighted",
                  sample.whole_lse ? "" : "lse: in double for the rows of de, the call's own for the others; ",
                  sample.rows.de.size(), valid.size(), of_labels, some.size(), others.size());
  return sample;
}

}  // namespace kerf::tools
