// How far a gradient is from its reference.
#pragma once

#include <cstdint>
#include <vector>

namespace kerf::tools {

/// Squared error and squared norm of each row compared, and how many rows it stands for.
struct RowErrors {
  explicit RowErrors(std::size_t rows) : error2(rows, 0), norm2(rows, 0), weight(rows, 1) {}
  std::vector<double> error2, norm2, weight;
  /// Row i against the reference; other rows may be set from other threads at the same time.
  void set(std::size_t i, const double* ours, const double* reference, std::int64_t columns);
};

struct GradientError {
  double norm = 0;        // norm of the error over norm of the reference
  double worst_row = 0;   // the same row by row, over rows whose reference is not 0
  double median_row = 0;  // of the rows that the weights stand for
};
/// Where the whole reference is 0 (V = 1), `scale` takes the place of its norm.
GradientError summarize(const RowErrors& rows, double scale);

}  // namespace kerf::tools
