// What each operation means: one element at a time, in plain loops, values held whole. Backends are compared with this
// file, so it prefers being plain to being fast.
//
// f32, bf16 and f16 tiles are held as floats (every bf16 and f16 is one), integers and bools as 64-bit integers; i32
// wraps after every operation. Arithmetic in f32 rounds once per operation. exp, log, tanh are computed in double and
// rounded once; dot, reduce_sum and running_sum add up in double, in order, and round once. Of zeros of different sign
// max and min may give either. Elements outside an axis (padding of its last block) are computed with like all others;
// a backend may leave padding that was loaded as 0 out of a dot, which differs only where the other factor is NaN or
// infinite.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lib/ir/ir.h"

namespace kerf::ir {

namespace {

using Integer = std::int64_t;
using Axes = std::vector<AxisExtent>;

/// What a value holds while the program runs.
struct Slot {
  std::vector<float> real;       // tile or staged of a float dtype, row-major over its axes; staged: block after block
  std::vector<Integer> integer;  // tile or staged of an integer dtype or bool
  Integer at = 0;                // block: its number; entry: its position in the list
};
template <class T>
std::vector<T>& elements(Slot& s) {
  if constexpr (std::is_same_v<T, float>)
    return s.real;
  else
    return s.integer;
}

/// For each of K operands its step per axis of `axes`, 0 along axes that it lacks: that is what broadcasting means.
template <std::size_t K, class F>
void each(const Axes& axes, const std::array<const Axes*, K>& operands, F&& f) {
  const std::size_t rank = axes.size();
  std::vector<std::array<Integer, K>> steps(rank);
  std::vector<Integer> counter(rank, 0);
  Integer total = 1;
  for (const AxisExtent& a : axes) total *= a.extent;
  for (std::size_t k = 0; k < K; ++k) {
    if (!operands[k]) continue;
    Integer step = 1;
    for (std::size_t j = operands[k]->size(); j-- > 0;) {
      const AxisExtent& a = (*operands[k])[j];
      for (std::size_t i = 0; i < rank; ++i)
        if (axes[i].axis == a.axis) steps[i][k] = step;
      step *= a.extent;
    }
  }
  std::array<Integer, K> at{};
  for (Integer i = 0; i < total; ++i) {
    f(static_cast<std::size_t>(i), at);
    for (std::size_t d = rank; d-- > 0;) {
      for (std::size_t k = 0; k < K; ++k) at[k] += steps[d][k];
      if (++counter[d] < axes[d].extent) break;
      for (std::size_t k = 0; k < K; ++k) at[k] -= steps[d][k] * axes[d].extent;
      counter[d] = 0;
    }
  }
}

/// Distance between neighbours along `axis` in a tile.
Integer step_along(const Axes& axes, int axis) {
  Integer step = 1;
  for (std::size_t j = axes.size(); j-- > 0 && axes[j].axis != axis;) step *= axes[j].extent;
  return step;
}

float rounded(DType t, float x) {
  if (t == bf16) return from_bf16(to_bf16(x));
  if (t == f16) return from_f16(to_f16(x));
  return x;
}
Integer wrapped(DType t, std::uint64_t x) {
  return t == i32 ? static_cast<std::int32_t>(static_cast<std::uint32_t>(x)) : static_cast<Integer>(x);
}

template <class T>
T at_memory(const void* data, Integer i) {
  T x;
  std::memcpy(&x, static_cast<const char*>(data) + i * static_cast<Integer>(sizeof(T)), sizeof(T));
  return x;
}
template <class T>
void to_memory(void* data, Integer i, T x) {
  std::memcpy(static_cast<char*>(data) + i * static_cast<Integer>(sizeof(T)), &x, sizeof(T));
}
float read_real(const void* data, DType t, Integer i) {
  if (t == f32) return at_memory<float>(data, i);
  const auto bits = at_memory<std::uint16_t>(data, i);
  return t == bf16 ? from_bf16(bits) : from_f16(bits);
}
void write(void* data, DType t, Integer i, float x) {
  if (t == f32)
    to_memory(data, i, x);
  else
    to_memory(data, i, t == bf16 ? to_bf16(x) : to_f16(x));
}
Integer read_integer(const void* data, DType t, Integer i) {
  if (t == i32) return at_memory<std::int32_t>(data, i);
  if (t == i64) return at_memory<Integer>(data, i);
  return at_memory<std::uint8_t>(data, i) != 0;
}
void write(void* data, DType t, Integer i, Integer x) {
  if (t == i32)
    to_memory(data, i, static_cast<std::int32_t>(x));
  else if (t == i64)
    to_memory(data, i, x);
  else
    to_memory(data, i, static_cast<std::uint8_t>(x != 0));
}
template <class T>
T read(const void* data, DType t, Integer i) {
  if constexpr (std::is_same_v<T, float>)
    return read_real(data, t, i);
  else
    return read_integer(data, t, i);
}

float arithmetic(OpKind kind, DType, float a, float b) {
  switch (kind) {
    case OpKind::neg: return -a;
    case OpKind::add: return a + b;
    case OpKind::sub: return a - b;
    case OpKind::mul: return a * b;
    case OpKind::div: return a / b;
    default: break;
  }
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<float>::quiet_NaN();
  return kind == OpKind::max ? std::max(a, b) : std::min(a, b);
}

Integer arithmetic(OpKind kind, DType t, Integer a, Integer b) {
  const auto x = static_cast<std::uint64_t>(a), y = static_cast<std::uint64_t>(b);
  switch (kind) {
    case OpKind::neg: return wrapped(t, 0 - x);
    case OpKind::add: return wrapped(t, x + y);
    case OpKind::sub: return wrapped(t, x - y);
    case OpKind::mul: return wrapped(t, x * y);
    case OpKind::div:  // the smallest integer by -1 wraps back to itself
      if (b == 0) return 0;
      return b == -1 ? wrapped(t, 0 - x) : a / b;
    case OpKind::max: return std::max(a, b);
    default: return std::min(a, b);
  }
}

float real_function(OpKind kind, float x) {
  const double d = x;
  switch (kind) {
    case OpKind::exp: return static_cast<float>(std::exp(d));
    case OpKind::log: return static_cast<float>(std::log(d));
    case OpKind::tanh: return static_cast<float>(std::tanh(d));
    default: return std::sqrt(x);
  }
}

template <class T>
bool compare(OpKind kind, T a, T b) {
  switch (kind) {
    case OpKind::eq: return a == b;
    case OpKind::ne: return a != b;
    case OpKind::lt: return a < b;
    case OpKind::le: return a <= b;
    case OpKind::gt: return a > b;
    default: return a >= b;
  }
}

/// Towards zero; past the ends of the integer type its end; NaN gives 0.
Integer to_integer(DType t, float x) {
  const Integer least = t == i32 ? std::numeric_limits<std::int32_t>::min() : std::numeric_limits<Integer>::min();
  const Integer most = t == i32 ? std::numeric_limits<std::int32_t>::max() : std::numeric_limits<Integer>::max();
  if (std::isnan(x)) return 0;
  if (x < static_cast<float>(least)) return least;
  if (x >= -static_cast<float>(least)) return most;  // 2^31 or 2^63: the first float past the end
  return static_cast<Integer>(x);
}

bool is_nan(float x) { return std::isnan(x); }
bool is_nan(Integer) { return false; }

class Interpreter {
 public:
  Interpreter(const Program& p, const Bound& bound) : p_(p), bound_(bound), slots_(p.values.size()) {}

  void run() {
    for (Integer i = 0; i < bound_.instances; ++i) {
      place_instance(i);
      run(p_.body);
    }
  }

 private:
  Slot& slot(ValueId v) { return slots_[static_cast<std::size_t>(v)]; }
  Integer axis_size(int axis) const { return bound_.axis_size[static_cast<std::size_t>(axis)]; }
  Integer blocks(int axis, Integer extent) const { return axis_size(axis) / extent + (axis_size(axis) % extent != 0); }
  const TensorRef& tensor(int t) const { return bound_.tensors[static_cast<std::size_t>(t)]; }
  const TileListRef& list(int l) const { return bound_.lists[static_cast<std::size_t>(l)]; }

  /// Of several `parallel` the last varies fastest.
  void place_instance(Integer i) {
    std::size_t n = 0;
    while (n < p_.body.ops.size() && p_.body.ops[n].kind == OpKind::parallel) ++n;
    while (n-- > 0) {
      const Op& op = p_.body.ops[n];
      const Integer count = op.list >= 0 ? list(op.list).count : blocks(op.axis, op.extent);
      const Integer at = i % count;
      i /= count;
      slot(op.results[0]).at = at;
      if (op.list < 0) continue;
      slot(op.results[1]).at = list(op.list).row[at];
      slot(op.results[2]).at = list(op.list).column[at];
    }
  }

  void run(const Region& region) {
    for (const Op& op : region.ops) run(op);
  }

  void run(const Op& op) {
    switch (info(op.kind).rule) {
      case Rule::parallel:
      case Rule::yield: return;  // place_instance and loop see to them
      case Rule::whole: slot(op.results[0]).at = 0; return;
      case Rule::loop: return loop(op);
      case Rule::when:
        if (slot(op.operands[0]).integer[0] != 0) run(op.regions[0]);
        return;
      case Rule::constant: return constant(op);
      case Rule::index: return index(op);
      case Rule::in_bounds: return in_bounds(op);
      case Rule::number: slot(op.results[0]).integer.assign(1, slot(op.operands[0]).at); return;
      case Rule::axis_size: slot(op.results[0]).integer.assign(1, axis_size(op.axis)); return;
      case Rule::load: return by_dtype(op, [&]<class T>() { load<T>(op); });
      case Rule::store: return is_real(op.operands[0]) ? store<float>(op) : store<Integer>(op);
      case Rule::load_packed: return by_dtype(op, [&]<class T>() { load_packed<T>(op); });
      case Rule::store_packed: return is_real(op.operands[0]) ? store_packed<float>(op) : store_packed<Integer>(op);
      case Rule::stage: return by_dtype(op, [&]<class T>() { stage<T>(op); });
      case Rule::take: return by_dtype(op, [&]<class T>() { take<T>(op); });
      case Rule::splat: return by_dtype(op, [&]<class T>() { map<T, T, 1>(op, [](T x) { return x; }); });
      case Rule::arithmetic: return arithmetic_op(op);
      case Rule::real: return map<float, float, 1>(op, [&](float x) { return real_function(op.kind, x); });
      case Rule::compare: return compare_op(op);
      case Rule::logical: return logical_op(op);
      case Rule::where: return by_dtype(op, [&]<class T>() { where<T>(op); });
      case Rule::cast: return cast(op);
      case Rule::dot: return dot(op);
      case Rule::reduce: return is_real(op.operands[0]) ? reduce<float>(op) : reduce<Integer>(op);
      case Rule::scan: return by_dtype(op, [&]<class T>() { running_sum<T>(op); });
    }
  }

  bool is_real(ValueId v) const { return is_float(p_.type(v).dtype); }
  /// Calls f<float> or f<Integer>, by the dtype of the result.
  template <class F>
  void by_dtype(const Op& op, F&& f) {
    if (is_real(op.results[0]))
      f.template operator()<float>();
    else
      f.template operator()<Integer>();
  }
  /// The elements of the result, as many as its type says.
  template <class T>
  std::vector<T>& result(const Op& op) {
    std::vector<T>& out = elements<T>(slot(op.results[0]));
    out.resize(static_cast<std::size_t>(p_.type(op.results[0]).elements()));
    return out;
  }
  template <class T>
  const std::vector<T>& operand(const Op& op, std::size_t i) {
    return elements<T>(slot(op.operands[i]));
  }
  const Axes& axes(ValueId v) const { return p_.type(v).axes; }

  // Structure.

  void loop(const Op& op) {
    const Region& body = op.regions[0];
    const auto anchors = static_cast<std::size_t>(op.anchors()), vars = static_cast<std::size_t>(op.loop_vars());
    const std::size_t carried = body.args.size() - vars;
    for (std::size_t i = 0; i < carried; ++i) slot(body.args[vars + i]) = slot(op.operands[anchors + i]);
    const auto step = [&] {
      run(body);
      std::vector<Slot> next;  // all of them before any is overwritten: a yield may swap its carried values
      for (ValueId v : body.ops.back().operands) next.push_back(slot(v));
      for (std::size_t i = 0; i < carried; ++i) std::swap(slot(body.args[vars + i]), next[i]);
    };
    if (op.over == LoopOver::axis || op.over == LoopOver::part) {
      Integer begin = 0, end = blocks(op.axis, op.extent);
      if (op.over == LoopOver::part) {
        const Integer part = slot(op.operands[0]).at;
        begin = part > end / op.count ? end : part * op.count;
        end = std::min(end, end - begin < op.count ? end : begin + op.count);
      }
      for (Integer b = begin; b < end; ++b) {
        slot(body.args[0]).at = b;
        step();
      }
    } else {
      const TileListRef& l = list(op.list);
      const bool row = op.over == LoopOver::row;
      const Integer anchor = slot(op.operands[0]).at;
      const std::int32_t *bounds = row ? l.row_begin : l.column_begin, *items = row ? l.row_items : l.column_items;
      for (Integer i = bounds[anchor]; i < bounds[anchor + 1]; ++i) {
        slot(body.args[0]).at = items[i];
        slot(body.args[1]).at = row ? l.column[items[i]] : l.row[items[i]];
        step();
      }
    }
    for (std::size_t i = 0; i < carried; ++i) slot(op.results[i]) = slot(body.args[vars + i]);
  }

  void constant(const Op& op) {
    const DType t = p_.type(op.results[0]).dtype;
    if (is_float(t))
      slot(op.results[0]).real.assign(1, rounded(t, static_cast<float>(op.number)));
    else
      slot(op.results[0]).integer.assign(1, t == boolean ? op.number != 0 : op.integer);
  }

  /// Absolute indices of block number `at`.
  static void indices(const AxisExtent& block, Integer at, std::vector<Integer>& out) {
    out.resize(static_cast<std::size_t>(block.extent));
    for (Integer i = 0; i < block.extent; ++i) out[static_cast<std::size_t>(i)] = at * block.extent + i;
  }
  void index(const Op& op) {
    std::vector<Integer>& out = result<Integer>(op);
    indices(axes(op.operands[0])[0], slot(op.operands[0]).at, out);
    for (Integer& x : out) x = wrapped(p_.type(op.results[0]).dtype, static_cast<std::uint64_t>(x));
  }
  void in_bounds(const Op& op) {
    const AxisExtent& block = axes(op.operands[0])[0];
    std::vector<Integer>& out = result<Integer>(op);
    indices(block, slot(op.operands[0]).at, out);
    for (Integer& x : out) x = x < axis_size(block.axis);
  }

  // Memory. A block is a subscript like a tile of its indices.

  /// Indices of subscript `s`, for tensor axis `d`.
  void subscript(ValueId s, std::size_t d) {
    subscript_axes_[d] = &axes(s);
    if (p_.type(s).is_tile()) {
      subscripts_[d] = slot(s).integer;
    } else {
      indices(axes(s)[0], slot(s).at, subscripts_[d]);
    }
  }
  /// Offset of the element at the subscripts, in elements, or -1 outside the tensor.
  Integer offset(const TensorRef& t, const std::array<Integer, TensorRef::max_rank>& at) const {
    Integer sum = 0;
    for (std::size_t d = 0; d < static_cast<std::size_t>(t.rank); ++d) {
      const Integer i = subscripts_[d][static_cast<std::size_t>(at[d])];
      if (i < 0 || i >= t.shape[d]) return -1;
      sum += i * t.strides[d];
    }
    return sum;
  }
  template <class T>
  T fill(const Op& op, std::size_t subscripts) {
    return op.operands.size() > subscripts ? operand<T>(op, subscripts)[0] : T{0};
  }
  template <class T>
  void gather(const TensorRef& t, const Axes& to, T fill, T* out) {
    each(to, subscript_axes_, [&](std::size_t i, const auto& at) {
      const Integer from = offset(t, at);
      out[i] = from < 0 ? fill : read<T>(t.data, t.dtype, from);
    });
  }

  template <class T>
  void load(const Op& op) {
    const TensorRef& t = tensor(op.tensor);
    const auto rank = static_cast<std::size_t>(t.rank);
    subscript_axes_ = {};
    for (std::size_t d = 0; d < rank; ++d) subscript(op.operands[d], d);
    gather<T>(t, axes(op.results[0]), fill<T>(op, rank), result<T>(op).data());
  }

  template <class T>
  void store(const Op& op) {
    const TensorRef& t = tensor(op.tensor);
    Axes to;
    subscript_axes_ = {};
    for (std::size_t d = 0; d < static_cast<std::size_t>(t.rank); ++d) {
      subscript(op.operands[1 + d], d);
      to = *unite(to, *subscript_axes_[d]);
    }
    std::array<const Axes*, TensorRef::max_rank + 1> all{};
    std::copy(subscript_axes_.begin(), subscript_axes_.end(), all.begin());
    all.back() = &axes(op.operands[0]);
    const std::vector<T>& value = operand<T>(op, 0);
    each(to, all, [&](std::size_t, const auto& at) {
      std::array<Integer, TensorRef::max_rank> where;
      std::copy_n(at.begin(), where.size(), where.begin());
      const Integer to_offset = offset(t, where);
      if (to_offset >= 0) write(t.data, t.dtype, to_offset, value[static_cast<std::size_t>(at.back())]);
    });
  }

  /// The axes of one packed tile in memory order.
  Axes packed_axes(int tensor) const {
    const TensorInfo& t = p_.tensors[static_cast<std::size_t>(tensor)];
    const ListInfo& l = p_.lists[static_cast<std::size_t>(t.list)];
    Axes order;
    for (int a : t.axes) order.push_back({a, a == l.row_axis ? l.row_extent : l.column_extent});
    return order;
  }
  template <class T>
  void load_packed(const Op& op) {
    const TensorRef& t = tensor(op.tensor);
    std::vector<T>& out = result<T>(op);
    const Axes order = packed_axes(op.tensor);
    const Integer begin = slot(op.operands[0]).at * static_cast<Integer>(out.size());
    each(axes(op.results[0]), std::array<const Axes*, 1>{&order},
         [&](std::size_t i, const auto& at) { out[i] = read<T>(t.data, t.dtype, begin + at[0]); });
  }
  template <class T>
  void store_packed(const Op& op) {
    const TensorRef& t = tensor(op.tensor);
    const std::vector<T>& value = operand<T>(op, 0);
    const Axes order = packed_axes(op.tensor);
    const Integer begin = slot(op.operands[1]).at * order[0].extent * order[1].extent;
    each(order, std::array<const Axes*, 1>{&axes(op.operands[0])}, [&](std::size_t i, const auto& at) {
      write(t.data, t.dtype, begin + static_cast<Integer>(i), value[static_cast<std::size_t>(at[0])]);
    });
  }

  template <class T>
  void stage(const Op& op) {
    const TensorRef& t = tensor(op.tensor);
    const std::vector<int>& tensor_axes = p_.tensors[static_cast<std::size_t>(op.tensor)].axes;
    const Type& type = p_.type(op.results[0]);
    const Integer count = blocks(op.axis, op.extent);
    const Axes block = {{op.axis, op.extent}};
    std::vector<T>& out = elements<T>(slot(op.results[0]));
    out.resize(static_cast<std::size_t>(count * type.elements()));
    const T outside = fill<T>(op, tensor_axes.size() - 1);
    subscript_axes_ = {};
    for (Integer b = 0; b < count; ++b) {
      std::size_t next = 0;
      for (std::size_t d = 0; d < tensor_axes.size(); ++d) {
        if (tensor_axes[d] == op.axis) {
          subscript_axes_[d] = &block;
          indices(block[0], b, subscripts_[d]);
        } else {
          subscript(op.operands[next++], d);
        }
      }
      gather<T>(t, type.axes, outside, out.data() + b * type.elements());
    }
  }
  template <class T>
  void take(const Op& op) {
    std::vector<T>& out = result<T>(op);
    const auto from = operand<T>(op, 0).begin() + slot(op.operands[1]).at * static_cast<Integer>(out.size());
    std::copy_n(from, out.size(), out.begin());
  }

  // Elementwise.

  /// out[i] = f(a[i], b[i], ...) over the axes of the result; K operands of one element type.
  template <class In, class Out, std::size_t K, class F>
  void map(const Op& op, F&& f) {
    std::array<const Axes*, K> from{};
    std::array<const In*, K> data{};
    for (std::size_t k = 0; k < K; ++k) {
      from[k] = &axes(op.operands[k]);
      data[k] = operand<In>(op, k).data();
    }
    std::vector<Out>& out = result<Out>(op);
    each(axes(op.results[0]), from, [&](std::size_t i, const auto& at) {
      if constexpr (K == 1)
        out[i] = f(data[0][at[0]]);
      else
        out[i] = f(data[0][at[0]], data[1][at[1]]);
    });
  }

  void arithmetic_op(const Op& op) {
    const DType t = p_.type(op.results[0]).dtype;
    by_dtype(op, [&]<class T>() {
      if (op.operands.size() == 1)
        map<T, T, 1>(op, [&](T x) { return arithmetic(op.kind, t, x, x); });
      else
        map<T, T, 2>(op, [&](T x, T y) { return arithmetic(op.kind, t, x, y); });
    });
  }
  void compare_op(const Op& op) {
    if (is_real(op.operands[0]))
      map<float, Integer, 2>(op, [&](float x, float y) { return Integer{compare(op.kind, x, y)}; });
    else
      map<Integer, Integer, 2>(op, [&](Integer x, Integer y) { return Integer{compare(op.kind, x, y)}; });
  }
  void logical_op(const Op& op) {
    switch (op.kind) {
      case OpKind::logical_not: return map<Integer, Integer, 1>(op, [](Integer x) { return Integer{x == 0}; });
      case OpKind::logical_and: return map<Integer, Integer, 2>(op, [](Integer x, Integer y) { return x & y; });
      default: return map<Integer, Integer, 2>(op, [](Integer x, Integer y) { return x | y; });
    }
  }
  template <class T>
  void where(const Op& op) {
    const std::vector<Integer>& condition = operand<Integer>(op, 0);
    const std::vector<T>&a = operand<T>(op, 1), &b = operand<T>(op, 2);
    std::vector<T>& out = result<T>(op);
    const std::array<const Axes*, 3> from = {&axes(op.operands[0]), &axes(op.operands[1]), &axes(op.operands[2])};
    each(axes(op.results[0]), from, [&](std::size_t i, const auto& at) {
      const bool first = condition[static_cast<std::size_t>(at[0])] != 0;
      out[i] = first ? a[static_cast<std::size_t>(at[1])] : b[static_cast<std::size_t>(at[2])];
    });
  }
  void cast(const Op& op) {
    const DType to = p_.type(op.results[0]).dtype;
    const bool from_real = is_real(op.operands[0]);
    if (is_float(to)) {
      if (from_real)
        map<float, float, 1>(op, [&](float x) { return rounded(to, x); });
      else  // by way of f32
        map<Integer, float, 1>(op, [&](Integer x) { return rounded(to, static_cast<float>(x)); });
    } else if (from_real) {
      map<float, Integer, 1>(op, [&](float x) { return to == boolean ? Integer{x != 0} : to_integer(to, x); });
    } else {
      map<Integer, Integer, 1>(
          op, [&](Integer x) { return to == boolean ? Integer{x != 0} : wrapped(to, static_cast<std::uint64_t>(x)); });
    }
  }

  // Dot and reductions.

  void dot(const Op& op) {
    const std::vector<float>&a = operand<float>(op, 0), &b = operand<float>(op, 1);
    const Axes &a_axes = axes(op.operands[0]), &b_axes = axes(op.operands[1]);
    AxisExtent shared{};
    for (const AxisExtent& x : a_axes)
      if (p_.type(op.operands[1]).has(x.axis)) shared = x;
    const Integer a_step = step_along(a_axes, shared.axis), b_step = step_along(b_axes, shared.axis);
    const bool adds = op.operands.size() == 3;
    const std::array<const Axes*, 3> from = {&a_axes, &b_axes, adds ? &axes(op.operands[2]) : nullptr};
    std::vector<float>& out = result<float>(op);
    each(axes(op.results[0]), from, [&](std::size_t i, const auto& at) {
      double sum = adds ? operand<float>(op, 2)[static_cast<std::size_t>(at[2])] : 0;
      const float *x = a.data() + at[0], *y = b.data() + at[1];
      for (Integer k = 0; k < shared.extent; ++k) sum += static_cast<double>(x[k * a_step]) * y[k * b_step];
      out[i] = static_cast<float>(sum);
    });
  }

  template <class T>
  void reduce(const Op& op) {
    const Axes& from = axes(op.operands[0]);
    const Integer step = step_along(from, op.axis), extent = p_.type(op.operands[0]).extent(op.axis);
    const std::array<const Axes*, 1> operands = {&from};
    const std::vector<T>& a = operand<T>(op, 0);
    const Axes& to = axes(op.results[0]);
    if (op.kind == OpKind::reduce_argmax) {
      std::vector<Integer>& out = result<Integer>(op);
      return each(to, operands,
                  [&](std::size_t i, const auto& at) { out[i] = argmax(a.data() + at[0], extent, step); });
    }
    std::vector<T>& out = result<T>(op);
    each(to, operands, [&](std::size_t i, const auto& at) {
      const T* x = a.data() + at[0];
      if (op.kind == OpKind::reduce_max) {
        out[i] = x[argmax(x, extent, step) * step];
      } else if (op.kind == OpKind::reduce_any) {
        out[i] = 0;
        for (Integer k = 0; k < extent; ++k)
          if (x[k * step] != 0) out[i] = 1;
      } else if constexpr (std::is_same_v<T, float>) {
        double sum = 0;
        for (Integer k = 0; k < extent; ++k) sum += x[k * step];
        out[i] = static_cast<float>(sum);
      } else {
        std::uint64_t sum = 0;
        for (Integer k = 0; k < extent; ++k) sum += static_cast<std::uint64_t>(x[k * step]);
        out[i] = wrapped(p_.type(op.results[0]).dtype, sum);
      }
    });
  }
  template <class T>
  void running_sum(const Op& op) {
    const DType dtype = p_.type(op.results[0]).dtype;
    const Integer step = step_along(axes(op.operands[0]), op.axis), extent = p_.type(op.operands[0]).extent(op.axis);
    const std::vector<T>& a = operand<T>(op, 0);
    std::vector<T>& out = result<T>(op);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if constexpr (std::is_same_v<T, float>) {
        double sum = 0;
        for (Integer k = static_cast<Integer>(i) / step % extent; k >= 0; --k)
          sum += a[i - static_cast<std::size_t>(k * step)];
        out[i] = static_cast<float>(sum);
      } else {
        std::uint64_t sum = 0;
        for (Integer k = static_cast<Integer>(i) / step % extent; k >= 0; --k)
          sum += static_cast<std::uint64_t>(a[i - static_cast<std::size_t>(k * step)]);
        out[i] = wrapped(dtype, sum);
      }
    }
  }
  /// The first of the largest; a NaN is larger than all numbers.
  template <class T>
  static Integer argmax(const T* x, Integer extent, Integer step) {
    Integer best = 0;
    for (Integer k = 1; k < extent; ++k)
      if (x[k * step] > x[best * step] || (is_nan(x[k * step]) && !is_nan(x[best * step]))) best = k;
    return best;
  }

  const Program& p_;
  const Bound& bound_;
  std::vector<Slot> slots_;  // by value
  // The subscripts of the load or store at hand, by axis of its tensor.
  std::array<const Axes*, TensorRef::max_rank> subscript_axes_{};
  std::array<std::vector<Integer>, TensorRef::max_rank> subscripts_;
};

}  // namespace

void interpret(const Program& p, const Bound& bound) { Interpreter(p, bound).run(); }

}  // namespace kerf::ir
