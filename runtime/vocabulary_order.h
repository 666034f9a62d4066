// An order of the vocabulary, where a plan computes: order[i] is the row of c that comes i-th, place is its inverse.
#pragma once

#include <cstdint>
#include <vector>

#include "kerf/tensor.h"
#include "runtime/cuda/device.h"

namespace kerf::runtime {

class VocabularyOrder {
 public:
  bool known() const { return !order_.empty(); }
  /// Throws UsageError, beginning with `call`, unless it is a permutation of [0, vocabulary). On a GPU waits until it
  /// has arrived.
  void set(const std::vector<std::int64_t>& order, std::int64_t vocabulary, Device device, const char* call);
  TensorRef order() const;  // i64 [V]
  TensorRef place() const;  // i32 [V]

 private:
  Device device_;
  std::vector<std::int64_t> order_;
  std::vector<std::int32_t> place_;
  cuda::Buffer order_there_, place_there_;
};

}  // namespace kerf::runtime
