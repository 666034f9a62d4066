// Arguments that do not fit the program are told before anything is read or written.
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"
#include "tests/support/errors.h"

using namespace kerf;
using kerf::test::usage_error;

namespace {

/// y[n,d] = x[n,d] + s, in blocks of 2 rows.
Program plus() {
  ProgramBuilder p("plus");
  Axis N = p.axis("N"), D = p.axis("D", 4);
  Tensor x = p.input("x", f32, {N, D}), s = p.input("s", f32, {}), y = p.output("y", f32, {N, D});
  Block n = p.parallel(N, 2), d = p.whole(D);
  store(y, n, d, load(x, n, d) + load(s));
  return p.finish();
}

struct Sample {
  Program program = plus();
  std::array<float, 64> x{}, y{};
  float s = 1;
  LaunchArgs args{.tensors = {{"x", {x.data(), {3, 4}}}, {"s", {&s, {}}}, {"y", {y.data(), {3, 4}}}}};

  TensorRef& operator[](std::size_t i) { return args.tensors[i].second; }
  std::string error() {
    return usage_error([&] { ir::bind(program.ir(), args); });
  }
};
enum { X, S, Y };

std::string error_with(auto&& change) {
  Sample sample;
  change(sample);
  return sample.error();
}

}  // namespace

TEST_CASE("bind: sizes, instances and tensors of a launch that fits") {
  Sample sample;
  const ir::Bound b = ir::bind(sample.program.ir(), sample.args);
  CHECK(b.axis_size == std::vector<std::int64_t>{3, 4});
  CHECK(b.instances == 2);
  CHECK(b.tensors[Y].data == sample.y.data());

  sample[X] = TensorRef(sample.x.data(), {3, 4}).with_strides({9, 1});
  sample[Y] = TensorRef(sample.y.data(), {3, 4}).with_strides({-5, 1});
  CHECK(sample.error() == "no error");
  sample[X] = TensorRef(sample.x.data(), {3, 4}).with_strides({0, 1});  // an input may repeat a row
  CHECK(sample.error() == "no error");
  sample[X] = sample[Y] = TensorRef(static_cast<float*>(nullptr), {0, 4});
  CHECK(sample.error() == "no error");
  CHECK(ir::bind(sample.program.ir(), sample.args).instances == 0);
}

TEST_CASE("bind: names") {
  CHECK(error_with([](Sample& s) { s.args.tensors.pop_back(); }) == "plus: tensor y is missing");
  CHECK(error_with([](Sample& s) { s.args.tensors.emplace_back("z", s[X]); }) ==
        "plus: there is no tensor z; there is x, s, y");
  CHECK(error_with([](Sample& s) { s.args.tensors.emplace_back("x", s[X]); }) == "plus: tensor x is given twice");
  CHECK(error_with([](Sample& s) { s.args.lists.emplace_back("kept", TileListRef()); }) ==
        "plus: there is no tile list kept; it has none");
  CHECK(error_with([](Sample& s) { s.args.axes.emplace_back("V", 1); }) == "plus: there is no axis V; there is N, D");
}

TEST_CASE("bind: dtype, rank and size") {
  CHECK(error_with([](Sample& s) { s[X].dtype = i32; }) == "plus: x is i32 [3, 4], the program has f32");
  CHECK(error_with([](Sample& s) { s[X] = TensorRef(s.x.data(), {12}); }) ==
        "plus: x is f32 [12], the program has x[N, D]");
  CHECK(error_with([](Sample& s) { s[S] = TensorRef(&s.s, {1}); }) == "plus: s is f32 [1], the program has s[]");
  CHECK(error_with([](Sample& s) { s[X].shape[1] = 3; }) == "plus: axis D: the program was built for 4 and x has 3");
  CHECK(error_with([](Sample& s) { s[Y].shape[0] = 2; }) == "plus: axis N: x has 3 and y has 2");
  CHECK(error_with([](Sample& s) { s.args.axes.emplace_back("N", 5); }) ==
        "plus: axis N: LaunchArgs::axes has 5 and x has 3");
  CHECK(error_with([](Sample& s) { s.args.axes.emplace_back("N", -5); }) ==
        "plus: axis N: LaunchArgs::axes has -5, a size is not negative");
  CHECK(error_with([](Sample& s) { s[X].shape[0] = -1; }) == "plus: axis N: x has -1, a size is not negative");
}

TEST_CASE("bind: pointers and devices") {
  CHECK(error_with([](Sample& s) { s[X] = TensorRef(); }) == "plus: tensor x is not given: its data is null");
  CHECK(error_with([](Sample& s) { s[X].data = nullptr; }) == "plus: x is f32 [3, 4] and its data is null");
  CHECK(error_with([](Sample& s) { s[X].data = reinterpret_cast<std::byte*>(s.x.data()) + 2; }) ==
        "plus: x is not aligned to its 4 bytes");
  CHECK(error_with([](Sample& s) { s[X].device.type = DeviceType::cuda; }) == "plus: x is not in host memory");
}

TEST_CASE("bind: strides") {
  CHECK(error_with([](Sample& s) {
          s[X] = s[X].with_strides({1, 3});
        }) == "plus: x is f32 [3, 4] with strides [1, 3]; the stride of its last axis must be 1");
  CHECK(error_with([](Sample& s) {
          s[Y] = s[Y].with_strides({3, 1});
        }) == "plus: y is f32 [3, 4] with strides [3, 1]; its elements overlap, and it is written");
  CHECK(error_with([](Sample& s) {
          s[Y] = s[Y].with_strides({0, 1});
        }) == "plus: y is f32 [3, 4] with strides [0, 1]; its elements overlap, and it is written");
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max() / 8;
  CHECK(error_with([&](Sample& s) {
          s[X] = s[X].with_strides({huge, 1});
        }) == "plus: x: sizes and strides reach past 2^63 bytes");
  CHECK(error_with([&](Sample& s) {
          s[X] = s[X].with_strides({-4 * huge, 1});
        }) == "plus: x: sizes and strides reach past 2^63 bytes");
  CHECK(error_with([&](Sample& s) {
          s[X].shape[0] = s[Y].shape[0] = huge;
          s[X] = s[X].with_strides({0, 1});
        }) == "plus: x: sizes and strides reach past 2^63 bytes");
}

TEST_CASE("bind: an output that shares memory with another tensor") {
  CHECK(error_with([](Sample& s) { s[Y].data = s.x.data(); }) == "plus: x and y overlap in memory, and y is written");
  CHECK(error_with([](Sample& s) { s[Y].data = s.x.data() + 11; }) ==
        "plus: x and y overlap in memory, and y is written");
  CHECK(error_with([](Sample& s) { s[Y].data = s.x.data() + 12; }) == "no error");
  CHECK(error_with([](Sample& s) { s[S].data = s.y.data() + 5; }) ==
        "plus: s and y overlap in memory, and y is written");
  // Columns of one buffer interleave without sharing an element.
  const auto columns = [](Sample& s, std::int64_t first, std::int64_t stride) {
    s[X] = TensorRef(s.x.data(), {3, 4}).with_strides({stride, 1});
    s[Y] = TensorRef(s.x.data() + first, {3, 4}).with_strides({stride, 1});
  };
  CHECK(error_with([&](Sample& s) { columns(s, 4, 8); }) == "no error");
  CHECK(error_with([&](Sample& s) { columns(s, 3, 8); }) == "plus: x and y overlap in memory, and y is written");
  CHECK(error_with([&](Sample& s) { columns(s, 5, 8); }) == "plus: x and y overlap in memory, and y is written");
  CHECK(error_with([&](Sample& s) { columns(s, 12, 8); }) == "no error");
}

TEST_CASE("bind: an axis that nothing tells, and products past 2^63") {
  ProgramBuilder p("fill_all");
  Axis M = p.axis("M"), N = p.axis("N"), D = p.axis("D");
  Tensor y = p.output("y", f32, {D});
  Block m = p.parallel(M, 1), n = p.parallel(N, 1), d = p.parallel(D, 8);
  p.when(reduce_sum(m.index(), M) + reduce_sum(n.index(), N) == 0, [&] { store(y, d, 1); });
  const Program program = p.finish();
  float memory[8];
  LaunchArgs args{.tensors = {{"y", {memory, {8}}}}, .axes = {{"M", 2}}};
  CHECK(usage_error([&] { ir::bind(program.ir(), args); }) ==
        "fill_all: nothing tells the size of axis N; give it in LaunchArgs::axes");
  args.axes.emplace_back("N", std::numeric_limits<std::int64_t>::max());
  CHECK(usage_error([&] { ir::bind(program.ir(), args); }) == "fill_all: the number of its instances passes 2^63");
}

namespace {

/// Sums of the kept tiles along both axes.
Program sums() {
  ProgramBuilder p("sums");
  Axis N = p.axis("N"), V = p.axis("V");
  TileList kept = p.tile_list("kept", N, 2, V, 3), other = p.tile_list("other", N, 2, V, 3);
  Packed dz = p.packed_input("dz", f32, kept, {N, V}), out = p.packed_output("out", f32, other, {N, V});
  Tensor y = p.output("y", f32, {N, V});
  auto [k, n, v] = p.parallel(other);
  Tile rows = p.loop(kept.in_row(n), zeros(n), [&](Kept j, Block, Tile t) { return t + reduce_sum(load(dz, j), V); });
  Tile columns =
      p.loop(kept.in_column(v), zeros(v), [&](Kept j, Block, Tile t) { return t + reduce_sum(load(dz, j), N); });
  store(out, k, rows + columns);
  store(y, n, v, rows);
  return p.finish();
}

struct Lists {
  Program program = sums();
  // 2 x 3 blocks; kept are (0, 0), (0, 2), (1, 2)
  std::vector<std::int32_t> row{0, 0, 1}, column{0, 2, 2}, row_begin{0, 2, 3}, row_items{0, 1, 2};
  std::vector<std::int32_t> column_begin{0, 1, 1, 3}, column_items{0, 1, 2};
  std::vector<float> dz = std::vector<float>(18), out = std::vector<float>(18), y = std::vector<float>(24);
  std::int64_t count = 3, instances = 0;
  TensorRef packed{dz.data(), {18}};
  bool no_items = false;
  const std::int32_t* device_count = nullptr;

  std::string error() {
    TileListRef kept{count,
                     row.data(),
                     column.data(),
                     row_begin.data(),
                     row_items.data(),
                     column_begin.data(),
                     column_items.data(),
                     device_count};
    if (no_items) kept.column_items = nullptr;
    TileListRef other{.count = 3, .row = row.data(), .column = column.data()};
    LaunchArgs args{.tensors = {{"dz", packed}, {"out", {out.data(), {18}}}, {"y", {y.data(), {3, 8}}}},
                    .lists = {{"kept", kept}, {"other", other}},
                    .axes = {{"V", 8}}};
    return usage_error([&] { instances = ir::bind(program.ir(), args).instances; });
  }
};

std::string list_error_with(auto&& change) {
  Lists lists;
  change(lists);
  return lists.error();
}

}  // namespace

TEST_CASE("bind: tile lists") {
  Lists fine;
  CHECK(fine.error() == "no error");
  CHECK(fine.instances == 3);
  CHECK(list_error_with([](Lists& l) { l.count = -1; }) == "sums: tile list kept has -1 tiles");
  CHECK(list_error_with([](Lists& l) { l.row[2] = 2; }) ==
        "sums: tile list kept: tile 2 is block (2, 2) and there are 2 x 3");
  CHECK(list_error_with([](Lists& l) { l.column[1] = -1; }) ==
        "sums: tile list kept: tile 1 is block (0, -1) and there are 2 x 3");
  CHECK(list_error_with([](Lists& l) { l.no_items = true; }) ==
        "sums: tile list kept: column_begin or column_items is null and the program walks columns");
  CHECK(list_error_with([](Lists& l) { l.row_begin[2] = 4; }) ==
        "sums: tile list kept: row_begin runs from 0 to 4, and there are 3 tiles");
  CHECK(list_error_with([](Lists& l) { l.row_begin[0] = 1; }) ==
        "sums: tile list kept: row_begin runs from 1 to 3, and there are 3 tiles");
  CHECK(list_error_with([](Lists& l) { l.row_begin[2] = 2; }) == "no error");  // a tile that no row walks
  CHECK(list_error_with([](Lists& l) { l.row_begin[1] = 4; }) == "sums: tile list kept: row_begin falls from 4 to 3");
  CHECK(list_error_with([](Lists& l) { l.row_items[1] = 2; }) ==
        "sums: tile list kept: row_items[1] is 2, no tile of row block 0");
  CHECK(list_error_with([](Lists& l) { l.column_items[0] = 3; }) ==
        "sums: tile list kept: column_items[0] is 3, no tile of column block 0");
}

TEST_CASE("bind: packed tensors") {
  CHECK(list_error_with([](Lists& l) {
          l.packed = TensorRef(l.dz.data(), {3, 6});
        }) == "sums: dz is f32 [3, 6]; packed tiles lie in one dense array of rank 1");
  CHECK(list_error_with([](Lists& l) { l.packed = TensorRef(l.dz.data(), {17}); }) ==
        "sums: dz has 17 elements; 3 tiles of 2 x 3 need 18");
  CHECK(list_error_with([](Lists& l) { l.packed.dtype = bf16; }) == "sums: dz is bf16 [18], the program has f32");
  CHECK(list_error_with([](Lists& l) { l.packed.data = nullptr; }) == "sums: dz is f32 [18] and its data is null");
  CHECK(list_error_with([](Lists& l) { l.packed.data = l.out.data(); }) ==
        "sums: dz and out overlap in memory, and out is written");
}

namespace {

/// The launch of the sample on GPU 0 after `change`; nothing that its arguments point to is read.
std::string gpu_error_with(auto&& change) {
  Sample s;
  for (auto& [name, tensor] : s.args.tensors) tensor.device = {DeviceType::cuda, 0};
  change(s);
  return usage_error([&] { ir::bind(s.program.ir(), s.args, {DeviceType::cuda, 0}); });
}

}  // namespace

TEST_CASE("bind: arguments of a GPU kernel lie on its GPU") {
  CHECK(gpu_error_with([](Sample&) {}) == "no error");
  CHECK(gpu_error_with([](Sample& s) { s[X].device = {}; }) ==
        "plus: x is in host memory, the kernel runs on cuda:0; copy it there and name the device in its TensorRef");
  CHECK(gpu_error_with([](Sample& s) { s[Y].device.ordinal = 1; }) ==
        "plus: y is in the memory of cuda:1, the kernel runs on cuda:0; copy it there or compile the program for that "
        "device");
}

TEST_CASE("bind: tile counts that the device knows") {
  std::int32_t count = 2;
  const auto bytes = reinterpret_cast<std::byte*>(&count);
  CHECK(list_error_with([&](Lists& l) { l.device_count = reinterpret_cast<const std::int32_t*>(bytes + 2); }) ==
        "sums: tile list kept: device_count is not aligned to 4 bytes");
  count = 4;
  CHECK(list_error_with([&](Lists& l) { l.device_count = &count; }) ==
        "sums: tile list kept: its device_count is 4 and its count 3");
  count = 2;  // and then the lists are those of two tiles
  CHECK(list_error_with([&](Lists& l) { l.device_count = &count; }) ==
        "sums: tile list kept: row_begin runs from 0 to 3, and there are 2 tiles");
}

TEST_CASE("bind: sizes that the device knows") {
  std::int64_t size = 2;
  const auto bytes = reinterpret_cast<std::byte*>(&size);
  CHECK(gpu_error_with([&](Sample& s) { s.args.device_sizes = {{"N", &size}}; }) == "no error");
  CHECK(gpu_error_with([&](Sample& s) {
          s.args.device_sizes = {{"V", &size}};
        }) == "plus: there is no axis V; there is N, D");
  CHECK(gpu_error_with([](Sample& s) {
          s.args.device_sizes = {{"N", nullptr}};
        }) == "plus: LaunchArgs::device_sizes: the pointer to the size of N is null");
  CHECK(gpu_error_with([&](Sample& s) {
          s.args.device_sizes = {{"N", reinterpret_cast<const std::int64_t*>(bytes + 4)}};
        }) == "plus: LaunchArgs::device_sizes: the pointer to the size of N is not aligned to 8 bytes");
  CHECK(error_with([&](Sample& s) { s.args.device_sizes = {{"N", &size}}; }) == "no error");
  size = 1000;
  CHECK(error_with([&](Sample& s) {
          s.args.device_sizes = {{"N", &size}};
        }) == "plus: LaunchArgs::device_sizes: axis N has 1000 indices and the other arguments tell 3");
}
