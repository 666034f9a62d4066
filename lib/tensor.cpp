#include "kerf/tensor.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>

#include "kerf/error.h"

namespace kerf {

namespace {
constexpr std::string_view names[] = {"f32", "bf16", "f16", "i32", "i64", "bool"};
}

std::string_view name_of(DType t) { return names[static_cast<std::size_t>(t)]; }

DType dtype_from_name(std::string_view name) {
  for (std::size_t i = 0; i < std::size(names); ++i)
    if (names[i] == name) return static_cast<DType>(i);
  throw UsageError(fmt::format("'{}' is no dtype; they are f32, bf16, f16, i32, i64, bool", name));
}

std::uint16_t to_bf16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>((u >> 16) | 0x40);
  return static_cast<std::uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

std::uint16_t to_f16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 16) & 0x8000, abs = u & 0x7fffffff;
  if (abs > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00 | ((abs >> 13) & 0x3ff));  // NaN
  if (abs >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);                        // rounds to Inf
  if (abs < 0x38800000) {  // a subnormal half: adding 0.5 puts its units at the end of the mantissa, rounded
    const auto half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(abs) + 0.5f);
    return static_cast<std::uint16_t>(sign | (half - 0x3f000000));
  }
  const std::uint32_t rounded = abs + 0xfff + ((abs >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

float from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16, abs = bits & 0x7fff;
  if (abs >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | ((abs & 0x3ff) << 13));
  if (abs < 0x400) {
    const float v = static_cast<float>(abs) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(v));
  }
  return std::bit_cast<float>(sign | ((abs << 13) + 0x38000000));
}

TensorRef::TensorRef(void* data, DType dtype, std::initializer_list<std::int64_t> dims, Device device)
    : data(data), dtype(dtype), device(device) {
  if (dims.size() > static_cast<std::size_t>(max_rank))
    throw UsageError(fmt::format("TensorRef: {} dimensions; at most {} are allowed", dims.size(), +max_rank));
  for (std::int64_t n : dims) shape[rank++] = n;
  std::int64_t stride = 1;
  for (int i = rank - 1; i >= 0; --i) {
    strides[i] = stride;
    if (__builtin_mul_overflow(stride, shape[i] > 0 ? shape[i] : 1, &stride))
      throw UsageError("TensorRef: the product of the sizes passes 2^63");
  }
}

TensorRef TensorRef::with_strides(std::initializer_list<std::int64_t> s) const {
  if (static_cast<int>(s.size()) != rank)
    throw UsageError(fmt::format("TensorRef: {} strides for {} dimensions", s.size(), rank));
  TensorRef t = *this;
  int i = 0;
  for (std::int64_t x : s) t.strides[i++] = x;
  return t;
}

std::int64_t TensorRef::elements() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

std::string TensorRef::describe() const {
  std::string dims, steps;
  bool dense = true;
  std::int64_t expect = 1;
  for (int i = rank - 1; i >= 0; --i) {
    dense = dense && (shape[i] == 1 || strides[i] == expect);
    if (__builtin_mul_overflow(expect, shape[i], &expect)) dense = false;
  }
  for (int i = 0; i < rank; ++i) {
    dims += fmt::format("{}{}", i ? ", " : "", shape[i]);
    steps += fmt::format("{}{}", i ? ", " : "", strides[i]);
  }
  return dense ? fmt::format("{} [{}]", name_of(dtype), dims)
               : fmt::format("{} [{}] with strides [{}]", name_of(dtype), dims, steps);
}

}  // namespace kerf
