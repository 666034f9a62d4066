// Reductions of the CPU emitter. Across lanes: one vector per row of lanes, folded at the end in a fixed tree. Along
// any other axis: each lane on its own, four running results side by side, joined in a fixed order. Running sums: one
// element at a time.
#include "codegen/cpu/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

using ir::Op;
using ir::OpKind;
using ir::ValueId;
using llvm::Value;

namespace {
/// The upper half of a vector moved down.
Value* fold_half(llvm::IRBuilder<>& b, Value* x, int half) {
  std::vector<int> mask;
  for (int i = 0; i < half; ++i) mask.push_back(half + i);
  return b.CreateShuffleVector(x, mask);
}
Value* low_half(llvm::IRBuilder<>& b, Value* x, int half) {
  std::vector<int> mask;
  for (int i = 0; i < half; ++i) mask.push_back(i);
  return b.CreateShuffleVector(x, mask);
}
}  // namespace

Value* Emitter::horizontal(OpKind kind, Value* x) {
  for (int half = cpu_.lanes / 2; half >= 1; half /= 2)
    x = emit_combine(b_, kind, low_half(b_, x, half), fold_half(b_, x, half), math_);
  return b_.CreateExtractElement(x, b_.getInt64(0));
}

void Emitter::emit_reduce(const Op& op) {
  const ValueId source = op.operands[0], result = op.results[0];
  const ir::Type &from = p_.type(source), &to = p_.type(result);
  const int lane = plan_.lane_axis(from.axes);
  const std::int64_t extent = from.extent(op.axis);
  const bool across = lane == op.axis, arg = op.kind == OpKind::reduce_argmax;
  const Rep& out = make_memory(result);
  const std::int64_t mark = scratch_now_;

  auto join = [&](Value* x, Value* y) { return emit_combine(b_, op.kind, x, y, math_); };
  auto store = [&](const Point& pt, Value* x) {
    Value* offset = c64(0);
    for (std::size_t i = 0; i < out.layout.axes.size(); ++i)
      offset = b_.CreateAdd(
          offset, b_.CreateMul(pt.index[static_cast<std::size_t>(out.layout.axes[i])], c64(out.layout.strides[i])));
    store_vector(to_buffer(x, to.dtype), element_ptr(buffer_type(to.dtype), out.base, offset), nullptr);
  };
  const auto axis = static_cast<std::size_t>(op.axis);

  if (!across) {
    each_point(to.axes, [&](const Point& at) {
      const int width = at.lane >= 0 ? at.width : 1;
      const int chains = !arg && extent % 4 == 0 && extent >= 8 ? 4 : 1;
      Carried init(static_cast<std::size_t>(chains), splat(reduction_identity(b_, op.kind, from.dtype), width));
      if (arg) init.push_back(splat(b_.getInt32(0), width));
      Carried done = counted_loop(b_, c64(0), c64(extent), c64(chains), init, [&](Value* i, const Carried& now) {
        Carried next;
        for (int k = 0; k < chains; ++k) {
          Point pt = at;
          pt.index[axis] = b_.CreateAdd(i, c64(k));
          Memo memo;
          Value* x = splat(eval(source, pt, memo), width);
          if (!arg) {
            next.push_back(join(now[static_cast<std::size_t>(k)], x));
            continue;
          }
          Value* take = emit_better(b_, from.dtype, x, now[0], nullptr, nullptr);
          next.push_back(b_.CreateSelect(take, x, now[0]));
          next.push_back(b_.CreateSelect(take, splat(b_.CreateTrunc(i, b_.getInt32Ty()), width), now[1]));
        }
        return next;
      });
      Value* x = arg ? done[1] : done[0];
      if (chains == 4) x = join(join(done[0], done[1]), join(done[2], done[3]));
      store(at, x);
    });
    scratch_now_ = mark;
    return;
  }

  // Across lanes: the axes that stay are walked one element at a time.
  const int width = cpu_.lanes;
  Point at = scalar_point();
  std::function<void(std::size_t)> nest = [&](std::size_t level) {
    if (level < to.axes.size()) {
      loop(c64(0), c64(to.axes[level].extent), 1, [&](Value* i) {
        at.index[static_cast<std::size_t>(to.axes[level].axis)] = i;
        nest(level + 1);
      });
      return;
    }
    Value* start = splat(reduction_identity(b_, op.kind, from.dtype), width);
    Carried init{start};
    if (arg) init.push_back(iota(b_.getInt32Ty(), width));
    Carried done = counted_loop(b_, c64(0), c64(extent), c64(width), init, [&](Value* i, const Carried& now) {
      Point pt = at;
      pt.index[axis] = i;
      pt.lane = op.axis;
      pt.width = width;
      Memo memo;
      Value* x = splat(eval(source, pt, memo), width);
      if (extent % width) x = b_.CreateSelect(lane_mask(i, c64(extent), width), x, start);
      if (!arg) return Carried{join(now[0], x)};
      Value* place = b_.CreateAdd(splat(b_.CreateTrunc(i, b_.getInt32Ty()), width), iota(b_.getInt32Ty(), width));
      Value* take = emit_better(b_, from.dtype, x, now[0], nullptr, nullptr);
      return Carried{b_.CreateSelect(take, x, now[0]), b_.CreateSelect(take, place, now[1])};
    });
    if (!arg) {
      store(at, horizontal(op.kind, done[0]));
      return;
    }
    Value *best = done[0], *place = done[1];
    for (int half = width / 2; half >= 1; half /= 2) {
      Value *x = low_half(b_, best, half), *y = fold_half(b_, best, half);
      Value *x_at = low_half(b_, place, half), *y_at = fold_half(b_, place, half);
      Value* take = emit_better(b_, from.dtype, y, x, y_at, x_at);
      best = b_.CreateSelect(take, y, x);
      place = b_.CreateSelect(take, y_at, x_at);
    }
    store(at, b_.CreateExtractElement(place, b_.getInt64(0)));
  };
  nest(0);
  scratch_now_ = mark;
}

void Emitter::emit_running_sum(const Op& op) {
  const ir::Type& type = p_.type(op.results[0]);
  const Rep& out = make_memory(op.results[0]);
  Point at = scalar_point();
  std::vector<ir::AxisExtent> others;
  for (const ir::AxisExtent& x : type.axes)
    if (x.axis != op.axis) others.push_back(x);
  std::function<void(std::size_t)> nest = [&](std::size_t level) {
    if (level < others.size()) {
      loop(c64(0), c64(others[level].extent), 1, [&](Value* i) {
        at.index[static_cast<std::size_t>(others[level].axis)] = i;
        nest(level + 1);
      });
      return;
    }
    const Carried zero{register_constant(b_, type.dtype, 0)};
    counted_loop(b_, c64(0), c64(type.extent(op.axis)), c64(1), zero, [&](Value* i, const Carried& before) {
      at.index[static_cast<std::size_t>(op.axis)] = i;
      Memo memo;
      Value* sum = emit_combine(b_, OpKind::reduce_sum, before[0], eval(op.operands[0], at, memo), math_);
      Value* offset = c64(0);
      for (std::size_t k = 0; k < out.layout.axes.size(); ++k)
        offset = b_.CreateAdd(
            offset, b_.CreateMul(at.index[static_cast<std::size_t>(out.layout.axes[k])], c64(out.layout.strides[k])));
      store_vector(to_buffer(sum, type.dtype), element_ptr(buffer_type(type.dtype), out.base, offset), nullptr);
      return Carried{sum};
    });
  };
  nest(0);
}

}  // namespace kerf::codegen::cpu
