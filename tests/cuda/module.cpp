// Loading, launching, capturing; tensor maps.
#include "runtime/cuda/module.h"

#include <cstring>

#include "tests/cuda/fake.h"
#include "tests/support/errors.h"

namespace kerf::test {

namespace {

struct CountArgs {
  void* out;
  std::uint64_t count, add;
};

void launch_count(const cuda::Device& device, const cuda::Function& f, CountArgs args, Stream stream, int cluster = 1) {
  void* parameters[] = {&args};
  cuda::launch(device, f, 4, parameters, stream, cluster);
}

cuda::api::StreamHandle raw(Stream s) { return static_cast<cuda::api::StreamHandle>(s.handle); }

}  // namespace

TEST_CASE("cuda module: what the translator said and what the function takes is kept") {
  const Fake fake;
  fake->registers = 72;
  fake->local_bytes = 16;
  const auto device = cuda::Device::open(0);
  const cuda::Module module(device, count_ptx, "count");
  CHECK(module.log() == "ptxas info    : Used 72 registers");
  CHECK(module.jit_ms() >= 0);
  const cuda::Function f = module.function("count", 128, 100 << 10);
  CHECK(f.registers == 72);
  CHECK(f.local_bytes == 16);
  CHECK(f.blocks_per_multiprocessor == 2);
  CHECK(fake->dynamic_shared["count"] == 100 << 10);
}

TEST_CASE("cuda module: a block that does not fit is refused with both numbers") {
  const Fake fake("8.0");
  const auto device = cuda::Device::open(0);
  const cuda::Module module(device, count_ptx, "count");
  CHECK(thrown([&] { module.function("count", 128, 200 << 10); }) ==
        "DeviceError: cuda: count needs 204800 bytes of shared memory a block, cuda:0 (Stand-in 0) has 166912: use "
        "smaller "
        "blocks or fewer stages");
  fake->most_threads = 256;
  fake->registers = 200;
  CHECK(thrown([&] { module.function("count", 384, 0); }) ==
        "DeviceError: cuda: count is launched with 384 threads a block, and its 200 registers a thread leave room for "
        "256 on "
        "cuda:0 (Stand-in 0): use smaller blocks");
  fake->blocks_per_multiprocessor = 0;
  CHECK(thrown([&] { module.function("count", 128, 1024); }) ==
        "DeviceError: cuda: no block of count fits a multiprocessor of cuda:0 (Stand-in 0): 128 threads of 200 "
        "registers, 1024 "
        "bytes of shared memory; use smaller blocks");
}

TEST_CASE("cuda launch: grid, block, shared memory, cluster, stream and arguments arrive") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Buffer out(device, 1024);
  const cuda::OwnStream stream(device);
  const cuda::Module module(device, count_ptx, "count");
  const cuda::Function f = module.function("count", 128, 64 << 10);
  const CountArgs args{out.data(), 128, 7};
  launch_count(*device, f, args, stream, 2);
  launch_count(*device, f, args, {});
  cuda::launch(*device, f, 0, {}, stream);
  REQUIRE(fake->launches.size() == 2);
  const FakeLaunch& l = fake->launches[0];
  CHECK(l.function == "count");
  CHECK(l.grid == 4);
  CHECK(l.threads == 128);
  CHECK(l.shared == 64 << 10);
  CHECK(l.cluster == 2);
  CHECK(l.stream == Stream(stream).handle);
  REQUIRE(l.parameters.size() == 1);
  REQUIRE(l.parameters[0].size() == sizeof args);
  CHECK(std::memcmp(l.parameters[0].data(), &args, sizeof args) == 0);
  CHECK(fake->launches[1].cluster == 1);
  CHECK(fake->launches[1].stream == nullptr);
}

TEST_CASE("cuda launch: a stream of another device is refused") {
  const Fake fake("9.0,9.0");
  const auto device = cuda::Device::open(0);
  const cuda::OwnStream elsewhere(cuda::Device::open(1));
  const cuda::Module module(device, count_ptx, "count");
  const cuda::Function f = module.function("count", 128, 0);
  CHECK(thrown([&] { launch_count(*device, f, {}, elsewhere); }) ==
        "UsageError: cuda: launching count on cuda:0 (Stand-in 0): a scripted failure (CUDA_ERROR_FAKE, 400) from "
        "cuLaunchKernelEx; the stream or event belongs to another device or was destroyed: pass one of this device");
}

TEST_CASE("cuda capture: launches are recorded and replayed, nothing is allocated or waited for") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Driver& d = device->driver();
  const cuda::Buffer out(device, 1024);
  const cuda::OwnStream stream(device);
  const cuda::Module module(device, count_ptx, "count");
  const cuda::Function f = module.function("count", 128, 0);
  const int allocations = fake->calls["cuMemAlloc_v2"], waits = fake->calls["cuStreamSynchronize"];
  d.check(d->cuStreamBeginCapture_v2(raw(stream), cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
  launch_count(*device, f, {out.data(), 128, 7}, stream);
  launch_count(*device, f, {out.data(), 128, 8}, stream);
  cuda::api::Graph graph = nullptr;
  d.check(d->cuStreamEndCapture(raw(stream), &graph), "cuStreamEndCapture", "a test");
  CHECK(fake->launches.empty());
  CHECK(fake->calls["cuMemAlloc_v2"] == allocations);
  CHECK(fake->calls["cuStreamSynchronize"] == waits);
  CHECK(fake->calls["cuCtxSynchronize"] == 0);
  cuda::api::GraphExec exec = nullptr;
  d.check(d->cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiateWithFlags", "a test");
  for (int i = 0; i < 3; ++i) d.check(d->cuGraphLaunch(exec, raw(stream)), "cuGraphLaunch", "a test");
  CHECK(fake->launches.size() == 6);
  d->cuGraphExecDestroy(exec);
  d->cuGraphDestroy(graph);
}

TEST_CASE("cuda capture: what a capture forbids is the caller's to change") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Driver& d = device->driver();
  const cuda::OwnStream stream(device);
  d.check(d->cuStreamBeginCapture_v2(raw(stream), cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
  const std::string way_out =
      "make plans and kernels ready (prepare, compile) and allocate before the capture begins, and start it again";
  for (const std::string& text : {thrown([&] { cuda::Buffer(device, 64); }), thrown([&] { stream.synchronize(); })}) {
    CHECK(text.starts_with("UsageError: cuda: "));
    CHECK(text.find("900) from cu") != std::string::npos);
    CHECK(text.ends_with(way_out));
  }
  cuda::api::Graph graph = nullptr;
  const std::string ended =
      thrown([&] { d.check(d->cuStreamEndCapture(raw(stream), &graph), "cuStreamEndCapture", "ending a capture"); });
  CHECK(ended.starts_with("UsageError: cuda: ending a capture: "));
  CHECK(ended.find("901") != std::string::npos);
}

TEST_CASE("cuda tensor maps: sizes, strides and boxes of a matrix") {
  const Fake fake;
  const auto driver = cuda::Driver::open();
  alignas(16) static char data[16];
  const TensorRef e = TensorRef(data, bf16, {1000, 200}).with_strides({208, 1});
  cuda::encode_tensor_map(*driver, {.rows = 128}, e);
  cuda::encode_tensor_map(*driver, {.rows = 64}, TensorRef(data, f16, {1000, 192}));
  cuda::encode_tensor_map(*driver, {.rows = 64}, TensorRef(data, f32, {1, 33}));
  REQUIRE(fake->maps.size() == 3);
  using Sizes = std::vector<std::uint64_t>;
  using Box = std::vector<std::uint32_t>;
  CHECK(fake->maps[0].type == 9);
  CHECK(fake->maps[0].sizes == Sizes{200, 1000});
  CHECK(fake->maps[0].strides == Sizes{416});
  CHECK(fake->maps[0].box == Box{64, 128});
  CHECK(fake->maps[1].type == 6);
  CHECK(fake->maps[1].sizes == Sizes{192, 1000});
  CHECK(fake->maps[1].strides == Sizes{384});
  CHECK(fake->maps[1].box == Box{64, 64});
  CHECK(fake->maps[2].sizes == Sizes{33, 1});
  CHECK(fake->maps[2].strides == Sizes{144});
  CHECK(fake->maps[2].box == Box{32, 64});
}

TEST_CASE("cuda tensor maps: what TMA cannot take is told by its reason") {
  alignas(16) static char data[32];
  const auto why = [](const TensorRef& t) { return cuda::unfit_for_map(t); };
  CHECK(why(TensorRef(data, bf16, {100, 8})).empty());
  CHECK(why(TensorRef(data, bf16, {100, 9})) ==
        "its rows are 18 bytes apart, which must be a multiple of 16, above 0 and below 2^40");
  CHECK(why(TensorRef(data, bf16, {1, 9})).empty());
  CHECK(why(TensorRef(data + 2, bf16, {100, 8})) == "it is not aligned to 16 bytes");
  CHECK(why(TensorRef(data, bf16, {0, 8})) == "it is empty");
  CHECK(why(TensorRef(data, bf16, {std::int64_t{1} << 31, 8})) == "it has 2^31 rows or columns, or more");
  CHECK(why(TensorRef(data, i32, {8, 8})) == "it holds i32");
  CHECK(why(TensorRef(data, bf16, {8})) == "it has rank 1, not 2");
  CHECK(why(TensorRef(data, bf16, {8, 8}).with_strides({-8, 1})) ==
        "its rows are -16 bytes apart, which must be a multiple of 16, above 0 and below 2^40");
}

}  // namespace kerf::test
