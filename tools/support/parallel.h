// Threads and memory for the tools; nothing of the library's own thread pool, so that what checks it shares nothing
// with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>

#include "kerf/tensor.h"

namespace kerf::tools {

/// Processors this process may run on.
int processors();

/// Runs work(thread) on `threads` threads, the caller's among them; rethrows the first exception.
void on_threads(int threads, const std::function<void(int)>& work);

/// work(begin, end) over [0, count) in pieces of at most `piece`, taken by all processors as they come free.
void in_pieces(std::int64_t count, std::int64_t piece, const std::function<void(std::int64_t, std::int64_t)>& work);

/// Uninitialised memory, aligned to 64 bytes.
class Buffer {
 public:
  Buffer() = default;
  /// Throws DeviceError when there is not so much memory.
  explicit Buffer(std::size_t bytes);
  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

/// Throws DeviceError unless `bytes` more can be had, before somebody is killed for asking. `what` says what for.
void require_memory(double bytes, const char* what);

/// n elements of a float dtype as double, exactly.
void to_double(const void* from, DType dtype, std::int64_t n, double* to);
/// n floats rounded to nearest even.
void from_float(const float* from, std::int64_t n, DType dtype, void* to);
inline const std::byte* element(const void* data, DType dtype, std::int64_t i) {
  return static_cast<const std::byte*>(data) + i * size_of(dtype);
}
inline std::byte* element(void* data, DType dtype, std::int64_t i) {
  return static_cast<std::byte*>(data) + i * size_of(dtype);
}

}  // namespace kerf::tools
