#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "tools/support/compare.h"

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
