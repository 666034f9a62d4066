// Which label each row is scored against, and which rows have one.
#pragma once

#include <cstdint>
#include <string>

#include "kerf/tensor.h"

namespace kerf::runtime {

/// Labels of N rows that fall into sequences: row t of a sequence is scored against label t + shift of the same one.
struct Labels {
  TensorRef target;            // [N] or [B, T], any strides
  std::int64_t rows = 0;       // N
  std::int64_t sequences = 1;  // of equal length where cu_seqlens is not given
  TensorRef cu_seqlens;        // [sequences + 1]
  std::int64_t shift = 0;
  std::int64_t ignore_index = -100;
  std::int64_t vocabulary = 0;
};

/// An integer tensor's element: i32 or i64.
std::int64_t integer_at(const TensorRef& t, std::int64_t offset);

/// Number of valid rows; throws UsageError naming row and value where a label is neither ignored nor in [0, V).
std::int64_t check_labels(const Labels& labels, const std::string& call);

/// Writes the index and the label of each valid row, in order.
void compact(const Labels& labels, std::int64_t* rows, std::int32_t* target);

}  // namespace kerf::runtime
