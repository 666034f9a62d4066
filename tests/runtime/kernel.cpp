// From a program to a launch: what a kernel computes, what it refuses.
#include "kerf/kernel.h"

#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <thread>

#include "kerf/dsl.h"
#include "kerf/error.h"
#include "runtime/tile_lists.h"
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

namespace {

/// y = a b^T.
Program products() {
  ProgramBuilder p("products");
  Axis N = p.axis("N"), M = p.axis("M"), K = p.axis("K", 19);
  Tensor a = p.input("a", f32, {N, K}), b = p.input("b", f32, {M, K}), y = p.output("y", f32, {N, M});
  Block n = p.parallel(N, 16), m = p.parallel(M, 16);
  store(y, n, m, p.loop(K, 8, zeros(n, m), [&](Block k, Tile acc) { return acc + dot(load(a, n, k), load(b, m, k)); }));
  return p.finish();
}

struct Products {
  Array a, b, y;
  Products(std::int64_t n, std::int64_t m, std::uint64_t seed) : a(f32, {n, 19}), b(f32, {m, 19}), y(f32, {n, m}) {
    Random random(seed);
    a = normal(random, f32, {n, 19});
    b = normal(random, f32, {m, 19}, 1, 2);
  }
  LaunchArgs args() { return {.tensors = {{"a", a.ref()}, {"b", b.ref()}, {"y", y.ref()}}}; }
  std::vector<double> loops() const {
    std::vector<double> want;
    for (std::int64_t i = 0; i < y.shape()[0]; ++i)
      for (std::int64_t j = 0; j < y.shape()[1]; ++j) {
        double sum = 0;
        for (std::int64_t k = 0; k < 19; ++k) sum += a[i * 19 + k] * b[j * 19 + k];
        want.push_back(sum);
      }
    return want;
  }
};

}  // namespace

TEST_CASE("Kernel: scratch of the caller, exactly as large as told, is enough and nothing beside it is written") {
  const Kernel kernel = compile(products());
  CHECK(kernel.valid());
  CHECK(kernel.name() == "products");
  Products x(50, 37, 1);
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    const std::size_t bytes = kernel.scratch_bytes(threads);
    CHECK(bytes == static_cast<std::size_t>(threads) * kernel.scratch_bytes(1));
    std::vector<std::byte> memory(bytes + 256, std::byte{0x77});
    const std::size_t at = 128 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64;
    x.y.poison();
    LaunchArgs args = x.args();
    args.scratch = memory.data() + at;
    kernel.launch(args, pool);
    CHECK(error(x.y, x.loops()).norm < 1e-6);
    for (std::size_t i = 0; i < memory.size(); ++i)
      if (i < at || i >= at + bytes) CHECK(memory[i] == std::byte{0x77});
  }
}

TEST_CASE("Kernel: launches from several threads may overlap") {
  const Kernel kernel = compile(products());
  ThreadPool shared(2);
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<Products>> x;
  for (std::uint64_t i = 0; i < 4; ++i)
    x.push_back(std::make_unique<Products>(40 + static_cast<std::int64_t>(i), 30, i));
  for (auto& one : x)
    threads.emplace_back([&] {
      ThreadPool own(1);
      for (int i = 0; i < 10; ++i) kernel.launch(one->args(), i % 2 ? shared : own);
    });
  for (std::thread& t : threads) t.join();
  for (auto& one : x) CHECK(error(one->y, one->loops()).norm < 1e-6);
}

TEST_CASE("Kernel: wrong arguments are refused before anything is written") {
  const Kernel kernel = compile(products());
  ThreadPool pool(2);
  Products x(20, 20, 3);
  const auto before = x.y.bytes();
  const auto refuse = [&](auto change, const char* message) {
    LaunchArgs args = x.args();
    change(args);
    CHECK_THROWS_WITH_AS(kernel.launch(args, pool), message, UsageError);
    CHECK(x.y.bytes() == before);
  };
  refuse([](LaunchArgs& a) { a.tensors.pop_back(); }, "products: tensor y is missing");
  refuse(
      [](LaunchArgs& a) {
        a.tensors[0] = {"x", a.tensors[0].second};
      },
      "products: there is no tensor x; there is a, b, y");
  refuse([](LaunchArgs& a) { a.tensors[0].second.dtype = bf16; }, "products: a is bf16 [20, 19], the program has f32");
  refuse([](LaunchArgs& a) { a.tensors[2].second.shape[0] = 21; }, "products: axis N: a has 20 and y has 21");
  refuse(
      [&](LaunchArgs& a) {
        a.tensors[2].second = TensorRef(a.tensors[0].second.data, f32, {20, 20});
      },
      "products: a and y overlap in memory, and y is written");
  alignas(64) static std::byte scratch[128];
  LaunchArgs args = x.args();
  args.scratch = scratch + 8;
  CHECK_THROWS_AS(kernel.launch(args, pool), UsageError);
}

TEST_CASE("Kernel: several that run together compute what they do one after the other") {
  const Kernel kernel = compile(products());
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    // Few instances, none, many.
    Products few(3, 20, 1), none(0, 5, 2), many(300, 90, 3);
    std::vector<KernelLaunch> launches;
    for (Products* x : {&few, &none, &many}) {
      x->y.poison();
      launches.push_back({kernel, x->args()});
    }
    Kernel::launch_together(launches, pool);
    for (const Products* x : {&few, &many}) {
      CHECK(error(x->y, x->loops()).norm < 1e-6);
      CHECK(x->y.surroundings_intact());
    }
    const auto together = many.y.bytes();
    many.y.poison();
    kernel.launch(many.args(), pool);
    CHECK(many.y.bytes() == together);

    const std::size_t bytes = kernel.scratch_bytes(threads);
    std::vector<std::byte> memory(bytes + 256, std::byte{0x77});
    const std::size_t at = 128 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64;
    for (KernelLaunch& l : launches) l.args.scratch = memory.data() + at;
    many.y.poison();
    Kernel::launch_together(launches, pool);
    CHECK(many.y.bytes() == together);
    for (std::size_t i = 0; i < memory.size(); ++i)
      if (i < at || i >= at + bytes) CHECK(memory[i] == std::byte{0x77});

    launches[2].args.tensors.pop_back();
    few.y.poison();
    const auto before = few.y.bytes();
    CHECK_THROWS_WITH_AS(Kernel::launch_together(launches, pool), "products: tensor y is missing", UsageError);
    CHECK(few.y.bytes() == before);
  }
  ThreadPool pool(1);
  CHECK_NOTHROW(Kernel::launch_together({}, pool));
  CHECK_THROWS_WITH_AS(Kernel::launch_together({{Kernel(), {}}}, pool),
                       "launch_together: an empty kernel; make one with compile", UsageError);
}

TEST_CASE("Kernel: an empty one says where kernels come from") {
  Kernel none;
  ThreadPool pool(1);
  CHECK(!none.valid());
  CHECK_THROWS_WITH_AS(none.launch({}, pool), "Kernel::launch: an empty kernel; make one with compile", UsageError);
  CHECK_THROWS_WITH_AS(none.scratch_bytes(1), "Kernel::scratch_bytes: an empty kernel; make one with compile",
                       UsageError);
  CHECK_THROWS_WITH_AS(none.name(), "Kernel::name: an empty kernel; make one with compile", UsageError);
}

TEST_CASE("Kernel: an empty axis runs no instance") {
  const Kernel kernel = compile(products());
  ThreadPool pool(2);
  Products x(0, 5, 1);
  kernel.launch(x.args(), pool);
  CHECK(x.y.surroundings_intact());
}

TEST_CASE("Kernel: a target other than this machine is refused with what is missing") {
  CHECK_THROWS_AS(compile(products(), Target::aarch64()), DeviceError);
}

TEST_CASE("Kernel: instances over a tile list write the listed tiles and no other") {
  ProgramBuilder p("copy_kept");
  Axis N = p.axis("N"), M = p.axis("M");
  Tensor x = p.input("x", f32, {N, M}), y = p.output("y", f32, {N, M});
  TileList kept = p.tile_list("kept", N, 16, M, 32);
  auto [k, n, m] = p.parallel(kept);
  store(y, n, m, load(x, n, m) + 1);
  const Program program = p.finish();

  Random random(5);
  Array in = normal(random, f32, {50, 100}), out(f32, {50, 100});
  const runtime::Rectangle area{.rows = 4, .columns = 4, .begin = 1, .end = 3};
  std::vector<std::byte> memory(list_bytes(area));
  const TileListRef list = fill_by_column(area, memory.data());
  CHECK(list.count == 8);
  on_each_backend(program, {.arrays = {{"x", &in}, {"y", &out}}, .lists = {{"kept", list}}}, [&] {
    for (std::int64_t i = 0; i < out.size(); ++i) {
      const std::int64_t column = i % 100 / 32;
      if (column == 1 || column == 2)
        CHECK(out[i] == static_cast<float>(in[i] + 1));
      else
        CHECK(std::isnan(out[i]));
    }
  });
}

TEST_CASE("tile lists: rows and columns of a rectangle name each tile once, in order") {
  const runtime::Rectangle area{.rows = 3, .columns = 5, .begin = 2, .end = 4};
  std::vector<std::byte> memory(list_bytes(area));
  const TileListRef l = fill_by_column(area, memory.data());
  CHECK(std::vector<std::int32_t>(l.row, l.row + 6) == std::vector<std::int32_t>{0, 1, 2, 0, 1, 2});
  CHECK(std::vector<std::int32_t>(l.column, l.column + 6) == std::vector<std::int32_t>{2, 2, 2, 3, 3, 3});
  CHECK(std::vector<std::int32_t>(l.row_begin, l.row_begin + 4) == std::vector<std::int32_t>{0, 2, 4, 6});
  CHECK(std::vector<std::int32_t>(l.row_items, l.row_items + 6) == std::vector<std::int32_t>{0, 3, 1, 4, 2, 5});
  CHECK(std::vector<std::int32_t>(l.column_begin, l.column_begin + 6) == std::vector<std::int32_t>{0, 0, 0, 3, 6, 6});
  CHECK(std::vector<std::int32_t>(l.column_items, l.column_items + 6) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("emit: a program can be read at each stage") {
  const Program program = products();
  CHECK(emit(program, Stage::dsl).find("kernel.cpp:") != std::string::npos);
  CHECK(emit(program, Stage::tile).find("dot") != std::string::npos);
  CHECK(emit(program, Stage::llvm).find("define") != std::string::npos);
  CHECK(emit(program, Stage::assembly).find("ret") != std::string::npos);
  CHECK(emit(program, Stage::assembly, Target::aarch64()).find("fmla") != std::string::npos);
}
