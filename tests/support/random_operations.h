// Part of the random program generator: operations on values, each with the bounds of its result.
#pragma once

#include "tests/support/random_values.h"

namespace kerf::test {

class RandomOperations : protected RandomValues {
 public:
  using RandomValues::RandomValues;

 protected:
  // Elementwise.
  void unary() {
    if (chance(5)) {
      const Value v = some_integer();
      return keep({-v.tile, v.dtype, v.axes, v.size, 0});
    }
    Value v = some_real();
    switch (roll(6)) {
      case 0: return keep({-v.tile, f32, v.axes, v.size, v.error});
      case 1: {
        if (v.size > 4) v = scaled(v, 4 / v.size);
        const double size = std::exp(v.size);
        return keep({exp(v.tile), f32, v.axes, size, size * (std::expm1(v.error) + 4 * unit)});
      }
      case 2: return keep({tanh(v.tile), f32, v.axes, 1, v.error + 4 * unit});
      case 3: {
        const double least = at_least_one(v);
        return keep(
            {log(v.tile), f32, v.axes, std::log(v.size), v.error / least + 4 * unit * std::max(1.0, std::log(v.size))});
      }
      case 4: {
        const double least = at_least_one(v);
        return keep({sqrt(v.tile), f32, v.axes, std::sqrt(v.size), v.error / least + unit * std::sqrt(v.size)});
      }
      default: {
        Value other = some_real();
        if (!fit_together(v, other)) return;
        at_least_one(other);
        const double size = v.size;
        return keep(
            {v.tile / other.tile, f32, united(v.axes, other.axes), size, v.error + size * other.error + unit * size});
      }
    }
  }
  /// v becomes v * v + 1, which is at least the result.
  double at_least_one(Value& v) {
    if (v.error > 1e-3) v = load(f32, v.axes);
    const double square = v.size * v.size;
    v = {v.tile * v.tile + 1, f32, v.axes, square + 1,
         2 * v.size * v.error + v.error * v.error + 2 * unit * (square + 1)};
    return 1 - v.error;
  }
  void binary() {
    if (chance(3)) return binary_integer();
    const Value a = some_real(), b = some_real();
    if (chance(5)) {  // with a number
      const double x = 0.25 * (roll(17) - 8);
      switch (roll(4)) {
        case 0: return keep({a.tile + x, f32, a.axes, a.size + std::abs(x), a.error + unit * (a.size + std::abs(x))});
        case 1: return keep({x - a.tile, f32, a.axes, a.size + std::abs(x), a.error + unit * (a.size + std::abs(x))});
        case 2: return keep({a.tile * x, f32, a.axes, a.size * std::abs(x), (a.error + unit * a.size) * std::abs(x)});
        default: return keep({max(a.tile, x), f32, a.axes, std::max(a.size, std::abs(x)), a.error});
      }
    }
    if (!fit_together(a, b)) return;
    const std::vector<int> axes = united(a.axes, b.axes);
    const double sum = a.size + b.size, product = a.size * b.size;
    switch (roll(5)) {
      case 0: return keep({a.tile + b.tile, f32, axes, sum, a.error + b.error + unit * sum});
      case 1: return keep({a.tile - b.tile, f32, axes, sum, a.error + b.error + unit * sum});
      case 2:
        return keep({a.tile * b.tile, f32, axes, product,
                     a.error * b.size + b.error * a.size + a.error * b.error + unit * product + 0x1p-126});
      case 3: return keep({max(a.tile, b.tile), f32, axes, std::max(a.size, b.size), std::max(a.error, b.error)});
      default: return keep({min(a.tile, b.tile), f32, axes, std::max(a.size, b.size), std::max(a.error, b.error)});
    }
  }
  void binary_integer() {
    const Value a = some_integer(), b = some_integer();
    if (!fit_together(a, b)) return;
    const std::vector<int> axes = united(a.axes, b.axes);
    const DType t = a.dtype == i64 || b.dtype == i64 ? i64 : i32;
    const double size = 0x1p63;
    switch (roll(7)) {
      case 0: return keep({a.tile + b.tile, t, axes, size, 0});
      case 1: return keep({a.tile - b.tile, t, axes, size, 0});
      case 2: return keep({a.tile * b.tile, t, axes, size, 0});
      case 3: return keep({a.tile / b.tile, t, axes, size, 0});
      case 4: return keep({a.tile / (roll(7) - 3), a.dtype, a.axes, size, 0});
      case 5: return keep({max(a.tile, b.tile), t, axes, size, 0});
      default: return keep({min(a.tile, b.tile), t, axes, size, 0});
    }
  }
  void compare() {
    const bool integers = chance(2);
    const Value a = integers ? some_integer() : some_exact_real(), b = integers ? some_integer() : some_exact_real();
    if (!fit_together(a, b)) return;
    const std::vector<int> axes = united(a.axes, b.axes);
    const Operand x = a.tile, y = chance(4) ? Operand(roll(5) - 2) : Operand(b.tile);
    const std::vector<int> to = y.is_number ? a.axes : axes;
    switch (roll(7)) {
      case 0: return keep({x == y, boolean, to, 1, 0});
      case 1: return keep({x != y, boolean, to, 1, 0});
      case 2: return keep({x < y, boolean, to, 1, 0});
      case 3: return keep({x <= y, boolean, to, 1, 0});
      case 4: return keep({x > y, boolean, to, 1, 0});
      case 5: return keep({x >= y, boolean, to, 1, 0});
      default: return keep({!(x == y), boolean, to, 1, 0});
    }
  }
  void logical() {
    const Value a = some_truth(), b = some_truth();
    if (!fit_together(a, b)) return;
    const std::vector<int> axes = united(a.axes, b.axes);
    switch (roll(4)) {
      case 0: return keep({a.tile && b.tile, boolean, axes, 1, 0});
      case 1: return keep({a.tile || b.tile, boolean, axes, 1, 0});
      case 2: return keep({a.tile != b.tile, boolean, axes, 1, 0});
      default: return keep({!a.tile, boolean, a.axes, 1, 0});
    }
  }
  void select() {
    const Value condition = some_truth();
    const int kind = roll(4);
    Value a = kind == 0 ? some_integer() : kind == 1 ? some_truth() : some_real();
    Value b = kind == 0 ? some_integer() : kind == 1 ? some_truth() : some_real();
    if (!fit_together(condition, a)) return;
    if (chance(3) && kind > 1)
      return keep({where(condition.tile, a.tile, chance(2) ? 0 : -1.5), f32, united(condition.axes, a.axes),
                   std::max(a.size, 1.5), a.error});
    if (chance(6)) return keep({where(condition.tile, 1, 0), f32, condition.axes, 1, 0});
    const std::vector<int> axes = united(condition.axes, united(a.axes, b.axes));
    if (elements(axes) > max_elements) return;
    const DType t = kind == 0 ? (a.dtype == i64 || b.dtype == i64 ? i64 : i32) : kind == 1 ? boolean : f32;
    keep({where(condition.tile, a.tile, b.tile), t, axes, std::max(a.size, b.size), std::max(a.error, b.error)});
  }
  Value cast_to(const Value& v, DType to) {
    Value r{cast(v.tile, to), to, v.axes, v.size, v.error};
    if (to == bf16 || to == f16) {  // of two values that differ a little, one may round up and one down
      r.size = v.size * (1 + 0x1p-7);
      if (v.error > 0) r.error = v.error + (to == bf16 ? 0x1p-7 : 0x1p-10) * v.size + 0x1p-24;
    }
    if (to == boolean) r.size = 1;
    if (is_integer(to)) r.size = 0x1p63;
    return r;
  }
  void convert() {
    switch (roll(5)) {
      case 0: {
        const Value v = some_real();
        return keep(cast_to(v, any(std::vector<DType>{f32, bf16, f16})));
      }
      case 1: {
        const Value v = some_exact_real();
        return keep(cast_to(v, any(std::vector<DType>{i32, i64, boolean})));
      }
      case 2: {
        const Value v = some_integer();
        return keep(cast_to(v, any(std::vector<DType>{i32, i64, boolean})));
      }
      case 3: {
        const Value v = some_truth();
        return keep(cast_to(v, any(std::vector<DType>{f32, bf16, i32, i64})));
      }
      default: {
        const Value v = some_integer();
        const Value small{max(min(v.tile, 40), -40), v.dtype, v.axes, 40, 0};
        return keep(cast_to(small, any(std::vector<DType>{f32, bf16, f16})));
      }
    }
  }
  void sources() {
    const std::vector<int> scope = blocks_in_scope();
    const int a = any(scope);
    const AxisState& x = axis(a);
    switch (roll(5)) {
      case 0: return keep({x.block->number(), i64, {}, 1e6, 0});
      case 3: return keep({x.block->index(i64), i64, {a}, 1e6, 0});
      case 1: return keep({x.block->index(x.known ? i32 : i64), x.known ? i32 : i64, {a}, 1e6, 0});
      case 2: return keep({x.block->in_bounds(), boolean, {a}, 1, 0});
      default:
        return keep(
            {p_.size(axes_[static_cast<std::size_t>(roll(static_cast<int>(axes_.size())))].axis), i64, {}, 1e6, 0});
    }
  }

  // Reductions and dots.
  Value reduced(const Value& v, int a) {
    const std::vector<int> axes = without(v.axes, a);
    const Axis along = axis(a).axis;
    if (v.dtype == boolean) return {reduce_any(v.tile, along), boolean, axes, 1, 0};
    const auto n = static_cast<double>(axis(a).extent);
    if (whole_number(v)) {
      switch (roll(3)) {
        case 0: return {reduce_sum(v.tile, along), v.dtype, axes, 0x1p63, 0};
        case 1: return {reduce_max(v.tile, along), v.dtype, axes, v.size, 0};
        default: return {reduce_argmax(v.tile, along), i32, axes, n, 0};
      }
    }
    if (v.error == 0 && chance(4)) return {reduce_argmax(v.tile, along), i32, axes, n, 0};
    if (chance(3)) return {reduce_max(v.tile, along), f32, axes, v.size, v.error};
    return {reduce_sum(v.tile, along), f32, axes, n * v.size, n * v.error + n * unit * n * v.size};
  }
  void reduce() {
    const auto v = pick([](const Value& x) { return !x.axes.empty(); });
    if (!v) return;
    if (v->dtype == boolean || !chance(4)) return keep(reduced(*v, any(v->axes)));
    const int a = any(v->axes);
    const auto n = static_cast<double>(axis(a).extent);
    const Tile sums = running_sum(v->tile, axis(a).axis);
    if (whole_number(*v)) return keep({sums, v->dtype, v->axes, 0x1p63, 0});
    keep({sums, f32, v->axes, n * v->size, n * v->error + n * unit * n * v->size});
  }
  void contract() {
    const std::vector<int> scope = blocks_in_scope();
    const int shared = any(scope);
    std::vector<int> others = without(scope, shared);
    shuffle(others);
    const DType dtype = any(std::vector<DType>{f32, f32, bf16, f16});
    const auto operand = [&](std::vector<int> free) -> Value {
      const std::vector<int> axes = united({shared}, free);
      if (auto v = pick([&](const Value& x) { return x.axes == axes && x.dtype == dtype; })) return *v;
      if (auto v = pick([&](const Value& x) { return x.axes == axes && real(x); })) return cast_to(*v, dtype);
      return load(dtype, axes);
    };
    std::vector<int> left, right;
    if (!others.empty() && !chance(6)) left.push_back(others[0]);
    if (others.size() > 1 && !chance(6)) right.push_back(others[1]);
    if (chance(2)) std::swap(left, right);
    if (elements(united({shared}, left)) > max_elements || elements(united({shared}, right)) > max_elements ||
        elements(united(left, right)) > max_elements)
      return;
    if (special_ && ragged(united({shared}, united(left, right)))) return;
    const Value a = operand(left), b = operand(right);
    Value z = product(a, b, shared);
    if (auto c = pick([&](const Value& x) { return x.dtype == f32 && x.axes == z.axes; }); c && chance(2)) {
      z.size += c->size;
      z.error += c->error + unit * z.size;
      z.tile = chance(2) ? c->tile + z.tile : z.tile + c->tile;
    }
    keep(z);
  }
  /// Padding with zeros times NaN or infinity is NaN by definition, and 0 where a backend leaves out the padding.
  bool ragged(const std::vector<int>& axes) {
    return std::any_of(axes.begin(), axes.end(), [&](int a) { return axis(a).size % axis(a).extent != 0; });
  }
  Value product(const Value& a, const Value& b, int shared) {
    const auto n = static_cast<double>(axis(shared).extent);
    const double size = n * a.size * b.size;
    const double error = n * (a.error * b.size + b.error * a.size + a.error * b.error) + n * unit * size;
    return {dot(a.tile, b.tile), f32, united(without(a.axes, shared), without(b.axes, shared)), size, error};
  }

  /// The value brought to that dtype and those axes: reduced over what is too much, repeated over what lacks.
  Value fit(Value v, DType dtype, const std::vector<int>& axes) {
    if (dtype == f32 && whole_number(v)) v = {max(min(v.tile, 40), -40), v.dtype, v.axes, 40, 0};
    if (is_integer(dtype) && real(v) && v.error > 0) v = load(i32, axes);
    for (int a : std::vector<int>(v.axes))
      if (!has(axes, a)) {
        if (real(v)) {  // an argmax would change the dtype
          const auto n = static_cast<double>(axis(a).extent);
          v = {reduce_sum(v.tile, axis(a).axis), f32, without(v.axes, a), n * v.size,
               n * v.error + n * unit * n * v.size};
        } else if (whole_number(v)) {
          v = {reduce_max(v.tile, axis(a).axis), v.dtype, without(v.axes, a), v.size, 0};
        } else {
          v = reduced(v, a);
        }
      }
    if (v.dtype != dtype) v = cast_to(v, dtype);
    if (is_float(dtype) && v.size > largest && dtype == f32) v = scaled(v, largest / v.size);
    for (int a : axes)
      if (!has(v.axes, a)) {
        const Tile spread = full(*axis(a).block, 0, dtype == bf16 || dtype == f16 ? f32 : dtype);
        v.tile = dtype == boolean ? v.tile || spread : v.tile + spread;
        v.axes = united(v.axes, {a});
        if (dtype == bf16 || dtype == f16) v.tile = cast(v.tile, dtype);
      }
    return v;
  }
  Value some_of(DType dtype) {
    if (dtype == boolean) return some_truth();
    if (is_integer(dtype)) return some_integer();
    return some_real();
  }
};

}  // namespace kerf::test
