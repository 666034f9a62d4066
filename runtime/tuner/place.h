// Where candidates compute: memory and time there, of the CPU or of a GPU.
#pragma once

#include <cstddef>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>

#include "kerf/kernel.h"
#include "kerf/tensor.h"
#include "runtime/cuda/device.h"

namespace kerf::runtime {

class Place {
 public:
  /// Throws DeviceError where there is no such device.
  explicit Place(Device device);

  /// Bytes there, aligned to 64.
  class Memory {
   public:
    Memory() = default;
    void* data() const { return gpu_.bytes() > 0 ? gpu_.data() : host_.get(); }
    std::size_t bytes() const { return bytes_; }

   private:
    friend class Place;
    struct Free {
      void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
    };
    std::unique_ptr<std::byte[], Free> host_;
    cuda::Buffer gpu_;
    std::size_t bytes_ = 0;
  };
  Memory allocate(std::size_t bytes) const;
  TensorRef tensor(const Memory& memory, DType dtype, std::initializer_list<std::int64_t> shape) const {
    return TensorRef(memory.data(), dtype, shape, device_);
  }
  void upload(const Memory& to, const void* from) const;
  void download(void* to, const Memory& from, std::size_t offset, std::size_t bytes) const;
  void fill(const Memory& memory, unsigned char byte) const;
  /// Waits for all that was queued.
  void wait() const;

  Device device() const { return device_; }
  Stream stream() const { return stream_ ? static_cast<Stream>(*stream_) : Stream{}; }
  /// Bytes that may be allocated: on the CPU what a budget commonly allows, on a GPU half of what is free.
  std::size_t default_limit() const;
  std::int64_t l2_bytes() const { return gpu_ ? gpu_->info().l2_bytes : 0; }

  /// Milliseconds of a call that queues its work on stream(). On a GPU the call meets a busy stream and an L2 cache
  /// with nothing of its own in it.
  double time(const std::function<void()>& call);

 private:
  Device device_;
  std::shared_ptr<const cuda::Device> gpu_;
  std::optional<cuda::OwnStream> stream_;
  std::optional<cuda::Event> begin_, end_;
  cuda::Buffer flush_;
};

}  // namespace kerf::runtime
