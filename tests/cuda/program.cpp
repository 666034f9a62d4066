// How the arguments of a launch reach a kernel: their words, tensor maps and grid, and which pointers are refused.
#include "runtime/cuda/program.h"

#include <cstring>

#include "kerf/dsl.h"
#include "tests/cuda/fake.h"
#include "tests/support/errors.h"

namespace kerf::test {

namespace {

/// y[N] = the row sums of x[N, D], in blocks of 64 rows.
Program row_sums() {
  ProgramBuilder p("row_sums");
  const Axis N = p.axis("N"), D = p.axis("D");
  const Tensor x = p.input("x", f32, {N, D}), y = p.output("y", f32, {N});
  const Block n = p.parallel(N, 64);
  store(y, n, p.loop(D, 32, zeros(n), [&](Block d, Tile sum) { return sum + reduce_sum(load(x, n, d), D); }));
  return p.finish();
}

/// Code for it that takes the right arguments; the stand-in runs none.
codegen::nvptx::Code code(int maps) {
  codegen::nvptx::Code c;
  c.entry = "row_sums";
  c.threads = 128;
  c.shared_bytes = 64 << 10;
  c.argument_words = 9;  // N, D; x and 2 strides; y and 1 stride; where N and D are at run time
  std::string parameters;
  for (int i = 0; i < maps; ++i) {
    parameters += ".param .align 64 .b8 map" + std::to_string(i) + "[128], ";
    c.maps.push_back({.tensor = 0, .rows = 64 * (i + 1)});
  }
  c.ptx = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry row_sums(" + parameters +
          ".param .align 8 .b8 args[72])\n{ ret; }\n";
  return c;
}

std::vector<std::int64_t> words(const std::vector<std::byte>& parameter) {
  std::vector<std::int64_t> w(parameter.size() / 8);
  std::memcpy(w.data(), parameter.data(), parameter.size());
  return w;
}

std::int64_t number(const void* p) { return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(p)); }

}  // namespace

TEST_CASE("cuda program: words, run-time sizes and a grid of what fits at once") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Buffer x(device, 4 << 20), y(device, 1 << 20), sizes(device, 16);
  const auto* n_at = static_cast<const std::int64_t*>(sizes.data());
  const Program program = row_sums();
  const cuda::LoadedCode loaded(device, program.ir(), code(0));
  const cuda::OwnStream stream(device);
  const auto launch = [&](std::int64_t N, std::int64_t D) {
    LaunchArgs args{{{"x", x.tensor(f32, {N, D})}, {"y", y.tensor(f32, {N})}}};
    args.device_sizes = {{"N", n_at}};
    loaded.launch(program.ir(), ir::bind(program.ir(), args, device->tag()), stream);
  };
  const int allocations = fake->calls["cuMemAlloc_v2"];
  launch(100, 33);
  launch(100'000, 4);
  launch(0, 4);
  REQUIRE(fake->launches.size() == 2);
  CHECK(fake->launches[0].grid == 2);
  CHECK(fake->launches[1].grid == 132 * 2);
  CHECK(fake->launches[0].threads == 128);
  CHECK(fake->launches[0].shared == 64 << 10);
  CHECK(fake->launches[0].stream == Stream(stream).handle);
  REQUIRE(fake->launches[0].parameters.size() == 1);
  CHECK(words(fake->launches[0].parameters[0]) ==
        std::vector<std::int64_t>{100, 33, number(x.data()), 33, 1, number(y.data()), 1, number(n_at), 0});
  CHECK(fake->calls["cuMemAlloc_v2"] == allocations);
  CHECK(fake->calls["cuStreamSynchronize"] == 0);
  CHECK(fake->calls["cuCtxSynchronize"] == 0);

  const KernelResources r = loaded.resources();
  CHECK(r.registers == 40);
  CHECK(r.threads == 128);
  CHECK(r.blocks == 2);
  CHECK(r.shared_bytes == 64 << 10);
  CHECK(r.local_bytes == 0);
}

TEST_CASE("cuda program: tensor maps come before the words, made for the tensors of this launch") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Buffer x(device, 1 << 20), y(device, 1 << 12);
  const Program program = row_sums();
  const cuda::LoadedCode loaded(device, program.ir(), code(2));
  const auto bound = [&](TensorRef e) {
    return ir::bind(program.ir(), {{{"x", e}, {"y", y.tensor(f32, {e.shape[0]})}}}, device->tag());
  };
  const ir::Bound good = bound(x.tensor(f32, {100, 64}).with_strides({72, 1}));
  CHECK(loaded.unfit(program.ir(), good).empty());
  loaded.launch(program.ir(), good, {});
  REQUIRE(fake->maps.size() == 2);
  CHECK(fake->maps[0].data == x.data());
  CHECK(fake->maps[0].box == std::vector<std::uint32_t>{32, 64});
  CHECK(fake->maps[0].strides == std::vector<std::uint64_t>{288});
  CHECK(fake->maps[1].sizes == std::vector<std::uint64_t>{64, 100});
  CHECK(fake->maps[1].box == std::vector<std::uint32_t>{32, 128});
  REQUIRE(fake->launches.at(0).parameters.size() == 3);
  CHECK(words(fake->launches[0].parameters[0])[0] == 1);
  CHECK(words(fake->launches[0].parameters[1])[0] == 2);
  CHECK(words(fake->launches[0].parameters[2])[1] == 64);

  CHECK(loaded.unfit(program.ir(), bound(x.tensor(f32, {100, 65}))) ==
        "x: its rows are 260 bytes apart, which must be a multiple of 16, above 0 and below 2^40");
}

TEST_CASE("cuda program: packed tiles are one matrix, tile below tile") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  ProgramBuilder p("row_sums");
  const Axis N = p.axis("N"), V = p.axis("V");
  const TileList kept = p.tile_list("kept", N, 64, V, 128);
  const Packed z = p.packed_input("z", bf16, kept, {V, N});
  const Tensor y = p.output("y", f32, {N});
  const Block n = p.parallel(N, 64);
  store(y, n, p.loop(kept.in_row(n), zeros(n), [&](Kept k, Block, Tile sum) {
    return sum + reduce_sum(cast(load(z, k), f32), V);
  }));
  const Program program = p.finish();
  codegen::nvptx::Code c = code(1);
  c.argument_words = 2 + 3 + 2 + 8 + 2;
  const std::string name = "args[72]";
  c.ptx.replace(c.ptx.find(name), name.size(), "args[136]");
  const cuda::LoadedCode loaded(device, program.ir(), c);
  const cuda::Buffer tiles(device, 3 * 64 * 128 * 2), out(device, 4096), list(device, 4096);
  const auto* i = static_cast<const std::int32_t*>(list.data());
  LaunchArgs args{{{"z", tiles.tensor(bf16, {3 * 64 * 128})}, {"y", out.tensor(f32, {100})}}};
  args.lists = {
      {"kept",
       {.count = 3, .row = i, .column = i, .row_begin = i, .row_items = i, .column_begin = i, .column_items = i}}};
  args.axes = {{"V", 300}};
  const ir::Bound bound = ir::bind(program.ir(), args, device->tag());
  CHECK(loaded.unfit(program.ir(), bound).empty());
  loaded.launch(program.ir(), bound, {});
  REQUIRE(fake->maps.size() == 1);
  CHECK(fake->maps[0].sizes == std::vector<std::uint64_t>{64, 384});
  CHECK(fake->maps[0].strides == std::vector<std::uint64_t>{128});
  CHECK(fake->maps[0].box == std::vector<std::uint32_t>{64, 64});
}

TEST_CASE("cuda program: arguments that pass the driver's limit are refused when the code is loaded") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const Program program = row_sums();
  codegen::nvptx::Code c = code(0);
  c.argument_words = 513;
  CHECK(thrown([&] { cuda::LoadedCode(device, program.ir(), c); }) ==
        "DeviceError: compile: row_sums takes 4104 bytes of arguments, a GPU kernel at most 4096: use fewer tensors");
}

TEST_CASE("cuda program: code that takes other arguments than the launch has is Kerf's fault") {
  const Fake fake;
  const auto device = cuda::Device::open(0);
  const cuda::Buffer x(device, 4096), y(device, 4096);
  const Program program = row_sums();
  codegen::nvptx::Code c = code(0);
  c.argument_words = 8;
  const cuda::LoadedCode loaded(device, program.ir(), c);
  const LaunchArgs args{{{"x", x.tensor(f32, {8, 8})}, {"y", y.tensor(f32, {8})}}};
  CHECK(thrown([&] { loaded.launch(program.ir(), ir::bind(program.ir(), args, device->tag()), {}); }) ==
        "InternalError: row_sums: a launch has 9 words of arguments, the code takes 8");
}

}  // namespace kerf::test
