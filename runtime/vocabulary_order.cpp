#include "runtime/vocabulary_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "kerf/error.h"
#include "kerf/loss.h"

namespace kerf {

std::vector<std::int64_t> vocabulary_order(const std::vector<double>& score) {
  std::vector<std::int64_t> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  // A NaN is the least of all, so that any scores have an order.
  const auto key = [&](std::int64_t v) {
    const double x = score[static_cast<std::size_t>(v)];
    return x == x ? x : -inf;
  };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return key(a) > key(b); });
  return order;
}

namespace runtime {

std::vector<std::int32_t> places_in(const std::vector<std::int64_t>& order, std::int64_t vocabulary,
                                    const std::string& source) {
  if (std::ssize(order) != vocabulary)
    throw UsageError(fmt::format("{}: the order has {} tokens and the vocabulary {}; each token comes once", source,
                                 order.size(), vocabulary));
  std::vector<std::int32_t> place(order.size(), -1);
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] < 0 || order[i] >= vocabulary)
      throw UsageError(fmt::format("{}: order[{}] is {}; it must be in [0, {})", source, i, order[i], vocabulary));
    std::int32_t& at = place[static_cast<std::size_t>(order[i])];
    if (at >= 0)
      throw UsageError(
          fmt::format("{}: order[{}] and order[{}] are both {}; each token comes once", source, at, i, order[i]));
    at = static_cast<std::int32_t>(i);
  }
  return place;
}

void VocabularyOrder::set(const std::vector<std::int64_t>& order, std::int64_t vocabulary, Device device,
                          const char* call) {
  std::vector<std::int32_t> place = places_in(order, vocabulary, call);
  std::vector<std::int64_t> padded = order;
  padded.resize(2 * order.size(), -1);
  if (device.type == DeviceType::cuda) {
    const auto gpu = cuda::Device::open(device.ordinal);
    cuda::Buffer order_there(gpu, padded.size() * sizeof(order[0])), place_there(gpu, place.size() * sizeof(place[0]));
    order_there.upload(padded.data(), order_there.bytes());
    place_there.upload(place.data(), place_there.bytes());
    gpu->synchronize();
    order_there_ = std::move(order_there);
    place_there_ = std::move(place_there);
  }
  device_ = device;
  vocabulary_ = vocabulary;
  order_ = std::move(padded);
  place_ = std::move(place);
}

TensorRef VocabularyOrder::order(std::int64_t first, std::int64_t count) const {
  const void* data = device_.type == DeviceType::cuda ? order_there_.data() : order_.data();
  return TensorRef(static_cast<const std::int64_t*>(data) + first, i64, {count}, device_);
}
TensorRef VocabularyOrder::place() const {
  const void* data = device_.type == DeviceType::cuda ? place_there_.data() : place_.data();
  return TensorRef(data, i32, {std::ssize(place_)}, device_);
}

}  // namespace runtime
}  // namespace kerf
