// The same on a real GPU, where there is one: what the stand-in pretends is what the driver does.
#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <optional>

#include "runtime/cuda/module.h"
#include "tests/cuda/fake.h"
#include "tests/support/cuda_run.h"

namespace kerf::test {

namespace {

cuda::api::StreamHandle raw(Stream s) { return static_cast<cuda::api::StreamHandle>(s.handle); }

struct CountArgs {
  void* out;
  std::uint64_t count, add;
};
void launch_count(const cuda::Device& device, const cuda::Function& f, CountArgs args, Stream stream, int cluster = 1) {
  void* parameters[] = {&args};
  cuda::launch(device, f, 4, parameters, stream, cluster);
}

cuda::api::Context current(const cuda::Driver& d) {
  cuda::api::Context c = nullptr;
  d->cuCtxGetCurrent(&c);
  return c;
}

}  // namespace

TEST_CASE("gpu: a kernel writes what it should and nothing else, launched and replayed") {
  const auto device = gpu();
  if (!device) return;
  const cuda::Driver& d = device->driver();
  const cuda::api::Context before = current(d);
  const cuda::Buffer out(device, 8 * 1024);
  const cuda::OwnStream stream(device);
  // Text that the driver has not seen: what it takes from its own cache comes without the translator's words.
  const std::string fresh =
      fmt::format("// {}\n{}", std::chrono::system_clock::now().time_since_epoch().count(), count_ptx);
  const cuda::Module module(device, fresh, "count");
  MESSAGE(device->info().describe(), ", JIT ", module.jit_ms(), " ms: ", module.log());
  CHECK(module.log().find("registers") != std::string::npos);
  const cuda::Function f = module.function("count", 128, 100 << 10);
  CHECK(f.registers > 0);
  CHECK(f.local_bytes == 0);
  CHECK(f.blocks_per_multiprocessor >= 1);
  std::vector<std::uint64_t> back(1024);
  const auto read = [&] {
    out.download(back.data(), out.bytes(), stream);
    stream.synchronize();
  };
  const auto launch_and_check = [&](const cuda::Function& function, int cluster) {
    out.fill(0xff, stream);
    launch_count(*device, function, {out.data(), 1000, 7}, stream, cluster);
    read();
    for (std::uint64_t i = 0; i < 1000; ++i) CHECK(back[i] == i + 7);
    for (std::uint64_t i = 1000; i < 1024; ++i) CHECK(back[i] == ~std::uint64_t{0});
  };
  launch_and_check(f, 1);
  if (device->info().major >= 9) {
    std::string ptx = count_ptx;
    ptx.replace(ptx.find("sm_80"), 5, "sm_90");
    const cuda::Module clustered(device, ptx, "count");
    launch_and_check(clustered.function("count", 128, 0), 2);
  }
  d.check(d->cuStreamBeginCapture_v2(raw(stream), cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
  launch_count(*device, f, {out.data(), 1024, 11}, stream);
  cuda::api::Graph graph = nullptr;
  d.check(d->cuStreamEndCapture(raw(stream), &graph), "cuStreamEndCapture", "a test");
  cuda::api::GraphExec exec = nullptr;
  {
    const cuda::Current c(*device);
    d.check(d->cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiateWithFlags", "a test");
    for (int i = 0; i < 1000; ++i) d.check(d->cuGraphLaunch(exec, raw(stream)), "cuGraphLaunch", "a test");
  }
  read();
  for (std::uint64_t i = 0; i < 1024; ++i) CHECK(back[i] == i + 11);
  d->cuGraphExecDestroy(exec);
  d->cuGraphDestroy(graph);
  CHECK(current(d) == before);
}

TEST_CASE("gpu: the first launch of a kernel may be captured") {
  const auto device = gpu();
  if (!device) return;
  const cuda::Driver& d = device->driver();
  const cuda::Buffer out(device, 8 * 128);
  const cuda::OwnStream stream(device);
  const cuda::Module module(device, count_ptx, "count");
  const cuda::Function f = module.function("count", 128, 0);
  d.check(d->cuStreamBeginCapture_v2(raw(stream), cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
  device->require_memory(out.data(), "out");
  const cuda::Module another(device, count_ptx, "count");  // as a launch does that needs code without tensor maps
  launch_count(*device, f, {out.data(), 128, 3}, stream);
  launch_count(*device, another.function("count", 128, 0), {out.data(), 64, 5}, stream);
  cuda::api::Graph graph = nullptr;
  d.check(d->cuStreamEndCapture(raw(stream), &graph), "cuStreamEndCapture", "a test");
  CHECK(graph != nullptr);
  d->cuGraphDestroy(graph);
}

TEST_CASE("gpu: what a capture forbids is the caller's to change") {
  const auto device = gpu();
  if (!device) return;
  const cuda::Driver& d = device->driver();
  const cuda::OwnStream stream(device);
  d.check(d->cuStreamBeginCapture_v2(raw(stream), cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
  CHECK(thrown([&] { cuda::Buffer(device, 64); }).starts_with("UsageError: cuda: allocating 64 bytes"));
  CHECK(thrown([&] { stream.synchronize(); }).starts_with("UsageError: cuda: waiting for a stream"));
  cuda::api::Graph graph = nullptr;
  CHECK(thrown([&] {
          d.check(d->cuStreamEndCapture(raw(stream), &graph), "cuStreamEndCapture", "ending a capture");
        }).starts_with("UsageError: cuda: ending a capture"));
}

TEST_CASE("gpu: PTX that the driver refuses is told apart as with the stand-in") {
  const auto device = gpu();
  if (!device) return;
  const auto loading = [&](const std::string& from, const std::string& to) {
    std::string ptx = count_ptx;
    ptx.replace(ptx.find(from), from.size(), to);
    return thrown([&] { cuda::Module(device, ptx, "count"); });
  };
  const std::string newer = loading(".version 8.0", ".version 99.0");
  CHECK(newer.starts_with("DeviceError: cuda: loading count"));
  CHECK(newer.find("222) from cuModuleLoadDataEx; the PTX is version 99.0") != std::string::npos);
  const std::string other = loading("sm_80", device->info().major == 9 ? "sm_100" : "sm_90a");
  CHECK(other.starts_with("DeviceError: cuda: loading count"));
  const std::string wrong = loading("mad.lo.s32", "mad.lo.bogus");
  CHECK(wrong.starts_with("InternalError: cuda: loading count"));
  CHECK(wrong.find("the translator says: ") != std::string::npos);
  MESSAGE(newer, "\n", other, "\n", wrong);
  const cuda::Module module(device, count_ptx, "count");
  CHECK(thrown([&] { module.function("recount", 128, 0); }).starts_with("InternalError: cuda: preparing recount"));
}

TEST_CASE("gpu: memory is told apart, and too much of it refused") {
  const auto device = gpu();
  if (!device) return;
  const cuda::Buffer mine(device, 64);
  int host = 0;
  std::optional<cuda::Buffer> gone(std::in_place, device, std::size_t{64} << 20);
  const void* freed = gone->data();
  device->require_memory(mine.data(), "e");
  device->require_memory(freed, "e");
  gone.reset();
  CHECK(thrown([&] { device->require_memory(freed, "e"); }).starts_with("UsageError: e at "));
  CHECK(thrown([&] { device->require_memory(&host, "e"); }).starts_with("UsageError: e at "));
  const std::string text = thrown([&] { cuda::Buffer(device, std::size_t{1} << 50); });
  CHECK(text.starts_with("DeviceError: cuda: allocating 1125899906842624 bytes on cuda:0"));
  CHECK(text.find("bytes are free") != std::string::npos);
  if (device->driver().device_count() < 2) return;
  const auto other = cuda::Device::open(1);
  const cuda::Buffer theirs(other, 64);
  CHECK(thrown([&] { device->require_memory(theirs.data(), "e"); }).starts_with("UsageError: e is memory of cuda:1, "));
  const cuda::OwnStream elsewhere(other);
  const cuda::Module module(device, count_ptx, "count");
  const cuda::Function f = module.function("count", 128, 0);
  CHECK(thrown([&] {
          launch_count(*device, f, {mine.data(), 8, 0}, elsewhere);
        }).starts_with("UsageError: cuda: launching"));
}

TEST_CASE("gpu: tensor maps that are said to fit are taken by the driver") {
  const auto device = gpu();
  if (!device || device->info().major < 9) return;
  const cuda::Buffer data(device, 1 << 20);
  for (const DType dtype : {bf16, f16, f32})
    for (const std::int64_t rows : {1, 7, 1000})
      for (const std::int64_t columns : {8, 64, 100, 128}) {
        const TensorRef t = data.tensor(dtype, {rows, columns});
        CAPTURE(t.describe());
        if (cuda::unfit_for_map(t).empty())
          CHECK(thrown([&] {
                  const cuda::Current current(*device);
                  cuda::encode_tensor_map(device->driver(), {.rows = 64}, t);
                }) == "nothing");
      }
}

}  // namespace kerf::test
