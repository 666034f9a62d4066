// Tensors as Kerf sees them: a pointer, a shape, strides, an element type and a device. Nothing here owns memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace [[gnu::visibility("default")]] kerf {

/// Element types. `boolean` is one byte in memory, 0 or 1.
enum class DType : std::uint8_t { f32, bf16, f16, i32, i64, boolean };

inline constexpr DType f32 = DType::f32;
inline constexpr DType bf16 = DType::bf16;
inline constexpr DType f16 = DType::f16;
inline constexpr DType i32 = DType::i32;
inline constexpr DType i64 = DType::i64;
inline constexpr DType boolean = DType::boolean;

/// Bytes of one element in memory.
constexpr std::int64_t size_of(DType t) {
  switch (t) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::i64: return 8;
    case DType::boolean: return 1;
  }
  return 0;
}
constexpr bool is_float(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16; }
constexpr bool is_integer(DType t) { return t == DType::i32 || t == DType::i64; }
/// "f32", "bf16", "f16", "i32", "i64" or "bool".
std::string_view name_of(DType t);
/// The inverse of name_of; throws UsageError that lists the names.
DType dtype_from_name(std::string_view name);

/// bf16 and f16 held as bits; conversions round to nearest even and keep NaN.
std::uint16_t to_bf16(float x);
float from_bf16(std::uint16_t bits);
std::uint16_t to_f16(float x);
float from_f16(std::uint16_t bits);

enum class DeviceType : std::uint8_t { cpu, cuda };
struct Device {
  DeviceType type = DeviceType::cpu;
  int ordinal = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// A view of a strided array: never owns, is copied freely. Strides count elements. A null `data` with rank 0 means
/// "not given" for an optional argument.
struct TensorRef {
  static constexpr int max_rank = 4;

  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::int64_t shape[max_rank] = {};
  std::int64_t strides[max_rank] = {};
  Device device = {};

  TensorRef() = default;
  /// A dense row-major array.
  TensorRef(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device = {});
  TensorRef(const void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device = {})
      : TensorRef(const_cast<void*>(data), dtype, shape, device) {}
  TensorRef(float* data, std::initializer_list<std::int64_t> shape) : TensorRef(data, DType::f32, shape) {}
  TensorRef(const float* data, std::initializer_list<std::int64_t> shape) : TensorRef(data, DType::f32, shape) {}

  /// The same array with other strides, in elements.
  TensorRef with_strides(std::initializer_list<std::int64_t> strides) const;

  bool given() const { return data != nullptr || rank != 0; }
  std::int64_t elements() const;
  /// "bf16 [4096, 2304]", with the strides where the array is not dense.
  std::string describe() const;
};

}  // namespace kerf
