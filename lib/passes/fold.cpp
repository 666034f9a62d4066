// fold: what is known is computed, what changes nothing goes, and a sum with a dot becomes the dot's accumulator.
//
//   before:  %t = const true : bool                      after:  use %z for %w
//            %m = splat %t : tile<V:256, bool>
//            %w = where %m, %z, %low
//
//   before:  %q = dot %a, %b                             after:  %acc1 = dot %a, %b, %acc
//            %acc1 = add %acc, %q
//
// Only what keeps every bit, with two exceptions. `x + 0` stays, since -0 + 0 is 0; `x * 0` stays, since x may be NaN;
// `x + -0`, `x - 0`, `x * 1` and `x / 1` are x. Operations broadcast, so x may stand for the result only if it has all
// its axes; a scalar is spread by a splat, anything else is left alone. The exceptions: the bits of a NaN are not kept
// apart, and a dot that starts from the sum so far rounds elsewhere than one that is added to it. A dot is only taken
// into a sum when the sum is all that uses it, stands in the same region, and has no other axes; and not when the dot
// could stand in front of the loop, which hoist will see to.
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include "lib/passes/passes.h"
#include "lib/passes/rewrite.h"

namespace kerf::passes {

using namespace ir;

namespace {

/// The number as the dtype holds it.
double rounded(DType t, double x) {
  switch (t) {
    case DType::f32: return static_cast<double>(static_cast<float>(x));
    case DType::bf16: return static_cast<double>(from_bf16(to_bf16(static_cast<float>(x))));
    case DType::f16: return static_cast<double>(from_f16(to_f16(static_cast<float>(x))));
    default: return x;
  }
}

bool fits(DType t, std::int64_t x) { return t == DType::i64 || static_cast<std::int32_t>(x) == x; }
bool same_bits(double a, double b) { return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b); }

Scalar truth(bool x) { return {.dtype = DType::boolean, .number = x ? 1.0 : 0.0}; }

std::optional<Scalar> compute(OpKind kind, float a, float b) {
  float x = 0;
  switch (kind) {
    case OpKind::neg: x = -a; break;
    case OpKind::add: x = a + b; break;
    case OpKind::sub: x = a - b; break;
    case OpKind::mul: x = a * b; break;
    case OpKind::div: x = a / b; break;
    case OpKind::max: x = a > b ? a : b; break;
    case OpKind::min: x = a < b ? a : b; break;
    case OpKind::eq: return truth(a == b);
    case OpKind::ne: return truth(a != b);
    case OpKind::lt: return truth(a < b);
    case OpKind::le: return truth(a <= b);
    case OpKind::gt: return truth(a > b);
    case OpKind::ge: return truth(a >= b);
    default: return std::nullopt;
  }
  if ((kind == OpKind::max || kind == OpKind::min) && a == b && !same_bits(a, b)) return std::nullopt;  // -0 and 0
  if (std::isnan(x) || std::isnan(a) || std::isnan(b)) return std::nullopt;
  return Scalar{.dtype = DType::f32, .number = static_cast<double>(x)};
}

std::optional<Scalar> compute(OpKind kind, DType t, std::int64_t a, std::int64_t b) {
  std::int64_t x = 0;
  bool overflow = false;
  switch (kind) {
    case OpKind::neg: overflow = __builtin_sub_overflow(std::int64_t{0}, a, &x); break;
    case OpKind::add: overflow = __builtin_add_overflow(a, b, &x); break;
    case OpKind::sub: overflow = __builtin_sub_overflow(a, b, &x); break;
    case OpKind::mul: overflow = __builtin_mul_overflow(a, b, &x); break;
    case OpKind::div:
      if (b == -1)
        overflow = __builtin_sub_overflow(std::int64_t{0}, a, &x);
      else
        x = b == 0 ? 0 : a / b;
      break;
    case OpKind::max: x = std::max(a, b); break;
    case OpKind::min: x = std::min(a, b); break;
    case OpKind::eq: return truth(a == b);
    case OpKind::ne: return truth(a != b);
    case OpKind::lt: return truth(a < b);
    case OpKind::le: return truth(a <= b);
    case OpKind::gt: return truth(a > b);
    case OpKind::ge: return truth(a >= b);
    default: return std::nullopt;
  }
  if (overflow || !fits(t, x)) return std::nullopt;
  return Scalar{.dtype = t, .integer = x};
}

/// Only where no rounding rule is needed, except from float to float.
std::optional<Scalar> convert(const Scalar& x, DType to) {
  Scalar y{.dtype = to};
  if (is_float(x.dtype)) {
    if (!is_float(to) || std::isnan(x.number)) return std::nullopt;
    y.number = rounded(to, x.number);
  } else if (is_integer(x.dtype)) {
    if (is_float(to)) {
      if (std::abs(x.integer) > 2048) return std::nullopt;
      y.number = static_cast<double>(x.integer);
      if (rounded(to, y.number) != y.number) return std::nullopt;
    } else if (is_integer(to) && fits(to, x.integer)) {
      y.integer = x.integer;
    } else {
      return std::nullopt;
    }
  } else {
    if (is_float(to))
      y.number = x.number;
    else if (is_integer(to))
      y.integer = x.number != 0 ? 1 : 0;
    else
      return std::nullopt;
  }
  return y;
}

class Folder {
 public:
  explicit Folder(ir::Program& p) : program_(p), uses_(count_uses(p)) { run(p.body, false); }

 private:
  void run(Region& region, bool of_loop) {
    std::vector<bool> bound;
    if (of_loop) bound = bound_to_turn(program_, region);
    std::vector<Op> ops;
    for (Op& op : region.ops) {
      for (ValueId& v : op.operands) v = stands_for_(v);
      for (Region& inner : op.regions) run(inner, op.kind == OpKind::loop);
      simplify(op, bound, ops);
    }
    region.ops = std::move(ops);
  }

  /// Appends what the operation becomes.
  void simplify(Op& op, const std::vector<bool>& bound, std::vector<Op>& ops) {
    note_constant(op);
    if (const std::optional<Scalar> x = evaluate(op)) {
      for (ValueId v : op.operands) --uses(v);
      known_[op.results.front()] = *x;
      append_constant(program_, ops, op.results.front(), *x, op.place);
      return;
    }
    if (const std::optional<ValueId> x = same_as(op); x && replace(op, *x, ops)) return;
    fuse_dot(op, bound, ops);
    ops.push_back(std::move(op));
  }

  void note_constant(const Op& op) {
    if (op.kind == OpKind::constant) {
      Scalar x{.dtype = program_.type(op.results.front()).dtype, .number = op.number, .integer = op.integer};
      if (is_float(x.dtype)) x.number = rounded(x.dtype, x.number);
      known_[op.results.front()] = x;
    } else if (op.kind == OpKind::splat) {
      if (const Scalar* x = known(op.operands.front())) known_[op.results.front()] = *x;
    }
  }

  const Scalar* known(ValueId v) const {
    const auto it = known_.find(v);
    return it == known_.end() ? nullptr : &it->second;
  }
  bool is_number(ValueId v, double x) const {
    const Scalar* k = known(v);
    return k && is_float(k->dtype) && same_bits(k->number, x);
  }
  bool is_integer_of(ValueId v, std::int64_t x) const {
    const Scalar* k = known(v);
    return k && is_integer(k->dtype) && k->integer == x;
  }
  bool is_one(ValueId v) const { return is_number(v, 1) || is_integer_of(v, 1); }
  bool is_truth(ValueId v, bool x) const {
    const Scalar* k = known(v);
    return k && k->dtype == DType::boolean && (k->number != 0) == x;
  }

  /// The result as a constant, where every operand that matters is one.
  std::optional<Scalar> evaluate(const Op& op) const {
    if (op.kind == OpKind::axis_size) {
      const std::int64_t size = program_.axes[static_cast<std::size_t>(op.axis)].size;
      if (size != unknown) return Scalar{.dtype = DType::i64, .integer = size};
      return std::nullopt;
    }
    if (op.operands.empty() || op.results.size() != 1) return std::nullopt;
    const Scalar* a = known(op.operands.front());
    const Scalar* b = known(op.operands.back());
    switch (info(op.kind).rule) {
      case Rule::arithmetic:
      case Rule::compare:
        if (!a || !b) break;
        if (a->dtype == DType::f32)
          return compute(op.kind, static_cast<float>(a->number), static_cast<float>(b->number));
        if (is_integer(a->dtype)) return compute(op.kind, a->dtype, a->integer, b->integer);
        break;
      case Rule::logical:
        if (op.kind == OpKind::logical_not) {
          if (a) return truth(a->number == 0);
        } else {
          const bool decides = op.kind == OpKind::logical_or;
          for (ValueId v : op.operands)
            if (is_truth(v, decides)) return truth(decides);
          if (a && b) return truth(!decides);
        }
        break;
      case Rule::cast:
        if (a) return convert(*a, program_.type(op.results.front()).dtype);
        break;
      default: break;
    }
    return std::nullopt;
  }

  /// The operand that equals the result, up to axes.
  std::optional<ValueId> same_as(const Op& op) const {
    if (op.operands.empty()) return std::nullopt;
    const ValueId a = op.operands.front(), b = op.operands.back();
    switch (op.kind) {
      case OpKind::add:
        if (is_number(a, -0.0) || is_integer_of(a, 0)) return b;
        if (is_number(b, -0.0) || is_integer_of(b, 0)) return a;
        break;
      case OpKind::sub:
        if (is_number(b, 0.0) || is_integer_of(b, 0)) return a;
        break;
      case OpKind::mul:
        if (is_one(b) || is_integer_of(a, 0)) return a;
        if (is_one(a) || is_integer_of(b, 0)) return b;
        break;
      case OpKind::div:
        if (is_one(b)) return a;
        break;
      case OpKind::max:
      case OpKind::min:
        if (a == b) return a;
        break;
      case OpKind::logical_and:
        if (a == b || is_truth(b, true)) return a;
        if (is_truth(a, true)) return b;
        break;
      case OpKind::logical_or:
        if (a == b || is_truth(b, false)) return a;
        if (is_truth(a, false)) return b;
        break;
      case OpKind::where:
        if (is_truth(a, true) || op.operands[1] == op.operands[2]) return op.operands[1];
        if (is_truth(a, false)) return op.operands[2];
        break;
      case OpKind::cast:
        if (program_.type(a).dtype == program_.type(op.results.front()).dtype) return a;
        break;
      case OpKind::splat:
        if (program_.type(op.results.front()).is_scalar()) return a;
        break;
      default: break;
    }
    return std::nullopt;
  }

  /// Lets `x` stand for the result, spread over its axes where x is a scalar or a constant; false if it cannot.
  bool replace(const Op& op, ValueId x, std::vector<Op>& ops) {
    const ValueId result = op.results.front();
    const bool same = program_.type(x) == program_.type(result);
    const Scalar* constant = known(x);
    if (!same && !constant && !program_.type(x).is_scalar()) return false;
    for (ValueId v : op.operands) --uses(v);
    if (same) {
      stands_for_.add(result, x);
      const int taken_over = uses(result);  // by operations further on too, so that x is not taken for used up
      uses(result) = 0;
      uses(x) += taken_over;
    } else if (constant) {
      known_[result] = *constant;
      append_constant(program_, ops, result, *constant, op.place);
    } else {
      ++uses(x);
      Op splat;
      splat.kind = OpKind::splat;
      splat.operands = {x};
      splat.results = {result};
      splat.place = op.place;
      ops.push_back(splat);
    }
    return true;
  }

  /// add(acc, dot(a, b)) -> dot(a, b, acc); the earlier dot is taken out of `ops`.
  void fuse_dot(Op& op, const std::vector<bool>& bound, std::vector<Op>& ops) {
    if (op.kind != OpKind::add) return;
    const Type& type = program_.type(op.results.front());
    for (std::size_t side = 0; side < 2; ++side) {
      const ValueId product = op.operands[side], sum = op.operands[1 - side];
      if (product == sum || uses(product) != 1) continue;
      if (program_.type(product) != type || program_.type(sum) != type) continue;
      if (!bound.empty() && !bound[static_cast<std::size_t>(product)]) continue;
      for (auto dot = ops.begin(); dot != ops.end(); ++dot) {
        if (dot->kind != OpKind::dot || dot->results.front() != product || dot->operands.size() != 2) continue;
        dot->operands.push_back(sum);
        dot->results = op.results;
        op = std::move(*dot);
        ops.erase(dot);
        return;
      }
    }
  }

  int& uses(ValueId v) {
    if (static_cast<std::size_t>(v) >= uses_.size()) uses_.resize(program_.values.size(), 1);
    return uses_[static_cast<std::size_t>(v)];
  }

  ir::Program& program_;
  std::vector<int> uses_;
  std::map<ValueId, Scalar> known_;
  Substitution stands_for_;
};

}  // namespace

void fold(ir::Program& p) { Folder{p}; }

}  // namespace kerf::passes
