// The loss as one writes it first: all logits in one matrix, softmax in place, three matrix products. What `kerf bench
// --table` sets Kerf beside.
#pragma once

#include <vector>

#include "tools/support/blas.h"
#include "tools/support/problem.h"

namespace kerf::tools {

/// out [m, n] = a b, sizes and transposes as in Blas::sgemm; with OpenBLAS where `blas` is given, else plain blocked
/// code.
void product(const Blas* blas, bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
             const float* a, std::int64_t a_row, const float* b, std::int64_t b_row, float* out, std::int64_t out_row);

class Baseline {
 public:
  /// `blas` may be null.
  Baseline(const Problem& problem, const Blas* blas);
  /// The sum of the losses, or their mean.
  double forward();
  /// Turns the logits into dz and makes de and dc in the problem's dtype.
  void backward();

  /// What it holds beside inputs and gradients.
  static double memory(const ProblemSpec& spec);
  const Buffer& de() const { return de_; }
  const Buffer& dc() const { return dc_; }

 private:
  const Problem& problem_;
  const Blas* blas_;
  Buffer logits_, e_, c_, gradient_, de_, dc_;  // e_, c_, gradient_: f32 copies; c_ and gradient_ not for f32 input
  std::vector<float> lse_;
};

}  // namespace kerf::tools
