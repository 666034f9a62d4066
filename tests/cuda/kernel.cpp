// A GPU kernel as a user has it: compile, launch on a stream, and what is refused. On the stand-in.
#include "kerf/kernel.h"

#include <cstring>

#include "kerf/dsl.h"
#include "tests/cuda/fake.h"
#include "tests/support/errors.h"

namespace kerf::test {

namespace {

Program twice() {
  ProgramBuilder p("twice");
  const Axis N = p.axis("N");
  const Tensor x = p.input("x", f32, {N}), y = p.output("y", f32, {N});
  const Block n = p.parallel(N, 128);
  store(y, n, load(x, n) + load(x, n));
  return p.finish();
}

constexpr Device first{DeviceType::cuda, 0}, second{DeviceType::cuda, 1};

bool has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text, " lacks: ", part);
  return false;
}

}  // namespace

TEST_CASE("cuda kernel: launches go to the stream with their arguments, and nothing is allocated or waited for") {
  const Fake fake("9.0,8.0");
  for (const Device at : {first, second}) {
    const auto device = cuda::Device::open(at.ordinal);
    const cuda::Buffer x(device, 4000), y(device, 4000), sizes(device, 8);
    const cuda::OwnStream stream(device);
    const Kernel kernel = compile(twice(), Target::of(at), {}, at);
    CHECK(kernel.name() == "twice");
    CHECK(kernel.device() == at);
    CHECK(kernel.resources().registers == 40);
    CHECK(kernel.resources().threads > 0);
    const int allocations = fake->calls["cuMemAlloc_v2"], loads = fake->calls["cuModuleLoadDataEx"];
    fake->launches.clear();
    LaunchArgs args{{{"x", x.tensor(f32, {1000})}, {"y", y.tensor(f32, {1000})}}};
    args.device_sizes = {{"N", static_cast<const std::int64_t*>(sizes.data())}};
    for (int i = 0; i < 10; ++i) kernel.launch(args, stream);
    kernel.launch({{{"x", x.tensor(f32, {0})}, {"y", y.tensor(f32, {0})}}}, stream);
    REQUIRE(fake->launches.size() == 10);
    const FakeLaunch& l = fake->launches[9];
    CHECK(l.function == "twice");
    CHECK(l.ordinal == at.ordinal);
    CHECK(l.grid == 8);
    CHECK(l.threads == static_cast<unsigned>(kernel.resources().threads));
    CHECK(l.stream == Stream(stream).handle);
    REQUIRE(l.parameters.size() == 1);
    const void* words[6] = {};
    REQUIRE(l.parameters[0].size() == sizeof words);
    std::memcpy(words, l.parameters[0].data(), sizeof words);
    CHECK(reinterpret_cast<std::intptr_t>(words[0]) == 1000);
    CHECK(words[1] == x.data());
    CHECK(words[3] == y.data());
    CHECK(words[5] == sizes.data());
    CHECK(fake->calls["cuMemAlloc_v2"] == allocations);
    CHECK(fake->calls["cuModuleLoadDataEx"] == loads);
    CHECK(fake->calls["cuStreamSynchronize"] == 0);
    CHECK(fake->calls["cuCtxSynchronize"] == 0);
    CHECK(fake.stack().empty());
  }
}

TEST_CASE("cuda kernel: pointers that are not memory of its device are refused, whatever the tensor claims") {
  const Fake fake("9.0,9.0");
  const auto device = cuda::Device::open(0), other = cuda::Device::open(1);
  const cuda::Buffer mine(device, 64), theirs(other, 64), out(device, 64);
  float host[16] = {};
  const Kernel kernel = compile(twice(), Target::cuda("sm_80"));
  CHECK(kernel.device() == first);
  const auto with = [&](TensorRef x) {
    return usage_error([&] { kernel.launch({{{"x", x}, {"y", out.tensor(f32, {16})}}}, Stream{}); });
  };
  CHECK(with(mine.tensor(f32, {16})) == "no error");
  CHECK(with(theirs.tensor(f32, {16})) ==
        "twice: x is in the memory of cuda:1, the kernel runs on cuda:0; copy it there or compile the program for that "
        "device");
  CHECK(
      with(TensorRef(theirs.data(), f32, {16}, first)) ==
      "twice: x is memory of cuda:1, the kernel runs on cuda:0; copy it there or compile the program for that device");
  CHECK(with(TensorRef(host, {16})) ==
        "twice: x is in host memory, the kernel runs on cuda:0; copy it there and name the device in its TensorRef");
  CHECK(has(with(TensorRef(host, f32, {16}, first)), "twice: x at 0x"));
  std::int64_t size = 16;
  LaunchArgs args{{{"x", mine.tensor(f32, {16})}, {"y", out.tensor(f32, {16})}}};
  args.device_sizes = {{"N", &size}};
  CHECK(has(usage_error([&] { kernel.launch(args, Stream{}); }), "twice: the size of N at 0x"));
  CHECK(fake->launches.size() == 1);
}

TEST_CASE("cuda kernel: pools, streams and devices that do not go with it are refused") {
  const Fake fake("8.0");
  const Kernel gpu = compile(twice(), Target::cuda("sm_80")), cpu = compile(twice());
  ThreadPool pool(1);
  CHECK(usage_error([&] { gpu.launch({}, pool); }) ==
        "twice was compiled for cuda:0; launch it on a Stream instead of a thread pool");
  CHECK(usage_error([&] { cpu.launch({}, Stream{}); }) ==
        "twice was compiled for the CPU; launch it on a thread pool, or compile it for a GPU");
  CHECK(usage_error([] { Kernel().launch({}, Stream{}); }) == "Kernel::launch: an empty kernel; make one with compile");
  CHECK(cpu.resources().registers == 0);
  CHECK(cpu.device() == Device{});
  CHECK(has(usage_error([] { compile(twice(), Target::host(), {}, first); }),
            "compile: twice for cuda:0 with a target of the CPU ("));
  CHECK(usage_error([] { compile(twice(), Target::cuda("sm_80"), {}, second); }) ==
        "cuda: there is no cuda:1; the driver sees 1 device, cuda:0");
  CHECK(has(thrown([] { compile(twice(), Target::cuda("sm_90a")); }),
            "the PTX is for sm_90a, the device has compute capability 8.0; the code is for another GPU"));
}

TEST_CASE("cuda kernel: text for a GPU needs no driver") {
  const Variable none("KERF_CUDA_DRIVER", "libkerf-there-is-no-such-driver.so");
  for (const char* arch : {"sm_80", "sm_90a"}) {
    const std::string ptx = emit(twice(), Stage::assembly, Target::cuda(arch));
    CHECK(has(ptx, std::string(".target ") + arch));
    CHECK(has(ptx, ".entry twice("));
  }
  CHECK(has(thrown([] { compile(twice(), Target::cuda("sm_80")); }), "DeviceError: cuda: there is no NVIDIA driver: "));
}

}  // namespace kerf::test
