// GPU code in the cache: PTX as the portable half, cubins as the driver made them. On the stand-in, and on a GPU where
// there is one.
#include <fmt/format.h>

#include "kerf/loss.h"
#include "runtime/cache/cache.h"
#include "runtime/cuda/program.h"
#include "tests/cache/support.h"
#include "tests/cuda/fake.h"
#include "tests/support/cuda_run.h"

namespace kerf::test {

namespace {

constexpr Device first{DeviceType::cuda, 0}, second{DeviceType::cuda, 1};

Kernel compiled(const std::shared_ptr<CodeCache>& cache, const char* arch = "sm_80", Device device = first) {
  return compile(scale(2), Target::cuda(arch), {}, device, cache);
}

/// Entries by what they hold.
std::pair<int, int> ptx_and_cubins(const fs::path& folder) {
  std::pair<int, int> n;
  for (const fs::path& f : files_in(folder / "v1"))
    if (const auto entry = cache::parse(bytes_of(f))) {
      n.first += cache::to_ptx(*entry).has_value();
      n.second += !entry->section(cache::SectionType::cubin).empty();
    }
  return n;
}

}  // namespace

TEST_CASE("cache cuda: a kept cubin is loaded without lowering or translating, and the translator's words are kept") {
  const NewFolder at;
  const Fake fake;
  fake->registers = 72;
  const auto driver = cuda::Driver::open();
  {
    const Kernel cold = compiled(cache_in(at / "kerf"));
    CHECK(cold.resources().jit_ms > 0);
    CHECK(fake->calls["cuLinkComplete"] == 1);
    CHECK(fake->cubins == 1);
  }
  CHECK(ptx_and_cubins(at / "kerf") == std::pair{1, 1});
  const auto cache = cache_in(at / "kerf");
  const Kernel warm = compiled(cache);
  CHECK(warm.resources().jit_ms == 0);
  CHECK(warm.resources().registers == 72);
  CHECK(fake->calls["cuLinkComplete"] == 1);
  CHECK(fake->calls["cuModuleLoadDataEx"] == 2);
  CHECK(fake->cubins == 2);
  CHECK(cache->status().compiled == 0);
  CHECK(driver->version() == 13000);

  const auto device = cuda::Device::open(0);
  const ir::Program program = scale(2).ir();
  const auto words = [&] {
    return cuda::load_code(cache_in(at / "other"), device, program, Target::cuda("sm_80"), {}, false)->log();
  };
  CHECK(words() == "ptxas info    : Used 72 registers");
  fake->registers = 40;
  CHECK(words() == "ptxas info    : Used 72 registers");
}

TEST_CASE("cache cuda: another driver or GPU translates anew, from the PTX that is kept") {
  const NewFolder at;
  const Fake fake("9.0,8.0,9.0");
  const auto cold = cache_in(at / "kerf");
  CHECK(compiled(cold).device() == first);
  CHECK(cold->status().compiled == 2);
  const auto other_gpu = cache_in(at / "kerf");
  CHECK(compiled(other_gpu, "sm_80", second).device() == second);
  CHECK(other_gpu->status().compiled == 1);
  CHECK(other_gpu->status().from_folders == 1);
  const auto same_kind = cache_in(at / "kerf");
  CHECK(compiled(same_kind, "sm_80", {DeviceType::cuda, 2}).device().ordinal == 2);
  CHECK(same_kind->status().compiled == 0);
  {
    const Variable version("KERF_FAKE_CUDA_VERSION", "13010");
    const auto other_driver = cache_in(at / "kerf");
    CHECK(compiled(other_driver).valid());
    CHECK(other_driver->status().compiled == 1);
    CHECK(other_driver->status().from_folders == 1);
  }
  CHECK(ptx_and_cubins(at / "kerf") == std::pair{1, 3});
}

TEST_CASE("cache cuda: without a linker, or where it refuses, PTX is loaded") {
  for (const char* function : {"cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkComplete"}) {
    const NewFolder at;
    const Fake fake;
    fake->results[function] = 801;
    CHECK(compiled(cache_in(at / "kerf")).resources().jit_ms > 0);
    CHECK(ptx_and_cubins(at / "kerf") == std::pair{1, 0});
    CHECK(fake->cubins == 0);
    CHECK(fake->links == 0);
    const auto cache = cache_in(at / "kerf");
    CHECK(compiled(cache).resources().jit_ms > 0);
    CHECK(cache->status().from_folders == 1);
  }
  const NewFolder at;
  const Fake fake;
  const Variable old("KERF_CUDA_DRIVER", beside_tests("libkerf_fake_cuda_no_linker.so"));
  CHECK(compiled(cache_in(at / "kerf")).valid());
  CHECK(ptx_and_cubins(at / "kerf") == std::pair{1, 0});
}

TEST_CASE("cache cuda: code with warpgroup products is translated as it is loaded, whole") {
  const Fake fake("9.0");
  const auto device = cuda::Device::open(0);
  CHECK(cuda::translate(*device, ".version 8.3\n.target sm_90a\n// nothing\n", "some"));
  CHECK(!cuda::translate(*device, ".version 8.3\n.target sm_90a\nwgmma.fence.sync.aligned;\n", "some"));
  CHECK(!cuda::translate(*device, ".version 8.3\n.target sm_90a\nsetmaxnreg.dec.sync.aligned.u32 32;\n", "some"));
  CHECK(fake->calls["cuLinkCreate_v2"] == 1);
}

TEST_CASE("cache cuda: PTX that the driver does not translate is told by the driver's own error") {
  const NewFolder at;
  const Fake fake("8.0");
  CHECK(thrown([&] { compiled(cache_in(at / "kerf"), "sm_90a"); }).find("the PTX is for sm_90a") != std::string::npos);
  CHECK(ptx_and_cubins(at / "kerf") == std::pair{1, 0});
}

TEST_CASE("cache cuda: a cubin that the driver does not take is replaced") {
  const NewFolder at;
  const Fake fake;
  compiled(cache_in(at / "kerf"));
  for (const fs::path& f : files_in(at / "kerf/v1")) {
    auto entry = cache::parse(bytes_of(f));
    REQUIRE(entry);
    for (cache::Section& s : entry->sections)
      if (s.type == cache::SectionType::cubin) {
        std::string text(reinterpret_cast<const char*>(s.bytes.data()), s.bytes.size());
        text.replace(text.find("90"), 2, "80");
        std::memcpy(s.bytes.data(), text.data(), text.size());
        write_bytes(f, cache::serialize(*entry));
      }
  }
  const auto cache = cache_in(at / "kerf");
  CHECK(compiled(cache).valid());
  CHECK(cache->status().compiled == 1);
  REQUIRE(cache->status().warnings.size() == 1);
  CHECK(cache->status().warnings[0].ends_with("is damaged, and was moved to bad/"));
  const auto next = cache_in(at / "kerf");
  CHECK(compiled(next).resources().jit_ms == 0);
}

TEST_CASE("cache cuda: kernels that are gone leave nothing on the device, whoever holds the cache") {
  const NewFolder at;
  const Fake fake;
  const auto cache = cache_in(at / "kerf");
  {
    const Kernel a = compiled(cache), b = compiled(cache);
    CHECK(fake->modules == 1);
    CHECK(cache->status().from_memory == 1);
  }
  CHECK(fake->modules == 0);
  CHECK(fake->retained[0] == 0);
  CHECK(compiled(cache).resources().jit_ms == 0);
}

TEST_CASE("cache cuda: without a folder the driver translates as it loads") {
  const Fake fake;
  CHECK(compiled(no_folder()).resources().jit_ms > 0);
  CHECK(fake->calls["cuLinkCreate_v2"] == 0);
}

TEST_CASE("cache gpu: a kernel from the folder computes as the one that was translated") {
  const auto device = gpu();
  if (!device) return;
  const NewFolder at;
  const std::int64_t size = 1000;
  for (const Target& target : gpu_targets()) {
    for (const bool kept : {false, true}) {
      const auto cache = cache_in(at / "kerf");
      const Kernel kernel = compile(scale(3), target, {}, first, cache);
      CHECK((kernel.resources().jit_ms == 0) == kept);
      CHECK(cache->status().warnings.empty());
      CHECK(cache->status().compiled == (kept ? 0 : 2));
      const auto code = cuda::load_code(cache, device, scale(3).ir(), target, {}, false);
      CHECK(code->log().find("registers") != std::string::npos);
      std::vector<float> x(size), y(size);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
      launch_on_gpu(device, kernel, scale(3).ir(),
                    {{{"x", TensorRef(x.data(), {size})}, {"y", TensorRef(y.data(), {size})}}});
      for (std::size_t i = 0; i < x.size(); ++i) CHECK(y[i] == 3 * x[i]);
    }
  }
}

}  // namespace kerf::test
