// Every mistake in a tile program is told where the caller made it, with both sides of the clash and a way out.
#include "kerf/dsl.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "kerf/error.h"
#include "tests/support/errors.h"

using namespace kerf;
using kerf::test::check_error;
using kerf::test::usage_error;

namespace {

struct Sample {
  Sample();
  ProgramBuilder p{"sample"};
  Axis N = p.axis("N"), V = p.axis("V", 100), D = p.axis("D", 64);
  Tensor x = p.input("x", f32, {N, D}), c = p.input("c", bf16, {V, D}), label = p.input("label", i32, {N});
  Tensor y = p.output("y", f32, {N, D}), half = p.output("half", bf16, {N});
  TileList kept = p.tile_list("kept", N, 8, V, 16);
  Packed dz = p.packed_input("dz", f32, kept, {V, N});
  Packed out = p.packed_output("out", f32, kept, {N, V});
  Block n = p.parallel(N, 8), v = p.whole(V), d = p.whole(D);
  Tile t = load(x, n, d);   // tile<N:8 x D:64, f32>
  Tile l = load(label, n);  // tile<N:8, i32>
  Tile w = load(c, v, d);   // tile<V:100 x D:64, bf16>
  Tile m = d.in_bounds();   // tile<D:64, bool>
};

Sample::Sample() = default;

}  // namespace

TEST_CASE("a mistake is told at the line that made it") {
  Sample s;
  std::string text;
  const int line = __LINE__ + 3;
  try {
    s.t * 2;
    dot(s.t, s.l);
  } catch (const UsageError& e) {
    text = e.what();
  }
  CHECK(text.rfind(fmt::format("dsl.cpp:{}: dot: ", line), 0) == 0);
}

TEST_CASE("declarations") {
  ProgramBuilder p("sample");
  Axis N = p.axis("N"), V = p.axis("V");
  p.input("x", f32, {N});
  TileList kept = p.tile_list("kept", N, 8, V, 16);
  check_error([&] { ProgramBuilder q("row softmax"); },
              "here: 'row softmax' is no name for a program; names are letters, digits and _");
  check_error([&] { p.axis("N"); }, "here: program sample: axis N is declared twice");
  check_error([&] { p.axis("2N"); }, "here: program sample: '2N' is no name for axis; names are letters, digits and _");
  check_error([&] { p.axis("M", 0); }, "here: axis M has size 0; a known size is at least 1");
  check_error([&] { p.axis("M", -1); }, "here: axis M has size -1; a known size is at least 1");
  check_error([&] { p.output("x", f32, {N}); }, "here: program sample: tensor x is declared twice");
  check_error([&] { p.input("y", f32, {N, N}); }, "here: program sample: tensor y has one axis twice");
  check_error([&] { p.input("y", f32, {N, Axis()}); }, "here: y: the axis was never set");
  check_error([&] { p.tile_list("other", N, 0, V, 16); },
              "here: program sample: tile list other: a block must hold 1 to 2147483647 indices, not 0");
  check_error([&] { p.tile_list("other", N, 8, N, 8); },
              "here: program sample: tile list other needs two different axes");
  check_error([&] { p.tile_list("kept", N, 8, V, 8); }, "here: program sample: tile list kept is declared twice");
  check_error([&] { p.packed_input("y", f32, kept, {N}); },
              "here: program sample: packed tensor y must have the axes of kept: N and V");
  check_error(
      [&] {
        std::vector<Axis> five;
        for (const char* name : {"A", "B", "C", "E", "F"}) five.push_back(p.axis(name));
        p.input("y", f32, five);
      },
      "here: program sample: tensor y has 5 axes; at most 4 are allowed");
  check_error([&] { p.input("x", f32, {N}); }, "here: program sample: tensor x is declared twice");
}

TEST_CASE("objects that were never set, or belong to another program") {
  Sample s, other;
  check_error([&] { s.t + Tile(); }, "here: add: the tile was never set");
  check_error([&] { exp(Tile()); }, "here: exp: the tile was never set");
  check_error([&] { load(Tensor(), s.n); }, "here: load: the tensor was never set");
  check_error([&] { load(s.x, Block(), s.d); }, "here: load: the block was never set");
  check_error([&] { Block().index(); }, "here: index: the block was never set");
  check_error([&] { Block().number(); }, "here: number: the block was never set");
  check_error([&] { zeros(Block()); }, "here: full: the block was never set");
  check_error([&] { s.p.size(Axis()); }, "here: size: the axis was never set");
  check_error([&] { s.t + other.t; }, "here: add: the tile belongs to another program, not to sample");
  check_error([&] { dot(s.t, other.w); }, "here: dot: the tile belongs to another program, not to sample");
  check_error([&] { load(s.x, other.n, s.d); }, "here: load: the block belongs to another program, not to sample");
  check_error([&] { s.p.input("z", f32, {other.N}); }, "here: z: the axis belongs to another program, not to sample");
  check_error([&] { reduce_sum(s.t, other.D); },
              "here: reduce_sum: the axis belongs to another program, not to sample");
}

TEST_CASE("elementwise: dtypes") {
  Sample s;
  check_error(
      [&] { s.t + s.l; },
      "here: add: the operands are tile<N:8 x D:64, f32> and tile<N:8, i32>; cast one to the dtype of the other");
  check_error(
      [&] { s.l == s.t; },
      "here: eq: the operands are tile<N:8, i32> and tile<N:8 x D:64, f32>; cast one to the dtype of the other");
  const std::string mask = "a bool has no arithmetic: tile<D:64, bool>; where(mask, 1, 0) makes numbers of a mask";
  check_error([&] { s.m + s.m; }, "here: add: " + mask);
  check_error([&] { s.m * 2.5; }, "here: mul: " + mask);
  check_error([&] { 1 - s.m; }, "here: sub: " + mask);
  check_error([&] { s.m < s.m; }, "here: lt: a bool has no order: tile<D:64, bool>");
  check_error([&] { exp(s.l); }, "here: exp: the operand must be f32, not tile<N:8, i32>; cast it");
  check_error([&] { s.t&& s.m; }, "here: and: operands are bool, not tile<N:8 x D:64, f32>; compare it with something");
  check_error([&] { where(s.t, s.t, 0); }, "here: where: the condition must be bool, not tile<N:8 x D:64, f32>");
  check_error(
      [&] { where(s.m, s.t, s.l); },
      "here: where: the operands are tile<N:8 x D:64, f32> and tile<N:8, i32>; cast one to the dtype of the other");
  check_error([&] { reduce_any(s.t, s.D); }, "here: reduce_any: the operand must be bool, not tile<N:8 x D:64, f32>");
  check_error([&] { reduce_sum(s.m, s.D); },
              "here: reduce_sum: the operand must be f32, i32 or i64, not tile<D:64, bool>");
  check_error([&] { running_sum(s.m, s.D); },
              "here: running_sum: the operand must be f32, i32 or i64, not tile<D:64, bool>");
  check_error([&] { running_sum(s.l, s.D); }, "here: running_sum: tile<N:8, i32> has no axis D");
}

TEST_CASE("elementwise: numbers") {
  Sample s;
  check_error([&] { s.l + 0.5; }, "here: add: the number 0.5 is no i32; cast the tile beside it first");
  check_error([&] { s.l < 4294967296; }, "here: lt: the number 4294967296 is no i32; cast the tile beside it first");
  check_error([&] { cast(s.l, i64) + 9007199254740993; },
              "here: add: the number 9007199254740992 is no i64; cast the tile beside it first");
  check_error([&] { s.l + inf; }, "here: add: the number inf is no i32; cast the tile beside it first");
  check_error([&] { s.t * 1e300; }, "here: mul: the number 1e+300 is too large for f32");
  check_error([&] { s.m == 2; }, "here: eq: the number 2 is no bool");
  check_error([&] { where(2, s.t, 0); }, "here: where: the number 2 is no bool");
  check_error([&] { Operand(1) + Operand(2); }, "here: add: one operand must be a tile, and all are numbers");
  check_error([&] { dot(s.t, 2); }, "here: dot: the operand must be a tile, not the number 2");
  check_error([&] { cast(2, f32); }, "here: cast: the operand must be a tile, not the number 2");
  check_error([&] { reduce_sum(2, s.D); }, "here: reduce_sum: the operand must be a tile, not the number 2");
  check_error([&] { full(s.n, 0.5, i32); }, "here: full: the number 0.5 is no i32; cast the tile beside it first");
}

TEST_CASE("elementwise: blocks of one axis that differ") {
  Sample s;
  s.p.loop(s.D, 16, [&](Block d) {
    check_error(
        [&] { s.t + load(s.x, s.n, d); },
        "here: add: the operands have blocks of D of different extent: tile<N:8 x D:64, f32> and tile<N:8 x D:16, "
        "f32>");
    check_error(
        [&] { dot(s.t, load(s.c, s.v, d)); },
        "here: dot: the operands have blocks of D of different extent: tile<N:8 x D:64, f32> and tile<V:100 x D:16, "
        "f32>");
  });
}

TEST_CASE("dot and reductions") {
  Sample s;
  Tile z = dot(s.t, s.w);
  check_error(
      [&] { dot(s.t, zeros(s.v)); },
      "here: dot: the operands share no axis: tile<N:8 x D:64, f32> and tile<V:100, f32>; dot contracts one shared "
      "axis");
  check_error(
      [&] { dot(s.t, s.t); },
      "here: dot: the operands share N and D: tile<N:8 x D:64, f32> and tile<N:8 x D:64, f32>; dot contracts one "
      "shared axis");
  check_error([&] { dot(s.l, s.l); },
              "here: dot: the operands must be of one float dtype: tile<N:8, i32> and tile<N:8, i32>");
  check_error([&] { reduce_max(z, s.D); }, "here: reduce_max: tile<N:8 x V:100, f32> has no axis D");
}

TEST_CASE("blocks") {
  ProgramBuilder p("sample");
  Axis N = p.axis("N"), huge = p.axis("huge", std::int64_t{1} << 40);
  check_error([&] { p.parallel(N, 0); }, "here: parallel: a block of N must hold 1 to 2147483647 indices, not 0");
  check_error([&] { p.whole(N); }, "here: whole: the size of N is known at launch only; loop over its blocks instead");
  check_error([&] { p.whole(huge); },
              "here: whole: a block of huge must hold 1 to 2147483647 indices, not 1099511627776");
  Block n = p.parallel(N, 8), h = p.parallel(huge, 1 << 30);
  check_error([&] { n.index(i32); },
              "here: index: i32 indices need an axis of known size, and that of N is known at launch only; use i64");
  check_error([&] { h.index(i32); },
              "here: index: i32 indices need an axis below 2^31, and huge has 1099511627776; use i64");
  check_error([&] { n.index(f32); }, "here: index: indices are i32 or i64, not f32");
  check_error([&] { zeros(n, h); },
              "here: splat: tile<N:8 x huge:1073741824, f32> holds more than 2147483647 elements; use smaller blocks");
  check_error([&] { zeros(n, n); }, "here: full: two blocks of N");
  check_error([&] { p.parallel(N, 8); }, "here: parallel: must come before every other operation of the program");
}

TEST_CASE("load and store") {
  Sample s;
  check_error([&] { load(s.x, s.n); }, "here: load: x[N, D] takes 2 subscripts, 1 is given");
  check_error([&] { load(s.x, s.n, s.d, s.d); }, "here: load: x[N, D] takes 2 subscripts, 3 are given");
  check_error([&] { load(s.x, s.d, s.n); },
              "here: load: subscript 0 of x[N, D] must be a block of N or a tile of indices, not block<D:64>");
  check_error(
      [&] { load(s.x, s.t, s.d); },
      "here: load: subscript 0 of x[N, D] must be a block of N or an i32 or i64 tile of indices, not tile<N:8 x "
      "D:64, f32>");
  check_error(
      [&] { load(s.x, s.n, 3); },
      "here: load: the number 3 is no subscript of x; write a block, or fill(3) for what lies outside the tensor");
  check_error([&] { load(s.x, fill(3), s.n, s.d); }, "here: load: a fill is the last argument of a load");
  check_error([&] { load(s.label, s.n, fill(0.5)); },
              "here: fill: the number 0.5 is no i32; cast the tile beside it first");
  check_error([&] { load(s.y, s.n, s.d); }, "here: load: y is an output; declare it inout to read it");
  check_error([&] { store(s.x, s.n, s.d, s.t); }, "here: store: x is an input; declare it output or inout to write it");
  check_error([&] { store(s.y, s.n, s.d); }, "here: store: the last argument must be the tile that goes to y");
  check_error([&] { store(s.y, s.n, s.t); }, "here: store: y[N, D] takes 2 subscripts, 1 is given");
  check_error([&] { store(s.half, s.n, reduce_sum(s.t, s.D)); },
              "here: store: half holds bf16 and the value is tile<N:8, f32>; cast it to bf16");
  check_error(
      [&] { store(s.half, s.n, cast(s.t, bf16)); },
      "here: store: the value is tile<N:8 x D:64, bf16> and the subscripts of half[N] select tile<N:8, bf16>; reduce "
      "the "
      "value over D or store along it");
  s.p.loop(s.D, 16, [&](Block d) {
    check_error(
        [&] { store(s.y, s.n, d, s.t); },
        "here: store: the value is tile<N:8 x D:64, f32> and the subscripts of y[N, D] select tile<N:8 x D:16, f32>; "
        "blocks of D differ");
  });
}

TEST_CASE("packed tensors and tile lists") {
  Sample s;
  check_error([&] { load(s.dz, s.n); },
              "here: load_packed: dz is packed by kept and takes a kept tile of it, not block<N:8>");
  check_error([&] { s.p.loop(s.kept.in_row(s.d), zeros(s.n), [](Kept, Block, Tile t) { return t; }); },
              "here: loop: a row of kept belongs to a block<N:8>, not to block<D:64>");
  check_error([&] { s.p.loop(s.kept.in_column(s.v), zeros(s.n), [](Kept, Block, Tile t) { return t; }); },
              "here: loop: a column of kept belongs to a block<V:16>, not to block<V:100>");
  s.p.loop(s.kept.in_row(s.n), zeros(s.n), [&](Kept k, Block, Tile acc) {
    check_error(
        [&] { load(s.x, k, s.d); },
        "here: load: subscript 0 of x[N, D] must be a block of N or an i32 or i64 tile of indices, not entry<kept>");
    check_error([&] { load(s.dz, k, fill(1)); },
                "here: load: dz is packed and takes no fill; its tiles are stored whole");
    check_error([&] { load(s.dz, k, k); }, "here: load: dz is packed and takes one kept tile, 2 subscripts are given");
    check_error([&] { load(s.dz); }, "here: load: dz is packed and takes one kept tile, 0 subscripts are given");
    check_error([&] { store(s.out, acc); },
                "here: store: out is packed and takes one kept tile, 0 subscripts are given");
    check_error(
        [&] { store(s.out, k, s.t); },
        "here: store_packed: the value is tile<N:8 x D:64, f32> and the subscripts of out[N, V] select tile<N:8 x "
        "V:16, "
        "f32>; reduce the value over D or store along it");
    check_error([&] { store(s.dz, k, acc); },
                "here: store_packed: dz is an input; declare it packed_output to write it");
    check_error([&] { load(s.out, k); }, "here: load_packed: out is an output; declare it packed_input to read it");
    return acc;
  });
}

TEST_CASE("loops") {
  Sample s;
  check_error([&] { s.p.loop(s.N, 0, s.l, [](Block, Tile t) { return t; }); },
              "here: loop: a block of N must hold 1 to 2147483647 indices, not 0");
  check_error([&] { s.p.loop(part(s.V, s.n, 0), 8, s.l, [](Block, Tile t) { return t; }); },
              "here: loop: a part must hold at least 1 block, not 0");
  check_error([&] { s.p.loop(s.V, 8, Tile(), [](Block, Tile t) { return t; }); }, "here: loop: the tile was never set");
  Tile inside;
  Block block;
  s.p.loop(s.V, 16, zeros(s.n), [&](Block v, Tile t) {
    block = v;
    return inside = t + reduce_max(cast(v.index(), f32), s.V);
  });
  const std::string end = "was made inside the loop at here and is used outside it; carry it out of the loop";
  check_error([&] { s.t + inside; }, "here: add: the tile tile<N:8, f32> " + end);
  check_error([&] { block.index(); }, "here: index: the block block<V:16> " + end);
  check_error([&] { s.p.loop(s.V, 16, inside, [](Block, Tile t) { return t; }); },
              "here: loop: the tile tile<N:8, f32> " + end);
}

TEST_CASE("loops: what the body returns") {
  const std::string both = "; both must be the same (full, zeros and cast make the start, reductions and cast the end)";
  check_error(
      [] {
        Sample s;
        s.p.loop(s.D, 16, zeros(s.n), [&](Block d, Tile acc) { return acc + load(s.x, s.n, d); });
      },
      "here: loop: carried tile 0 starts as tile<N:8, f32> and the body returns tile<N:8 x D:16, f32>" + both);
  check_error(
      [] {
        Sample s;
        s.p.loop(s.D, 16, carry(zeros(s.n), s.l), [&](Block, Tile a, Tile b) { return carry(a, cast(b, i64)); });
      },
      "here: loop: carried tile 1 starts as tile<N:8, i32> and the body returns tile<N:8, i64>" + both);
  check_error(
      [] {
        Sample s;
        s.p.loop(s.D, 16, zeros(s.n), [&](Block, Tile) { return Tile(); });
      },
      "here: loop: carried tile 0 that the body returns was never set");
  check_error(
      [] {
        Sample s, other;
        s.p.loop(s.D, 16, s.t, [&](Block, Tile) { return other.t; });
      },
      "here: loop: carried tile 0 that the body returns belongs to another program, not to sample");
  check_error(
      [&] {
        Sample s;
        s.p.loop(s.D, 16, s.l, [&](Block, Tile a) {
          Tile inner;
          s.p.loop(s.V, 16, a, [&](Block, Tile b) { return inner = b + 1; });
          return inner;
        });
      },
      "here: loop: carried tile 0 that the body returns was made inside the loop at here; carry it out of that");
}

TEST_CASE("when") {
  Sample s;
  const std::string scalar = "here: when: the condition must be a scalar bool, not ";
  check_error([&] { s.p.when(s.m, [] {}); }, scalar + "tile<D:64, bool>");
  check_error([&] { s.p.when(s.p.size(s.N), [] {}); }, scalar + "tile<i64>");
  check_error([&] { s.p.when(1, [] {}); }, "here: when: the condition is a number; it must be a scalar bool tile");
  Tile inside;
  s.p.when(s.p.size(s.N) > 3, [&] { inside = s.l + 1; });
  check_error(
      [&] { inside * 2; },
      "here: mul: the tile tile<N:8, i32> was made inside the when at here and is used outside it; move its use "
      "inside");
}

TEST_CASE("finish") {
  check_error(
      [] {
        Sample s;
        s.p.finish();
      },
      "here: finish: program sample stores nothing");
  check_error(
      [] {
        Sample s;
        store(s.y, s.n, s.d, s.t);
        s.p.finish();
      },
      "here: finish: output half is never stored to; store to it or leave it out");
  check_error([] { Program().text(); }, "the program is empty; ProgramBuilder::finish makes one");

  ProgramBuilder p("twice");
  Axis N = p.axis("N");
  Tensor x = p.input("x", f32, {N}), y = p.output("y", f32, {N});
  Block n = p.parallel(N, 8);
  Tile t = load(x, n);
  store(y, n, t);
  p.finish();
  const std::string at = "the program was finished at here";
  check_error([&] { p.finish(); }, "here: finish: " + at);
  check_error([&] { t + 1; }, "here: add: " + at);
  check_error([&] { store(y, n, t); }, "here: store: " + at);
  check_error([&] { p.axis("V"); }, "here: declaration: " + at);
}

TEST_CASE("an exception out of a body leaves a program that cannot be finished") {
  Sample s;
  const auto thrower = [](Block, Tile t) -> Tile { throw t; };
  CHECK_THROWS_AS(s.p.loop(s.V, 16, s.l, thrower), Tile);
  check_error([&] { s.p.finish(); }, "here: finish: the loop at here was never ended; an exception has left its body");

  Sample inner;
  check_error(
      [&] {
        inner.p.when(inner.p.size(inner.N) > 3, [&] {
          try {
            inner.p.loop(inner.V, 16, inner.l, thrower);
          } catch (const Tile&) {
          }
        });
      },
      "here: when: a loop inside its body was never ended; an exception has left the body of the loop");
}

namespace {

/// The error of finish when `body` stores to y[N, D] and z[D].
template <class F>
std::string error_of_stores(F&& body) {
  return usage_error([&] {
    ProgramBuilder p("stores");
    Axis N = p.axis("N"), D = p.axis("D", 32), S = p.axis("S");
    Tensor y = p.output("y", f32, {N, D}), z = p.inout("z", f32, {D}), at = p.input("at", i64, {N});
    body(p, N, D, S, y, z, at);
    p.finish();
  });
}

std::string everybody(const char* axis, const char* tensor) {
  return fmt::format(
      "here: store: every instance along {} writes the same elements of {}; a subscript must depend on its "
      "block of {}, or a when around the store",
      axis, tensor, axis);
}

}  // namespace

TEST_CASE("finish: no two instances may write one element") {
  CHECK(error_of_stores([](auto& p, Axis N, Axis D, Axis, Tensor y, Tensor z, Tensor) {
          Block n = p.parallel(N, 8), d = p.parallel(D, 8);
          store(y, n, d, 1);
          store(z, d, 1);
        }) == everybody("N", "z"));
  CHECK(error_of_stores([](auto& p, Axis N, Axis D, Axis, Tensor y, Tensor z, Tensor) {
          Block n = p.parallel(N, 8);
          p.loop(D, 8, [&](Block d) { store(y, n, d, 1); });
          p.loop(D, 8, [&](Block d) { store(z, d, 1); });
        }) == everybody("N", "z"));
  CHECK(error_of_stores([](auto& p, Axis N, Axis D, Axis S, Tensor y, Tensor z, Tensor) {
          Block s = p.parallel(S, 1), all = p.whole(D);
          p.loop(part(N, s, 4), 8, [&](Block n) { store(y, n, all, 1); });   // parts differ
          p.when(reduce_sum(s.index(), S) == 0, [&] { store(z, all, 1); });  // one instance does it
        }) == "no error");
  CHECK(error_of_stores([](auto& p, Axis N, Axis D, Axis S, Tensor y, Tensor z, Tensor) {
          Block s = p.parallel(S, 1), all = p.whole(D);
          p.loop(part(N, s, 4), 8, [&](Block n) { store(y, n, all, 1); });
          p.when(p.size(S) > 2, [&] { store(z, all, 1); });
        }) == everybody("S", "z"));
  CHECK(error_of_stores([](auto& p, Axis N, Axis D, Axis, Tensor y, Tensor z, Tensor at) {
          Block n = p.parallel(N, 8), d = p.parallel(D, 32);  // D has one block
          store(y, load(at, n, fill(-1)), d, 1);              // a scatter by indices of this instance
          store(z, d, 1);
        }) == everybody("N", "z"));
  CHECK(error_of_stores([](auto& p, Axis N, Axis D, Axis, Tensor y, Tensor z, Tensor) {
          Block d = p.parallel(D, 32);  // one instance
          p.loop(N, 8, [&](Block n) { store(y, n, d, 1); });
          store(z, d, 1);
        }) == "no error");
}

TEST_CASE("finish: no two kept tiles may write one element") {
  const auto error = [](bool by_row, bool by_column) {
    return usage_error([&] {
      ProgramBuilder p("kept_tiles");
      Axis N = p.axis("N"), V = p.axis("V");
      TileList kept = p.tile_list("kept", N, 8, V, 16);
      Packed dz = p.packed_output("dz", f32, kept, {N, V});
      Tensor r = p.output("r", f32, {N}), c = p.output("c", f32, {V}), both = p.output("both", f32, {N, V});
      auto [k, n, v] = p.parallel(kept);
      store(dz, k, 1);
      store(both, n, v, 1);
      p.when(reduce_sum(v.index(), V) == 0, [&, n = n] { store(r, n, 1); });
      p.when(reduce_sum(n.index(), N) == 0, [&, v = v] { store(c, v, 1); });
      if (by_row) store(r, n, 1);
      if (by_column) store(c, v, 1);
      p.finish();
    });
  };
  CHECK(error(false, false) == "no error");
  CHECK(error(true, false) == everybody("V", "r"));
  CHECK(error(false, true) == everybody("N", "c"));
}
