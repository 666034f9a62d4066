// Part of the random program generator: axes, tensors and the values at hand, with what is known about each.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "kerf/dsl.h"
#include "tests/support/random_program.h"

namespace kerf::test {

inline constexpr double inf_ = std::numeric_limits<double>::infinity();
inline constexpr double unit = 0x1p-23;             // a rounding to f32 and then some
inline constexpr double largest = 64;               // of a float tile that goes on
inline constexpr std::int64_t max_elements = 2048;  // of a tile
inline constexpr double max_iterations = 300;       // of the innermost body, per instance

/// A tile with what is known about it.
struct Value {
  Tile tile;
  DType dtype = f32;
  std::vector<int> axes;  // sorted
  double size = 0;        // no finite element is larger in magnitude
  double error = 0;       // no finite element is further from its exact value; 0: the same bits in every correct run
  bool used = false;      // by an operation
};

class RandomValues {
 public:
  explicit RandomValues(std::uint64_t seed)
      : random_(seed), special_(random_.integer(0, 3) == 0), p_("random_" + std::to_string(seed)) {}

 protected:
  enum class Role { parallel, loop, whole, part };
  struct AxisState {
    Axis axis;
    std::string name;
    std::int64_t size, extent;
    bool known;
    Role role;
    std::optional<Block> block;  // in scope
    std::int64_t blocks() const { return (size + extent - 1) / extent; }
  };
  enum class Content { data, index, permutation, output };
  struct TensorState {
    std::string name;
    Tensor tensor;
    DType dtype;
    std::vector<int> axes;
    Content content;
    int target = -1;  // index, permutation: the axis they index
    bool inout = false;
    double error = 0;
  };
  struct PackedState {
    std::string name;
    DType dtype;
    Packed packed;
    bool output;
    std::vector<int> axes;
    double error = 0;
  };

  // Chance.
  int roll(int n) { return static_cast<int>(random_.integer(0, n - 1)); }
  bool chance(int one_in) { return roll(one_in) == 0; }
  template <class T>
  const T& any(const std::vector<T>& v) {
    return v[static_cast<std::size_t>(roll(static_cast<int>(v.size())))];
  }
  template <class T>
  void shuffle(std::vector<T>& v) {
    for (std::size_t i = v.size(); i > 1; --i)
      std::swap(v[i - 1], v[static_cast<std::size_t>(roll(static_cast<int>(i)))]);
  }

  // Axes.
  AxisState& axis(int a) { return axes_[static_cast<std::size_t>(a)]; }
  std::vector<int> blocks_in_scope() const {
    std::vector<int> all;
    for (std::size_t i = 0; i < axes_.size(); ++i)
      if (axes_[i].block) all.push_back(static_cast<int>(i));
    return all;
  }
  std::int64_t elements(const std::vector<int>& axes) {
    std::int64_t n = 1;
    for (int a : axes) n *= axis(a).extent;
    return n;
  }
  static std::vector<int> united(std::vector<int> a, const std::vector<int>& b) {
    a.insert(a.end(), b.begin(), b.end());
    std::sort(a.begin(), a.end());
    a.erase(std::unique(a.begin(), a.end()), a.end());
    return a;
  }
  static bool has(const std::vector<int>& axes, int a) { return std::find(axes.begin(), axes.end(), a) != axes.end(); }
  static std::vector<int> without(std::vector<int> axes, int a) {
    std::erase(axes, a);
    return axes;
  }
  /// Some of the axes in scope, few enough for a tile.
  std::vector<int> some_axes(int at_least) {
    std::vector<int> all = blocks_in_scope(), chosen;
    shuffle(all);
    const int want = std::max(at_least, roll(4));
    for (int a : all)
      if (static_cast<int>(chosen.size()) < want && elements(chosen) * axis(a).extent <= max_elements)
        chosen.push_back(a);
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }

  // Values.
  void keep(Value v) {
    if (real(v) && v.size > largest) {
      if (v.dtype != f32) return;
      v = scaled(v, largest / v.size);
    }
    if (real(v) && v.error > 0.05) return;  // a comparison would show nothing
    pool_.push_back(std::move(v));
  }
  Value scaled(const Value& v, double by) {
    const double power = std::exp2(std::floor(std::log2(by)));
    return {v.tile * power, f32, v.axes, v.size * power, v.error * power + (v.error > 0 ? 0x1p-149 : 0)};
  }
  template <class F>
  std::optional<Value> pick(F&& fits) {
    std::vector<std::size_t> found;
    for (std::size_t i = 0; i < pool_.size(); ++i)
      if (fits(pool_[i])) found.push_back(i);
    if (found.empty()) return std::nullopt;
    Value& chosen = pool_[chance(2) ? found.back() : any(found)];
    chosen.used = true;
    return chosen;
  }
  static bool real(const Value& v) { return is_float(v.dtype); }
  static bool whole_number(const Value& v) { return is_integer(v.dtype); }
  static bool truth(const Value& v) { return v.dtype == boolean; }
  /// An f32, bf16 or f16 tile; loads one if there is none.
  Value some_real() {
    if (auto v = pick(real)) return *v;
    const DType t = any(std::vector<DType>{f32, f32, bf16, f16});
    return load(t, some_axes(1));
  }
  Value some_integer() {
    if (auto v = pick(whole_number)) return *v;
    const DType t = chance(2) ? i32 : i64;
    return load(t, some_axes(1));
  }
  Value some_truth() {
    if (auto v = pick(truth)) return *v;
    return load(boolean, some_axes(1));
  }
  Value some_exact_real() {
    if (auto v = pick([](const Value& x) { return real(x) && x.error == 0; })) return *v;
    return load(f32, some_axes(1));
  }
  bool fit_together(const Value& a, const Value& b) { return elements(united(a.axes, b.axes)) <= max_elements; }

  // Loads.
  std::string new_name(std::string_view stem) { return fmt::format("{}{}", stem, ++names_); }
  std::vector<Axis> handles(const std::vector<int>& axes) {
    std::vector<Axis> h;
    for (int a : axes) h.push_back(axis(a).axis);
    return h;
  }
  static double data_size(DType t) { return is_float(t) ? 2 : t == i32 ? 0x1p31 : t == i64 ? 0x1p53 : 1; }
  /// A tensor of that content over the axes in some order; one that is there already, now and then.
  std::size_t tensor(DType dtype, std::vector<int> axes, Content content, int target = -1) {
    shuffle(axes);
    if (content != Content::output && chance(2))
      for (std::size_t i = 0; i < tensors_.size(); ++i) {
        const TensorState& t = tensors_[i];
        if (t.dtype == dtype && t.content == content && t.target == target && !t.inout &&
            std::is_permutation(axes.begin(), axes.end(), t.axes.begin(), t.axes.end()))
          return i;
      }
    const bool output = content == Content::output;
    TensorState t{
        new_name(output ? "out" : content == Content::data ? "x" : "index"), {}, dtype, axes, content, target};
    t.tensor = output ? p_.output(t.name, dtype, handles(axes)) : p_.input(t.name, dtype, handles(axes));
    tensors_.push_back(t);
    return tensors_.size() - 1;
  }
  detail::Subscript at(int a) { return detail::Subscript(*axis(a).block); }
  Tile load_at(const TensorState& t, std::vector<detail::Subscript> s) {
    return detail::load(t.tensor, std::move(s), std::source_location::current());
  }
  Value load(DType dtype, const std::vector<int>& axes) {
    const TensorState& t = tensors_[tensor(dtype, axes, Content::data)];
    std::vector<detail::Subscript> s;
    for (int a : t.axes) s.push_back(at(a));
    double size = data_size(dtype);
    if (chance(3)) {
      const double outside = dtype == boolean ? 1 : is_float(dtype) ? 0.75 : -3;
      s.push_back(Fill{outside});
      size = std::max(size, std::abs(outside));
    }
    Value v{load_at(t, s), dtype, axes, size, 0};
    std::sort(v.axes.begin(), v.axes.end());
    return v;
  }
  void load_something() {
    static const std::vector<DType> dtypes = {f32, f32, f32, bf16, f16, i32, i64, boolean};
    const DType t = any(dtypes);
    keep(load(t, some_axes(roll(5) ? 1 : 0)));
  }
  void load_packed() {
    if (!kept_tile_) return;
    const DType dtype = any(std::vector<DType>{f32, bf16, f16, i32, boolean});
    std::vector<int> order = {0, 1};
    shuffle(order);
    const std::string name = new_name("packed");
    const Packed t = p_.packed_input(name, dtype, kept_, handles(order));
    packed_.push_back({name, dtype, t, false, order});
    keep({kerf::load(t, *kept_tile_), dtype, {0, 1}, data_size(dtype), 0});
  }
  /// Indices into axis `target` over some axis in scope, a few of them outside.
  Value indices(int target, bool distinct, int over) {
    if (!distinct && chance(3)) {  // computed
      if (chance(3)) return {axis(over).block->number() * axis(over).extent + (roll(5) - 2), i64, {}, 1e6, 0};
      const DType t = axis(over).known && chance(2) ? i32 : i64;
      return {axis(over).block->index(t) + (roll(5) - 2), t, {over}, 1e6, 0};
    }
    const DType t = chance(2) ? i32 : i64;
    const std::size_t source = tensor(t, {over}, distinct ? Content::permutation : Content::index, target);
    return {load_at(tensors_[source], {at(over), Fill{-1}}), t, {over}, 1e6, 0};
  }
  void gather() {
    const std::vector<int> scope = blocks_in_scope();
    const int over = any(scope);
    const int target = roll(static_cast<int>(axes_.size()));
    std::vector<int> others;
    for (int a : scope)
      if (a != target && chance(2) && static_cast<int>(others.size()) < 2) others.push_back(a);
    if (elements(united({over}, others)) > max_elements) return;
    const Value rows = indices(target, false, over);
    const std::vector<int> to = united(rows.axes, others);
    const DType dtype = any(std::vector<DType>{f32, bf16, f16, i32, i64, boolean});
    std::vector<int> from = others;
    from.push_back(target);
    const TensorState& t = tensors_[tensor(dtype, from, Content::data)];
    std::vector<detail::Subscript> s;
    for (int a : t.axes) s.push_back(a == target ? detail::Subscript(rows.tile) : at(a));
    if (chance(2)) s.push_back(Fill{1});
    keep({load_at(t, s), dtype, to, data_size(dtype), 0});
  }

  // Data.
  double datum(DType t) {
    if (t == boolean) return roll(2);
    if (is_integer(t)) {
      static const std::vector<double> corners = {0, -1, 1, 2, -0x1p31, 0x1p31 - 1};
      if (chance(4)) return any(corners);
      return static_cast<double>(random_.integer(-50, 50));
    }
    if (special_ && chance(12)) {
      static const std::vector<double> specials = {std::numeric_limits<double>::quiet_NaN(), inf_, -inf_, 0.0, -0.0};
      return any(specials);
    }
    return 4 * random_.uniform() - 2;
  }
  void fill_arrays() {
    std::set<int> told;
    for (const TensorState& t : tensors_) {
      std::vector<std::int64_t> shape;
      for (int a : t.axes) {
        shape.push_back(axis(a).size);
        told.insert(a);
      }
      Array x(t.dtype, shape, shape.size() > 1 && chance(3) ? 1 + roll(5) : 0);
      if (t.content != Content::output) fill(x, t);
      if (t.content == Content::output || t.inout) out_.tolerance[t.name] = 2 * t.error;
      out_.arrays.emplace(t.name, std::move(x));
    }
    for (const PackedState& t : packed_) {
      const auto count = static_cast<std::int64_t>(out_.lists["kept"].row.size());
      Array x(t.dtype, {count * axis(0).extent * axis(1).extent});
      if (t.output)
        out_.tolerance[t.name] = 2 * t.error;
      else
        for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, datum(t.dtype));
      out_.arrays.emplace(t.name, std::move(x));
    }
    for (std::size_t i = 0; i < axes_.size(); ++i)
      if (!told.contains(static_cast<int>(i)) && !axes_[i].known) out_.axes.emplace_back(axes_[i].name, axes_[i].size);
  }
  void fill(Array& x, const TensorState& t) {
    if (t.content == Content::data) {
      for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, datum(t.dtype));
      return;
    }
    const std::int64_t n = axis(t.target).size;
    if (t.content == Content::index) {
      for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, static_cast<double>(random_.integer(-2, n + 1)));
      return;
    }
    std::vector<std::int64_t> rows;  // each at most once; some point nowhere
    for (std::int64_t i = 0; i < n; ++i) rows.push_back(chance(6) ? n + i : i);
    shuffle(rows);
    for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, static_cast<double>(rows[static_cast<std::size_t>(i)]));
  }

  Random random_;
  const bool special_;
  ProgramBuilder p_;
  RandomProgram out_;
  std::vector<AxisState> axes_;
  std::vector<int> owned_;  // axes of the grid
  bool list_ = false;
  int list_mode_ = 0;  // 0: grid of kept tiles; 1, 2: grid of the list's rows, columns
  TileList kept_;
  std::optional<Kept> kept_tile_;  // in scope
  int part_of_ = -1, parts_ = -1;
  std::int64_t part_count_ = 1;
  std::vector<Value> pool_;
  std::vector<TensorState> tensors_;
  std::vector<PackedState> packed_;
  int names_ = 0, stores_ = 0, depth_ = 0;
  double iterations_ = 1;  // of the statement at hand, per instance
};

}  // namespace kerf::test
