// What a well-formed program is. `infer` holds the rules of single operations, one function per Rule of ops.def: each
// checks operands and attributes and gives the types of the results. `verify` walks a whole program with them and adds
// what no operation can see alone: declarations, scopes, regions and their yields.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <string>
#include <utility>

#include "kerf/error.h"
#include "lib/ir/ir.h"

namespace kerf::ir {

namespace {

using Types = std::vector<Type>;
using Kind = Type::Kind;
constexpr std::int64_t max_elements = std::int64_t{1} << 31;  // of a tile; positions inside one are i32

std::string at(const Place& place) {
  return place.file.empty() ? std::string() : fmt::format("{}:{}: ", place.file, place.line);
}

std::string join(const std::vector<std::string>& parts, std::string_view between = ", ") {
  std::string s;
  for (const std::string& x : parts) s += (s.empty() ? "" : std::string(between)) + x;
  return s;
}

/// One operation under check.
struct Check {
  const Program& p;
  const Op& op;
  const Type& wanted;

  template <class... A>
  [[noreturn]] void fail(fmt::format_string<A...> f, A&&... a) const {
    throw UsageError(fmt::format("{}{}: {}", at(op.place), info(op.kind).text, fmt::format(f, std::forward<A>(a)...)));
  }
  std::string text(const Type& t) const { return to_text(p, t); }

  std::size_t count() const { return op.operands.size(); }
  const Type& operand(std::size_t i) const { return p.type(op.operands[i]); }
  const Type& tile(std::size_t i) const {
    if (!operand(i).is_tile()) fail("operand {} must be a tile, not {}", i, text(operand(i)));
    return operand(i);
  }
  const Type& scalar(std::size_t i, DType dtype) const {
    if (!operand(i).is_scalar() || operand(i).dtype != dtype)
      fail("operand {} must be a scalar {}, not {}", i, name_of(dtype), text(operand(i)));
    return operand(i);
  }
  const Type& block(std::size_t i) const {
    if (operand(i).kind != Kind::block) fail("operand {} must be a block, not {}", i, text(operand(i)));
    return operand(i);
  }

  const AxisInfo& axis(int id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= p.axes.size()) fail("there is no axis {}", id);
    return p.axes[static_cast<std::size_t>(id)];
  }
  const TensorInfo& tensor() const {
    if (op.tensor < 0 || static_cast<std::size_t>(op.tensor) >= p.tensors.size())
      fail("there is no tensor {}", op.tensor);
    return p.tensors[static_cast<std::size_t>(op.tensor)];
  }
  const ListInfo& list(int id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= p.lists.size()) fail("there is no tile list {}", id);
    return p.lists[static_cast<std::size_t>(id)];
  }

  Type block_of(int id, std::int64_t extent) const {
    axis(id);
    if (extent < 1 || extent >= max_elements)
      fail("a block of {} must hold 1 to {} indices, not {}", axis(id).name, max_elements - 1, extent);
    Type t;
    t.kind = Kind::block;
    t.axes = {{id, extent}};
    return t;
  }
  Type entry_of(int id) const {
    list(id);
    Type t;
    t.kind = Kind::entry;
    t.list = id;
    return t;
  }
  Type sized(Type t) const {
    std::int64_t n = 1;
    for (const AxisExtent& a : t.axes)
      if (__builtin_mul_overflow(n, a.extent, &n) || n >= max_elements)
        fail("{} holds more than {} elements; use smaller blocks", text(t), max_elements - 1);
    return t;
  }
  void same_dtype(std::size_t i, std::size_t j) const {
    if (tile(i).dtype != tile(j).dtype)
      fail("the operands are {} and {}; cast one to the dtype of the other", text(tile(i)), text(tile(j)));
  }
  /// The axes of all operands; names the operands where their blocks differ.
  std::vector<AxisExtent> broadcast() const {
    std::vector<AxisExtent> all;
    for (std::size_t i = 0; i < count(); ++i) {
      int clash = -1;
      auto more = unite(all, tile(i).axes, &clash);
      if (!more) {
        std::size_t other = 0;
        while (!operand(other).has(clash)) ++other;
        fail("the operands have blocks of {} of different extent: {} and {}", axis(clash).name, text(operand(other)),
             text(operand(i)));
      }
      all = *more;
    }
    return all;
  }
};

// ---- structure ----

Types parallel(const Check& c) {
  if (c.op.list < 0) return {c.block_of(c.op.axis, c.op.extent)};
  const ListInfo& l = c.list(c.op.list);
  return {c.entry_of(c.op.list), c.block_of(l.row_axis, l.row_extent), c.block_of(l.column_axis, l.column_extent)};
}

Types whole(const Check& c) {
  const AxisInfo& a = c.axis(c.op.axis);
  if (a.size == unknown) c.fail("the size of {} is known at launch only; loop over its blocks instead", a.name);
  if (c.op.extent != a.size) c.fail("the extent is {} and the size of {} is {}", c.op.extent, a.name, a.size);
  return {c.block_of(c.op.axis, a.size)};
}

/// What the region of a loop gets in front of the carried values.
Types loop_vars(const Check& c) {
  if ((c.op.list >= 0) != (c.op.over == LoopOver::row || c.op.over == LoopOver::column))
    c.fail("a loop over a row or column names a tile list, and no other loop does");
  if (c.op.list < 0) return {c.block_of(c.op.axis, c.op.extent)};
  const ListInfo& l = c.list(c.op.list);
  if (c.op.over == LoopOver::row) return {c.entry_of(c.op.list), c.block_of(l.column_axis, l.column_extent)};
  return {c.entry_of(c.op.list), c.block_of(l.row_axis, l.row_extent)};
}

/// The results are the carried values.
Types loop(const Check& c) {
  loop_vars(c);
  const std::size_t anchors = static_cast<std::size_t>(c.op.anchors());
  if (c.count() < anchors) c.fail("operand 0 must be the block whose part, row or column is walked");
  if (c.op.over == LoopOver::part) {
    c.block(0);
    if (c.op.count < 1) c.fail("a part must hold at least 1 block, not {}", c.op.count);
  } else if (c.op.over != LoopOver::axis) {
    const ListInfo& l = c.list(c.op.list);
    const bool row = c.op.over == LoopOver::row;
    const Type want = row ? c.block_of(l.row_axis, l.row_extent) : c.block_of(l.column_axis, l.column_extent);
    if (c.operand(0) != want)
      c.fail("a {} of {} belongs to a {}, not to {}", row ? "row" : "column", l.name, c.text(want),
             c.text(c.operand(0)));
  }
  Types carried;
  for (std::size_t i = anchors; i < c.count(); ++i) carried.push_back(c.tile(i));
  return carried;
}

Types when(const Check& c) {
  if (!c.operand(0).is_scalar() || c.operand(0).dtype != DType::boolean)
    c.fail("the condition must be a scalar bool, not {}", c.text(c.operand(0)));
  return {};
}

Types yield(const Check&) { return {}; }

// ---- sources ----

void check_axes(const Check& c, const Type& t) {
  for (std::size_t i = 0; i < t.axes.size(); ++i) {
    c.block_of(t.axes[i].axis, t.axes[i].extent);
    if (i && t.axes[i - 1].axis >= t.axes[i].axis)
      c.fail("the axes of {} are not in the order of their declaration", c.text(t));
  }
}

Types constant(const Check& c) {
  if (!c.wanted.is_scalar()) c.fail("the result must be a scalar, not {}; splat spreads it", c.text(c.wanted));
  if (c.wanted.dtype == DType::boolean && c.op.number != 0 && c.op.number != 1)
    c.fail("a bool is 0 or 1, not {}", c.op.number);
  if (c.wanted.dtype == DType::i32 && c.op.integer != static_cast<std::int32_t>(c.op.integer))
    c.fail("{} does not fit i32", c.op.integer);
  return {tile_type(c.wanted.dtype, {})};
}

Types splat(const Check& c) {
  if (!c.operand(0).is_scalar()) c.fail("the operand must be a scalar, not {}", c.text(c.operand(0)));
  if (!c.wanted.is_tile()) c.fail("the result must be a tile, not {}", c.text(c.wanted));
  check_axes(c, c.wanted);
  return {c.sized(tile_type(c.operand(0).dtype, c.wanted.axes))};
}

Types index(const Check& c) {
  const Type& b = c.block(0);
  const AxisInfo& a = c.axis(b.axes[0].axis);
  if (!is_integer(c.wanted.dtype)) c.fail("indices are i32 or i64, not {}", name_of(c.wanted.dtype));
  if (c.wanted.dtype == DType::i32 && (a.size == unknown || a.size >= max_elements)) {
    if (a.size == unknown)
      c.fail("i32 indices need an axis of known size, and that of {} is known at launch only; use i64", a.name);
    c.fail("i32 indices need an axis below 2^31, and {} has {}; use i64", a.name, a.size);
  }
  return {tile_type(c.wanted.dtype, b.axes)};
}

Types in_bounds(const Check& c) { return {tile_type(DType::boolean, c.block(0).axes)}; }

Types number(const Check& c) {
  c.block(0);
  return {tile_type(DType::i64, {})};
}

Types axis_size(const Check& c) {
  c.axis(c.op.axis);
  return {tile_type(DType::i64, {})};
}

// ---- memory ----

std::string signature(const Check& c, const TensorInfo& t) {
  std::vector<std::string> names;
  for (int a : t.axes) names.push_back(c.axis(a).name);
  return fmt::format("{}[{}]", t.name, join(names));
}

const TensorInfo& strided(const Check& c) {
  const TensorInfo& t = c.tensor();
  if (t.list >= 0) c.fail("{} is packed; a kept tile of {} is its one subscript", t.name, c.list(t.list).name);
  return t;
}

const TensorInfo& packed(const Check& c) {
  const TensorInfo& t = c.tensor();
  if (t.list < 0) c.fail("{} is not packed; it takes one subscript per axis", signature(c, t));
  return t;
}

void readable(const Check& c, const TensorInfo& t) {
  if (t.access == Access::output && t.list >= 0) c.fail("{} is an output; declare it packed_input to read it", t.name);
  if (t.access == Access::output) c.fail("{} is an output; declare it inout to read it", t.name);
}

void writable(const Check& c, const TensorInfo& t) {
  if (t.access == Access::input && t.list >= 0) c.fail("{} is an input; declare it packed_output to write it", t.name);
  if (t.access == Access::input) c.fail("{} is an input; declare it output or inout to write it", t.name);
}

/// The axes that subscripts `first`.. of the given tensor axes select.
std::vector<AxisExtent> subscripts(const Check& c, const TensorInfo& t, const std::vector<int>& axes,
                                   std::size_t first) {
  std::vector<AxisExtent> all;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const Type& s = c.operand(first + i);
    const std::string& name = c.axis(axes[i]).name;
    if (s.kind == Kind::block) {
      if (s.axes[0].axis != axes[i])
        c.fail("subscript {} of {} must be a block of {} or a tile of indices, not {}", i, signature(c, t), name,
               c.text(s));
    } else if (!s.is_tile() || !is_integer(s.dtype)) {
      c.fail("subscript {} of {} must be a block of {} or an i32 or i64 tile of indices, not {}", i, signature(c, t),
             name, c.text(s));
    }
    int clash = -1;
    auto more = unite(all, s.axes, &clash);
    if (!more)
      c.fail("the subscripts of {} have blocks of {} of different extent: {} and {}", signature(c, t),
             c.axis(clash).name, tile_type(DType::f32, all).extent(clash), s.extent(clash));
    all = *more;
  }
  return all;
}

void check_count(const Check& c, const TensorInfo& t, std::size_t given, std::size_t expected) {
  if (given != expected)
    c.fail("{} takes {} subscript{}, {} {} given", signature(c, t), expected, expected == 1 ? "" : "s", given,
           given == 1 ? "is" : "are");
}

/// A last operand behind the subscripts is the fill.
void check_fill(const Check& c, const TensorInfo& t, std::size_t subscripts) {
  if (c.count() <= subscripts) return;
  const Type& fill = c.operand(c.count() - 1);
  const bool is_fill = c.count() == subscripts + 1 && fill.is_scalar() && fill.dtype == t.dtype;
  if (!is_fill) check_count(c, t, c.count(), subscripts);
}

Types load(const Check& c) {
  const TensorInfo& t = strided(c);
  readable(c, t);
  if (c.count() < t.axes.size()) check_count(c, t, c.count(), t.axes.size());
  check_fill(c, t, t.axes.size());
  return {c.sized(tile_type(t.dtype, subscripts(c, t, t.axes, 0)))};
}

/// The value of a store may lack axes of the place it goes to; it is repeated along them.
void check_stored(const Check& c, const TensorInfo& t, const std::vector<AxisExtent>& target) {
  const Type& value = c.tile(0);
  if (value.dtype != t.dtype)
    c.fail("{} holds {} and the value is {}; cast it to {}", t.name, name_of(t.dtype), c.text(value), name_of(t.dtype));
  const Type place = tile_type(t.dtype, target);
  for (const AxisExtent& a : value.axes)
    if (place.extent(a.axis) != a.extent)
      c.fail("the value is {} and the subscripts of {} select {}; {}", c.text(value), signature(c, t), c.text(place),
             place.has(a.axis) ? fmt::format("blocks of {} differ", c.axis(a.axis).name)
                               : fmt::format("reduce the value over {} or store along it", c.axis(a.axis).name));
}

Types store(const Check& c) {
  const TensorInfo& t = strided(c);
  writable(c, t);
  if (c.count() < 1) c.fail("operand 0 must be the value");
  check_count(c, t, c.count() - 1, t.axes.size());
  check_stored(c, t, c.sized(tile_type(t.dtype, subscripts(c, t, t.axes, 1))).axes);
  return {};
}

Type packed_tile(const Check& c, const TensorInfo& t) {
  const ListInfo& l = c.list(t.list);
  return c.sized(tile_type(t.dtype, {{l.row_axis, l.row_extent}, {l.column_axis, l.column_extent}}));
}

void check_entry(const Check& c, const TensorInfo& t, std::size_t i) {
  if (c.operand(i) != c.entry_of(t.list))
    c.fail("{} is packed by {} and takes a kept tile of it, not {}", t.name, c.list(t.list).name, c.text(c.operand(i)));
}

Types load_packed(const Check& c) {
  const TensorInfo& t = packed(c);
  readable(c, t);
  check_entry(c, t, 0);
  return {packed_tile(c, t)};
}

Types store_packed(const Check& c) {
  const TensorInfo& t = packed(c);
  writable(c, t);
  check_entry(c, t, 1);
  check_stored(c, t, packed_tile(c, t).axes);
  return {};
}

Types stage(const Check& c) {
  const TensorInfo& t = strided(c);
  readable(c, t);
  std::vector<int> others;
  for (int a : t.axes)
    if (a != c.op.axis) others.push_back(a);
  const std::string& name = c.axis(c.op.axis).name;
  if (others.size() == t.axes.size()) c.fail("{} has no axis {}", signature(c, t), name);
  if (c.count() < others.size()) check_count(c, t, c.count(), others.size());
  check_fill(c, t, others.size());
  std::vector<AxisExtent> axes = subscripts(c, t, others, 0);
  for (const AxisExtent& a : axes)
    if (a.axis == c.op.axis) c.fail("a subscript of {} runs along {}, which is staged", signature(c, t), name);
  axes.push_back(c.block_of(c.op.axis, c.op.extent).axes[0]);
  Type staged = c.sized(tile_type(t.dtype, axes));
  staged.kind = Kind::staged;
  staged.staged_axis = c.op.axis;
  return {staged};
}

Types take(const Check& c) {
  const Type& s = c.operand(0);
  if (s.kind != Kind::staged) c.fail("operand 0 must be staged, not {}", c.text(s));
  const Type want = c.block_of(s.staged_axis, s.extent(s.staged_axis));
  if (c.operand(1) != want) c.fail("{} is taken by a {}, not by {}", c.text(s), c.text(want), c.text(c.operand(1)));
  return {tile_type(s.dtype, s.axes)};
}

// ---- elementwise ----

Types arithmetic(const Check& c) {
  for (std::size_t i = 0; i < c.count(); ++i) {
    const DType t = c.tile(i).dtype;
    if (t == DType::boolean)
      c.fail("a bool has no arithmetic: {}; where(mask, 1, 0) makes numbers of a mask", c.text(c.tile(i)));
    if (t == DType::bf16 || t == DType::f16)
      c.fail("operands are f32, i32 or i64, not {}; cast to f32", c.text(c.tile(i)));
    c.same_dtype(0, i);
  }
  return {c.sized(tile_type(c.tile(0).dtype, c.broadcast()))};
}

Types real(const Check& c) {
  if (c.tile(0).dtype != DType::f32) c.fail("the operand must be f32, not {}; cast it", c.text(c.tile(0)));
  return {c.tile(0)};
}

Types compare(const Check& c) {
  c.same_dtype(0, 1);
  const DType t = c.tile(0).dtype;
  if (t == DType::bf16 || t == DType::f16)
    c.fail("operands are f32, i32, i64 or bool, not {}; cast to f32", c.text(c.tile(0)));
  if (t == DType::boolean && c.op.kind != OpKind::eq && c.op.kind != OpKind::ne)
    c.fail("a bool has no order: {}", c.text(c.tile(0)));
  return {c.sized(tile_type(DType::boolean, c.broadcast()))};
}

Types logical(const Check& c) {
  for (std::size_t i = 0; i < c.count(); ++i)
    if (c.tile(i).dtype != DType::boolean)
      c.fail("operands are bool, not {}; compare it with something", c.text(c.tile(i)));
  return {c.sized(tile_type(DType::boolean, c.broadcast()))};
}

Types where(const Check& c) {
  if (c.tile(0).dtype != DType::boolean) c.fail("the condition must be bool, not {}", c.text(c.tile(0)));
  c.same_dtype(1, 2);
  return {c.sized(tile_type(c.tile(1).dtype, c.broadcast()))};
}

Types cast(const Check& c) { return {tile_type(c.wanted.dtype, c.tile(0).axes)}; }

// ---- dot and reductions ----

Types dot(const Check& c) {
  if (c.count() != 2 && c.count() != 3) c.fail("takes 2 or 3 operands, not {}", c.count());
  const Type &a = c.tile(0), &b = c.tile(1);
  if (!is_float(a.dtype) || a.dtype != b.dtype)
    c.fail("the operands must be of one float dtype: {} and {}", c.text(a), c.text(b));
  std::vector<AxisExtent> shared, others;
  for (const AxisExtent& x : a.axes) (b.has(x.axis) ? shared : others).push_back(x);
  for (const AxisExtent& x : b.axes)
    if (!a.has(x.axis)) others.push_back(x);
  if (shared.empty())
    c.fail("the operands share no axis: {} and {}; dot contracts one shared axis", c.text(a), c.text(b));
  if (shared.size() > 1) {
    std::vector<std::string> names;
    for (const AxisExtent& x : shared) names.push_back(c.axis(x.axis).name);
    c.fail("the operands share {}: {} and {}; dot contracts one shared axis", join(names, " and "), c.text(a),
           c.text(b));
  }
  c.broadcast();  // the blocks of the shared axis must not differ
  const Type result = c.sized(tile_type(DType::f32, others));
  if (c.count() == 3 && c.operand(2) != result)
    c.fail("the sum it adds to must be {}, not {}", c.text(result), c.text(c.operand(2)));
  return {result};
}

Types reduce(const Check& c) {
  const Type& a = c.tile(0);
  const std::string& name = c.axis(c.op.axis).name;
  if (!a.has(c.op.axis)) c.fail("{} has no axis {}", c.text(a), name);
  const bool any = c.op.kind == OpKind::reduce_any;
  if (any && a.dtype != DType::boolean) c.fail("the operand must be bool, not {}", c.text(a));
  if (!any && a.dtype != DType::f32 && !is_integer(a.dtype))
    c.fail("the operand must be f32, i32 or i64, not {}", c.text(a));
  std::vector<AxisExtent> rest;
  for (const AxisExtent& x : a.axes)
    if (x.axis != c.op.axis) rest.push_back(x);
  return {tile_type(c.op.kind == OpKind::reduce_argmax ? DType::i32 : a.dtype, rest)};
}

Types scan(const Check& c) {
  const Type& a = c.tile(0);
  if (!a.has(c.op.axis)) c.fail("{} has no axis {}", c.text(a), c.axis(c.op.axis).name);
  if (a.dtype != DType::f32 && !is_integer(a.dtype)) c.fail("the operand must be f32, i32 or i64, not {}", c.text(a));
  return {a};
}

Types results(const Check& c) {
  const OpInfo& i = info(c.op.kind);
  for (ValueId v : c.op.operands)
    if (v < 0 || static_cast<std::size_t>(v) >= c.p.values.size()) c.fail("there is no value {}", v);
  if (i.operands >= 0 && c.count() != static_cast<std::size_t>(i.operands))
    c.fail("takes {} operand{}, not {}", i.operands, i.operands == 1 ? "" : "s", c.count());
  switch (i.rule) {
    case Rule::parallel: return parallel(c);
    case Rule::whole: return whole(c);
    case Rule::loop: return loop(c);
    case Rule::when: return when(c);
    case Rule::yield: return yield(c);
    case Rule::constant: return constant(c);
    case Rule::splat: return splat(c);
    case Rule::index: return index(c);
    case Rule::in_bounds: return in_bounds(c);
    case Rule::number: return number(c);
    case Rule::axis_size: return axis_size(c);
    case Rule::load: return load(c);
    case Rule::store: return store(c);
    case Rule::load_packed: return load_packed(c);
    case Rule::store_packed: return store_packed(c);
    case Rule::stage: return stage(c);
    case Rule::take: return take(c);
    case Rule::arithmetic: return arithmetic(c);
    case Rule::real: return real(c);
    case Rule::compare: return compare(c);
    case Rule::logical: return logical(c);
    case Rule::where: return where(c);
    case Rule::cast: return cast(c);
    case Rule::dot: return dot(c);
    case Rule::reduce: return reduce(c);
    case Rule::scan: return scan(c);
  }
  throw InternalError("an operation without a rule");
}

// ---- the whole program ----

bool is_name(std::string_view s) {
  const auto ok = [](char ch) { return std::isalnum(static_cast<unsigned char>(ch)) || ch == '_'; };
  return !s.empty() && std::all_of(s.begin(), s.end(), ok) && !std::isdigit(static_cast<unsigned char>(s[0]));
}

class Verifier {
 public:
  explicit Verifier(const Program& p) : p_(p), state_(p.values.size(), State::undefined), constant_(p.values.size()) {}

  void run() {
    declarations();
    if (p_.values.size() != p_.value_names.size())
      fail("{} values and {} value names", p_.values.size(), p_.value_names.size());
    if (!p_.body.args.empty()) fail("the body takes no arguments");
    region(p_.body, nullptr);
  }

 private:
  enum class State : std::uint8_t { undefined, visible, closed };

  template <class... A>
  [[noreturn]] void fail(fmt::format_string<A...> f, A&&... a) const {
    throw UsageError(fmt::format("program {}: {}", p_.name, fmt::format(f, std::forward<A>(a)...)));
  }

  void check_name(std::string_view what, std::string_view name, std::set<std::string_view>& taken) const {
    if (!is_name(name)) fail("'{}' is no name for {}; names are letters, digits and _", name, what);
    if (!taken.insert(name).second) fail("{} {} is declared twice", what, name);
  }
  bool is_axis(int a) const { return a >= 0 && static_cast<std::size_t>(a) < p_.axes.size(); }

  void declarations() const {
    if (!is_name(p_.name))
      throw UsageError(fmt::format("'{}' is no name for a program; names are letters, digits and _", p_.name));
    std::set<std::string_view> axes, tensors, lists;
    for (const AxisInfo& a : p_.axes) {
      check_name("axis", a.name, axes);
      if (a.size != unknown && a.size < 1) fail("axis {} has size {}; a known size is at least 1", a.name, a.size);
    }
    for (const ListInfo& l : p_.lists) {
      check_name("tile list", l.name, lists);
      if (!is_axis(l.row_axis) || !is_axis(l.column_axis) || l.row_axis == l.column_axis)
        fail("tile list {} needs two different axes", l.name);
      for (std::int64_t e : {l.row_extent, l.column_extent})
        if (e < 1 || e >= max_elements)
          fail("tile list {}: a block must hold 1 to {} indices, not {}", l.name, max_elements - 1, e);
    }
    for (const TensorInfo& t : p_.tensors) {
      check_name("tensor", t.name, tensors);
      if (t.axes.size() > static_cast<std::size_t>(TensorRef::max_rank))
        fail("tensor {} has {} axes; at most {} are allowed", t.name, t.axes.size(), +TensorRef::max_rank);
      for (int a : t.axes)
        if (!is_axis(a)) fail("tensor {}: there is no axis {}", t.name, a);
      if (std::set<int>(t.axes.begin(), t.axes.end()).size() != t.axes.size())
        fail("tensor {} has one axis twice", t.name);
      if (t.list >= 0) packed_declaration(t);
    }
  }

  void packed_declaration(const TensorInfo& t) const {
    if (static_cast<std::size_t>(t.list) >= p_.lists.size())
      fail("tensor {}: there is no tile list {}", t.name, t.list);
    const ListInfo& l = p_.lists[static_cast<std::size_t>(t.list)];
    const std::set<int> have(t.axes.begin(), t.axes.end()), want = {l.row_axis, l.column_axis};
    if (have != want)
      fail("packed tensor {} must have the axes of {}: {} and {}", t.name, l.name,
           p_.axes[static_cast<std::size_t>(l.row_axis)].name, p_.axes[static_cast<std::size_t>(l.column_axis)].name);
  }

  void define(const Check& c, ValueId v) {
    if (v < 0 || static_cast<std::size_t>(v) >= state_.size()) c.fail("there is no value {}", v);
    State& s = state_[static_cast<std::size_t>(v)];
    if (s != State::undefined) c.fail("value {} is defined twice", name(v));
    s = State::visible;
  }
  std::string name(ValueId v) const {
    const std::string& n = p_.value_names[static_cast<std::size_t>(v)];
    return n.empty() ? fmt::format("%{}", v) : "%" + n;
  }

  /// `owner` is the loop or when that holds the region; null for the body of the program.
  void region(const Region& r, const Check* owner) {
    std::vector<ValueId> defined = r.args;
    if (owner) {
      for (ValueId v : r.args) define(*owner, v);
      if (r.ops.empty() || r.ops.back().kind != OpKind::yield) owner->fail("its region must end in a yield");
    }
    bool only_parallel = owner == nullptr;
    for (const Op& op : r.ops) {
      const Check c{p_, op, op.results.empty() ? none_ : result_type(op)};
      if (op.kind == OpKind::parallel && !only_parallel) c.fail("must come before every other operation");
      only_parallel = only_parallel && op.kind == OpKind::parallel;
      if (op.kind == OpKind::yield && (!owner || &op != &r.ops.back())) c.fail("must end the region of a loop or when");
      operation(c);
      defined.insert(defined.end(), op.results.begin(), op.results.end());
    }
    for (ValueId v : defined) state_[static_cast<std::size_t>(v)] = State::closed;
  }

  const Type& result_type(const Op& op) const {
    const ValueId v = op.results[0];
    return v >= 0 && static_cast<std::size_t>(v) < p_.values.size() ? p_.type(v) : none_;
  }

  void operation(const Check& c) {
    const Op& op = c.op;
    for (ValueId v : op.operands) {
      if (v < 0 || static_cast<std::size_t>(v) >= state_.size()) c.fail("there is no value {}", v);
      const State s = state_[static_cast<std::size_t>(v)];
      if (s == State::undefined) c.fail("{} is used before it is defined", name(v));
      if (s == State::closed) c.fail("{} is used outside the loop or when it was made in", name(v));
    }
    const Types types = results(c);
    check_constant_fill(c);
    regions(c, types);
    if (op.results.size() != types.size()) c.fail("has {} results, not {}", types.size(), op.results.size());
    for (std::size_t i = 0; i < types.size(); ++i) {
      define(c, op.results[i]);
      if (p_.type(op.results[i]) != types[i])
        c.fail("the result is {}, not {}", c.text(types[i]), c.text(p_.type(op.results[i])));
    }
    if (op.kind == OpKind::constant) constant_[static_cast<std::size_t>(op.results[0])] = true;
  }

  void check_constant_fill(const Check& c) const {
    const Op& op = c.op;
    if (op.kind != OpKind::load && op.kind != OpKind::stage) return;
    const std::size_t subscripts = c.tensor().axes.size() - (op.kind == OpKind::stage ? 1 : 0);
    if (op.operands.size() > subscripts && !constant_[static_cast<std::size_t>(op.operands.back())])
      c.fail("the fill must be a constant");
  }

  void regions(const Check& c, const Types& results) {
    const Op& op = c.op;
    const std::size_t want = op.kind == OpKind::loop || op.kind == OpKind::when ? 1 : 0;
    if (op.regions.size() != want) c.fail("has {} regions, not {}", want, op.regions.size());
    if (want == 0) return;
    const Region& r = op.regions[0];
    Types args;
    if (op.kind == OpKind::loop) {
      args = loop_vars(c);
      args.insert(args.end(), results.begin(), results.end());
    }
    if (r.args.size() != args.size()) c.fail("its region takes {} arguments, not {}", args.size(), r.args.size());
    for (std::size_t i = 0; i < args.size(); ++i) {
      if (r.args[i] < 0 || static_cast<std::size_t>(r.args[i]) >= p_.values.size())
        c.fail("there is no value {}", r.args[i]);
      if (p_.type(r.args[i]) != args[i])
        c.fail("argument {} of its region is {}, not {}", i, c.text(args[i]), c.text(p_.type(r.args[i])));
    }
    region(r, &c);
    const Op& end = r.ops.back();
    if (end.operands.size() != results.size())
      c.fail("its yield gives {} values, not {}", end.operands.size(), results.size());
    for (std::size_t i = 0; i < results.size(); ++i)
      if (p_.type(end.operands[i]) != results[i])
        c.fail("carried tile {} starts as {} and its body gives {}; both must be the same", i, c.text(results[i]),
               c.text(p_.type(end.operands[i])));
  }

  const Program& p_;
  const Type none_;
  std::vector<State> state_;
  std::vector<bool> constant_;
};

}  // namespace

Type infer(const Program& p, const Op& op, const Type& wanted) {
  const Types types = results({p, op, wanted});
  return types.empty() ? Type{} : types[0];
}

void verify(const Program& p) { Verifier(p).run(); }

}  // namespace kerf::ir
