// Times of one candidate.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "runtime/wisdom/tie.h"

namespace kerf::runtime {

class Samples {
 public:
  Samples() = default;
  explicit Samples(std::vector<double> ms) : sorted_(std::move(ms)) { std::sort(sorted_.begin(), sorted_.end()); }
  void add(double ms) { sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), ms), ms); }
  /// The least first.
  const std::vector<double>& all() const { return sorted_; }
  std::size_t size() const { return sorted_.size(); }
  double least() const { return sorted_.empty() ? 0 : sorted_.front(); }
  double most() const { return sorted_.empty() ? 0 : sorted_.back(); }
  /// 0 without samples.
  double median() const {
    const std::size_t n = sorted_.size();
    return n == 0 ? 0 : (sorted_[(n - 1) / 2] + sorted_[n / 2]) / 2;
  }
  /// From the first quartile to the third, over the median: what single outliers do not move.
  double spread() const { return size() < 2 || median() <= 0 ? 0 : (quantile(0.75) - quantile(0.25)) / median(); }
  /// Of the median, relative to it; 1 of less than two.
  double standard_error() const { return size() < 2 ? 1 : error_of_median(spread(), size()); }

 private:
  /// Right in the middle of many such, however few there are (Hyndman and Fan, Sample quantiles, 1996, definition 8).
  double quantile(double p) const {
    const auto n = static_cast<double>(size());
    const double place = std::clamp((n + 1.0 / 3) * p + 1.0 / 3, 1.0, n) - 1;
    const auto below = std::min(static_cast<std::size_t>(place), size() - 2);
    return sorted_[below] + (place - static_cast<double>(below)) * (sorted_[below + 1] - sorted_[below]);
  }

  std::vector<double> sorted_;
};

}  // namespace kerf::runtime
