// What a caller's process looks like after Kerf used the device: its context, its memory, its streams.
#include "runtime/cuda/device.h"

#include <cstring>

#include "runtime/cuda/module.h"
#include "tests/cuda/fake.h"
#include "tests/support/errors.h"

namespace kerf::test {

namespace {

struct CountArgs {
  void* out;
  std::uint64_t count, add;
};

void launch_count(const cuda::Device& device, const cuda::Function& f, CountArgs args, Stream stream) {
  void* parameters[] = {&args};
  cuda::launch(device, f, 4, parameters, stream);
}

}  // namespace

TEST_CASE("cuda device: what the driver tells is passed on") {
  const Fake fake("9.0,8.0");
  const auto driver = cuda::Driver::open();
  CHECK(driver->version() == 13000);
  CHECK(driver->version_text() == "13.0");
  CHECK(driver->device_count() == 2);
  const cuda::DeviceInfo info = cuda::device_info(*driver, 1);
  CHECK(info.describe() == "cuda:1 (Stand-in 1)");
  CHECK(info.major == 8);
  CHECK(info.minor == 0);
  CHECK(info.multiprocessors == 132);
  CHECK(info.shared_bytes == 166912);
  CHECK(info.l2_bytes == 60 << 20);
  CHECK(info.memory_bytes == std::int64_t{1} << 37);
  CHECK(fake->calls.count("cuDevicePrimaryCtxRetain") == 0);
}

TEST_CASE("cuda device: the caller's context is current again after every operation, failed ones too") {
  const Fake fake("9.0,8.0");
  CUctx_st callers{0};
  fake.stack().push_back(&callers);
  const auto unchanged = [&] { return fake.stack().size() == 1 && fake.stack().back() == &callers; };
  {
    const auto device = cuda::Device::open(1);
    CHECK(unchanged());
    cuda::Buffer buffer(device, 1024);
    CHECK(unchanged());
    char bytes[16] = {};
    buffer.upload(bytes, 16);
    buffer.download(bytes, 16, {}, 1008);
    buffer.fill(0xff);
    const cuda::OwnStream stream(device);
    stream.synchronize();
    const cuda::Event start(device), end(device);
    start.record(stream);
    end.record(stream);
    end.hold(stream);
    end.synchronize();
    CHECK(end.milliseconds_since(start) == 1);
    CHECK(device->memory().total == std::int64_t{1} << 37);
    device->synchronize();
    CHECK(unchanged());
    const cuda::Module module(device, count_ptx, "count");
    const cuda::Function f = module.function("count", 128, 0);
    launch_count(*device, f, {buffer.data(), 128, 7}, stream);
    CHECK(unchanged());
    CHECK(fake->launches.at(0).ordinal == 1);

    for (const char* call :
         {"cuMemAlloc_v2", "cuCtxSynchronize", "cuModuleLoadDataEx", "cuLaunchKernelEx", "cuStreamCreate",
          "cuEventCreate", "cuMemGetInfo_v2", "cuStreamSynchronize", "cuModuleGetFunction"})
      fake->results[call] = 2;
    CHECK(thrown([&] { cuda::Buffer(device, 64); }) != "nothing");
    CHECK(thrown([&] { device->synchronize(); }) != "nothing");
    CHECK(thrown([&] { device->memory(); }) != "nothing");
    CHECK(thrown([&] { cuda::OwnStream{device}; }) != "nothing");
    CHECK(thrown([&] { cuda::Event{device}; }) != "nothing");
    CHECK(thrown([&] { stream.synchronize(); }) != "nothing");
    CHECK(thrown([&] { cuda::Module(device, count_ptx, "count"); }) != "nothing");
    CHECK(thrown([&] { module.function("count", 128, 0); }) != "nothing");
    CHECK(thrown([&] { launch_count(*device, f, {buffer.data(), 128, 7}, stream); }) != "nothing");
    CHECK(unchanged());
    fake->results.clear();
  }
  CHECK(unchanged());
  CHECK(fake->calls["cuCtxPushCurrent_v2"] == fake->calls["cuCtxPopCurrent_v2"]);
  fake.stack().clear();
}

TEST_CASE("cuda buffer: copies, fills and moves; what does not fit is refused") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  cuda::Buffer a(device, 64);
  a.fill(0xff);
  const std::int32_t sent[4] = {1, -2, 3, -4};
  a.upload(sent, sizeof sent, {}, 16);
  std::int32_t back[16];
  a.download(back, 64);
  CHECK(back[3] == -1);
  CHECK(back[4] == 1);
  CHECK(back[7] == -4);
  CHECK(back[8] == -1);
  const TensorRef t = a.tensor(f32, {4, 4});
  CHECK(t.data == a.data());
  CHECK(t.device == Device{DeviceType::cuda, 0});
  CHECK(usage_error([&] { a.tensor(f32, {17}); }) == "cuda: a tensor of 68 bytes at 0 of a buffer of 64");
  CHECK(usage_error([&] { a.upload(sent, 16, {}, 49); }) == "cuda: an upload of 16 bytes at 49 of a buffer of 64");
  CHECK(usage_error([&] { a.download(back, 65); }) == "cuda: a download of 65 bytes at 0 of a buffer of 64");
  cuda::Buffer b = std::move(a);
  CHECK(b.bytes() == 64);
  CHECK(a.bytes() == 0);  // NOLINT: that is the test
  b = cuda::Buffer(device, 128);
  CHECK(fake->memory.size() == 1);
  CHECK(cuda::Buffer(device, 0).data() == nullptr);
}

TEST_CASE("cuda device: memory that a kernel must not be given is refused with what it is") {
  const Fake fake("9.0,9.0");
  const auto device = cuda::Device::open(0), other = cuda::Device::open(1);
  const cuda::Buffer mine(device, 64), theirs(other, 64);
  int host = 0;
  device->require_memory(mine.data(), "e");
  device->require_memory(static_cast<char*>(mine.data()) + 63, "e");
  CHECK(usage_error([&] { device->require_memory(theirs.data(), "lse: e"); }) ==
        "lse: e is memory of cuda:1, the kernel runs on cuda:0; copy it there or compile the program for that device");
  const std::string text = usage_error([&] { device->require_memory(&host, "lse: e"); });
  CHECK(text.starts_with("lse: e at 0x"));
  CHECK(text.ends_with(
      "is no memory that the driver knows (host memory, or freed), the kernel runs on cuda:0; copy it to "
      "memory of that device (cudaMalloc, or tensor.cuda())"));
  fake->memory[reinterpret_cast<cuda::api::DevicePointer>(&host)] = {4, cuda::api::MemoryType::host, 0, false};
  CHECK(usage_error([&] { device->require_memory(&host, "e"); }).find(" is pinned host memory, ") != std::string::npos);
  fake->memory[reinterpret_cast<cuda::api::DevicePointer>(&host)] = {4, cuda::api::MemoryType::device, 1, true};
  device->require_memory(&host, "managed memory");
  fake->memory.erase(reinterpret_cast<cuda::api::DevicePointer>(&host));
}

TEST_CASE("cuda device: the driver is let go of while everything on it fails") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  {
    const cuda::Buffer buffer(device, 64);
    const cuda::OwnStream stream(device);
    const cuda::Module module(device, count_ptx, "count");
    fake->results["cuCtxSynchronize"] = 700;
    CHECK(thrown([&] { device->synchronize(); }) != "nothing");
  }
  CHECK(fake.stack().empty());
}

}  // namespace kerf::test
