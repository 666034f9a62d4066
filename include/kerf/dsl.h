// How a tile program is written.
//
// A program computes on blocks of named axes. `parallel` starts one instance of the program per block, `loop` walks
// blocks in order and carries tiles from one to the next, `load` and `store` move tiles, everything else computes on
// them. Axes go by name: elementwise operations broadcast over the axes an operand lacks, `dot` contracts the one axis
// its operands share, and the ragged last block of an axis needs no care: what lies outside loads as the fill value
// (0 unless told) and is never stored.
//
//   ProgramBuilder p("row_softmax");
//   Axis N = p.axis("N"), V = p.axis("V", 1000);
//   Tensor x = p.input("x", f32, {N, V}), y = p.output("y", f32, {N, V});
//   Block n = p.parallel(N, 8), v = p.whole(V);
//   Tile t = load(x, n, v, fill(-inf));
//   Tile u = exp(t - reduce_max(t, V));
//   store(y, n, v, u / reduce_sum(u, V));
//   Program program = p.finish();
//
// Every mistake is a UsageError that begins with the caller's file and line.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "kerf/tensor.h"

namespace kerf::ir {
struct Program;
}
namespace kerf::detail {
class Recorder;  // lib/dsl/recorder.h: turns the calls below into tile IR
}

namespace [[gnu::visibility("default")]] kerf {

inline constexpr double inf = std::numeric_limits<double>::infinity();

/// A finished tile program: immutable, cheap to copy.
class Program {
 public:
  Program() = default;
  explicit Program(std::shared_ptr<const ir::Program> ir) : ir_(std::move(ir)) {}
  const ir::Program& ir() const;  // UsageError when empty
  const std::string& name() const;
  /// The program as text, as it was recorded; with `places` each line ends in the caller's file and line.
  std::string text(bool places = false) const;

 private:
  std::shared_ptr<const ir::Program> ir_;
};

/// A named dimension. Its size is known when the program is built, or first at launch.
struct Axis {
  detail::Recorder* recorder = nullptr;
  int id = -1;
};

class Tile;

/// A run of `extent` consecutive indices of one axis; its position is known when the program runs.
class Block {
 public:
  Block() = default;
  Block(detail::Recorder* r, int value) : recorder(r), value(value) {}
  /// The indices of the block along its axis: tile<axis, dtype>. i32 needs an axis whose size is known and below 2^31.
  Tile index(DType dtype = DType::i64, std::source_location where = std::source_location::current()) const;
  /// True where the index is inside the axis: tile<axis, bool>.
  Tile in_bounds(std::source_location where = std::source_location::current()) const;
  /// How many blocks of the axis lie before it: scalar i64.
  Tile number(std::source_location where = std::source_location::current()) const;

  detail::Recorder* recorder = nullptr;
  int value = -1;
};

/// One kept tile of a TileList: where its elements lie in a packed tensor.
struct Kept {
  detail::Recorder* recorder = nullptr;
  int value = -1;
};

/// A tile: elements over the axes of its blocks, all computed at once. A tile without axes is a scalar.
class Tile {
 public:
  Tile() = default;
  Tile(detail::Recorder* r, int value) : recorder(r), value(value) {}
  detail::Recorder* recorder = nullptr;
  int value = -1;
};

/// A tensor the program reads or writes; filled in at launch.
struct Tensor {
  detail::Recorder* recorder = nullptr;
  int id = -1;
};

/// Tiles of a block-sparse matrix, one behind the other, in the order of their TileList.
struct Packed {
  detail::Recorder* recorder = nullptr;
  int id = -1;
};

struct KeptRun;

/// A list of kept tiles (row block, column block) of a matrix; filled in at launch.
struct TileList {
  detail::Recorder* recorder = nullptr;
  int id = -1;
  KeptRun in_row(Block at) const;
  KeptRun in_column(Block at) const;
};
/// The kept tiles of one row or column of blocks, in order.
struct KeptRun {
  TileList list;
  Block at;
  bool row;
};
inline KeptRun TileList::in_row(Block at) const { return {*this, at, true}; }
inline KeptRun TileList::in_column(Block at) const { return {*this, at, false}; }

/// The blocks of `axis` that belong to part `at`: numbers [i * count, (i + 1) * count), i the index of `at`, as far as
/// the axis reaches. Splits a long loop over instances of the program.
struct AxisPart {
  Axis axis;
  Block at;
  std::int64_t count;
};
inline AxisPart part(Axis axis, Block at, std::int64_t count) { return {axis, at, count}; }

/// An argument of an operation: a tile or a number, and the place in the caller's source where it was written.
class Operand {
 public:
  Operand(Tile t, std::source_location w = std::source_location::current()) : tile(t), where(w) {}
  template <class T>
  requires std::is_arithmetic_v<T> Operand(T x, std::source_location w = std::source_location::current())
      : number(static_cast<double>(x)), is_number(true), where(w) {}
  Tile tile;
  double number = 0;
  bool is_number = false;
  std::source_location where;
};

/// A value with the place where it was written.
template <class T>
struct Located {
  Located(T v, std::source_location w = std::source_location::current()) : value(v), where(w) {}
  T value;
  std::source_location where;
};

/// What a load gives outside the tensor (0 unless told).
struct Fill {
  double value = 0;
};
inline Fill fill(double value) { return {value}; }

namespace detail {
/// One subscript of a load or store: a block, a tile of indices (gather, scatter), a kept tile, or the last argument.
using Subscript = std::variant<Block, Tile, Kept, Fill, double>;
inline Subscript subscript(Block b) { return b; }
inline Subscript subscript(Tile t) { return t; }
inline Subscript subscript(Kept k) { return k; }
inline Subscript subscript(Fill f) { return f; }
template <class T>
requires std::is_arithmetic_v<T> Subscript subscript(T x) { return static_cast<double>(x); }
Tile load(Tensor, std::vector<Subscript>, std::source_location);
Tile load(Packed, std::vector<Subscript>, std::source_location);
void store(Tensor, std::vector<Subscript>, std::source_location);
void store(Packed, std::vector<Subscript>, std::source_location);
}  // namespace detail

/// load(x, n, d): one subscript per axis of the tensor, a Block of that axis or a tile of indices into it (gather; an
/// index outside the axis gives the fill value). load(x, n, d, fill(inf)) sets what lies outside the tensor.
template <class... S>
Tile load(Located<Tensor> t, S... subscripts) {
  return detail::load(t.value, {detail::subscript(subscripts)...}, t.where);
}
/// load(dz, k): one kept tile.
template <class... S>
Tile load(Located<Packed> t, S... subscripts) {
  return detail::load(t.value, {detail::subscript(subscripts)...}, t.where);
}
/// store(y, n, d, value): subscripts as in load, then the tile. What lies outside the tensor is not written. Indices of
/// a scatter must differ from each other; an index outside the axis is skipped.
template <class... S>
void store(Located<Tensor> t, S... subscripts_and_value) {
  detail::store(t.value, {detail::subscript(subscripts_and_value)...}, t.where);
}
template <class... S>
void store(Located<Packed> t, S... subscripts_and_value) {
  detail::store(t.value, {detail::subscript(subscripts_and_value)...}, t.where);
}

/// A tile of one value over the axes of the blocks.
Tile full(Located<Block> a, double value, DType dtype = DType::f32);
Tile full(Located<Block> a, Block b, double value, DType dtype = DType::f32);
Tile zeros(Located<Block> a);
Tile zeros(Located<Block> a, Block b);

// Elementwise. bf16 and f16 operands are computed in f32; a number takes the type of the other operand; an i32 beside
// an i64 becomes i64; anything else that disagrees is an error.
Tile operator+(Operand a, Operand b);
Tile operator-(Operand a, Operand b);
Tile operator*(Operand a, Operand b);
Tile operator/(Operand a, Operand b);
Tile operator-(Operand a);
Tile operator==(Operand a, Operand b);
Tile operator!=(Operand a, Operand b);
Tile operator<(Operand a, Operand b);
Tile operator<=(Operand a, Operand b);
Tile operator>(Operand a, Operand b);
Tile operator>=(Operand a, Operand b);
Tile operator&&(Operand a, Operand b);  // both sides are always computed
Tile operator||(Operand a, Operand b);
Tile operator!(Operand a);
Tile max(Operand a, Operand b);  // NaN if either is
Tile min(Operand a, Operand b);  // NaN if either is
Tile exp(Operand a);
Tile log(Operand a);
Tile tanh(Operand a);
Tile sqrt(Operand a);
/// a where cond, else b; the side not taken may be NaN.
Tile where(Operand cond, Operand a, Operand b);
Tile cast(Operand a, DType dtype);

/// Contracts the one axis that a and b share; sums in f32; result f32 over the other axes of both.
Tile dot(Operand a, Operand b);

// Reductions over one axis of a tile.
Tile reduce_sum(Operand a, Axis axis);
Tile reduce_max(Operand a, Axis axis);     // NaN if any is
Tile reduce_argmax(Operand a, Axis axis);  // i32: position in the block of the first largest element; a NaN is largest
Tile reduce_any(Operand a, Axis axis);     // bool
/// Sums of the elements up to each, itself included, along one axis of a tile: f32, i32 or i64, same axes.
Tile running_sum(Operand a, Axis axis);

/// Several carried tiles of a loop.
template <std::size_t N>
using Carry = std::array<Tile, N>;
template <std::same_as<Tile>... T>
Carry<sizeof...(T)> carry(T... tiles) {
  return {tiles...};
}

/// What a loop can walk in blocks.
template <class T>
concept Walkable = std::same_as<T, Axis> || std::same_as<T, AxisPart>;

/// Records one program. Use from one thread; `finish` ends it.
class ProgramBuilder {
 public:
  explicit ProgramBuilder(std::string name, std::source_location where = std::source_location::current());
  ~ProgramBuilder();
  ProgramBuilder(const ProgramBuilder&) = delete;
  ProgramBuilder& operator=(const ProgramBuilder&) = delete;

  /// An axis whose size is known at launch, or now.
  Axis axis(std::string name, std::source_location where = std::source_location::current());
  Axis axis(std::string name, std::int64_t size, std::source_location where = std::source_location::current());

  using Here = std::source_location;
  Tensor input(std::string name, DType dtype, std::vector<Axis> axes, Here where = Here::current());
  Tensor output(std::string name, DType dtype, std::vector<Axis> axes, Here where = Here::current());
  /// Read and written by the same instance of the program.
  Tensor inout(std::string name, DType dtype, std::vector<Axis> axes, Here where = Here::current());
  TileList tile_list(std::string name, Axis row, std::int64_t row_extent, Axis column, std::int64_t column_extent,
                     Here where = Here::current());
  /// Packed tiles, each stored row-major over `order`, the list's two axes in either order.
  Packed packed_input(std::string name, DType dtype, TileList list, std::vector<Axis> order,
                      Here where = Here::current());
  Packed packed_output(std::string name, DType dtype, TileList list, std::vector<Axis> order,
                       Here where = Here::current());
  Packed packed_inout(std::string name, DType dtype, TileList list, std::vector<Axis> order,
                      Here where = Here::current());

  /// One instance of the program per block; of several calls the last varies fastest. Comes before any other operation.
  Block parallel(Axis axis, std::int64_t extent, Here where = Here::current());
  struct KeptTile {
    Kept k;
    Block row, column;
  };
  /// One instance per kept tile.
  KeptTile parallel(TileList list, Here where = Here::current());
  /// The whole of an axis of known size as one block.
  Block whole(Axis axis, Here where = Here::current());
  /// The size of an axis: scalar i64.
  Tile size(Axis axis, Here where = Here::current());

  /// loop(V, 256, init, [&](Block v, Tile acc) { return acc + ...; }): blocks of the axis in order. `init` is a tile or
  /// carry(several); left out, the loop carries nothing: loop(V, 256, [&](Block v) { store(...); }).
  /// loop(part(V, s, 64), 256, ...): only the blocks of one part.
  template <Walkable O, class F>
  Tile loop(O over, std::int64_t extent, Tile init, F&& body, Here where = Here::current()) {
    const LoopScope s = begin_loop(over, extent, {init}, where);
    return end_loop({body(s.block, s.carried[0])})[0];
  }
  template <Walkable O, std::size_t N, class F>
  Carry<N> loop(O over, std::int64_t extent, Carry<N> init, F&& body, Here where = Here::current()) {
    const LoopScope s = begin_loop(over, extent, {init.begin(), init.end()}, where);
    return many<N>(s, [&](auto... t) { return body(s.block, t...); });
  }
  template <Walkable O, std::invocable<Block> F>
  void loop(O over, std::int64_t extent, F&& body, Here where = Here::current()) {
    body(begin_loop(over, extent, {}, where).block);
    end_loop({});
  }
  /// loop(kept.in_row(n), init, [&](Kept k, Block v, Tile acc) { ... }): the kept tiles of a row of blocks, in order.
  template <class F>
  Tile loop(KeptRun run, Tile init, F&& body, Here where = Here::current()) {
    const LoopScope s = begin_loop(run, {init}, where);
    return end_loop({body(s.kept, s.block, s.carried[0])})[0];
  }
  template <std::size_t N, class F>
  Carry<N> loop(KeptRun run, Carry<N> init, F&& body, Here where = Here::current()) {
    const LoopScope s = begin_loop(run, {init.begin(), init.end()}, where);
    return many<N>(s, [&](auto... t) { return body(s.kept, s.block, t...); });
  }
  template <std::invocable<Kept, Block> F>
  void loop(KeptRun run, F&& body, Here where = Here::current()) {
    const LoopScope s = begin_loop(run, {}, where);
    body(s.kept, s.block);
    end_loop({});
  }
  /// Does `body` (its stores) where the scalar condition holds.
  void when(Operand condition, const std::function<void()>& body);

  /// Checks the program and closes it.
  Program finish(Here where = Here::current());

 private:
  struct LoopScope {
    Kept kept;
    Block block;
    std::vector<Tile> carried;
  };
  LoopScope begin_loop(Axis, std::int64_t extent, std::vector<Tile> init, Here);
  LoopScope begin_loop(AxisPart, std::int64_t extent, std::vector<Tile> init, Here);
  LoopScope begin_loop(KeptRun, std::vector<Tile> init, Here);
  std::vector<Tile> end_loop(std::vector<Tile> next);

  template <std::size_t N, class F>
  Carry<N> many(const LoopScope& s, F&& body) {
    const Carry<N> next = [&]<std::size_t... I>(std::index_sequence<I...>) { return body(s.carried[I]...); }
    (std::make_index_sequence<N>());
    const std::vector<Tile> out = end_loop({next.begin(), next.end()});
    Carry<N> result;
    std::copy(out.begin(), out.end(), result.begin());
    return result;
  }

  std::unique_ptr<detail::Recorder> recorder_;
};

}  // namespace kerf
