#include "tests/support/random_program.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "lib/ir/ir.h"

namespace kerf::test {

OwnedTileList::OwnedTileList(std::int64_t rows, std::int64_t columns, std::vector<std::pair<int, int>> tiles) {
  for (const auto& [r, c] : tiles) {
    row.push_back(r);
    column.push_back(c);
  }
  const auto sort_by = [&](const std::vector<std::int32_t>& block, std::int64_t blocks,
                           std::vector<std::int32_t>& begin, std::vector<std::int32_t>& items) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      begin.push_back(static_cast<std::int32_t>(items.size()));
      for (std::size_t k = 0; k < block.size(); ++k)
        if (block[k] == b) items.push_back(static_cast<std::int32_t>(k));
    }
    begin.push_back(static_cast<std::int32_t>(items.size()));
  };
  sort_by(row, rows, row_begin, row_items);
  sort_by(column, columns, column_begin, column_items);
}

TileListRef OwnedTileList::ref() const {
  TileListRef l;
  l.count = static_cast<std::int64_t>(row.size());
  l.row = row.data();
  l.column = column.data();
  l.row_begin = row_begin.data();
  l.row_items = row_items.data();
  l.column_begin = column_begin.data();
  l.column_items = column_items.data();
  return l;
}

LaunchArgs RandomProgram::args() {
  LaunchArgs a;
  for (auto& [name, array] : arrays) a.tensors.emplace_back(name, array.ref());
  for (const auto& [name, list] : lists) a.lists.emplace_back(name, list.ref());
  a.axes = axes;
  return a;
}

std::string RandomProgram::difference(const RandomProgram& other) const {
  for (const ir::TensorInfo& t : program.ir().tensors) {
    const Array &a = arrays.at(t.name), &b = other.arrays.at(t.name);
    if (!a.surroundings_intact() || !b.surroundings_intact())
      return fmt::format("{}: something was written outside its elements", t.name);
    if (t.access == ir::Access::input || !is_float(t.dtype)) {
      if (a.bytes() == b.bytes()) continue;
      for (std::int64_t i = 0; i < a.size(); ++i)
        if (a[i] != b[i]) return fmt::format("{}: element {} is {} and {}", t.name, i, a[i], b[i]);
      return fmt::format("{}: bytes differ", t.name);
    }
    const double allowed = tolerance.at(t.name);
    for (std::int64_t i = 0; i < a.size(); ++i) {
      const double x = a[i], y = b[i];
      if (x == y || (std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= allowed) continue;
      return fmt::format("{}: element {} is {:.9g} and {:.9g}; they may differ by {:.3g}", t.name, i, x, y, allowed);
    }
  }
  return {};
}

namespace {

constexpr double inf_ = std::numeric_limits<double>::infinity();
constexpr double unit = 0x1p-23;             // a rounding to f32 and then some
constexpr double largest = 64;               // of a float tile that goes on
constexpr std::int64_t max_elements = 2048;  // of a tile
constexpr double max_iterations = 300;       // of the innermost body, per instance

/// A tile with what is known about it.
struct Value {
  Tile tile;
  DType dtype = f32;
  std::vector<int> axes;  // sorted
  double size = 0;        // no finite element is larger in magnitude
  double error = 0;       // no finite element is further from its exact value; 0: the same bits in every correct run
};

class Generator {
 public:
  explicit Generator(std::uint64_t seed)
      : random_(seed), special_(random_.integer(0, 3) == 0), p_("random_" + std::to_string(seed)) {}

  RandomProgram run() {
    declare_axes();
    if (list_) declare_list();
    open_parallel();
    statements(6 + roll(8));
    while (stores_ == 0) store();
    out_.program = p_.finish();
    fill_arrays();
    return std::move(out_);
  }

 private:
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
  void declare_axes() {
    static const std::vector<std::int64_t> extents = {1, 2, 3, 4, 5, 8, 8, 16, 16, 32};
    list_ = chance(3);
    const int parallels = list_ ? 2 : 1 + roll(2), others = list_ ? 1 : 1 + roll(2);
    std::vector<Role> roles(static_cast<std::size_t>(parallels), Role::parallel);
    for (int i = 0; i < others; ++i) roles.push_back(chance(4) ? Role::whole : chance(4) ? Role::part : Role::loop);
    if (!list_) shuffle(roles);
    if (!list_ && std::count(roles.begin(), roles.end(), Role::part) > 1)
      std::replace(roles.begin() + 1 + (std::find(roles.begin(), roles.end(), Role::part) - roles.begin()), roles.end(),
                   Role::part, Role::loop);
    if (list_) std::replace(roles.begin(), roles.end(), Role::part, Role::loop);
    static const std::array<std::string, 4> names = {"N", "V", "D", "K"};
    for (std::size_t i = 0; i < roles.size(); ++i) {
      AxisState a;
      a.name = names[i];
      a.role = roles[i];
      a.extent = any(extents);
      a.size = chance(30) ? 0 : random_.integer(1, 3 * a.extent + 2);
      if (chance(4)) a.size = a.extent * random_.integer(1, 3);  // no ragged block
      a.known = a.role == Role::whole || chance(2);
      if (a.known) a.size = std::max<std::int64_t>(a.size, 1);
      if (a.role == Role::whole) a.extent = a.size = std::min<std::int64_t>(a.size, 24);
      a.axis = a.known ? p_.axis(a.name, a.size) : p_.axis(a.name);
      axes_.push_back(a);
    }
    if (list_) list_mode_ = roll(3);
  }
  void declare_list() {
    kept_ = p_.tile_list("kept", axis(0).axis, axis(0).extent, axis(1).axis, axis(1).extent);
    std::vector<std::pair<int, int>> tiles;
    for (int r = 0; r < axis(0).blocks(); ++r)
      for (int c = 0; c < axis(1).blocks(); ++c)
        if (!chance(3)) tiles.emplace_back(r, c);
    shuffle(tiles);
    out_.lists["kept"] = OwnedTileList(axis(0).blocks(), axis(1).blocks(), tiles);
  }

  // The grid: blocks of the parallel axes, kept tiles, or blocks of one axis of the list with the other walked.
  void open_parallel() {
    if (list_ && list_mode_ == 0) {
      const auto [k, row, column] = p_.parallel(kept_);
      kept_tile_ = k;
      axis(0).block = row;
      axis(1).block = column;
      owned_ = {0, 1};
    } else if (list_) {
      const int anchor = list_mode_ - 1;
      axis(anchor).block = p_.parallel(axis(anchor).axis, axis(anchor).extent);
      axis(1 - anchor).role = Role::loop;
      owned_ = {anchor};
    } else {
      for (std::size_t i = 0; i < axes_.size(); ++i) {
        AxisState& a = axes_[i];
        if (a.role != Role::parallel) continue;
        a.block = p_.parallel(a.axis, a.extent);
        owned_.push_back(static_cast<int>(i));
      }
      for (std::size_t i = 0; i < axes_.size(); ++i) {
        if (axes_[i].role != Role::part) continue;
        part_count_ = random_.integer(1, 3);
        AxisState s;
        s.name = "S";
        s.extent = 1;
        s.size = (axes_[i].blocks() + part_count_ - 1) / part_count_ + roll(2);  // maybe a part without blocks
        s.known = false;
        s.role = Role::parallel;
        s.axis = p_.axis(s.name);
        s.block = p_.parallel(s.axis, 1);
        part_of_ = static_cast<int>(i);
        axes_.push_back(s);
        parts_ = static_cast<int>(axes_.size()) - 1;
        owned_.push_back(parts_);
        break;
      }
    }
    for (AxisState& a : axes_)
      if (a.role == Role::whole) a.block = p_.whole(a.axis);
  }
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
    if (chance(2)) return pool_[found.back()];
    return pool_[any(found)];
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
    const std::vector<int> to = united({over}, others);
    if (elements(to) > max_elements) return;
    const Value rows = indices(target, false, over);
    const DType dtype = any(std::vector<DType>{f32, bf16, f16, i32, i64, boolean});
    std::vector<int> from = others;
    from.push_back(target);
    const TensorState& t = tensors_[tensor(dtype, from, Content::data)];
    std::vector<detail::Subscript> s;
    for (int a : t.axes) s.push_back(a == target ? detail::Subscript(rows.tile) : at(a));
    if (chance(2)) s.push_back(Fill{1});
    keep({load_at(t, s), dtype, to, data_size(dtype), 0});
  }

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
    switch (roll(4)) {
      case 0: return keep({x.block->index(i64), i64, {a}, 1e6, 0});
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
    if (v) keep(reduced(*v, any(v->axes)));
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
    if (others.size() > 2 && chance(4)) right.push_back(others[2]);
    if (chance(2)) std::swap(left, right);
    if (elements(united({shared}, left)) > max_elements || elements(united({shared}, right)) > max_elements ||
        elements(united(left, right)) > max_elements)
      return;
    const Value a = operand(left), b = operand(right);
    Value z = product(a, b, shared);
    if (auto c = pick([&](const Value& x) { return x.dtype == f32 && x.axes == z.axes; }); c && chance(2)) {
      z.size += c->size;
      z.error += c->error + unit * z.size;
      z.tile = chance(2) ? c->tile + z.tile : z.tile + c->tile;
    }
    keep(z);
  }
  Value product(const Value& a, const Value& b, int shared) {
    const auto n = static_cast<double>(axis(shared).extent);
    const double size = n * a.size * b.size;
    const double error = n * (a.error * b.size + b.error * a.size + a.error * b.error) + n * unit * size;
    return {dot(a.tile, b.tile), f32, united(without(a.axes, shared), without(b.axes, shared)), size, error};
  }

  // Loops.
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

  struct Carried {
    Value init;
    int how;  // of f32: 0 add, 1 max, 2 halve and add, 3 replace where a mask holds
    Value next;
  };
  std::vector<Carried> inits() {
    std::vector<Carried> all;
    const int n = 1 + roll(3);
    for (int i = 0; i < n; ++i) {
      const std::vector<int> axes = some_axes(1);
      const DType t = any(std::vector<DType>{f32, f32, f32, f32, i32, i64, boolean, bf16});
      if (i > 0 && chance(3)) {
        all.push_back(all[0]);  // of the same type: may be swapped
      } else if (chance(2) && t == f32 && !axes.empty()) {
        all.push_back({fit({full(*axis(axes[0]).block, 0.5), f32, {axes[0]}, 0.5, 0}, f32, axes), 0, {}});
      } else {
        all.push_back({fit(some_of(t), t, axes), 0, {}});
      }
      all.back().how = roll(4);
    }
    return all;
  }
  /// The next carried value; bounds hold after `times` rounds.
  Value next(const Carried& c, Tile carried, double times) {
    const DType t = c.init.dtype;
    const std::vector<int>& axes = c.init.axes;
    const Value x = fit(some_of(t), t, axes);
    if (t == boolean) return {chance(2) ? carried || x.tile : carried != x.tile, t, axes, 1, 0};
    if (is_integer(t)) return {chance(2) ? carried + x.tile : max(carried, x.tile), t, axes, 0x1p63, 0};
    if (t == bf16)
      return {cast(where(tiles_match(axes), x.tile, carried), bf16), t, axes, std::max(c.init.size, x.size),
              std::max(c.init.error, x.error)};
    switch (c.how) {
      case 0: {
        const double size = c.init.size + times * x.size;
        return {carried + x.tile, t, axes, size, c.init.error + times * (x.error + unit * size)};
      }
      case 1: return {max(carried, x.tile), t, axes, std::max(c.init.size, x.size), std::max(c.init.error, x.error)};
      case 2: {
        const double size = c.init.size + 2 * x.size;
        return {carried * 0.5 + x.tile, t, axes, size, c.init.error + 2 * x.error + 4 * unit * size};
      }
      default: {
        const Value mask = fit(some_truth(), boolean, axes);
        return {where(mask.tile, x.tile, carried), t, axes, std::max(c.init.size, x.size),
                std::max(c.init.error, x.error)};
      }
    }
  }
  Tile tiles_match(const std::vector<int>& axes) { return fit(some_truth(), boolean, axes).tile; }

  void loop() {
    std::vector<int> free;
    for (std::size_t i = 0; i < axes_.size(); ++i)
      if (!axes_[i].block && axes_[i].role != Role::whole) free.push_back(static_cast<int>(i));
    if (free.empty() || depth_ >= 3) return;
    const int a = any(free);
    AxisState& x = axis(a);
    const double times = static_cast<double>(x.blocks());
    if (iterations_ * times > max_iterations) return;
    const bool walk_list = list_ && !kept_tile_ && a < 2 && axis(1 - a).block && chance(2);
    if (!walk_list && chance(4)) return online_softmax(a);
    std::vector<Carried> all = inits();
    if (walk_list) all.resize(1);
    const bool swap =
        all.size() > 1 && all[0].init.dtype == all[1].init.dtype && all[0].init.axes == all[1].init.axes && chance(2);
    if (swap) all[1].how = all[0].how = 0;

    const std::size_t mark = pool_.size();
    const auto body = [&](Block block, const std::vector<Tile>& carried) {
      x.block = block;
      ++depth_;
      iterations_ *= std::max(1.0, times);
      for (std::size_t i = 0; i < all.size(); ++i)
        if (!is_float(all[i].init.dtype)) pool_.push_back({carried[i], all[i].init.dtype, all[i].init.axes, 0x1p63, 0});
      statements(2 + roll(4));
      std::vector<Tile> out;
      for (std::size_t i = 0; i < all.size(); ++i) {
        all[i].next = next(all[i], carried[i], times);
        out.push_back(all[i].next.tile);
      }
      if (swap) std::swap(out[0], out[1]);
      iterations_ /= std::max(1.0, times);
      --depth_;
      pool_.resize(mark);
      x.block.reset();
      return out;
    };
    std::vector<Tile> results = run_loop(a, walk_list, all, body);
    if (swap) {
      Value &first = all[0].next, &second = all[1].next;
      first.size = second.size = first.size + second.size;
      first.error = second.error = first.error + second.error + times * 2 * unit * first.size;
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      Value v = all[i].next;
      v.size = std::max(v.size, all[i].init.size);
      v.error = std::max(v.error, all[i].init.error);
      v.tile = results[i];
      keep(v);
    }
  }
  template <class Body>
  std::vector<Tile> run_loop(int a, bool walk_list, const std::vector<Carried>& all, Body&& body) {
    AxisState& x = axis(a);
    if (walk_list) {
      const KeptRun run = a == 1 ? kept_.in_row(*axis(0).block) : kept_.in_column(*axis(1).block);
      return {p_.loop(run, all[0].init.tile, [&](Kept k, Block b, Tile t) {
        kept_tile_ = k;
        const Tile next = body(b, {t})[0];
        kept_tile_.reset();
        return next;
      })};
    }
    const auto go = [&](auto over) -> std::vector<Tile> {
      if (all.size() == 1)
        return {p_.loop(over, x.extent, all[0].init.tile, [&](Block b, Tile t) { return body(b, {t})[0]; })};
      if (all.size() == 2) {
        const auto r = p_.loop(over, x.extent, carry(all[0].init.tile, all[1].init.tile), [&](Block b, Tile t, Tile u) {
          const std::vector<Tile> n = body(b, {t, u});
          return carry(n[0], n[1]);
        });
        return {r.begin(), r.end()};
      }
      const auto r = p_.loop(over, x.extent, carry(all[0].init.tile, all[1].init.tile, all[2].init.tile),
                             [&](Block b, Tile t, Tile u, Tile v) {
                               const std::vector<Tile> n = body(b, {t, u, v});
                               return carry(n[0], n[1], n[2]);
                             });
      return {r.begin(), r.end()};
    };
    return a == part_of_ ? go(part(x.axis, *axis(parts_).block, part_count_)) : go(x.axis);
  }

  /// log sum exp over an axis, the way the loss does it: carried values feed back and -inf is met.
  void online_softmax(int a) {
    AxisState& x = axis(a);
    const std::vector<int> scope = blocks_in_scope();
    const int row = any(scope);
    if (axis(row).extent * x.extent > max_elements) return;
    const Block r = *axis(row).block;
    double size = 0, error = 0;
    const auto step = [&](Block b, Tile m, Tile s) {
      x.block = b;
      const Value z = load(any(std::vector<DType>{f32, bf16, f16}), {std::min(a, row), std::max(a, row)});
      x.block.reset();
      size = z.size;
      error = z.error;
      const Tile masked = where(b.in_bounds(), z.tile, -inf_);
      const Tile m1 = max(m, reduce_max(masked, x.axis));
      const Tile reference = where(m1 == -inf_, 0, m1);
      return carry(m1, s * exp(m - reference) + reduce_sum(exp(masked - reference), x.axis));
    };
    const auto [m, s] = a == part_of_ ? p_.loop(part(x.axis, *axis(parts_).block, part_count_), x.extent,
                                                carry(full(r, -inf_), zeros(r)), step)
                                      : p_.loop(x.axis, x.extent, carry(full(r, -inf_), zeros(r)), step);
    const auto n = static_cast<double>(x.size + x.extent);
    const double bound = size + std::log(n + 1);
    keep({m + log(s), f32, {row}, bound, error * (3 + n) + (n + 16) * 8 * unit * (1 + bound)});
  }

  void when_something() {
    if (depth_ >= 3) return;
    Value condition = some_truth();
    for (int a : std::vector<int>(condition.axes)) condition = reduced(condition, a);
    const std::size_t mark = pool_.size();
    p_.when(condition.tile, [&] {
      ++depth_;
      statements(1 + roll(3));
      store();
      --depth_;
    });
    pool_.resize(mark);
  }

  // Stores: every output has the axes of the grid, so no two instances write one element.
  void store() {
    if (kept_tile_ && chance(2) && std::all_of(owned_.begin(), owned_.end(), [](int a) { return a < 2; }))
      return store_packed();
    std::vector<int> axes = owned_;
    for (int a : blocks_in_scope())
      if (!has(axes, a) && chance(3) && axes.size() < 4) axes.push_back(a);
    while (elements(axes) > max_elements && axes.size() > owned_.size()) axes.pop_back();
    Value v = value_within(axes);
    if (!v.tile.recorder) return;
    if (v.dtype == f32 && chance(4)) v = cast_to(v, chance(2) ? bf16 : f16);
    if (chance(6)) return accumulate(axes);
    const int permuted = chance(6) ? any(owned_) : -1;
    const std::size_t i = tensor(v.dtype, axes, Content::output);
    Value rows;
    if (permuted >= 0) rows = indices(permuted, true, permuted);
    TensorState& t = tensors_[i];
    std::vector<detail::Subscript> s;
    for (int a : t.axes) s.push_back(a == permuted ? detail::Subscript(rows.tile) : at(a));
    s.push_back(v.tile);
    detail::store(t.tensor, s, std::source_location::current());
    t.error = v.error;
    ++stores_;
  }
  /// Some value whose axes are among these; others are reduced away.
  Value value_within(const std::vector<int>& axes) {
    if (pool_.empty()) load_something();
    if (pool_.empty()) return {};
    Value v = *pick([](const Value&) { return true; });
    for (int a : std::vector<int>(v.axes))
      if (!has(axes, a)) v = reduced(v, a);
    return v;
  }
  /// t = t + x where t holds data: read and written by the same instance, once for each time we come by here.
  void accumulate(std::vector<int> axes) {
    const Value x = fit(some_real(), f32, axes.size() <= 3 ? axes : std::vector<int>(axes.begin(), axes.begin() + 3));
    shuffle(axes);
    TensorState t{new_name("sum"), {}, f32, axes, Content::data, -1, true};
    t.tensor = p_.inout(t.name, f32, handles(axes));
    std::vector<detail::Subscript> s;
    for (int a : axes) s.push_back(at(a));
    const Tile before = load_at(t, s);
    s.push_back(before + x.tile);
    detail::store(t.tensor, s, std::source_location::current());
    const double size = 2 + iterations_ * x.size;
    t.error = iterations_ * (x.error + unit * size);
    tensors_.push_back(t);
    ++stores_;
  }
  void store_packed() {
    Value v = value_within({0, 1});
    if (!v.tile.recorder) return;
    if (v.dtype == f32 && chance(2)) v = cast_to(v, chance(2) ? bf16 : f16);
    std::vector<int> order = {0, 1};
    shuffle(order);
    const std::string name = new_name("packed_out");
    const Packed t = p_.packed_output(name, v.dtype, kept_, handles(order));
    packed_.push_back({name, v.dtype, t, true, order, v.error});
    kerf::store(t, *kept_tile_, v.tile);
    ++stores_;
  }

  void statements(int n) {
    for (int i = 0; i < n; ++i) {
      switch (roll(20)) {
        case 0:
        case 1: load_something(); break;
        case 2: gather(); break;
        case 3:
        case 4: unary(); break;
        case 5:
        case 6: binary(); break;
        case 7: compare(); break;
        case 8: logical(); break;
        case 9: select(); break;
        case 10: convert(); break;
        case 11: reduce(); break;
        case 12:
        case 13: contract(); break;
        case 14: sources(); break;
        case 15:
        case 16:
        case 17: loop(); break;
        case 18: chance(2) ? when_something() : load_packed(); break;
        default: store(); break;
      }
    }
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

}  // namespace

RandomProgram random_program(std::uint64_t seed) { return Generator(seed).run(); }

}  // namespace kerf::test
