// Tile IR: what a program is once it has been recorded. SSA values, structured regions, one list of operations.
//
// A Program is a plain value: copy it, change the copy, compare the texts. Values are numbers into `values`; an
// operation names its operands and results by them. Elementwise operations broadcast by axis name: a result has every
// axis of any operand. A tile's axes are always in the order in which the program declares them, so a tile type is a
// set.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kerf/kernel.h"
#include "kerf/tensor.h"

namespace kerf::ir {

using ValueId = std::int32_t;
inline constexpr std::int64_t unknown = -1;  // size of an axis that is told at launch

enum class OpKind : std::uint8_t {
#define KERF_OP(id, text, operands, rule, effect) id,
#include "lib/ir/ops.def"
};
enum class Effect : std::uint8_t { pure, read, write, control };
enum class Rule : std::uint8_t {
  parallel,
  whole,
  loop,
  when,
  yield,
  constant,
  splat,
  index,
  in_bounds,
  number,
  axis_size,
  load,
  store,
  load_packed,
  store_packed,
  stage,
  take,
  arithmetic,
  real,
  compare,
  logical,
  where,
  cast,
  dot,
  reduce,
  scan,
};
struct OpInfo {
  std::string_view text;
  int operands;
  Rule rule;
  Effect effect;
};
const OpInfo& info(OpKind kind);
std::optional<OpKind> op_from_text(std::string_view text);

struct AxisExtent {
  int axis;
  std::int64_t extent;
  friend bool operator==(const AxisExtent&, const AxisExtent&) = default;
};

/// tile<N:128 x V:256, f32> | block<N:128> | entry<kept> | staged<N:128 x D/256, bf16>
struct Type {
  enum class Kind : std::uint8_t { tile, block, entry, staged };
  Kind kind = Kind::tile;
  DType dtype = DType::f32;      // tile, staged
  std::vector<AxisExtent> axes;  // tile and staged: in declaration order; block: exactly one
  int list = -1;                 // entry
  int staged_axis = -1;          // staged: the axis that is present whole, in blocks of its extent
  friend bool operator==(const Type&, const Type&) = default;

  bool has(int axis) const;
  /// Extent along `axis`, or 0 without it.
  std::int64_t extent(int axis) const;
  bool is_tile() const { return kind == Kind::tile; }
  bool is_scalar() const { return kind == Kind::tile && axes.empty(); }
  std::int64_t elements() const;  // of a tile
};
Type tile_type(DType dtype, std::vector<AxisExtent> axes);  // sorts the axes
/// The axes of either, by name; nullopt with the clashing axis in `clash` where extents differ.
std::optional<std::vector<AxisExtent>> unite(const std::vector<AxisExtent>& a, const std::vector<AxisExtent>& b,
                                             int* clash = nullptr);

/// Where the caller wrote something.
struct Place {
  std::string file;  // base name; empty: unknown
  int line = 0;
};

struct Op;
struct Region {
  std::vector<ValueId> args;
  std::vector<Op> ops;  // of a loop or when: the last one is a yield
};

/// Which blocks a loop walks.
enum class LoopOver : std::uint8_t {
  axis,    // all blocks of `axis`, each `extent` long
  part,    // operand 0 is a block; block numbers [i * count, (i+1) * count) of `axis`, i its number
  row,     // operand 0 is a block of the list's row axis: the kept tiles in that row; region: entry, column block
  column,  // the same by column; region: entry, row block
};

struct Op {
  OpKind kind{};
  std::vector<ValueId> operands;
  std::vector<ValueId> results;
  std::vector<Region> regions;

  int axis = -1;            // parallel, whole, loop, axis_size, reduce, scan, stage
  int tensor = -1;          // load, store, load_packed, store_packed, stage
  int list = -1;            // parallel and loop over kept tiles
  std::int64_t extent = 0;  // parallel, whole, loop, stage: indices in a block
  std::int64_t count = 0;   // loop over a part: blocks in a part
  LoopOver over = LoopOver::axis;
  double number = 0;         // constant of a float or bool dtype
  std::int64_t integer = 0;  // constant of an integer dtype
  Place place;

  /// Loops: operands before the carried inits (0 or 1), region arguments before the carried values (1 or 2).
  int anchors() const { return over == LoopOver::axis ? 0 : 1; }
  int loop_vars() const { return list >= 0 ? 2 : 1; }
};

struct AxisInfo {
  std::string name;
  std::int64_t size = unknown;
};
enum class Access : std::uint8_t { input, output, inout };
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  Access access = Access::input;
  std::vector<int> axes;  // in memory order, the last contiguous; packed: the order inside one tile
  int list = -1;          // packed tiles of this list
};
struct ListInfo {
  std::string name;
  int row_axis = -1, column_axis = -1;
  std::int64_t row_extent = 0, column_extent = 0;
};

struct Program {
  std::string name;
  std::vector<AxisInfo> axes;
  std::vector<TensorInfo> tensors;
  std::vector<ListInfo> lists;
  std::vector<Type> values;              // the type of each value
  std::vector<std::string> value_names;  // as parsed or given; empty: printed as a number. Same length as values
  Region body;                           // no arguments, no yield; `parallel` operations come first

  ValueId new_value(Type type, std::string name = {});
  const Type& type(ValueId v) const { return values[static_cast<std::size_t>(v)]; }
  int find_axis(std::string_view name) const;    // -1: none
  int find_tensor(std::string_view name) const;  // -1: none
  int find_list(std::string_view name) const;    // -1: none
};

/// Calls f on every operation, outer before inner, in order.
void walk(const Region& region, const std::function<void(const Op&)>& f);
void walk(Region& region, const std::function<void(Op&)>& f);

/// "tile<N:128 x V:256, f32>"
std::string to_text(const Program& p, const Type& t);

/// The result type that the operation's rule gives; throws UsageError ("file:line: dot: ...") when its operands or
/// attributes break the rule. Regions are not looked at. For operations with several results or none, see verify.
/// splat, cast, index and constant keep the dtype or axes given in `wanted`.
Type infer(const Program& p, const Op& op, const Type& wanted = {});

/// Throws UsageError naming the operation and the rule it breaks. Checks every rule of ops.def, that values are defined
/// once and before use, that regions end in a yield that fits, that `parallel` comes first.
void verify(const Program& p);
/// Throws UsageError where instances of a verified program would write the same elements.
void verify_writes(const Program& p);

/// Exact: parse(print(p)) prints the same. With `places`, each line ends in "  // file:line".
std::string print(const Program& p, bool places = false);
/// Throws UsageError "NAME:LINE:COLUMN: ..." ; the result is verified.
Program parse(std::string_view text, std::string_view name = "text");

/// Sizes, pointers and strides of one launch, checked against the program: shared by the interpreter and the kernels.
struct Bound {
  std::vector<std::int64_t> axis_size;            // by axis
  std::vector<TensorRef> tensors;                 // by tensor
  std::vector<TileListRef> lists;                 // by list
  std::int64_t instances = 0;                     // of the program: product over its `parallel`s
  std::vector<const std::int64_t*> device_sizes;  // by axis: where a kernel finds its size at run time, or null
};
/// Throws UsageError: an argument missing, unknown, given twice, null, of another dtype or rank, disagreeing about the
/// size of an axis, its innermost stride not 1, not memory of `device`, a list entry outside the axes. For a GPU what
/// the lists and device_sizes point to is not read.
Bound bind(const Program& p, const LaunchArgs& args, Device device = {});

/// Runs all instances by plain loops: the definition of every operation.
void interpret(const Program& p, const Bound& bound);

}  // namespace kerf::ir
