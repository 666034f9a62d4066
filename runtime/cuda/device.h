// A GPU and what lives on it, each owned by one object: its primary context, memory, streams, events, loaded code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "kerf/kernel.h"
#include "kerf/tensor.h"
#include "runtime/cuda/api.h"
#include "runtime/cuda/driver.h"

namespace kerf::cuda {

struct DeviceInfo {
  int ordinal = 0;
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::int64_t shared_bytes = 0;  // the most that one block may ask for
  std::int64_t l2_bytes = 0;
  std::int64_t memory_bytes = 0;

  /// "cuda:0 (NVIDIA H200)"
  std::string describe() const;
};

/// What the driver tells about a device, without making a context on it. Throws UsageError where there is none of this
/// number.
DeviceInfo device_info(const Driver& driver, int ordinal);

/// The architecture that code for it is generated for: sm_90a for 9.0, else sm_80, or sm_86 where blocks have
/// less shared memory. Throws DeviceError below 8.0.
std::string architecture(const DeviceInfo& info);

/// A device whose primary context, the one that CUDA's runtime and so everyone else in the process uses, is kept alive.
class Device {
 public:
  static std::shared_ptr<const Device> open(int ordinal) { return open(Driver::open(), ordinal); }
  static std::shared_ptr<const Device> open(std::shared_ptr<const Driver> driver, int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Driver& driver() const { return *driver_; }
  const DeviceInfo& info() const { return info_; }
  api::Context context() const { return context_; }
  kerf::Device tag() const { return {DeviceType::cuda, info_.ordinal}; }
  struct Memory {
    std::int64_t free = 0, total = 0;
  };
  Memory memory() const;
  /// Waits for everything queued on the device.
  void synchronize() const;
  /// Throws UsageError unless `pointer` is memory of this device; `what` names it.
  void require_memory(const void* pointer, std::string_view what) const;

 private:
  Device() = default;
  std::shared_ptr<const Driver> driver_;
  DeviceInfo info_;
  api::DeviceId id_ = 0;
  api::Context context_ = nullptr;
};

/// While it lives the device's context is the calling thread's current one; then the caller's is again.
class Current {
 public:
  explicit Current(const Device& device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const Driver& driver_;
};

/// Memory of the device. Copies are queued on a stream; a host array must live until the stream gets there.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<const Device> device, std::size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(pointer_)); }
  std::size_t bytes() const { return bytes_; }
  /// A dense tensor at the beginning of the buffer. Throws UsageError where it does not fit.
  TensorRef tensor(DType dtype, std::initializer_list<std::int64_t> shape) const;
  void upload(const void* from, std::size_t bytes, Stream stream = {}, std::size_t offset = 0) const;
  void download(void* to, std::size_t bytes, Stream stream = {}, std::size_t offset = 0) const;
  void fill(unsigned char byte, Stream stream = {}) const;

 private:
  void require_inside(std::string_view what, std::size_t offset, std::size_t bytes) const;
  std::shared_ptr<const Device> device_;
  api::DevicePointer pointer_ = 0;
  std::size_t bytes_ = 0;
};

/// A stream of its own, which does not wait for the default stream.
class OwnStream {
 public:
  explicit OwnStream(std::shared_ptr<const Device> device);
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  operator Stream() const { return {handle_}; }
  void synchronize() const;

 private:
  std::shared_ptr<const Device> device_;
  api::StreamHandle handle_ = nullptr;
};

/// Queues a copy of memory of the device to the host.
void download(const Device& device, void* to, const void* from, std::size_t bytes, Stream stream);
/// Whether work on the stream goes into a graph instead of to the device.
bool is_capturing(const Device& device, Stream stream);
/// Waits for what is queued on a stream of the device.
void synchronize(const Device& device, Stream stream);

/// A point in a stream's work, with the time it was reached.
class Event {
 public:
  explicit Event(std::shared_ptr<const Device> device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream) const;
  void synchronize() const;
  /// The stream goes on only after this event.
  void hold(Stream stream) const;
  double milliseconds_since(const Event& start) const;

 private:
  std::shared_ptr<const Device> device_;
  api::EventHandle handle_ = nullptr;
};

}  // namespace kerf::cuda
