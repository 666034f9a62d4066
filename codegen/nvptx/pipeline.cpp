#include "codegen/nvptx/pipeline.h"

#include <algorithm>
#include <functional>

namespace kerf::codegen::nvptx {

using ir::Op;
using ir::OpKind;
using ir::ValueId;

namespace {

const Op* definition(const ir::Program& p, ValueId v) {
  const Op* found = nullptr;
  ir::walk(p.body, [&](const Op& op) {
    if (std::find(op.results.begin(), op.results.end(), v) != op.results.end()) found = &op;
  });
  return found;
}

bool is_zero(const ir::Program& p, ValueId v) {
  const Op* op = definition(p, v);
  if (op && op->kind == OpKind::splat) op = definition(p, op->operands[0]);
  return op && op->kind == OpKind::constant && op->number == 0 && op->integer == 0;
}

/// The factor that `load` reads for a product over `k`, whose block in this turn is `turn`.
std::optional<Factor> factor(const ir::Program& p, const Op& load, int k, const Op& loop) {
  const ir::Type& t = p.type(load.results[0]);
  const ir::TensorInfo& tensor = p.tensors[static_cast<std::size_t>(load.tensor)];
  if (t.axes.size() != 2 || tensor.axes.size() != 2 || tensor.access != ir::Access::input) return {};
  Factor f;
  f.load = &load;
  for (const auto& x : t.axes)
    if (x.axis != k) f.own = x.axis, f.extent = x.extent;
  f.k_contiguous = tensor.axes[1] == k;
  if (load.kind == OpKind::load_packed) return f;
  if (load.kind != OpKind::load) return {};
  const ValueId turn = loop.regions[0].args[static_cast<std::size_t>(loop.loop_vars()) - 1];
  for (std::size_t i = 0; i < 2; ++i) {
    const ir::Type& s = p.type(load.operands[i]);
    if (s.kind != ir::Type::Kind::block || (s.axes[0].axis == k) != (load.operands[i] == turn)) return {};
  }
  if (load.operands.size() > 2 && !is_zero(p, load.operands[2])) return {};
  return f;
}

/// The product, if it is one of bf16 or f16 whose turns are whole steps.
std::optional<Product> staged_product(const ir::Program& p) {
  auto product = find_product(p);
  if (!product || (product->dtype != DType::bf16 && product->dtype != DType::f16) ||
      product->turn % StagedPlan::step != 0)
    return {};
  return product;
}

/// Whether threads that hold different indices of the axis ever put them together.
bool combines_along(const ir::Program& p, int axis) {
  bool found = false;
  ir::walk(p.body, [&](const Op& op) {
    found =
        found || (op.axis == axis && (ir::info(op.kind).rule == ir::Rule::reduce || op.kind == OpKind::running_sum));
  });
  return found;
}

std::optional<Product> product_of(const ir::Program& p, const Op& loop) {
  const ir::Region& body = loop.regions[0];
  if (loop.results.size() != 1 || body.ops.size() != 4) return {};
  const Op &a = body.ops[0], &b = body.ops[1], &dot = body.ops[2], &yield = body.ops[3];
  if (dot.kind != OpKind::dot || dot.operands.size() != 3 || dot.operands[2] != body.args.back() ||
      yield.operands[0] != dot.results[0])
    return {};
  const auto loads = [&](ValueId v) -> const Op* {
    for (const Op* op : {&a, &b})
      if (!op->results.empty() && op->results[0] == v) return op;
    return nullptr;
  };
  const Op *x = loads(dot.operands[0]), *y = loads(dot.operands[1]);
  if (!x || !y || x == y) return {};
  Product out;
  out.loop = &loop;
  for (const auto& axis : p.type(x->results[0]).axes)
    if (p.type(y->results[0]).has(axis.axis)) out.k = axis.axis, out.turn = axis.extent;
  out.dtype = p.type(x->results[0]).dtype;
  const auto row = factor(p, *x, out.k, loop), column = factor(p, *y, out.k, loop);
  if (!row || !column) return {};
  out.row = *row, out.column = *column;
  out.from_zero = is_zero(p, loop.operands[static_cast<std::size_t>(loop.anchors())]);
  out.never_empty = loop.over == ir::LoopOver::axis && p.axes[static_cast<std::size_t>(loop.axis)].size > 0;
  return out;
}

}  // namespace

std::optional<Product> find_product(const ir::Program& p) {
  int dots = 0;
  ir::walk(p.body, [&](const Op& op) { dots += op.kind == OpKind::dot; });
  if (dots != 1) return {};
  std::optional<Product> found;
  const std::function<void(const ir::Region&, const Op*)> search = [&](const ir::Region& region, const Op* within) {
    for (const Op& op : region.ops) {
      if (op.kind != OpKind::loop || found) continue;
      found = product_of(p, op);
      if (found)
        found->within = within;
      else
        search(op.regions[0], &op);
    }
  };
  search(p.body, nullptr);
  return found;
}

std::optional<WgmmaPlan> plan_wgmma(const ir::Program& p, const Schedule& schedule) {
  const auto product = staged_product(p);
  if (!product) return {};
  WgmmaPlan plan;
  plan.product = *product;
  const std::int64_t rows = product->row.extent, columns = product->column.extent;
  if (columns != 64 && columns != 128 && columns != 256) return {};
  if (rows == 64 || rows == 128 || rows == 192)
    plan.groups = static_cast<int>(rows / 64);
  else if (rows == 256)
    plan.groups = 2;
  else
    return {};
  // Layouts count warpgroups in powers of two: what a fourth would hold must not be asked for.
  if (plan.groups == 3 && combines_along(p, product->row.own)) return {};
  plan.slices = static_cast<int>(rows / 64) / plan.groups;
  if (plan.slices * columns > 256) return {};  // 128 accumulators in each thread
  // With 512 threads a thread has 128 registers where the kernel begins, too few for the operands of m64n256.
  plan.columns_at_once = static_cast<int>(plan.groups == 3 ? std::min<std::int64_t>(columns, 128) : columns);
  plan.stages = schedule.stages > 0 ? schedule.stages : 8;
  plan.take_turns = plan.groups > 1;
  return plan;
}

std::optional<MmaPlan> plan_mma(const ir::Program& p, const Schedule& schedule) {
  const auto product = staged_product(p);
  if (!product) return {};
  const std::int64_t rows = product->row.extent, columns = product->column.extent;
  const auto power_of_two = [](std::int64_t x) { return (x & (x - 1)) == 0; };
  if (!power_of_two(rows) || !power_of_two(columns) || rows < 64 || columns < 64 || rows * columns > 128 * 256)
    return {};
  MmaPlan plan;
  plan.product = *product;
  plan.stages = schedule.stages > 0 ? schedule.stages : 4;
  // Four warps, or eight for more than 128 accumulators in each thread; their parts as square as can be.
  plan.row_warp_bits = plan.column_warp_bits = 1;
  if (rows * columns > 128 * 128) (rows > columns ? plan.row_warp_bits : plan.column_warp_bits) = 2;
  return plan;
}

}  // namespace kerf::codegen::nvptx
