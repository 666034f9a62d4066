#include "tests/support/launch_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace kerf::test {

namespace {

constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

template <class T, std::size_t N>
T one_of(Random& random, const T (&all)[N]) {
  return all[random.bits() % N];
}

template <class T>
void shuffle(std::vector<T>& all, Random& random) {
  for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[random.bits() % i]);
}

const std::string& axis_name(const ir::Program& p, int axis) { return p.axes[static_cast<std::size_t>(axis)].name; }

std::int64_t blocks(std::int64_t size, std::int64_t extent) { return size / extent + (size % extent != 0); }

/// Where the tiles of each block begin in `items`, and the tiles of block after block.
void sort_tiles(std::int64_t blocks, const std::vector<std::int32_t>& block_of, std::vector<std::int32_t>& begin,
                std::vector<std::int32_t>& items) {
  begin.push_back(0);
  for (std::int32_t b = 0; b < blocks; ++b) {
    for (std::size_t k = 0; k < block_of.size(); ++k)
      if (block_of[k] == b) items.push_back(static_cast<std::int32_t>(k));
    begin.push_back(static_cast<std::int32_t>(items.size()));
  }
}

}  // namespace

Sizes ragged_sizes(const ir::Program& p, Random& random) {
  std::vector<std::int64_t> largest(p.axes.size(), 0);
  for (const ir::Type& t : p.values)
    for (const ir::AxisExtent& a : t.axes) {
      std::int64_t& e = largest[static_cast<std::size_t>(a.axis)];
      e = std::max(e, a.extent);
    }
  Sizes sizes;
  for (std::size_t i = 0; i < p.axes.size(); ++i) {
    const std::int64_t e = largest[i] > 0 ? largest[i] : 8;
    const std::int64_t choices[] = {1, std::max<std::int64_t>(1, e - 1), e, e + 1, 2 * e + e / 2, 3 * e + 1};
    const std::int64_t choice = one_of(random, choices);
    sizes[p.axes[i].name] = p.axes[i].size != ir::unknown ? p.axes[i].size : choice;
  }
  return sizes;
}

LaunchData::LaunchData(const ir::Program& p, const Sizes& sizes, std::uint64_t seed, Floats floats) : sizes_(sizes) {
  Random random(seed);
  for (const ir::ListInfo& info : p.lists) lists_.push_back(make_list(p, info, random));
  for (const ir::TensorInfo& info : p.tensors) {
    std::vector<std::int64_t> shape;
    if (info.list >= 0) {
      const ir::ListInfo& l = p.lists[static_cast<std::size_t>(info.list)];
      const std::size_t count = lists_[static_cast<std::size_t>(info.list)].row.size();
      shape = {static_cast<std::int64_t>(count) * l.row_extent * l.column_extent};
    } else {
      for (int a : info.axes) shape.push_back(sizes_.at(axis_name(p, a)));
    }
    Array array(info.dtype, shape, info.axes.size() > 1 && info.list < 0 ? 3 : 0);
    if (info.access != ir::Access::output) fill_in(array, random, floats);
    tensors_.emplace_back(info.name, std::move(array));
  }
}

LaunchData::List LaunchData::make_list(const ir::Program& p, const ir::ListInfo& info, Random& random) const {
  const std::int64_t rows = blocks(sizes_.at(axis_name(p, info.row_axis)), info.row_extent);
  const std::int64_t columns = blocks(sizes_.at(axis_name(p, info.column_axis)), info.column_extent);
  std::vector<std::pair<std::int32_t, std::int32_t>> kept;
  for (std::int32_t r = 0; r < rows; ++r)
    for (std::int32_t c = 0; c < columns; ++c)
      if (random.integer(0, 2) != 0) kept.emplace_back(r, c);
  shuffle(kept, random);
  List l;
  l.name = info.name;
  for (const auto& [r, c] : kept) {
    l.row.push_back(r);
    l.column.push_back(c);
  }
  sort_tiles(rows, l.row, l.row_begin, l.row_items);
  sort_tiles(columns, l.column, l.column_begin, l.column_items);
  return l;
}

void LaunchData::fill_in(Array& array, Random& random, Floats floats) const {
  std::int64_t largest = array.shape().empty() ? 1 : array.shape()[0];
  for (const auto& [name, size] : sizes_) largest = std::max(largest, size);
  std::vector<std::int64_t> distinct(static_cast<std::size_t>(largest));
  std::iota(distinct.begin(), distinct.end(), 0);
  shuffle(distinct, random);
  for (std::int64_t i = 0; i < array.size(); ++i) {
    double x = floats == Floats::quarters ? static_cast<double>(random.integer(-4, 4)) / 4 : random.normal();
    if (array.dtype() == DType::boolean) {
      x = random.integer(0, 1);
    } else if (is_integer(array.dtype())) {
      const bool scatters = array.shape().size() == 1;
      x = static_cast<double>(scatters ? distinct[static_cast<std::size_t>(i)] : random.integer(-1, largest + 1));
      if (random.integer(0, 7) == 0) x = -1;
    } else if (floats == Floats::special && random.integer(0, 15) == 0) {
      const double all[] = {nan, inf, -inf, -0.0, 0.0, 1e30, -1e-30};
      x = one_of(random, all);
    }
    array.set(i, x);
  }
}

LaunchArgs LaunchData::args() {
  LaunchArgs args;
  for (auto& [name, array] : tensors_) args.tensors.emplace_back(name, array.ref());
  for (List& l : lists_)
    args.lists.emplace_back(l.name, TileListRef{.count = static_cast<std::int64_t>(l.row.size()),
                                                .row = l.row.data(),
                                                .column = l.column.data(),
                                                .row_begin = l.row_begin.data(),
                                                .row_items = l.row_items.data(),
                                                .column_begin = l.column_begin.data(),
                                                .column_items = l.column_items.data()});
  args.axes.assign(sizes_.begin(), sizes_.end());
  return args;
}

std::string LaunchData::difference(const LaunchData& other, double tolerance) const {
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    const auto& [name, a] = tensors_[t];
    const Array& b = other.tensors_[t].second;
    if (!a.surroundings_intact() || !b.surroundings_intact()) return name + ": written outside its elements";
    double square = 0, finite = 0;
    for (std::int64_t i = 0; i < a.size(); ++i)
      if (std::isfinite(a[i])) square += a[i] * a[i], ++finite;
    const double scale = finite > 0 ? std::sqrt(square / finite) : 0;
    for (std::int64_t i = 0; i < a.size(); ++i) {
      const double x = a[i], y = b[i];
      if (std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y) || (std::isnan(x) && std::isnan(y)))
        continue;
      if (tolerance > 0 && (x == y || std::abs(x - y) <= tolerance * std::max(scale, std::abs(x)))) continue;
      return fmt::format("{} {}: element {} is {} and {}", name, fmt::join(a.shape(), "x"), i, x, y);
    }
  }
  return {};
}

}  // namespace kerf::test
