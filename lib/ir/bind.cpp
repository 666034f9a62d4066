// Arguments of a launch against the program: nothing is read from or written to a tensor before all of this holds.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "kerf/error.h"
#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::ir {

namespace {

using I64 = std::int64_t;

/// The bytes that a tensor's elements lie in, and how wide they are without the steps of the largest stride.
struct Extent {
  std::uintptr_t begin = 0, end = 0;
  I64 step = 0;   // the largest stride in bytes, 0 without one
  I64 inner = 0;  // bytes from the first to the end of the last element between two such steps
  bool empty() const { return begin == end; }
};

/// True where no byte belongs to both. Two views whose rows interleave (columns of one buffer) are told apart.
bool disjoint(const Extent& a, const Extent& b) {
  if (a.empty() || b.empty() || a.end <= b.begin || b.end <= a.begin) return true;
  if (a.step == 0 || a.step != b.step) return false;
  const auto difference = static_cast<I64>(a.begin < b.begin ? b.begin - a.begin : a.begin - b.begin) % a.step;
  const Extent &first = a.begin < b.begin ? a : b, &second = a.begin < b.begin ? b : a;
  return difference >= first.inner && a.step - difference >= second.inner;
}

class Binder {
 public:
  Binder(const Program& p, const LaunchArgs& args, Device device) : p_(p), args_(args), device_(device) {}

  Bound run() {
    names("tensor", p_.tensors, args_.tensors);
    names("tile list", p_.lists, args_.lists);
    names("axis", p_.axes, args_.axes);
    sizes();
    device_sizes();
    read_device_sizes();
    walked();
    for (const ListInfo& l : p_.lists) bound_.lists.push_back(list(l, *given(args_.lists, l.name)));
    for (const TensorInfo& t : p_.tensors) {
      const TensorRef& ref = *given(args_.tensors, t.name);
      bound_.tensors.push_back(t.list < 0 ? tensor(t, ref) : packed(t, ref));
    }
    overlaps();
    bound_.instances = instances();
    return std::move(bound_);
  }

 private:
  template <class... A>
  [[noreturn]] void fail(fmt::format_string<A...> f, A&&... a) const {
    throw UsageError(fmt::format("{}: {}", p_.name, fmt::format(f, std::forward<A>(a)...)));
  }

  template <class T>
  static const T* given(const std::vector<std::pair<std::string, T>>& args, std::string_view name) {
    for (const auto& [n, value] : args)
      if (n == name) return &value;
    return nullptr;
  }

  /// Every argument is known and given once; every tensor and list is there.
  template <class Info, class T>
  void names(std::string_view what, const std::vector<Info>& infos,
             const std::vector<std::pair<std::string, T>>& args) const {
    for (std::size_t i = 0; i < args.size(); ++i) {
      const std::string& name = args[i].first;
      const auto known = [&](const Info& x) { return x.name == name; };
      if (std::none_of(infos.begin(), infos.end(), known)) {
        std::string all;
        for (const Info& x : infos) all += (all.empty() ? "" : ", ") + x.name;
        fail("there is no {} {}; {}", what, name, all.empty() ? "it has none" : "there is " + all);
      }
      if (given(args, name) != &args[i].second) fail("{} {} is given twice", what, name);
    }
    if constexpr (!std::is_same_v<Info, AxisInfo>)
      for (const Info& x : infos)
        if (!given(args, x.name)) fail("{} {} is missing", what, x.name);
  }

  const std::string& axis_name(int a) const { return p_.axes[static_cast<std::size_t>(a)].name; }
  I64 size(int axis) const { return bound_.axis_size[static_cast<std::size_t>(axis)]; }

  // ---- sizes of the axes ----

  void sizes() {
    from_.assign(p_.axes.size(), from_program);
    for (std::size_t i = 0; i < p_.axes.size(); ++i) {
      bound_.axis_size.push_back(p_.axes[i].size);
      if (const I64* n = given(args_.axes, p_.axes[i].name)) tell(static_cast<int>(i), *n, from_axes);
    }
    for (std::size_t number = 0; number < p_.tensors.size(); ++number) {
      const TensorInfo& t = p_.tensors[number];
      if (t.list >= 0) continue;
      const TensorRef& ref = *given(args_.tensors, t.name);
      present(t, ref);
      if (static_cast<std::size_t>(ref.rank) != t.axes.size())
        fail("{} is {}, the program has {}", t.name, ref.describe(), signature(t));
      for (std::size_t i = 0; i < t.axes.size(); ++i) tell(t.axes[i], ref.shape[i], static_cast<int>(number));
    }
    for (std::size_t i = 0; i < p_.axes.size(); ++i)
      if (bound_.axis_size[i] == unknown)
        fail("nothing tells the size of axis {}; give it in LaunchArgs::axes", p_.axes[i].name);
  }

  /// `source` says that the axis has `n` indices.
  void tell(int axis, I64 n, int source) {
    I64& known = bound_.axis_size[static_cast<std::size_t>(axis)];
    int& from = from_[static_cast<std::size_t>(axis)];
    if (n < 0) fail("axis {}: {} {}, a size is not negative", axis_name(axis), says(source), n);
    if (known != unknown && known != n)
      fail("axis {}: {} {} and {} {}", axis_name(axis), says(from), known, says(source), n);
    if (known == unknown) from = source;
    known = n;
  }
  std::string says(int source) const {
    if (source == from_program) return "the program was built for";
    if (source == from_axes) return "LaunchArgs::axes has";
    return fmt::format("{} has", p_.tensors[static_cast<std::size_t>(source)].name);
  }

  void device_sizes() {
    names("axis", p_.axes, args_.device_sizes);
    for (const AxisInfo& a : p_.axes) {
      const auto* at = given(args_.device_sizes, a.name);
      if (at && (!*at || reinterpret_cast<std::uintptr_t>(*at) % sizeof(I64)))
        fail("LaunchArgs::device_sizes: the pointer to the size of {} is {}", a.name,
             *at ? "not aligned to 8 bytes" : "null");
      bound_.device_sizes.push_back(at ? *at : nullptr);
    }
  }

  /// On the CPU they are read now; the tensors have been compared with the sizes that the other arguments tell.
  void read_device_sizes() {
    if (device_.type != DeviceType::cpu) return;
    for (std::size_t i = 0; i < p_.axes.size(); ++i) {
      if (!bound_.device_sizes[i]) continue;
      const I64 n = *bound_.device_sizes[i];
      I64& size = bound_.axis_size[i];
      if (n < 0 || n > size)
        fail("LaunchArgs::device_sizes: axis {} has {} indices and the other arguments tell {}", p_.axes[i].name, n,
             size);
      size = n;
    }
  }

  std::string signature(const TensorInfo& t) const {
    std::string axes;
    for (int a : t.axes) axes += (axes.empty() ? "" : ", ") + axis_name(a);
    return fmt::format("{}[{}]", t.name, axes);
  }

  // ---- tensors ----

  void present(const TensorInfo& t, const TensorRef& ref) const {
    if (!ref.given()) fail("tensor {} is not given: its data is null", t.name);
    if (ref.rank < 0 || ref.rank > TensorRef::max_rank) fail("{} has rank {}", t.name, ref.rank);
  }

  void common(const TensorInfo& t, const TensorRef& ref, I64 elements) const {
    if (ref.dtype != t.dtype) fail("{} is {}, the program has {}", t.name, ref.describe(), name_of(t.dtype));
    if (ref.device != device_) misplaced(t.name, ref.device);
    if (elements > 0 && !ref.data) fail("{} is {} and its data is null", t.name, ref.describe());
    if (reinterpret_cast<std::uintptr_t>(ref.data) % static_cast<std::uintptr_t>(size_of(t.dtype)) != 0)
      fail("{} is not aligned to its {} bytes", t.name, size_of(t.dtype));
  }

  [[noreturn]] void misplaced(std::string_view name, Device at) const {
    if (device_.type == DeviceType::cpu) fail("{} is not in host memory", name);
    const auto place = [](Device d) {
      return d.type == DeviceType::cpu ? std::string("host memory") : fmt::format("the memory of cuda:{}", d.ordinal);
    };
    fail("{} is in {}, the kernel runs on cuda:{}; copy it there{}", name, place(at), device_.ordinal,
         at.type == DeviceType::cpu ? " and name the device in its TensorRef"
                                    : " or compile the program for that device");
  }

  /// Bytes from the lowest to the end of the highest element; fails past 2^63.
  Extent extent(const TensorInfo& t, const TensorRef& ref) const {
    const I64 bytes = size_of(t.dtype);
    Extent e;
    I64 low = 0, high = 0, elements = bytes;
    bool fits = true;
    for (int i = 0; i < ref.rank; ++i) {
      I64 reach = 0;
      fits = fits && !__builtin_mul_overflow(elements, std::max<I64>(ref.shape[i], 1), &elements) &&
             !__builtin_mul_overflow(ref.shape[i] - 1, ref.strides[i], &reach) &&
             !__builtin_mul_overflow(reach, bytes, &reach) &&
             !__builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high);
      if (ref.shape[i] == 0) return {};
    }
    if (!fits || high > INT64_MAX - bytes || low < -INT64_MAX)
      fail("{}: sizes and strides reach past 2^63 bytes", t.name);
    const auto data = reinterpret_cast<std::uintptr_t>(ref.data);
    e.begin = data + static_cast<std::uintptr_t>(low);
    e.end = data + static_cast<std::uintptr_t>(high + bytes);
    for (int i = 0; i < ref.rank; ++i)
      if (ref.shape[i] > 1) e.step = std::max(e.step, std::abs(ref.strides[i] * bytes));
    e.inner = bytes;
    for (int i = 0; i < ref.rank; ++i)
      if (const I64 s = ref.shape[i] > 1 ? std::abs(ref.strides[i] * bytes) : e.step; s != e.step)
        e.inner += (ref.shape[i] - 1) * s;
    return e;
  }

  TensorRef tensor(const TensorInfo& t, const TensorRef& ref) {
    I64 elements = 1;
    for (int i = 0; i < ref.rank; ++i) elements = ref.shape[i] == 0 ? 0 : elements;
    common(t, ref, elements);
    const int last = ref.rank - 1;
    if (last >= 0 && ref.shape[last] > 1 && ref.strides[last] != 1)
      fail("{} is {}; the stride of its last axis must be 1", t.name, ref.describe());
    extents_.push_back(extent(t, ref));
    if (t.access != Access::input && elements != 0) check_written_once(t, ref);
    return ref;
  }

  /// Distinct elements of an output must not share memory: each stride passes what the smaller ones reach.
  void check_written_once(const TensorInfo& t, const TensorRef& ref) const {
    std::vector<std::pair<I64, I64>> steps;  // stride, size
    for (int i = 0; i < ref.rank; ++i)
      if (ref.shape[i] > 1) steps.emplace_back(std::abs(ref.strides[i]), ref.shape[i]);
    std::sort(steps.begin(), steps.end());
    I64 reach = 1;
    for (const auto& [stride, n] : steps) {
      if (stride < reach) fail("{} is {}; its elements overlap, and it is written", t.name, ref.describe());
      reach += (n - 1) * stride;
    }
  }

  TensorRef packed(const TensorInfo& t, const TensorRef& ref) {
    const ListInfo& l = p_.lists[static_cast<std::size_t>(t.list)];
    const I64 count = bound_.lists[static_cast<std::size_t>(t.list)].count;
    present(t, ref);
    if (ref.rank != 1 || ref.shape[0] < 0 || (ref.shape[0] > 1 && ref.strides[0] != 1))
      fail("{} is {}; packed tiles lie in one dense array of rank 1", t.name, ref.describe());
    I64 need = 0;
    if (__builtin_mul_overflow(count, l.row_extent * l.column_extent, &need) || need > INT64_MAX / size_of(t.dtype))
      fail("{}: sizes and strides reach past 2^63 bytes", t.name);
    common(t, ref, need);
    if (ref.shape[0] < need)
      fail("{} has {} elements; {} tiles of {} x {} need {}", t.name, ref.shape[0], count, l.row_extent,
           l.column_extent, need);
    extents_.push_back(extent(t, ref));
    return ref;
  }

  void overlaps() const {
    for (std::size_t i = 0; i < extents_.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        const TensorInfo &a = p_.tensors[j], &b = p_.tensors[i];
        if ((a.access != Access::input || b.access != Access::input) && !disjoint(extents_[i], extents_[j]))
          fail("{} and {} overlap in memory, and {} is written", a.name, b.name,
               a.access != Access::input ? a.name : b.name);
      }
  }

  // ---- tile lists ----

  void walked() {
    by_row_.resize(p_.lists.size());
    by_column_.resize(p_.lists.size());
    walk(p_.body, [&](const Op& op) {
      if (op.kind != OpKind::loop || op.list < 0) return;
      (op.over == LoopOver::row ? by_row_ : by_column_)[static_cast<std::size_t>(op.list)] = true;
    });
  }

  I64 blocks(int axis, I64 extent) const { return size(axis) / extent + (size(axis) % extent != 0); }

  TileListRef list(const ListInfo& l, TileListRef ref) const {
    const I64 rows = blocks(l.row_axis, l.row_extent), columns = blocks(l.column_axis, l.column_extent);
    if (ref.count < 0) fail("tile list {} has {} tiles", l.name, ref.count);
    if (ref.count > INT32_MAX) fail("tile list {} has {} tiles; at most 2^31 - 1 are allowed", l.name, ref.count);
    if (ref.count > 0 && (!ref.row || !ref.column)) fail("tile list {}: row or column is null", l.name);
    if (reinterpret_cast<std::uintptr_t>(ref.device_count) % sizeof(std::int32_t))
      fail("tile list {}: device_count is not aligned to 4 bytes", l.name);
    const auto i = static_cast<std::size_t>(&l - p_.lists.data());
    if (ref.device_count && device_.type == DeviceType::cpu) {
      if (*ref.device_count < 0 || *ref.device_count > ref.count)
        fail("tile list {}: its device_count is {} and its count {}", l.name, *ref.device_count, ref.count);
      ref.count = *ref.device_count;
    }
    if (device_.type == DeviceType::cuda) {
      if (by_row_[i]) walkable(l, "row", ref.count, ref.row_begin, ref.row_items);
      if (by_column_[i]) walkable(l, "column", ref.count, ref.column_begin, ref.column_items);
      return ref;
    }
    for (I64 k = 0; k < ref.count; ++k)
      if (ref.row[k] < 0 || ref.row[k] >= rows || ref.column[k] < 0 || ref.column[k] >= columns)
        fail("tile list {}: tile {} is block ({}, {}) and there are {} x {}", l.name, k, ref.row[k], ref.column[k],
             rows, columns);
    if (by_row_[i]) runs(l, "row", ref.count, rows, ref.row, ref.row_begin, ref.row_items);
    if (by_column_[i]) runs(l, "column", ref.count, columns, ref.column, ref.column_begin, ref.column_items);
    return ref;
  }

  void walkable(const ListInfo& l, std::string_view what, I64 count, const std::int32_t* begin,
                const std::int32_t* items) const {
    if (!begin || (count > 0 && !items))
      fail("tile list {}: {}_begin or {}_items is null and the program walks {}s", l.name, what, what, what);
  }

  void runs(const ListInfo& l, std::string_view what, I64 count, I64 blocks, const std::int32_t* block_of,
            const std::int32_t* begin, const std::int32_t* items) const {
    walkable(l, what, count, begin, items);
    if (begin[0] != 0 || begin[blocks] > count)
      fail("tile list {}: {}_begin runs from {} to {}, and there are {} tiles", l.name, what, begin[0], begin[blocks],
           count);
    for (I64 b = 0; b < blocks; ++b)
      if (begin[b] > begin[b + 1])
        fail("tile list {}: {}_begin falls from {} to {}", l.name, what, begin[b], begin[b + 1]);
    for (I64 b = 0; b < blocks; ++b)
      for (I64 i = begin[b]; i < begin[b + 1]; ++i)
        if (items[i] < 0 || items[i] >= count || block_of[items[i]] != b)
          fail("tile list {}: {}_items[{}] is {}, no tile of {} block {}", l.name, what, i, items[i], what, b);
  }

  I64 instances() const {
    I64 n = 1;
    for (const Op& op : p_.body.ops) {
      if (op.kind != OpKind::parallel) break;
      const I64 m = op.list >= 0 ? bound_.lists[static_cast<std::size_t>(op.list)].count : blocks(op.axis, op.extent);
      if (__builtin_mul_overflow(n, m, &n)) fail("the number of its instances passes 2^63");
    }
    return n;
  }

  const Program& p_;
  const LaunchArgs& args_;
  const Device device_;
  Bound bound_;
  static constexpr int from_program = -1, from_axes = -2;
  std::vector<int> from_;        // by axis: who told its size, a tensor or one of those
  std::vector<Extent> extents_;  // by tensor
  std::vector<bool> by_row_, by_column_;
};

}  // namespace

Bound bind(const Program& p, const LaunchArgs& args, Device device) { return Binder(p, args, device).run(); }

}  // namespace kerf::ir

namespace kerf {

void interpret(const Program& program, const LaunchArgs& args) {
  ir::interpret(program.ir(), ir::bind(program.ir(), args));
}

}  // namespace kerf
