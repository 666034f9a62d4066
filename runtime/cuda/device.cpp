// Devices and what is owned on them. Destructors look at no result: they run while errors are thrown, after the device
// was lost, and while the process ends, when the driver refuses everything.
#include "runtime/cuda/device.h"

#include <fmt/format.h>

#include <utility>

#include "kerf/error.h"

namespace kerf::cuda {

namespace {

api::StreamHandle handle(Stream s) { return static_cast<api::StreamHandle>(s.handle); }
api::DevicePointer address(const void* p) {
  return static_cast<api::DevicePointer>(reinterpret_cast<std::uintptr_t>(p));
}

}  // namespace

// ---- devices ----

std::string DeviceInfo::describe() const { return fmt::format("cuda:{} ({})", ordinal, name); }

DeviceInfo device_info(const Driver& driver, int ordinal) {
  if (ordinal < 0 || ordinal >= driver.device_count())
    throw UsageError(fmt::format("cuda: there is no cuda:{}; the driver sees {} device{}, {}", ordinal,
                                 driver.device_count(), driver.device_count() == 1 ? "" : "s",
                                 driver.device_count() == 1
                                     ? std::string("cuda:0")
                                     : fmt::format("cuda:0 to cuda:{}", driver.device_count() - 1)));
  const std::string doing = fmt::format("asking about cuda:{}", ordinal);
  api::DeviceId id = 0;
  driver.check(driver->cuDeviceGet(&id, ordinal), "cuDeviceGet", doing);
  const auto get = [&](api::DeviceAttribute a) {
    int value = 0;
    driver.check(driver->cuDeviceGetAttribute(&value, a, id), "cuDeviceGetAttribute", doing);
    return value;
  };
  DeviceInfo info;
  info.ordinal = ordinal;
  char name[256] = {};
  driver.check(driver->cuDeviceGetName(name, sizeof name - 1, id), "cuDeviceGetName", doing);
  info.name = name;
  info.major = get(api::DeviceAttribute::compute_capability_major);
  info.minor = get(api::DeviceAttribute::compute_capability_minor);
  info.multiprocessors = get(api::DeviceAttribute::multiprocessor_count);
  info.shared_bytes = get(api::DeviceAttribute::max_shared_memory_per_block_optin);
  info.l2_bytes = get(api::DeviceAttribute::l2_cache_size);
  std::size_t bytes = 0;
  driver.check(driver->cuDeviceTotalMem_v2(&bytes, id), "cuDeviceTotalMem_v2", doing);
  info.memory_bytes = static_cast<std::int64_t>(bytes);
  return info;
}

std::string architecture(const DeviceInfo& info) {
  if (info.major < 8)
    throw DeviceError(
        fmt::format("cuda: {} has compute capability {}.{}; Kerf generates code for 8.0 (Ampere) and later: "
                    "use another GPU or the CPU",
                    info.describe(), info.major, info.minor));
  if (info.major == 9 && info.minor == 0) return "sm_90a";
  // 8.6, 8.9 and 12.0 run code for 8.0, but give a block less shared memory than that may ask for.
  return info.shared_bytes >= 163 << 10 ? "sm_80" : "sm_86";
}

std::shared_ptr<const Device> Device::open(std::shared_ptr<const Driver> driver, int ordinal) {
  std::shared_ptr<Device> device(new Device);
  device->info_ = device_info(*driver, ordinal);
  const Driver& d = *driver;
  d.check(d->cuDeviceGet(&device->id_, ordinal), "cuDeviceGet", "opening " + device->info_.describe());
  d.check(d->cuDevicePrimaryCtxRetain(&device->context_, device->id_), "cuDevicePrimaryCtxRetain",
          "making a context on " + device->info_.describe());
  device->driver_ = std::move(driver);
  return device;
}

Device::~Device() {
  if (driver_) (*driver_)->cuDevicePrimaryCtxRelease_v2(id_);
}

Device::Memory Device::memory() const {
  const Current current(*this);
  std::size_t free = 0, total = 0;
  driver_->check((*driver_)->cuMemGetInfo_v2(&free, &total), "cuMemGetInfo_v2",
                 "asking for the memory of " + info_.describe());
  return {static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

void Device::synchronize() const {
  const Current current(*this);
  driver_->check((*driver_)->cuCtxSynchronize(), "cuCtxSynchronize", "waiting for " + info_.describe());
}

void Device::require_memory(const void* pointer, std::string_view what) const {
  // Asked one by one the driver refuses pointers it does not know; asked together it leaves their values at 0.
  auto type = api::MemoryType::none;
  int ordinal = -1;
  int managed = 0;
  api::PointerAttribute wanted[] = {api::PointerAttribute::memory_type, api::PointerAttribute::device_ordinal,
                                    api::PointerAttribute::is_managed};
  void* values[] = {&type, &ordinal, &managed};
  const api::Result r = (*driver_)->cuPointerGetAttributes(3, wanted, values, address(pointer));
  if (r != api::Result::success) driver_->fail(r, "cuPointerGetAttributes", fmt::format("asking where {} is", what));
  if ((managed & 0xff) != 0) return;  // the driver moves it to whoever touches it
  if (type == api::MemoryType::device && ordinal == info_.ordinal) return;
  if (type == api::MemoryType::device)
    throw UsageError(
        fmt::format("{} is memory of cuda:{}, the kernel runs on cuda:{}; copy it there or compile the program "
                    "for that device",
                    what, ordinal, info_.ordinal));
  throw UsageError(fmt::format(
      "{} at {} is {}, the kernel runs on cuda:{}; copy it to memory of that device (cudaMalloc, or "
      "tensor.cuda())",
      what, pointer,
      type == api::MemoryType::host ? "pinned host memory" : "no memory that the driver knows (host memory, or freed)",
      info_.ordinal));
}

Current::Current(const Device& device) : driver_(device.driver()) {
  const api::Result r = driver_->cuCtxPushCurrent_v2(device.context());
  if (r != api::Result::success)
    driver_.fail(r, "cuCtxPushCurrent_v2", "making the context of " + device.info().describe() + " current");
}

Current::~Current() {
  api::Context popped = nullptr;
  driver_->cuCtxPopCurrent_v2(&popped);
}

// ---- memory ----

Buffer::Buffer(std::shared_ptr<const Device> device, std::size_t bytes) : device_(std::move(device)), bytes_(bytes) {
  if (bytes == 0) return;
  const Driver& d = device_->driver();
  const Current current(*device_);
  const api::Result r = d->cuMemAlloc_v2(&pointer_, bytes);
  if (r == api::Result::success) return;
  std::string state;
  std::size_t free = 0, total = 0;
  if (r == api::Result::out_of_memory && d->cuMemGetInfo_v2(&free, &total) == api::Result::success)
    state = fmt::format("{} of {} bytes are free", free, total);
  d.fail(r, "cuMemAlloc_v2", fmt::format("allocating {} bytes on {}", bytes, device_->info().describe()), state);
}

Buffer::~Buffer() {
  if (!pointer_) return;
  const Driver& d = device_->driver();
  // Not through Current, which may throw.
  if (d->cuCtxPushCurrent_v2(device_->context()) != api::Result::success) return;
  d->cuMemFree_v2(pointer_);
  api::Context popped = nullptr;
  d->cuCtxPopCurrent_v2(&popped);
}

Buffer::Buffer(Buffer&& other) noexcept
    : device_(std::move(other.device_)),
      pointer_(std::exchange(other.pointer_, 0)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(pointer_, other.pointer_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Buffer::require_inside(std::string_view what, std::size_t offset, std::size_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset)
    throw UsageError(fmt::format("cuda: {} of {} bytes at {} of a buffer of {}", what, bytes, offset, bytes_));
}

TensorRef Buffer::tensor(DType dtype, std::initializer_list<std::int64_t> shape) const {
  const TensorRef t(data(), dtype, shape, device_ ? device_->tag() : kerf::Device{});
  require_inside("a tensor", 0, static_cast<std::size_t>(t.elements() * size_of(dtype)));
  return t;
}

void Buffer::upload(const void* from, std::size_t bytes, Stream stream, std::size_t offset) const {
  require_inside("an upload", offset, bytes);
  if (bytes == 0) return;
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuMemcpyHtoDAsync_v2(pointer_ + offset, from, bytes, handle(stream)), "cuMemcpyHtoDAsync_v2",
          "copying to " + device_->info().describe());
}

void Buffer::download(void* to, std::size_t bytes, Stream stream, std::size_t offset) const {
  require_inside("a download", offset, bytes);
  if (bytes > 0) cuda::download(*device_, to, static_cast<const std::byte*>(data()) + offset, bytes, stream);
}

void Buffer::fill(unsigned char byte, Stream stream) const {
  if (bytes_ == 0) return;
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuMemsetD8Async(pointer_, byte, bytes_, handle(stream)), "cuMemsetD8Async",
          "filling a buffer on " + device_->info().describe());
}

// ---- streams and events ----

OwnStream::OwnStream(std::shared_ptr<const Device> device) : device_(std::move(device)) {
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuStreamCreate(&handle_, api::stream_non_blocking), "cuStreamCreate",
          "making a stream on " + device_->info().describe());
}

OwnStream::~OwnStream() { device_->driver()->cuStreamDestroy_v2(handle_); }

void OwnStream::synchronize() const { cuda::synchronize(*device_, *this); }

void download(const Device& device, void* to, const void* from, std::size_t bytes, Stream stream) {
  const Current current(device);
  const Driver& d = device.driver();
  d.check(d->cuMemcpyDtoHAsync_v2(to, reinterpret_cast<std::uintptr_t>(from), bytes, handle(stream)),
          "cuMemcpyDtoHAsync_v2", "copying from " + device.info().describe());
}

bool is_capturing(const Device& device, Stream stream) {
  const Current current(device);
  api::CaptureStatus status = api::CaptureStatus::none;
  // Of the default stream the driver refuses to tell while another one is captured.
  return device.driver()->cuStreamIsCapturing(handle(stream), &status) != api::Result::success ||
         status != api::CaptureStatus::none;
}

void synchronize(const Device& device, Stream stream) {
  const Current current(device);
  const Driver& d = device.driver();
  d.check(d->cuStreamSynchronize(handle(stream)), "cuStreamSynchronize",
          "waiting for a stream of " + device.info().describe());
}

Event::Event(std::shared_ptr<const Device> device) : device_(std::move(device)) {
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuEventCreate(&handle_, 0), "cuEventCreate", "making an event on " + device_->info().describe());
}

Event::~Event() { device_->driver()->cuEventDestroy_v2(handle_); }

void Event::record(Stream stream) const {
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuEventRecord(handle_, handle(stream)), "cuEventRecord",
          "recording an event on " + device_->info().describe());
}

void Event::synchronize() const {
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuEventSynchronize(handle_), "cuEventSynchronize",
          "waiting for an event of " + device_->info().describe());
}

void Event::hold(Stream stream) const {
  const Current current(*device_);
  const Driver& d = device_->driver();
  d.check(d->cuStreamWaitEvent(handle(stream), handle_, 0), "cuStreamWaitEvent",
          "ordering streams of " + device_->info().describe());
}

double Event::milliseconds_since(const Event& start) const {
  float ms = 0;
  const Driver& d = device_->driver();
  d.check(d->cuEventElapsedTime(&ms, start.handle_, handle_), "cuEventElapsedTime",
          "timing on " + device_->info().describe());
  return ms;
}

}  // namespace kerf::cuda
