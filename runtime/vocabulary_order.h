// An order of the vocabulary, where a plan computes: order[i] is the row of c that comes i-th, place is its inverse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kerf/tensor.h"
#include "runtime/cuda/device.h"

namespace kerf::runtime {

/// Where each token comes in an order. Throws UsageError, beginning with `source`, unless it is a permutation of
/// [0, vocabulary).
std::vector<std::int32_t> places_in(const std::vector<std::int64_t>& order, std::int64_t vocabulary,
                                    const std::string& source);

class VocabularyOrder {
 public:
  bool known() const { return !order_.empty(); }
  /// Throws as places_in. On a GPU waits until it has arrived.
  void set(const std::vector<std::int64_t>& order, std::int64_t vocabulary, Device device, const char* call);
  TensorRef order() const { return order(0, vocabulary_); }  // i64 [V]
  /// Part of it; past its end there are as many tokens again, all -1.
  TensorRef order(std::int64_t first, std::int64_t count) const;
  TensorRef place() const;  // i32 [V]

 private:
  Device device_;
  std::int64_t vocabulary_ = 0;
  std::vector<std::int64_t> order_;
  std::vector<std::int32_t> place_;
  cuda::Buffer order_there_, place_there_;
};

}  // namespace kerf::runtime
