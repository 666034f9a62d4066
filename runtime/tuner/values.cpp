#include "runtime/tuner/values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace kerf::runtime {

namespace {

template <class Visit>
void for_each_element(const TensorRef& t, const Visit& visit) {
  const std::int64_t count = t.elements(), size = size_of(t.dtype);
  std::int64_t index[TensorRef::max_rank] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t at = 0;
    for (int a = 0; a < t.rank; ++a) at += index[a] * t.strides[a];
    visit(static_cast<std::byte*>(t.data) + at * size);
    for (int a = t.rank - 1; a >= 0 && ++index[a] == t.shape[a]; --a) index[a] = 0;
  }
}

template <class T>
T read(const std::byte* from) {
  T x;
  std::memcpy(&x, from, sizeof(T));
  return x;
}

double element(const std::byte* at, DType dtype) {
  switch (dtype) {
    case DType::f32: return read<float>(at);
    case DType::bf16: return from_bf16(read<std::uint16_t>(at));
    case DType::f16: return from_f16(read<std::uint16_t>(at));
    case DType::i32: return read<std::int32_t>(at);
    case DType::i64: return static_cast<double>(read<std::int64_t>(at));
    case DType::boolean: return read<std::uint8_t>(at);
  }
  return 0;
}

}  // namespace

std::vector<double> values(const TensorRef& t) {
  std::vector<double> all;
  all.reserve(static_cast<std::size_t>(t.elements()));
  for_each_element(t, [&](const std::byte* at) { all.push_back(element(at, t.dtype)); });
  return all;
}

void poison(const TensorRef& t) {
  const int byte = is_float(t.dtype) ? 0xff : t.dtype == boolean ? 1 : 0x5a;
  const auto size = static_cast<std::size_t>(size_of(t.dtype));
  for_each_element(t, [&](std::byte* at) { std::memset(at, byte, size); });
}

std::vector<std::byte> copy_of(const TensorRef& t) {
  const auto size = static_cast<std::size_t>(size_of(t.dtype));
  std::vector<std::byte> copy;
  copy.reserve(static_cast<std::size_t>(t.elements()) * size);
  for_each_element(t, [&](const std::byte* at) { copy.insert(copy.end(), at, at + size); });
  return copy;
}

void restore(const TensorRef& t, const std::vector<std::byte>& copy) {
  const auto size = static_cast<std::size_t>(size_of(t.dtype));
  const std::byte* from = copy.data();
  for_each_element(t, [&](std::byte* at) {
    std::memcpy(at, from, size);
    from += size;
  });
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b, double least) {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  if (a.size() != b.size()) return infinite;
  double error2 = 0, norm2 = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) {
      if (std::isfinite(b[i])) norm2 += b[i] * b[i];
      continue;
    }
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return infinite;
    error2 += (a[i] - b[i]) * (a[i] - b[i]);
    norm2 += b[i] * b[i];
  }
  if (error2 == 0) return 0;
  return std::sqrt(error2) / std::max({std::sqrt(norm2), least, std::numeric_limits<double>::min()});
}

}  // namespace kerf::runtime
