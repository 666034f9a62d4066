#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "tools/support/compare.h"
#include "tools/support/problem.h"
#include "tools/support/sample.h"

using namespace kerf;
using namespace kerf::tools;

namespace {
/// Rows of one column: ours, reference.
RowErrors rows_of(std::initializer_list<std::pair<double, double>> pairs) {
  RowErrors rows(pairs.size());
  std::size_t i = 0;
  for (const auto& [ours, reference] : pairs) rows.set(i++, &ours, &reference, 1);
  return rows;
}
}  // namespace

TEST_CASE("errors: norm, worst and median row leave out rows whose reference is 0") {
  const GradientError e = summarize(rows_of({{3.3, 3}, {4, 4}, {0, 0}, {1.5, 1}}), 1);
  CHECK(e.norm == doctest::Approx(std::sqrt((0.09 + 0.25) / 26)));
  CHECK(e.worst_row == doctest::Approx(0.5));
  CHECK(e.median_row == doctest::Approx(0.1));
}

TEST_CASE("errors: weights count a row as often as it stands for") {
  RowErrors rows = rows_of({{1.1, 1}, {2, 1}});
  rows.weight = {9, 1};
  const GradientError e = summarize(rows, 1);
  CHECK(e.norm == doctest::Approx(std::sqrt((9 * 0.01 + 1) / 10)));
  CHECK(e.median_row == doctest::Approx(0.1));
}

TEST_CASE("errors: a zero reference is measured by the scale, NaN never looks small") {
  CHECK(summarize(rows_of({{0, 0}, {0, 0}}), 0).norm == 0);
  CHECK(summarize(rows_of({{3, 0}, {4, 0}}), 10).norm == doctest::Approx(0.5));
  CHECK(std::isinf(summarize(rows_of({{3, 0}}), 0).norm));
  const GradientError e = summarize(rows_of({{1, 1}, {std::numeric_limits<double>::quiet_NaN(), 1}, {1, 1}}), 1);
  CHECK(std::isnan(e.norm));
  CHECK(std::isnan(e.worst_row));
}

TEST_CASE("a sample of a large problem holds every target's row and stands for the whole vocabulary") {
  const Problem p = random_problem({300, 12, 4000, f32, Reduction::none, 9, 0.05});
  const Sample all = choose_rows(p.view(), 9);
  CHECK(all.text.empty());
  CHECK(all.rows.de.size() == 285);
  CHECK(all.rows.dc.size() == 4000);

  const Sample part = choose_rows(p.view(), 9, {.whole = 1000, .de_rows = 50, .other_dc_rows = 600});
  CHECK(part.rows.de.size() == 50);
  CHECK(std::set(part.rows.de.begin(), part.rows.de.end()).size() == 50);
  CHECK(std::is_sorted(part.rows.dc.begin(), part.rows.dc.end()));
  const std::set<std::int64_t> chosen(part.rows.dc.begin(), part.rows.dc.end());
  CHECK(chosen.size() == part.rows.dc.size());
  std::set<std::int64_t> labels;
  for (const std::int64_t t : p.target)
    if (t != Problem::ignore_index) labels.insert(t);
  for (const std::int64_t t : labels) CHECK(chosen.count(t) == 1);
  CHECK(chosen.size() == labels.size() + 600);
  CHECK(std::accumulate(part.dc_weight.begin(), part.dc_weight.end(), 0.0) == doctest::Approx(4000));
  CHECK(part.text.starts_with("de: 50 of 285 rows; dc: all "));

  // An error made everywhere alike is estimated from the sample as from the whole.
  const auto error_of = [&](const Sample& sample) {
    RowErrors dc(sample.rows.dc.size());
    dc.weight = sample.dc_weight;
    reference_loss(p.view(), sample.rows, [&](std::int64_t i, const double* row) {
      std::vector<double> ours(row, row + 12);
      Random random(77, static_cast<std::uint64_t>(sample.rows.dc[static_cast<std::size_t>(i)]));
      for (double& x : ours) x += 1e-3 * random.bell();
      dc.set(static_cast<std::size_t>(i), ours.data(), row, 12);
    });
    return summarize(dc, 1).norm;
  };
  const double whole = error_of(all);
  CHECK(whole > 1e-4);
  CHECK(std::abs(error_of(part) / whole - 1) < 0.05);
}

TEST_CASE("a sample of a problem too large for all targets keeps the most frequent and stands for the rest") {
  const Problem p = random_problem({3000, 12, 4000, f32, Reduction::none, 9, 0.05});
  const Sample s = choose_rows(p.view(), 9, {.whole = 1000, .whole_lse = 1000, .de_rows = 50, .dc_rows = 300 * 36000});
  CHECK_FALSE(s.whole_lse);
  CHECK(s.rows.dc.size() == 300);
  CHECK(std::is_sorted(s.rows.dc.begin(), s.rows.dc.end()));
  CHECK(std::set(s.rows.dc.begin(), s.rows.dc.end()).size() == 300);
  CHECK(std::accumulate(s.dc_weight.begin(), s.dc_weight.end(), 0.0) == doctest::Approx(4000));
  std::vector<int> often(4000);
  for (const std::int64_t t : p.target)
    if (t != Problem::ignore_index) ++often[static_cast<std::size_t>(t)];
  const auto most = std::max_element(often.begin(), often.end()) - often.begin();
  const auto at = std::find(s.rows.dc.begin(), s.rows.dc.end(), most) - s.rows.dc.begin();
  REQUIRE(at < 300);
  CHECK(s.dc_weight[static_cast<std::size_t>(at)] == 1);
  CHECK(
      s.text.starts_with("lse: in double for the rows of de, the call's own for the others; de: 50 of 2850 rows; "
                         "dc: 200 of the "));
}
