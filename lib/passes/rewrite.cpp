#include "lib/passes/rewrite.h"

#include <algorithm>

namespace kerf::passes {

using namespace ir;

std::vector<int> count_uses(const ir::Program& p) {
  std::vector<int> uses(p.values.size(), 0);
  walk(p.body, [&](const Op& op) {
    for (ValueId v : op.operands) ++uses[static_cast<std::size_t>(v)];
  });
  return uses;
}

bool writes(const Op& op) {
  if (info(op.kind).effect == Effect::write) return true;
  return std::any_of(op.regions.begin(), op.regions.end(),
                     [](const Region& r) { return std::any_of(r.ops.begin(), r.ops.end(), writes); });
}

bool is_free(OpKind kind) {
  switch (kind) {
    case OpKind::constant:
    case OpKind::splat:
    case OpKind::index:
    case OpKind::in_bounds:
    case OpKind::number:
    case OpKind::axis_size:
    case OpKind::whole: return true;
    default: return false;
  }
}

std::vector<bool> bound_to_turn(const ir::Program& p, const Region& body) {
  std::vector<bool> bound(p.values.size(), false);
  for (ValueId v : body.args) bound[static_cast<std::size_t>(v)] = true;
  for (const Op& op : body.ops) {
    const Effect effect = info(op.kind).effect;
    const bool movable =
        effect == Effect::pure ||
        (effect == Effect::read && p.tensors[static_cast<std::size_t>(op.tensor)].access == Access::input);
    const bool follows = std::any_of(op.operands.begin(), op.operands.end(),
                                     [&](ValueId v) { return bound[static_cast<std::size_t>(v)]; });
    if (!movable || follows)
      for (ValueId v : op.results) bound[static_cast<std::size_t>(v)] = true;
  }
  return bound;
}

ValueId Substitution::operator()(ValueId v) const {
  for (auto it = to_.find(v); it != to_.end(); it = to_.find(v)) v = it->second;
  return v;
}

void append_constant(ir::Program& p, std::vector<Op>& ops, ValueId result, const Scalar& value, const Place& place) {
  const bool scalar = p.type(result).is_scalar();
  Op constant;
  constant.kind = OpKind::constant;
  constant.results = {scalar ? result : p.new_value(tile_type(value.dtype, {}))};
  constant.number = value.number;
  constant.integer = value.integer;
  constant.place = place;
  ops.push_back(constant);
  if (scalar) return;
  Op splat;
  splat.kind = OpKind::splat;
  splat.operands = constant.results;
  splat.results = {result};
  splat.place = place;
  ops.push_back(splat);
}

}  // namespace kerf::passes
