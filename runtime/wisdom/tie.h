// When two times are one: wisdom and the search that writes it choose by the same rule.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <tuple>

namespace kerf::runtime {

inline constexpr double tie = 1.02;
inline constexpr double sure_errors = 2;
inline constexpr double normal_quartiles = 1.349;  // from the first to the third of normal errors of deviation 1

/// Standard error of a median of n, as of normal errors whose quartiles are `spread` apart: a quarter more than of a
/// mean.
inline double error_of_median(double spread, std::size_t n) {
  return n < 2 ? 0 : 1.2533 * spread / normal_quartiles / std::sqrt(static_cast<double>(n));
}

/// A median of samples whose quartiles are `spread` of it apart.
struct Timed {
  double median_ms = 0, spread = 0;
  std::size_t samples = 0;
  double predicted_ms = 0;  // 0: none
};

/// What it takes at most, by the error of its median: the best is who takes the least for sure, since of many medians
/// the least is often one of few samples.
inline double surely(const Timed& t) { return t.median_ms * (1 + error_of_median(t.spread, t.samples)); }

/// Within 2 % of the best, and twice the error that both medians may have. Who is so only by chance would be chosen in
/// one search and left behind in the next.
inline bool ties(const Timed& t, const Timed& best) {
  const double error = std::hypot(error_of_median(t.spread, t.samples), error_of_median(best.spread, best.samples));
  return t.median_ms * (1 + sure_errors * error) <= tie * best.median_ms;
}

/// Who wins: of those that tie with the best the least predicted, after all of them who has no prediction; of those
/// alike the first in the order of parameters. `timed` and `parameters` of a candidate say what is known of it.
template <class Iterator, class TimedOf, class ParametersOf>
Iterator chosen(Iterator begin, Iterator end, const TimedOf& timed, const ParametersOf& parameters) {
  const auto surer = [&](const auto& a, const auto& b) { return surely(timed(a)) < surely(timed(b)); };
  const auto predicted = [&](const auto& candidate) {
    const double ms = timed(candidate).predicted_ms;
    return ms > 0 ? ms : std::numeric_limits<double>::infinity();
  };
  const auto before = [&](const auto& a, const auto& b) {
    const double x = predicted(a), y = predicted(b);
    return std::tie(x, parameters(a)) < std::tie(y, parameters(b));
  };
  const Iterator best = std::min_element(begin, end, surer);
  Iterator first = best;
  for (Iterator i = begin; i != end; ++i)
    if (before(*i, *first) && ties(timed(*i), timed(*best))) first = i;
  return first;
}

}  // namespace kerf::runtime
