#include "tests/support/random_program.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <optional>

#include "lib/ir/ir.h"
#include "tests/support/random_operations.h"

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

class Generator : RandomOperations {
 public:
  using RandomOperations::RandomOperations;

  RandomProgram run() {
    declare_axes();
    if (list_) declare_list();
    open_parallel();
    statements(6 + roll(8));
    while (stores_ == 0) store();
    for (int i = 0; i < 4; ++i) store();
    out_.program = p_.finish();
    fill_arrays();
    return std::move(out_);
  }

 private:
  void declare_axes() {
    static const std::vector<std::int64_t> extents = {1, 2, 3, 4, 5, 7, 8, 8, 13, 16, 16, 24, 32, 64};
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
  // Loops.
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
      if (chance(2)) store();
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
    keep({where(s == 0, 0, m + log(s)), f32, {row}, bound, error * (3 + n) + (n + 16) * 8 * unit * (1 + bound)});
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
    std::optional<Value> unused = pick([](const Value& x) { return !x.used; });
    Value v = unused ? *unused : *pick([](const Value&) { return true; });
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
};

}  // namespace

RandomProgram random_program(std::uint64_t seed) { return Generator(seed).run(); }

}  // namespace kerf::test
