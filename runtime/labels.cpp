#include "runtime/labels.h"

#include <fmt/format.h>

#include "kerf/error.h"

namespace kerf::runtime {

std::int64_t integer_at(const TensorRef& t, std::int64_t offset) {
  return t.dtype == i32 ? static_cast<const std::int32_t*>(t.data)[offset]
                        : static_cast<const std::int64_t*>(t.data)[offset];
}

namespace {

std::int64_t label_at(const Labels& l, std::int64_t row) {
  const TensorRef& t = l.target;
  if (t.rank == 1) return integer_at(t, row * t.strides[0]);
  return integer_at(t, row / t.shape[1] * t.strides[0] + row % t.shape[1] * t.strides[1]);
}

/// Calls f(row, row of the label, label) for each row that has a label and is not ignored.
template <class F>
void for_each_valid(const Labels& l, F&& f) {
  for (std::int64_t s = 0; s < l.sequences; ++s) {
    const bool packed = l.cu_seqlens.given();
    const std::int64_t length = l.rows / l.sequences;
    const std::int64_t begin = packed ? integer_at(l.cu_seqlens, s * l.cu_seqlens.strides[0]) : s * length;
    const std::int64_t end = packed ? integer_at(l.cu_seqlens, (s + 1) * l.cu_seqlens.strides[0]) : begin + length;
    for (std::int64_t row = begin; row < end - l.shift; ++row) {
      const std::int64_t label = label_at(l, row + l.shift);
      if (label != l.ignore_index) f(row, row + l.shift, label);
    }
  }
}

}  // namespace

std::int64_t check_labels(const Labels& l, const std::string& call) {
  std::int64_t valid = 0;
  for_each_valid(l, [&](std::int64_t, std::int64_t at, std::int64_t label) {
    if (label >= 0 && label < l.vocabulary) {
      ++valid;
      return;
    }
    const std::string place = l.target.rank == 2 ? fmt::format("{}, {}", at / l.target.shape[1], at % l.target.shape[1])
                                                 : fmt::format("{}", at);
    std::string hint;
    if (label == -1 || label == -100)
      hint = fmt::format(", and PlanDesc::ignore_index is {}: set it to {} to ignore such rows", l.ignore_index, label);
    throw UsageError(
        fmt::format("{}: target[{}] is {}, outside the vocabulary [0, {}){}", call, place, label, l.vocabulary, hint));
  });
  return valid;
}

void compact(const Labels& labels, std::int64_t* rows, std::int32_t* target) {
  for_each_valid(labels, [&](std::int64_t row, std::int64_t, std::int64_t label) {
    *rows++ = row;
    *target++ = static_cast<std::int32_t>(label);
  });
}

}  // namespace kerf::runtime
