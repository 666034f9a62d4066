#include "lib/ir/ir.h"

#include <fmt/format.h>

#include <algorithm>

namespace kerf::ir {

namespace {

constexpr OpInfo table[] = {
#define KERF_OP(id, text, operands, rule, effect) {text, operands, Rule::rule, Effect::effect},
#include "lib/ir/ops.def"
};

template <class T>
int find_named(const std::vector<T>& things, std::string_view name) {
  for (std::size_t i = 0; i < things.size(); ++i)
    if (things[i].name == name) return static_cast<int>(i);
  return -1;
}

template <class T>
std::string name_at(const std::vector<T>& things, int i) {
  return i >= 0 && static_cast<std::size_t>(i) < things.size() ? things[static_cast<std::size_t>(i)].name : "?";
}

}  // namespace

const OpInfo& info(OpKind kind) { return table[static_cast<std::size_t>(kind)]; }

std::optional<OpKind> op_from_text(std::string_view text) {
  for (std::size_t i = 0; i < std::size(table); ++i)
    if (table[i].text == text) return static_cast<OpKind>(i);
  return std::nullopt;
}

bool Type::has(int axis) const { return extent(axis) != 0; }

std::int64_t Type::extent(int axis) const {
  for (const AxisExtent& a : axes)
    if (a.axis == axis) return a.extent;
  return 0;
}

std::int64_t Type::elements() const {
  std::int64_t n = 1;
  for (const AxisExtent& a : axes) n *= a.extent;
  return n;
}

Type tile_type(DType dtype, std::vector<AxisExtent> axes) {
  std::sort(axes.begin(), axes.end(), [](const AxisExtent& a, const AxisExtent& b) { return a.axis < b.axis; });
  Type t;
  t.dtype = dtype;
  t.axes = std::move(axes);
  return t;
}

std::optional<std::vector<AxisExtent>> unite(const std::vector<AxisExtent>& a, const std::vector<AxisExtent>& b,
                                             int* clash) {
  std::vector<AxisExtent> all = a;
  for (const AxisExtent& x : b) {
    const auto same = std::find_if(all.begin(), all.end(), [&](const AxisExtent& y) { return y.axis == x.axis; });
    if (same == all.end()) {
      all.push_back(x);
    } else if (same->extent != x.extent) {
      if (clash) *clash = x.axis;
      return std::nullopt;
    }
  }
  std::sort(all.begin(), all.end(), [](const AxisExtent& x, const AxisExtent& y) { return x.axis < y.axis; });
  return all;
}

ValueId Program::new_value(Type type, std::string name) {
  values.push_back(std::move(type));
  value_names.push_back(std::move(name));
  return static_cast<ValueId>(values.size() - 1);
}

int Program::find_axis(std::string_view name) const { return find_named(axes, name); }
int Program::find_tensor(std::string_view name) const { return find_named(tensors, name); }
int Program::find_list(std::string_view name) const { return find_named(lists, name); }

void walk(const Region& region, const std::function<void(const Op&)>& f) {
  for (const Op& op : region.ops) {
    f(op);
    for (const Region& inner : op.regions) walk(inner, f);
  }
}

void walk(Region& region, const std::function<void(Op&)>& f) {
  for (Op& op : region.ops) {
    f(op);
    for (Region& inner : op.regions) walk(inner, f);
  }
}

std::string to_text(const Program& p, const Type& t) {
  if (t.kind == Type::Kind::entry) return fmt::format("entry<{}>", name_at(p.lists, t.list));
  std::string axes;
  for (const AxisExtent& a : t.axes)
    axes += fmt::format("{}{}{}{}", axes.empty() ? "" : " x ", name_at(p.axes, a.axis),
                        t.kind == Type::Kind::staged && a.axis == t.staged_axis ? '/' : ':', a.extent);
  if (t.kind == Type::Kind::block) return fmt::format("block<{}>", axes);
  return fmt::format("{}<{}{}{}>", t.kind == Type::Kind::staged ? "staged" : "tile", axes, axes.empty() ? "" : ", ",
                     name_of(t.dtype));
}

}  // namespace kerf::ir
