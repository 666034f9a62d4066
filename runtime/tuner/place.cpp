#include "runtime/tuner/place.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

namespace kerf::runtime {

namespace {
constexpr std::size_t least_flush = std::size_t{128} << 20;  // that hides the launches of a call too
}

Place::Place(Device device) : device_(device) {
  if (device.type == DeviceType::cpu) return;
  gpu_ = cuda::Device::open(device.ordinal);
  stream_.emplace(gpu_);
  begin_.emplace(gpu_);
  end_.emplace(gpu_);
}

Place::Memory Place::allocate(std::size_t bytes) const {
  Memory m;
  m.bytes_ = std::max<std::size_t>(bytes, 1);
  if (gpu_)
    m.gpu_ = cuda::Buffer(gpu_, m.bytes_);
  else
    m.host_.reset(new (std::align_val_t{64}) std::byte[m.bytes_]);
  return m;
}

void Place::upload(const Memory& to, const void* from) const {
  if (!gpu_) {
    std::memcpy(to.data(), from, to.bytes());
    return;
  }
  to.gpu_.upload(from, to.bytes(), stream());
  wait();
}

void Place::download(void* to, const Memory& from, std::size_t offset, std::size_t bytes) const {
  if (gpu_)
    from.gpu_.download(to, bytes, stream(), offset);
  else
    std::memcpy(to, static_cast<const std::byte*>(from.data()) + offset, bytes);
}

void Place::fill(const Memory& memory, unsigned char byte) const {
  if (gpu_)
    memory.gpu_.fill(byte, stream());
  else if (memory.bytes() > 0)
    std::memset(memory.data(), byte, memory.bytes());
}

void Place::wait() const {
  if (stream_) stream_->synchronize();
}

std::size_t Place::default_limit() const {
  if (!gpu_) return std::size_t{2} << 30;
  return static_cast<std::size_t>(gpu_->memory().free / 2);
}

double Place::time(const std::function<void()>& call) {
  if (!gpu_) {
    const auto start = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  if (flush_.bytes() == 0)
    flush_ = cuda::Buffer(gpu_, std::max(least_flush, 2 * static_cast<std::size_t>(gpu_->info().l2_bytes)));
  flush_.fill(0, stream());
  begin_->record(stream());
  call();
  end_->record(stream());
  end_->synchronize();
  return end_->milliseconds_since(*begin_);
}

}  // namespace kerf::runtime
