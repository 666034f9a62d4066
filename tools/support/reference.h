// The loss and its gradients in double, by blocked loops of their own: what `kerf check` compares the library with.
//
//   for n, v:  z = sum_d e[n,d] c[v,d]
//   for n:     lse = log sum_v exp z,  loss = lse - z[target]
//   for n, v:  dz = g[n] (exp(z - lse) - [v = target]),  g = grad_loss * (1 | 1 / valid rows | 1)
//              de[n,d] += dz c[v,d],   dc[v,d] += dz e[n,d]
//
// Logits exist one tile at a time and are made twice. Rows labelled ignore_index are left out: loss, lse and gradients
// 0.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kerf/loss.h"

namespace kerf::tools {

/// One call of the loss; e and c dense.
struct LossProblem {
  std::int64_t tokens = 0, hidden = 0, vocabulary = 0;
  DType dtype = DType::f32;
  const void* e = nullptr;  // [tokens, hidden]
  const void* c = nullptr;  // [vocabulary, hidden]
  const std::int64_t* target = nullptr;
  std::int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;
  const float* grad_loss = nullptr;  // one a row for `none`, else one element
};

/// Which gradients to make; rows in ascending order.
struct ReferenceRows {
  std::vector<std::int64_t> de;  // rows of de; ignored ones are allowed and give 0
  std::vector<std::int64_t> dc;  // rows of dc
  /// [tokens]. Given: only the rows of `de` get an lse made here, the others have this one, which is that of the call
  /// being checked: what follows from it (the reduced loss, dc) is then judged as following from it.
  const float* lse = nullptr;
};

struct Reference {
  std::vector<std::int64_t> valid;  // rows that count
  std::vector<double> lse, loss;    // [tokens]
  double reduced = 0;               // the loss of mean (NaN without valid rows) or sum
  std::vector<double> g;            // [tokens]: upstream gradient with the reduction's factor
  std::vector<double> de;           // [rows asked for, hidden]
};

/// `dc_row(i, row)` gets row i of those asked for, once each, from any thread. `threads` 0: all processors.
Reference reference_loss(const LossProblem& problem, const ReferenceRows& rows,
                         const std::function<void(std::int64_t i, const double* row)>& dc_row, int threads = 0);

}  // namespace kerf::tools
