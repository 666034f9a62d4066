// What the DSL records, as text: one operation per call, casts where dtypes are promoted, regions for loops.
#include "kerf/dsl.h"

#include <doctest/doctest.h>

#include <string>

#include "lib/ir/ir.h"

using namespace kerf;

namespace {

/// The lines between the braces, without what the sample's frame records itself.
template <class F>
std::string recorded(F&& body) {
  ProgramBuilder p("sample");
  Axis N = p.axis("N"), D = p.axis("D", 32);
  Tensor x = p.input("x", f32, {N, D}), h = p.input("h", bf16, {N, D}), g = p.input("g", f16, {N, D});
  Tensor label = p.input("label", i32, {N}), y = p.output("y", f32, {N});
  Block n = p.parallel(N, 8);
  struct Frame {
    ProgramBuilder& p;
    Axis N, D;
    Tensor x, h, g, label;
    Block n;
  };
  body(Frame{p, N, D, x, h, g, label, n});
  store(y, n, 0);
  const std::string text = p.finish().text();
  const std::string before = "{\n  %n = parallel N by 8 : block<N:8>\n", after = "  store y [%n] ";
  const std::size_t begin = text.find(before) + before.size();
  std::string lines = text.substr(begin, text.rfind(after) - begin);
  return lines.substr(0, lines.rfind("  %"));  // the 0 that is stored
}

}  // namespace

TEST_CASE("text: declarations, operations and places of a whole program") {
  ProgramBuilder p("row_sum");
  Axis N = p.axis("N"), V = p.axis("V", 1000);
  Tensor x = p.input("x", f16, {N, V}), y = p.inout("y", f32, {N});
  TileList kept = p.tile_list("kept", N, 8, V, 16);
  p.packed_input("dz", bf16, kept, {V, N});
  Block n = p.parallel(N, 8);
  Block v = p.whole(V);
  Tile t = load(x, n, v, fill(-inf));
  const int line = __LINE__ + 1;
  store(y, n, reduce_sum(t, V));
  const Program program = p.finish();
  CHECK(program.name() == "row_sum");
  CHECK(program.text() == R"(program row_sum
axis N
axis V = 1000
list kept : [N by 8, V by 16]
input x : f16 [N, V]
inout y : f32 [N]
input dz : bf16 kept [V, N]
{
  %n = parallel N by 8 : block<N:8>
  %v = whole V : block<V:1000>
  %2 = const -inf : f16
  %3 = load x [%n, %v] fill %2 : tile<N:8 x V:1000, f16>
  %4 = cast %3 : tile<N:8 x V:1000, f32>
  %5 = reduce_sum %4 over V : tile<N:8, f32>
  store y [%n] %5
}
)");
  CHECK(program.text(true).find("  store y [%n] %5  // record.cpp:" + std::to_string(line) + "\n") !=
        std::string::npos);
  CHECK(ir::print(ir::parse(program.text())) == program.text());
}

TEST_CASE("promotion: bf16 and f16 are computed in f32") {
  CHECK(recorded([](auto s) {
          Block d = s.p.whole(s.D);
          Tile h = load(s.h, s.n, d);
          exp(h);
        }) == R"(  %d = whole D : block<D:32>
  %2 = load h [%n, %d] : tile<N:8 x D:32, bf16>
  %3 = cast %2 : tile<N:8 x D:32, f32>
  %4 = exp %3 : tile<N:8 x D:32, f32>
)");
  CHECK(recorded([](auto s) {
          Block d = s.p.whole(s.D);
          Tile h = load(s.h, s.n, d), g = load(s.g, s.n, d);
          h* g;
        }) == R"(  %d = whole D : block<D:32>
  %2 = load h [%n, %d] : tile<N:8 x D:32, bf16>
  %3 = load g [%n, %d] : tile<N:8 x D:32, f16>
  %4 = cast %2 : tile<N:8 x D:32, f32>
  %5 = cast %3 : tile<N:8 x D:32, f32>
  %6 = mul %4, %5 : tile<N:8 x D:32, f32>
)");
}

TEST_CASE("promotion: dot keeps a common half dtype and widens where they differ") {
  CHECK(recorded([](auto s) {
          Block d = s.p.whole(s.D);
          Tile h = load(s.h, s.n, d), m = load(s.label, s.n);
          dot(h, cast(m, bf16));
        }) == R"(  %d = whole D : block<D:32>
  %2 = load h [%n, %d] : tile<N:8 x D:32, bf16>
  %3 = load label [%n] : tile<N:8, i32>
  %4 = cast %3 : tile<N:8, bf16>
  %5 = dot %2, %4 : tile<D:32, f32>
)");
  CHECK(recorded([](auto s) {
          Block d = s.p.whole(s.D);
          Tile h = load(s.h, s.n, d), one = full(s.n, 1);
          dot(h, one);
        }) == R"(  %d = whole D : block<D:32>
  %2 = load h [%n, %d] : tile<N:8 x D:32, bf16>
  %3 = const 1 : f32
  %4 = splat %3 : tile<N:8, f32>
  %5 = cast %2 : tile<N:8 x D:32, f32>
  %6 = dot %5, %4 : tile<D:32, f32>
)");
}

TEST_CASE("promotion: i32 beside i64 becomes i64, in either order") {
  for (bool first : {true, false})
    CHECK(recorded([&](auto s) {
            Tile l = load(s.label, s.n), i = s.n.index();
            first ? l == i : i == l;
          }) == std::string(R"(  %1 = load label [%n] : tile<N:8, i32>
  %2 = index %n : tile<N:8, i64>
  %3 = cast %1 : tile<N:8, i64>
)") + (first ? "  %4 = eq %3, %2 : tile<N:8, bool>\n" : "  %4 = eq %2, %3 : tile<N:8, bool>\n"));
}

TEST_CASE("numbers take the dtype of the tile beside them, rounded to it") {
  CHECK(recorded([](auto s) {
          Tile l = load(s.label, s.n);
          Tile m = l != -100;
          where(m, 0.1, 0);
          where(m, l, -1);
          m && true;
        }) == R"(  %1 = load label [%n] : tile<N:8, i32>
  %2 = const -100 : i32
  %3 = ne %1, %2 : tile<N:8, bool>
  %4 = const 0.10000000149011612 : f32
  %5 = const 0 : f32
  %6 = where %3, %4, %5 : tile<N:8, f32>
  %7 = const -1 : i32
  %8 = where %3, %1, %7 : tile<N:8, i32>
  %9 = const true : bool
  %10 = and %3, %9 : tile<N:8, bool>
)");
  ProgramBuilder p("tenth");
  Axis N = p.axis("N");
  Tensor y = p.output("y", bf16, {N});
  store(y, p.parallel(N, 8), 0.1);
  const Program program = p.finish();
  const ir::Op* constant = nullptr;
  ir::walk(program.ir().body, [&](const ir::Op& op) {
    if (op.kind == ir::OpKind::constant) constant = &op;
  });
  REQUIRE(constant);
  CHECK(constant->number == from_bf16(to_bf16(0.1f)));
}

TEST_CASE("a cast to the dtype a tile has records nothing") {
  CHECK(recorded([](auto s) { cast(load(s.label, s.n), i32); }) == "  %1 = load label [%n] : tile<N:8, i32>\n");
}

TEST_CASE("the number of a block is a scalar, which may be a subscript") {
  CHECK(recorded([](auto s) {
          Block d = s.p.whole(s.D);
          Tensor out = s.p.output("out", f32, {s.N});
          Tile first = s.n.number() * 8, row = load(s.x, first, d), sum = reduce_sum(row, s.D);
          store(out, s.n.number(), sum);
        }) == R"(  %d = whole D : block<D:32>
  %2 = number %n : i64
  %3 = const 8 : i64
  %4 = mul %2, %3 : i64
  %5 = load x [%4, %d] : tile<D:32, f32>
  %6 = reduce_sum %5 over D : f32
  %7 = number %n : i64
  store out [%7] %6
)");
}

TEST_CASE("blocks are named after their axis, and differ") {
  CHECK(recorded([](auto s) {
          s.p.whole(s.D);
          s.p.whole(s.D);
        }) == "  %d = whole D : block<D:32>\n  %d2 = whole D : block<D:32>\n");
}

TEST_CASE("loops: over an axis, over a part of it, without a carried tile") {
  CHECK(recorded([](auto s) {
          Tile start = zeros(s.n);
          s.p.loop(s.D, 16, start, [&](Block d, Tile acc) {
            Tile t = load(s.x, s.n, d);
            return max(acc, reduce_max(t, s.D));
          });
          s.p.loop(part(s.D, s.n, 3), 8, carry(start, start), [&](Block, Tile a, Tile b) { return carry(b, a); });
          s.p.loop(s.D, 16, [&](Block d) { d.in_bounds(); });
        }) == R"(  %1 = const 0 : f32
  %2 = splat %1 : tile<N:8, f32>
  %3 = loop D by 16 [%d : block<D:16>] (%5 = %2) {
    %6 = load x [%n, %d] : tile<N:8 x D:16, f32>
    %7 = reduce_max %6 over D : tile<N:8, f32>
    %8 = max %5, %7 : tile<N:8, f32>
    yield %8
  } : tile<N:8, f32>
  %9, %10 = loop D by 8 part %n of 3 [%d2 : block<D:8>] (%12 = %2, %13 = %2) {
    yield %13, %12
  } : tile<N:8, f32>, tile<N:8, f32>
  loop D by 16 [%d3 : block<D:16>] {
    %15 = in_bounds %d3 : tile<D:16, bool>
    yield
  }
)");
}

TEST_CASE("when and scatter") {
  CHECK(recorded([](auto s) {
          Tile size = s.p.size(s.N);
          Tensor out = s.p.output("out", f32, {s.N, s.D});
          Block d = s.p.whole(s.D);
          Tile row = load(s.label, s.n, fill(-1)), t = load(s.x, s.n, d);
          s.p.when(size > 3, [&] { store(out, row, d, t); });
        }) == R"(  %1 = size N : i64
  %d = whole D : block<D:32>
  %3 = const -1 : i32
  %4 = load label [%n] fill %3 : tile<N:8, i32>
  %5 = load x [%n, %d] : tile<N:8 x D:32, f32>
  %6 = const 3 : i64
  %7 = gt %1, %6 : bool
  when %7 {
    store out [%4, %d] %5
  }
)");
}

TEST_CASE("kept tiles: one instance each, and a run along a column") {
  ProgramBuilder p("sums");
  Axis N = p.axis("N"), V = p.axis("V");
  TileList kept = p.tile_list("kept", N, 4, V, 8);
  Packed dz = p.packed_input("dz", f32, kept, {V, N}), out = p.packed_output("out", f32, kept, {N, V});
  auto [k, n, v] = p.parallel(kept);
  Tile start = zeros(v);
  Tile sum =
      p.loop(kept.in_column(v), start, [&](Kept j, Block, Tile acc) { return acc + reduce_sum(load(dz, j), N); });
  store(out, k, sum);
  p.loop(kept.in_row(n), carry(start, start), [&](Kept, Block, Tile a, Tile b) { return carry(b, a); });
  p.loop(kept.in_row(n), [&](Kept j, Block) { load(dz, j); });
  CHECK(p.finish().text() == R"(program sums
axis N
axis V
list kept : [N by 4, V by 8]
input dz : f32 kept [V, N]
output out : f32 kept [N, V]
{
  %k, %n, %v = parallel kept : entry<kept>, block<N:4>, block<V:8>
  %3 = const 0 : f32
  %4 = splat %3 : tile<V:8, f32>
  %5 = loop column %v of kept [%k2 : entry<kept>, %n2 : block<N:4>] (%8 = %4) {
    %9 = load_packed dz [%k2] : tile<N:4 x V:8, f32>
    %10 = reduce_sum %9 over N : tile<V:8, f32>
    %11 = add %8, %10 : tile<V:8, f32>
    yield %11
  } : tile<V:8, f32>
  store_packed out [%k] %5
  %12, %13 = loop row %n of kept [%k3 : entry<kept>, %v2 : block<V:8>] (%16 = %4, %17 = %4) {
    yield %17, %16
  } : tile<V:8, f32>, tile<V:8, f32>
  loop row %n of kept [%k4 : entry<kept>, %v3 : block<V:8>] {
    %20 = load_packed dz [%k4] : tile<N:4 x V:8, f32>
    yield
  }
}
)");
}
