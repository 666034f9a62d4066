// How a workspace is cut into arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace kerf::runtime {

inline constexpr std::size_t too_large = std::numeric_limits<std::size_t>::max();  // bytes that pass 2^63

constexpr std::int64_t blocks_of(std::int64_t size, std::int64_t block) { return size / block + (size % block != 0); }

/// Cuts arrays off a piece of memory, each as many bytes behind its begin as lines of a cache divide: a GPU reads rows
/// of boxes that begin within a line of 128 bytes a fifth slower. Without memory only counts.
class Carver {
 public:
  static constexpr std::int64_t line = 256;  // what the L2 cache of a GPU fetches at once
  explicit Carver(std::byte* memory) : memory_(memory) {}
  /// An array of a * b * c elements.
  template <class T>
  T* take(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) {
    const std::int64_t at = bytes_;
    std::int64_t n = 0;
    if (__builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, c, &n) ||
        __builtin_mul_overflow(n, static_cast<std::int64_t>(sizeof(T)), &n) || __builtin_add_overflow(n, line - 1, &n) ||
        __builtin_add_overflow(bytes_, n / line * line, &bytes_))
      fits_ = false;
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  std::size_t bytes() const { return fits_ ? static_cast<std::size_t>(bytes_) : too_large; }

 private:
  std::byte* memory_;
  std::int64_t bytes_ = 0;
  bool fits_ = true;
};

}  // namespace kerf::runtime
