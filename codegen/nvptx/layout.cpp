#include "codegen/nvptx/layout.h"

#include <algorithm>

#include "kerf/error.h"

namespace kerf::codegen::nvptx {

namespace {

std::int64_t part(const std::vector<Bit>& bits, int axis, int number) {
  std::int64_t i = 0;
  for (std::size_t b = 0; b < bits.size(); ++b)
    if (bits[b].axis == axis && (number >> b & 1)) i |= std::int64_t{1} << bits[b].bit;
  return i;
}

bool holds(const std::vector<Bit>& bits, int axis) {
  return std::any_of(bits.begin(), bits.end(), [&](const Bit& b) { return b.axis == axis; });
}

}  // namespace

int bits_of(std::int64_t extent) {
  int b = 0;
  while ((std::int64_t{1} << b) < extent) ++b;
  return b;
}

std::int64_t Layout::register_index(int axis, int reg) const { return part(registers, axis, reg); }

std::int64_t Layout::index(int axis, int reg, int lane, int warp) const {
  return part(registers, axis, reg) | part(lanes, axis, lane) | part(warps, axis, warp);
}

bool Layout::in_lanes(int axis) const { return holds(lanes, axis); }
bool Layout::in_warps(int axis) const { return holds(warps, axis); }
bool Layout::has(int axis) const { return holds(registers, axis) || in_lanes(axis) || in_warps(axis); }

int Layout::axis_bits(int axis) const {
  int n = 0;
  for (const auto* bits : {&registers, &lanes, &warps})
    n += static_cast<int>(std::count_if(bits->begin(), bits->end(), [&](const Bit& b) { return b.axis == axis; }));
  return n;
}

Layout Layout::without(int axis) const {
  Layout out = *this;
  std::erase_if(out.registers, [&](const Bit& b) { return b.axis == axis; });
  for (auto* bits : {&out.lanes, &out.warps})
    for (Bit& b : *bits)
      if (b.axis == axis) b = {};
  return out;
}

Layout Layout::only(const std::vector<ir::AxisExtent>& axes) const {
  Layout out = *this;
  for (const auto* bits : {&registers, &lanes, &warps})
    for (const Bit& b : *bits)
      if (!b.none() && std::none_of(axes.begin(), axes.end(), [&](const auto& x) { return x.axis == b.axis; }))
        out = out.without(b.axis);
  std::erase_if(out.registers, [](const Bit& b) { return b.none(); });
  return out;
}

std::string Layout::to_text(const ir::Program& p) const {
  std::string s;
  for (const auto* bits : {&registers, &lanes, &warps}) {
    if (bits != &registers) s += s.empty() ? "| " : " | ";
    bool first = true;
    for (const Bit& b : *bits) {
      if (!first) s += ' ';
      first = false;
      s += b.none() ? "-" : p.axes[static_cast<std::size_t>(b.axis)].name + std::to_string(b.bit);
    }
  }
  return s;
}

int matching_register(const Layout& part, const Layout& whole, int reg) {
  int match = 0;
  for (std::size_t k = 0; k < part.registers.size(); ++k)
    for (std::size_t j = 0; j < whole.registers.size(); ++j)
      if (part.registers[k] == whole.registers[j] && (reg >> j & 1)) match |= 1 << k;
  return match;
}

Place place_of(const Layout& l, const std::vector<std::pair<int, std::int64_t>>& index) {
  Place at;
  auto fill = [&](const std::vector<Bit>& bits, int& number) {
    for (std::size_t b = 0; b < bits.size(); ++b)
      for (const auto& [axis, i] : index)
        if (bits[b].axis == axis && (i >> bits[b].bit & 1)) number |= 1 << b;
  };
  fill(l.registers, at.reg);
  fill(l.lanes, at.lane);
  fill(l.warps, at.warp);
  return at;
}

Layout blocked(const std::vector<ir::AxisExtent>& axes, int fast, int vector, int warp_bits) {
  std::vector<Bit> all;
  auto add = [&](const ir::AxisExtent& x) {
    for (int b = 0; b < bits_of(x.extent); ++b) all.push_back({x.axis, b});
  };
  for (const auto& x : axes)
    if (x.axis == fast) add(x);
  for (const auto& x : axes)
    if (x.axis != fast) add(x);
  const int vector_bits = std::min(bits_of(vector), static_cast<int>(all.size()));
  Layout l;
  std::size_t next = 0;
  auto take = [&] { return next < all.size() ? all[next++] : Bit{}; };
  for (int i = 0; i < vector_bits; ++i) l.registers.push_back(take());
  for (int i = 0; i < 5; ++i) l.lanes.push_back(take());
  for (int i = 0; i < warp_bits; ++i) l.warps.push_back(take());
  while (next < all.size()) l.registers.push_back(take());
  return l;
}

Layout mma_accumulator(ir::AxisExtent row, ir::AxisExtent column, int row_warp_bits, int column_warp_bits) {
  const int row_bits = bits_of(row.extent), column_bits = bits_of(column.extent);
  if (row_bits < 4 + row_warp_bits || column_bits < 3 + column_warp_bits)
    throw InternalError("mma_accumulator: the tile is smaller than a fragment per warp");
  Layout l;
  l.registers = {{column.axis, 0}, {row.axis, 3}};
  l.lanes = {{column.axis, 1}, {column.axis, 2}, {row.axis, 0}, {row.axis, 1}, {row.axis, 2}};
  // Warps take the highest bits: each has a contiguous part of the tile.
  for (int b = 3; b < column_bits - column_warp_bits; ++b) l.registers.push_back({column.axis, b});
  for (int b = 4; b < row_bits - row_warp_bits; ++b) l.registers.push_back({row.axis, b});
  for (int b = row_bits - row_warp_bits; b < row_bits; ++b) l.warps.push_back({row.axis, b});
  for (int b = column_bits - column_warp_bits; b < column_bits; ++b) l.warps.push_back({column.axis, b});
  return l;
}

Layout wgmma_accumulator(ir::AxisExtent row, ir::AxisExtent column, int slices, int warp_bits) {
  const int slice_bits = bits_of(slices), column_bits = bits_of(column.extent);
  if ((std::int64_t{64} << (slice_bits + warp_bits - 2)) < row.extent || column_bits < 3)
    throw InternalError("wgmma_accumulator: the warpgroups do not hold the tile");
  Layout l;
  l.registers = {{column.axis, 0}, {row.axis, 3}};
  l.lanes = {{column.axis, 1}, {column.axis, 2}, {row.axis, 0}, {row.axis, 1}, {row.axis, 2}};
  l.warps = {{row.axis, 4}, {row.axis, 5}};
  for (int b = 3; b < column_bits; ++b) l.registers.push_back({column.axis, b});
  for (int b = 0; b < slice_bits; ++b) l.registers.push_back({row.axis, 6 + b});
  for (int b = 2; b < warp_bits; ++b) l.warps.push_back({row.axis, 4 + slice_bits + b});
  return l;
}

Move how(const Layout& from, const Layout& to) {
  if (from == to) return Move::none;
  // A bit may be held twice where `from` has copies: a thread then has what it needs if its own bits agree or are
  // copies.
  auto same_or_copied = [](const std::vector<Bit>& f, const std::vector<Bit>& t) {
    for (std::size_t i = 0; i < f.size(); ++i)
      if (f[i] != t[i] && !(t[i].none() && f[i].none())) return false;
    return f.size() == t.size();
  };
  if (!same_or_copied(from.warps, to.warps)) return Move::shared;
  return same_or_copied(from.lanes, to.lanes) ? Move::registers : Move::shuffle;
}

}  // namespace kerf::codegen::nvptx
