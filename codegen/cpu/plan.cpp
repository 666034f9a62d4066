// Decisions of the CPU backend. Lanes: a dot wants the operand on lanes that needs no transposition to get there, or
// else the one that a loop keeps (it is packed once); axes so wanted come first, then axes that are contiguous in
// memory. The order is one for the whole program, so two tiles over the same axes always agree. Values: what a dot, a
// reduction or a loop makes has memory; elementwise results are computed where they are used, unless that would repeat
// much work.
#include "codegen/cpu/plan.h"

#include <algorithm>

#include "kerf/error.h"

namespace kerf::codegen::cpu {

using ir::Op;
using ir::OpKind;
using ir::ValueId;

namespace {

std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }

bool is_free(OpKind k) {
  return k == OpKind::constant || k == OpKind::splat || k == OpKind::index || k == OpKind::in_bounds;
}

}  // namespace

std::int64_t Layout::stride(int axis) const {
  for (std::size_t i = 0; i < axes.size(); ++i)
    if (axes[i] == axis) return strides[i];
  return 0;
}

Plan::Plan(const ir::Program& p, const MicroShape& micro, bool bf16_dot)
    : micro(micro),
      p_(p),
      bf16_dot_(bf16_dot),
      defs_(p.values.size()),
      users_(p.values.size()),
      value_depth_(p.values.size()),
      forms_(p.values.size(), Form::other),
      rank_(p.axes.size()) {
  collect(p.body, 0);
  rank_axes();
  choose_forms();
}

void Plan::collect(const ir::Region& r, int depth) {
  for (ValueId v : r.args) value_depth_[static_cast<std::size_t>(v)] = depth;
  for (const Op& op : r.ops) {
    op_depth_[&op] = depth;
    for (ValueId v : op.operands) users_[static_cast<std::size_t>(v)].push_back(&op);
    for (ValueId v : op.results) {
      defs_[static_cast<std::size_t>(v)] = &op;
      value_depth_[static_cast<std::size_t>(v)] = depth;
    }
    for (const ir::Region& inner : op.regions) collect(inner, depth + (op.kind == OpKind::loop ? 1 : 0));
  }
}

int Plan::contiguous_axis(ValueId v) const {
  const Op* op = def(v);
  if (!op) return -1;
  if (op->kind == OpKind::take) {
    const Op* stage = def(op->operands[0]);
    const auto& axes = p_.tensors[static_cast<std::size_t>(stage->tensor)].axes;
    return axes.empty() ? -1 : axes.back();
  }
  if (op->kind == OpKind::load) {
    const auto& t = p_.tensors[static_cast<std::size_t>(op->tensor)];
    if (t.axes.empty()) return -1;
    const ir::Type& last = p_.type(op->operands[t.axes.size() - 1]);
    return last.kind == ir::Type::Kind::block ? last.axes[0].axis : -1;
  }
  if (op->kind == OpKind::load_packed) return p_.tensors[static_cast<std::size_t>(op->tensor)].axes.back();
  return -1;
}

void Plan::rank_axes() {
  ir::walk(p_.body, [&](const Op& op) {
    if (op.kind == OpKind::dot) {
      const ir::Type &a = p_.type(op.operands[0]), &b = p_.type(op.operands[1]);
      int own[2] = {-1, -1};
      for (auto& x : a.axes)
        if (!b.has(x.axis)) own[0] = x.axis;
      for (auto& x : b.axes)
        if (!a.has(x.axis)) own[1] = x.axis;
      long score[2];
      for (int i = 0; i < 2; ++i) {
        const ValueId v = op.operands[static_cast<std::size_t>(i)];
        const Op* d = def(v);
        const OpKind kind = d ? d->kind : OpKind::constant;
        const bool contiguous = own[i] >= 0 && contiguous_axis(v) == own[i];
        score[i] =
            (contiguous ? 8 : 0) + (kind == OpKind::take ? 4 : 0) - (kind == OpKind::load_packed ? 2 : 0) + (i == 0);
      }
      const int wide = score[0] >= score[1] ? 0 : 1;
      if (own[wide] >= 0) rank_[static_cast<std::size_t>(own[wide])] += 100000;
    }
    if (op.kind == OpKind::load || op.kind == OpKind::store) {
      const auto& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
      if (!t.axes.empty()) {
        const ValueId s = op.operands[t.axes.size() - 1 + (op.kind == OpKind::store ? 1 : 0)];
        if (p_.type(s).kind == ir::Type::Kind::block) rank_[static_cast<std::size_t>(p_.type(s).axes[0].axis)] += 100;
      }
    }
  });
  for (std::size_t i = 0; i < rank_.size(); ++i) rank_[i] = rank_[i] * 64 - static_cast<long>(i);  // no two are equal
}

int Plan::lane_axis(const std::vector<ir::AxisExtent>& axes) const {
  int best = -1;
  for (const auto& x : axes)
    if (x.extent > 1 && (best < 0 || rank_[static_cast<std::size_t>(x.axis)] > rank_[static_cast<std::size_t>(best)]))
      best = x.axis;
  return best;
}

Layout Plan::layout(const ir::Type& t, bool dot_result) const {
  Layout l;
  const int lane = lane_axis(t.axes);
  for (const auto& x : t.axes)
    if (x.axis != lane) {
      l.axes.push_back(x.axis);
      l.extents.push_back(x.extent);
    }
  if (lane >= 0) {
    l.axes.push_back(lane);
    l.extents.push_back(t.extent(lane));
  }
  l.strides.resize(l.axes.size());
  for (std::size_t i = l.axes.size(); i-- > 0;) {
    l.strides[i] = l.elements;
    std::int64_t n = l.extents[i];
    if (l.axes[i] == lane) n = round_up(n, dot_result ? micro.panel() : micro.lanes);
    l.elements *= n;
  }
  return l;
}

DotPlan Plan::dot(const Op& op) const {
  const ir::Type &a = p_.type(op.operands[0]), &b = p_.type(op.operands[1]);
  DotPlan d;
  int own[2] = {-1, -1};
  for (auto& x : a.axes)
    if (b.has(x.axis))
      d.k = x.axis;
    else
      own[0] = x.axis;
  for (auto& x : b.axes)
    if (!a.has(x.axis)) own[1] = x.axis;
  const int lane = lane_axis(p_.type(op.results[0]).axes);
  d.wide = lane >= 0 && lane == own[1] ? 1 : 0;
  d.lane = own[d.wide];
  d.row = own[1 - d.wide];
  d.pairs = bf16_dot_ && a.dtype == DType::bf16 && b.dtype == DType::bf16;
  return d;
}

const Op* Plan::stage_dot(ValueId staged) const {
  for (const Op* take : users(staged))
    for (const Op* user : users(take->results[0]))
      if (user->kind == OpKind::dot) return user;
  return nullptr;
}

StageForm Plan::stage_form(ValueId staged) const {
  // Packing knows blocks and lists of indices as subscripts, and zeros outside.
  const Op& stage = *def(staged);
  const std::size_t subscripts = p_.tensors[static_cast<std::size_t>(stage.tensor)].axes.size() - 1;
  for (std::size_t i = 0; i < stage.operands.size(); ++i) {
    if (i == subscripts) {
      const Op* fill = def(stage.operands[i]);
      if (!fill || fill->number != 0 || fill->integer != 0) return StageForm::plain;
    } else if (p_.type(stage.operands[i]).axes.size() != 1) {
      return StageForm::plain;
    }
  }
  int lanes = 0, rows = 0, others = 0;
  for (const Op* take : users(staged))
    for (const Op* user : users(take->results[0])) {
      if (user->kind != OpKind::dot) {
        ++others;
        continue;
      }
      const DotPlan d = dot(*user);
      const bool wide = user->operands[static_cast<std::size_t>(d.wide)] == take->results[0];
      const bool narrow = user->operands[static_cast<std::size_t>(1 - d.wide)] == take->results[0];
      if (wide == narrow || d.k != p_.type(staged).staged_axis)
        ++others;
      else
        ++(wide ? lanes : rows);
    }
  if (others || (lanes && rows)) return StageForm::plain;
  return lanes ? StageForm::lanes : rows ? StageForm::rows : StageForm::plain;
}

bool Plan::accumulates(const Op& loop, std::size_t carried) const {
  const ir::Region& r = loop.regions[0];
  const ValueId arg = r.args[static_cast<std::size_t>(loop.loop_vars()) + carried];
  const ValueId next = r.ops.back().operands[carried];
  const Op* d = def(next);
  return d && d->kind == OpKind::dot && d->operands.size() == 3 && d->operands[2] == arg && uses(arg) == 1 &&
         uses(next) == 1 && std::any_of(r.ops.begin(), r.ops.end(), [&](const Op& o) { return &o == d; });
}

bool Plan::needs_dot_layout(ValueId v) const {
  const Op* d = def(v);
  return d && d->kind == OpKind::dot;
}

int Plan::cost(ValueId v) const {
  const Op* op = def(v);
  if (!op || form(v) == Form::memory) return 1;
  switch (op->kind) {
    case OpKind::constant:
    case OpKind::splat:
    case OpKind::number:
    case OpKind::axis_size: return 0;
    case OpKind::index:
    case OpKind::in_bounds: return 1;
    case OpKind::load: return 2;
    case OpKind::load_packed:
    case OpKind::take: return 1;
    default: break;
  }
  int c = 1;
  if (op->kind == OpKind::exp || op->kind == OpKind::log || op->kind == OpKind::tanh) c = 16;
  if (op->kind == OpKind::div || op->kind == OpKind::sqrt) c = 6;
  for (ValueId o : op->operands) c += cost(o);
  return c;
}

void Plan::choose_forms() {
  // Loop arguments and results first: all in memory.
  for (std::size_t v = 0; v < forms_.size(); ++v)
    if (p_.values[v].is_tile() && (!defs_[v] || defs_[v]->kind == OpKind::loop)) forms_[v] = Form::memory;
  // In program order, so that operands are decided before their users.
  ir::walk(p_.body, [&](const Op& op) {
    if (op.results.empty()) return;
    const ValueId v = op.results[0];
    const ir::Type& t = p_.type(v);
    if (!t.is_tile() || op.kind == OpKind::loop) return;
    Form& form = forms_[static_cast<std::size_t>(v)];
    const ir::Rule rule = ir::info(op.kind).rule;
    if (op.kind == OpKind::dot || rule == ir::Rule::reduce || rule == ir::Rule::scan) {
      form = Form::memory;
      return;
    }
    if (t.axes.empty()) {
      form = Form::scalar;
      return;
    }
    if (op.kind == OpKind::take) {
      form = stage_form(op.operands[0]) == StageForm::plain ? Form::memory : Form::other;
      return;
    }
    const bool load = op.kind == OpKind::load || op.kind == OpKind::load_packed;
    if (load && p_.tensors[static_cast<std::size_t>(op.tensor)].access != ir::Access::input) {
      form = Form::memory;  // a later store must not change it
      return;
    }
    form = load ? Form::view : Form::in_place;
    bool repeated = false, subscript = false, broadcast = false;
    int dots = 0;
    for (const Op* user : users(v)) {
      if (op_depth_.at(user) > op_depth_.at(&op)) repeated = true;
      if (user->kind == OpKind::dot) {
        ++dots;
        continue;
      }
      if (user->kind == OpKind::load || user->kind == OpKind::store || user->kind == OpKind::stage) {
        const std::size_t first = user->kind == OpKind::store ? 1 : 0;
        for (std::size_t i = first; i < user->operands.size(); ++i) subscript = subscript || user->operands[i] == v;
      } else if (!user->results.empty() && p_.type(user->results[0]).is_tile() &&
                 p_.type(user->results[0]).axes.size() > t.axes.size()) {
        broadcast = true;
      }
    }
    if (is_free(op.kind)) {
      if (subscript) form = Form::memory;
      return;
    }
    if (load && dots > 0 && dots == static_cast<int>(uses(v))) return;  // packed by the dot, straight from the tensor
    const int c = cost(v);
    if (subscript || dots > 0 || (repeated && c >= 2) || (broadcast && c >= 2) || (uses(v) > 1 && c >= 8))
      form = Form::memory;
  });
}

}  // namespace kerf::codegen::cpu
