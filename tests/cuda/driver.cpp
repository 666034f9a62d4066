// What the driver's errors become: kind, text, way out.
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/cuda/module.h"
#include "tests/cuda/fake.h"

namespace kerf::test {

namespace {

std::string opened() {
  return thrown([] { cuda::Device::open(0); });
}

bool has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text, " lacks: ", part);
  return false;
}

/// The error of loading PTX while the driver answers `result`.
std::string loading(Fake& fake, unsigned result, const std::string& ptx = count_ptx) {
  const auto device = cuda::Device::open(0);
  if (result) fake->results["cuModuleLoadDataEx"] = result;
  const std::string text = thrown([&] { cuda::Module(device, ptx, "count"); });
  fake->results.clear();
  return text;
}

}  // namespace

TEST_CASE("cuda driver: a machine without one is told so") {
  const Variable driver("KERF_CUDA_DRIVER", "libkerf-there-is-no-such-driver.so");
  const std::string text = opened();
  CHECK(has(text, "DeviceError: cuda: there is no NVIDIA driver: libkerf-there-is-no-such-driver.so: "));
  CHECK(has(text, "install one, name its library in KERF_CUDA_DRIVER, or use the CPU"));
}

TEST_CASE("cuda driver: one that is too old is named with its version and what it lacks") {
  const Fake fake;
  const Variable old("KERF_CUDA_DRIVER", beside_tests("libkerf_fake_cuda_old.so"));
  const Variable version("KERF_FAKE_CUDA_VERSION", "11070");
  const std::string text = opened();
  CHECK(has(text, "DeviceError: "));
  CHECK(has(text, "(CUDA 11.7) lacks cuTensorMapEncodeTiled; Kerf needs driver 525 (CUDA 12.0) or later"));
}

TEST_CASE("cuda driver: what keeps it from starting is said with a way out") {
  const auto starting = [](unsigned result) {
    const Fake fake;
    fake->results["cuInit"] = result;
    return opened();
  };
  CHECK(has(starting(34), "DeviceError: cuda: starting the driver "));
  CHECK(has(starting(34), "take its folder (.../stubs) out of LD_LIBRARY_PATH"));
  CHECK(has(starting(3), "(CUDA_ERROR_FAKE, 3) from cuInit; the driver does not work in a child that was forked"));
  CHECK(has(starting(803), "of two versions: restart the machine"));
  CHECK(has(starting(804), "(.../compat) out of LD_LIBRARY_PATH"));
  CHECK(has(starting(802), "fabric manager"));
  CHECK(has(starting(46), "compute mode"));
  const Variable hidden("CUDA_VISIBLE_DEVICES", "7");
  CHECK(has(starting(100), "CUDA_VISIBLE_DEVICES is '7'; see nvidia-smi"));
}

TEST_CASE("cuda driver: no device and a device that is not there are told apart") {
  {
    const Fake fake("");
    CHECK(has(opened(), "DeviceError: cuda: "));
  }
  const Fake fake("9.0,8.0");
  CHECK(thrown([] { cuda::Device::open(2); }) ==
        "UsageError: cuda: there is no cuda:2; the driver sees 2 devices, cuda:0 to cuda:1");
  CHECK(thrown([] { cuda::Device::open(-1); }) ==
        "UsageError: cuda: there is no cuda:-1; the driver sees 2 devices, cuda:0 to cuda:1");
}

TEST_CASE("cuda driver: memory that runs out is told with what is free") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  CHECK(thrown([&] { cuda::Buffer(device, std::size_t{1} << 40); }) ==
        "DeviceError: cuda: allocating 1099511627776 bytes on cuda:0 (Stand-in 0): out of memory "
        "(CUDA_ERROR_OUT_OF_MEMORY, 2) from cuMemAlloc_v2; 68719476736 of 137438953472 bytes are free; free memory of "
        "the "
        "device, use fewer tokens at a time or a lower workspace_limit");
}

TEST_CASE("cuda driver: PTX newer than the driver, for another GPU, and wrong PTX are told apart") {
  Fake fake("8.0");
  const Variable version("KERF_FAKE_CUDA_VERSION", "12010");
  const auto with = [](std::string from, const std::string& to) {
    std::string ptx = count_ptx;
    return ptx.replace(ptx.find(from), from.size(), to);
  };
  CHECK(loading(fake, 0, with(".version 8.0", ".version 8.3")) ==
        "DeviceError: cuda: loading count on cuda:0 (Stand-in 0): the provided PTX was compiled with an unsupported "
        "toolchain. (CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222) from cuModuleLoadDataEx; the PTX is version 8.3, the "
        "driver "
        "is for CUDA 12.1; the driver is older than the PTX: update it, or compile for sm_80, which needs CUDA 12.0 "
        "only");
  const std::string other = "the PTX is for sm_90a, the device has compute capability 8.0; the code is for another GPU";
  CHECK(has(loading(fake, 218, with("sm_80", "sm_90a")), "DeviceError: "));
  CHECK(has(loading(fake, 218, with("sm_80", "sm_90a")), other));
  CHECK(has(loading(fake, 209, with("sm_80", "sm_90a")), other));
  fake->jit_error_log = "ptxas application ptx input, line 7; fatal : Parsing error near 'bogus'";
  CHECK(has(loading(fake, 218), "InternalError: "));
  CHECK(has(loading(fake, 218), "the translator says: ptxas application ptx input, line 7; fatal : Parsing error"));
  CHECK(has(loading(fake, 0, "garbage"), "InternalError: "));
  CHECK(has(loading(fake, 221), "DeviceError: "));
  CHECK(has(loading(fake, 221), "libnvidia-ptxjitcompiler.so is missing"));
  CHECK(has(loading(fake, 223), "unset CUDA_DISABLE_PTX_JIT"));
}

TEST_CASE("cuda driver: a function that is missing is Kerf's fault") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Module module(device, count_ptx, "count");
  CHECK(has(thrown([&] { module.function("recount", 128, 0); }), "InternalError: cuda: preparing recount on cuda:0"));
}

TEST_CASE("cuda driver: a lost device is told as such by every later call") {
  for (const unsigned result : {214u, 700u, 702u, 710u, 714u, 715u, 716u, 717u, 718u, 719u, 999u}) {
    const Fake fake;
    const auto device = cuda::Device::open(0);
    fake->results["cuCtxSynchronize"] = result;
    const std::string way_out = "and the device is lost to it: restart the process; compute-sanitizer finds the kernel";
    CHECK(has(thrown([&] { device->synchronize(); }), "DeviceError: "));
    CHECK(has(thrown([&] { device->synchronize(); }), way_out));
    if (result >= 700) {
      CHECK(has(thrown([&] { cuda::Buffer(device, 64); }), way_out));
      CHECK(has(thrown([&] { cuda::Module(device, count_ptx, "count"); }), way_out));
    }
  }
}

TEST_CASE("cuda driver: a context that someone destroyed is told") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  fake->results["cuCtxPushCurrent_v2"] = 201;
  CHECK(has(thrown([&] { cuda::Buffer(device, 64); }), "destroyed or reset the device's primary context"));
  fake->results.clear();
}

TEST_CASE("cuda driver: a result that nobody knows is passed on with the driver's text") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  fake->results["cuCtxSynchronize"] = 12345;
  CHECK(thrown([&] { device->synchronize(); }) ==
        "DeviceError: cuda: waiting for cuda:0 (Stand-in 0): a scripted failure (CUDA_ERROR_FAKE, 12345) from "
        "cuCtxSynchronize; the driver's own text is all that is known; see its documentation of this code");
}

TEST_CASE("cuda driver: the architecture for a device; one that is too old is refused") {
  const auto of = [](const std::string& capability) {
    const Fake fake(capability);
    Target t;
    const std::string text = thrown([&] { t = Target::of({DeviceType::cuda, 0}); });
    return text == "nothing" ? t.level() + " " + t.features : text;
  };
  CHECK(of("9.0") == "sm_90a +ptx83");
  CHECK(of("8.0") == "sm_80 +ptx80");
  CHECK(of("8.9") == "sm_86 +ptx80");
  CHECK(of("10.0") == "sm_80 +ptx80");
  CHECK(of("12.0") == "sm_86 +ptx80");
  CHECK(of("7.5") ==
        "DeviceError: cuda: cuda:0 (Stand-in 0) has compute capability 7.5; Kerf generates code for 8.0 (Ampere) and "
        "later: "
        "use another GPU or the CPU");
}

TEST_CASE("cuda target: an unknown architecture is refused with the known ones") {
  CHECK(thrown([] { Target::cuda("sm_75"); }) ==
        "UsageError: target: 'sm_75' is no GPU architecture that code is generated for; they are sm_80, sm_86, sm_87, "
        "sm_89, "
        "sm_90, sm_90a (sm_80 runs on every later GPU)");
  CHECK(Target::cuda("sm_90a").is_cuda());
  CHECK(!Target::x86("avx2").is_cuda());
}

}  // namespace kerf::test
