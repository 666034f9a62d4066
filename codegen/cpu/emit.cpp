// The CPU emitter: the function around a program, its regions and loops, loads, stores and reductions. A dot has its
// own file (dot.cpp), values at one point too (emit_point.cpp).
#include "codegen/cpu/emit.h"

#include <fmt/format.h>

#include "codegen/cpu/jit.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

using ir::LoopOver;
using ir::Op;
using ir::OpKind;
using ir::ValueId;
using llvm::Value;

Emitter::Emitter(const ir::Program& p, const Schedule& schedule, const CpuInfo& cpu, llvm::Module& module)
    : p_(p),
      schedule_(schedule),
      cpu_(cpu),
      plan_(p, micro_shape(cpu, schedule), cpu.bf16_dot),
      module_(module),
      context_(module.getContext()),
      b_(context_),
      reps_(p.values.size()) {}

std::size_t Emitter::run(const std::string& name) {
  llvm::Type *ptr = b_.getPtrTy(), *i64 = b_.getInt64Ty();
  fn_ = llvm::Function::Create(llvm::FunctionType::get(b_.getVoidTy(), {ptr, i64, i64, ptr}, false),
                               llvm::Function::ExternalLinkage, name, module_);
  fn_->addFnAttr(llvm::Attribute::NoUnwind);
  args_ = fn_->getArg(0);
  scratch_ = fn_->getArg(3);
  for (unsigned i : {0U, 3U}) fn_->addParamAttr(i, llvm::Attribute::NoAlias);
  auto* entry = llvm::BasicBlock::Create(context_, "entry", fn_);
  auto* start = llvm::BasicBlock::Create(context_, "start", fn_);
  b_.SetInsertPoint(entry);
  b_.CreateBr(start);
  b_.SetInsertPoint(start);

  std::vector<const Op*> grid;
  for (const Op& op : p_.body.ops)
    if (op.kind == OpKind::parallel) grid.push_back(&op);
  counted_loop(b_, fn_->getArg(1), fn_->getArg(2), c64(1), {}, [&](Value* instance, const Carried&) {
    // The last `parallel` varies fastest.
    Value* rest = instance;
    for (std::size_t g = grid.size(); g-- > 0;) {
      const Op& op = *grid[g];
      Value* count = op.list >= 0 ? argument(list_slot(p_, op.list)) : block_count(op.axis, op.extent);
      Value* number = g == 0 ? rest : b_.CreateURem(rest, count);
      if (g != 0) rest = b_.CreateUDiv(rest, count);
      if (op.list < 0) {
        rep(op.results[0]) = make_block(op.axis, op.extent, number);
        continue;
      }
      const ir::ListInfo& l = p_.lists[static_cast<std::size_t>(op.list)];
      const std::int64_t slot = list_slot(p_, op.list);
      auto block_of = [&](std::int64_t array, int axis, std::int64_t extent) {
        Value* at = b_.CreateGEP(b_.getInt32Ty(), pointer_argument(slot + array), number);
        return make_block(axis, extent, b_.CreateSExt(b_.CreateLoad(b_.getInt32Ty(), at), b_.getInt64Ty()));
      };
      rep(op.results[0]).number = number;
      rep(op.results[1]) = block_of(1, l.row_axis, l.row_extent);
      rep(op.results[2]) = block_of(2, l.column_axis, l.column_extent);
    }
    region(p_.body);
    return Carried{};
  });
  b_.CreateRetVoid();
  return static_cast<std::size_t>(std::max<std::int64_t>(scratch_most_, 64));  // masked scalar loads point there
}

void Emitter::region(const ir::Region& r) {
  for (const Op& op : r.ops) operation(op);
}

Emitter::Point Emitter::scalar_point() {
  Point pt;
  pt.index.assign(p_.axes.size(), c64(0));
  return pt;
}

void Emitter::each_point(const std::vector<ir::AxisExtent>& axes, const std::function<void(const Point&)>& body) {
  Point pt = scalar_point();
  const int lane = plan_.lane_axis(axes);
  std::vector<ir::AxisExtent> order;
  for (const auto& x : axes)
    if (x.axis != lane && x.extent > 1) order.push_back(x);
  if (lane >= 0)
    for (const auto& x : axes)
      if (x.axis == lane) order.push_back(x);
  std::function<void(std::size_t)> nest = [&](std::size_t i) {
    if (i == order.size()) {
      body(pt);
      return;
    }
    const bool lanes = order[i].axis == lane;
    if (lanes) {
      pt.lane = lane;
      pt.width = cpu_.lanes;
    }
    loop(c64(0), c64(order[i].extent), lanes ? cpu_.lanes : 1, [&](Value* at) {
      pt.index[static_cast<std::size_t>(order[i].axis)] = at;
      nest(i + 1);
    });
  };
  nest(0);
}

void Emitter::materialize(ValueId v, Value* base, const Layout& layout) {
  const ir::Type& t = p_.type(v);
  llvm::Type* element = buffer_type(t.dtype);
  const Op* op = plan_.def(v);
  // A value that lives in the buffer being filled is computed from its operands; any other is looked up.
  const bool own = op && plan_.form(v) == Form::memory && rep(v).base == base && op->kind != OpKind::loop;
  each_point(t.axes, [&](const Point& pt) {
    Memo memo;
    Value* x = nullptr;
    if (!own)
      x = eval(v, pt, memo);
    else if (rep(v).view)
      x = eval_view(*rep(v).view, pt);
    else
      x = eval_op(*op, pt, memo);
    x = to_buffer(splat(x, pt.lane >= 0 ? pt.width : 1), t.dtype);
    Value* offset = c64(0);
    for (std::size_t i = 0; i < layout.axes.size(); ++i)
      offset = b_.CreateAdd(offset,
                            b_.CreateMul(pt.index[static_cast<std::size_t>(layout.axes[i])], c64(layout.strides[i])));
    store_vector(x, element_ptr(element, base, offset), nullptr);
  });
}

Emitter::Rep& Emitter::make_memory(ValueId v) {
  Rep& r = rep(v);
  r.layout = plan_.layout(p_.type(v), plan_.needs_dot_layout(v));
  r.base = allocate(r.layout.elements * buffer_bytes(p_.type(v).dtype));
  return r;
}

View Emitter::tensor_view(const Op& op, std::size_t first_subscript, const Rep* staged) {
  const ir::TensorInfo& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
  const std::int64_t slot = tensor_slot(p_, op.tensor);
  View view;
  view.dtype = t.dtype;
  Value* offset = c64(0);
  std::size_t next = first_subscript;
  for (std::size_t i = 0; i < t.axes.size(); ++i) {
    ViewDim d;
    const bool last = i + 1 == t.axes.size();
    d.stride = last ? c64(1) : argument(slot + 1 + static_cast<std::int64_t>(i));
    auto block = [&](const Rep& r, int axis, std::int64_t extent) {
      d.axis = axis;
      d.extent = extent;
      d.limit = r.limit;
      d.unit = last;
      offset = b_.CreateAdd(offset, b_.CreateMul(b_.CreateMul(r.number, c64(extent)), d.stride));
    };
    if (staged && t.axes[i] == op.axis) {
      block(*staged, op.axis, op.extent);
      view.dims.push_back(d);
      continue;
    }
    const ValueId s = op.operands[next++];
    const ir::Type& type = p_.type(s);
    if (type.kind == ir::Type::Kind::block) {
      block(rep(s), type.axes[0].axis, type.axes[0].extent);
    } else {
      d.indices = s;
      d.size = axis_size(t.axes[i]);
      if (type.axes.size() == 1) {
        d.axis = type.axes[0].axis;
        d.extent = type.axes[0].extent;
        // Rows past the end of an index tensor have no index when it loads as a negative number there.
        const Op* def = plan_.def(s);
        if (def && def->kind == OpKind::load && def->operands.size() == 2 &&
            p_.type(def->operands[0]).kind == ir::Type::Kind::block) {
          const Op* fill = plan_.def(def->operands[1]);
          if (fill && fill->kind == OpKind::constant && fill->integer < 0) d.limit = rep(def->operands[0]).limit;
        }
      }
    }
    view.dims.push_back(d);
  }
  view.base = b_.CreateGEP(tensor_type(t.dtype), pointer_argument(slot), offset);
  if (op.kind != OpKind::store && op.operands.size() > next) {
    const Op* fill = plan_.def(op.operands[next]);
    if (!fill || fill->kind != OpKind::constant) throw InternalError("cpu emitter: a fill is not a constant");
    view.fill = is_integer(t.dtype) ? static_cast<double>(fill->integer) : fill->number;
  }
  return view;
}

View Emitter::packed_view(const Op& op, ValueId entry) {
  const ir::TensorInfo& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
  const ir::ListInfo& l = p_.lists[static_cast<std::size_t>(t.list)];
  View view;
  view.dtype = t.dtype;
  for (std::size_t i = 0; i < 2; ++i) {
    ViewDim d;
    d.axis = t.axes[i];
    d.extent = d.axis == l.row_axis ? l.row_extent : l.column_extent;
    d.unit = i == 1;
    view.dims.push_back(d);
  }
  view.dims[0].stride = c64(view.dims[1].extent);
  view.dims[1].stride = c64(1);
  view.base = b_.CreateGEP(tensor_type(t.dtype), pointer_argument(tensor_slot(p_, op.tensor)),
                           b_.CreateMul(rep(entry).number, c64(l.row_extent * l.column_extent)));
  return view;
}

View Emitter::memory_view(ValueId v) {
  const Rep& r = rep(v);
  View view;
  view.base = r.base;
  view.dtype = p_.type(v).dtype;
  view.wide_storage = true;
  for (std::size_t i = 0; i < r.layout.axes.size(); ++i) {
    ViewDim d;
    d.axis = r.layout.axes[i];
    d.extent = r.layout.extents[i];
    d.stride = c64(r.layout.strides[i]);
    d.unit = r.layout.strides[i] == 1 && i + 1 == r.layout.axes.size();
    view.dims.push_back(d);
  }
  return view;
}

void Emitter::emit_load(const Op& op) {
  const ValueId v = op.results[0];
  const View view = op.kind == OpKind::load ? tensor_view(op, 0, nullptr) : packed_view(op, op.operands[0]);
  rep(v).view = view;
  if (plan_.form(v) == Form::scalar) rep(v).number = eval_view(view, scalar_point());
  if (plan_.form(v) == Form::memory) {
    const Rep& r = make_memory(v);
    materialize(v, r.base, r.layout);
  }
}

void Emitter::emit_store(const Op& op) {
  const View view = op.kind == OpKind::store ? tensor_view(op, 1, nullptr) : packed_view(op, op.operands[1]);
  std::vector<ir::AxisExtent> axes;
  auto add = [&](const ir::AxisExtent& x) {
    for (const auto& y : axes)
      if (y.axis == x.axis) return;
    axes.push_back(x);
  };
  for (const ViewDim& d : view.dims)
    if (d.indices < 0)
      add({d.axis, d.extent});
    else
      for (const auto& x : p_.type(d.indices).axes) add(x);
  const ValueId value = op.operands[0];
  llvm::Type* element = tensor_type(view.dtype);
  each_point(axes, [&](const Point& pt) {
    Memo memo;
    Value* x = eval(value, pt, memo);
    Value* exists = nullptr;
    bool contiguous = false;
    Value* offset = view_offset(view, pt, exists, contiguous);
    const bool scattered = offset->getType()->isVectorTy();
    const int width = scattered || contiguous ? pt.width : 1;
    x = to_tensor(splat(x, width), view.dtype);
    Value* ptr = b_.CreateGEP(element, view.base, offset);
    if (scattered)
      b_.CreateMaskedScatter(x, ptr, llvm::Align(element->getPrimitiveSizeInBits() / 8),
                             exists ? splat(exists, width) : splat(b_.getTrue(), width));
    else
      store_vector(x, ptr, exists ? splat(exists, width) : nullptr);
  });
}

void Emitter::emit_stage(const Op& op) {
  const ValueId v = op.results[0];
  const ir::Type& t = p_.type(v);
  const std::int64_t size = p_.axes[static_cast<std::size_t>(op.axis)].size;
  if (size == ir::unknown) throw InternalError("cpu emitter: a staged axis has no known size");
  const std::int64_t blocks = (size + op.extent - 1) / op.extent;
  const StageForm form = plan_.stage_form(v);
  const Op* user = plan_.stage_dot(v);
  Rep& r = rep(v);
  const ir::Type tile = ir::tile_type(t.dtype, t.axes);
  std::int64_t own_extent = 1, bytes = 0;
  bool pairs = false;
  DotPlan d;
  if (form == StageForm::plain) {
    r.layout = plan_.layout(tile);
    bytes = r.layout.elements * buffer_bytes(t.dtype);
  } else {
    d = plan_.dot(*user);
    pairs = d.pairs;
    own_extent = std::max<std::int64_t>(1, t.extent(form == StageForm::lanes ? d.lane : d.row));
    bytes = form == StageForm::lanes ? packed_lanes_bytes(pairs, op.extent, own_extent)
                                     : packed_rows_bytes(pairs, op.extent, own_extent);
  }
  bytes = (bytes + 63) / 64 * 64;
  r.base = allocate(blocks * bytes);
  r.number = c64(bytes);
  loop(c64(0), c64(blocks), 1, [&](Value* number) {
    Value* to = b_.CreateGEP(b_.getInt8Ty(), r.base, b_.CreateMul(number, c64(bytes)));
    const Rep block = make_block(op.axis, op.extent, number);
    const View view = tensor_view(op, 0, &block);
    if (form == StageForm::lanes)
      rep(v).lanes = pack_lanes(view, d, op.extent, own_extent, to);
    else if (form == StageForm::rows)
      rep(v).rows = pack_rows(view, d, op.extent, own_extent, to);
    else
      each_point(tile.axes, [&](const Point& pt) {
        Value* x = to_buffer(splat(eval_view(view, pt), pt.lane >= 0 ? pt.width : 1), t.dtype);
        Value* offset = c64(0);
        const Layout& l = rep(v).layout;
        for (std::size_t i = 0; i < l.axes.size(); ++i)
          offset = b_.CreateAdd(offset, b_.CreateMul(pt.index[static_cast<std::size_t>(l.axes[i])], c64(l.strides[i])));
        store_vector(x, element_ptr(buffer_type(t.dtype), to, offset), nullptr);
      });
  });
}

void Emitter::emit_take(const Op& op) {
  const ValueId v = op.results[0];
  const Rep& staged = rep(op.operands[0]);
  const Rep& block = rep(op.operands[1]);
  Value* at = b_.CreateGEP(b_.getInt8Ty(), staged.base, b_.CreateMul(block.number, staged.number));
  Rep& r = rep(v);
  r.base = at;
  r.layout = staged.layout;
  if (staged.lanes) {
    r.lanes = staged.lanes;
    r.lanes->base = at;
    r.lanes->k_limit = block.limit;
  }
  if (staged.rows) {
    r.rows = staged.rows;
    r.rows->base = at;
    r.rows->k_limit = block.limit;
  }
}

void Emitter::operation(const Op& op) {
  switch (op.kind) {
    case OpKind::parallel: return;  // in run
    case OpKind::whole: rep(op.results[0]) = make_block(op.axis, op.extent, c64(0)); return;
    case OpKind::loop: return emit_loop(op);
    case OpKind::when: {
      const std::int64_t mark = scratch_now_;
      Memo memo;
      emit_branch(b_, eval(op.operands[0], scalar_point(), memo), [&] { region(op.regions[0]); });
      scratch_now_ = mark;
      return;
    }
    case OpKind::yield: return;  // in emit_loop
    case OpKind::load:
    case OpKind::load_packed: return emit_load(op);
    case OpKind::store:
    case OpKind::store_packed: return emit_store(op);
    case OpKind::stage: return emit_stage(op);
    case OpKind::take: return emit_take(op);
    case OpKind::dot: return emit_dot(op);
    case OpKind::reduce_sum:
    case OpKind::reduce_max:
    case OpKind::reduce_argmax:
    case OpKind::reduce_any: return emit_reduce(op);
    case OpKind::running_sum: return emit_running_sum(op);
    default: break;
  }
  const ValueId v = op.results[0];
  if (plan_.form(v) == Form::scalar) {
    Memo memo;
    rep(v).number = eval_op(op, scalar_point(), memo);
  } else if (plan_.form(v) == Form::memory) {
    const Rep& r = make_memory(v);
    materialize(v, r.base, r.layout);
  }
}

void Emitter::emit_loop(const Op& op) {
  const ir::Region& body = op.regions[0];
  const auto vars = static_cast<std::size_t>(op.loop_vars()), anchors = static_cast<std::size_t>(op.anchors());
  const std::size_t count = op.results.size();

  // Each carried value has two buffers that change places every round, but for sums that grow where they lie.
  struct Slot {
    Layout layout;
    bool grows;
  };
  std::vector<Slot> slots;
  Carried init;
  for (std::size_t i = 0; i < count; ++i) {
    const ValueId arg = body.args[vars + i];
    const bool grows = plan_.accumulates(op, i);
    if (grows) grows_.insert(arg);
    slots.push_back({plan_.layout(p_.type(arg), grows), grows});
    const std::int64_t bytes = slots[i].layout.elements * buffer_bytes(p_.type(arg).dtype);
    Value* a = allocate(bytes);
    init.push_back(a);
    if (!grows) init.push_back(allocate(bytes));
    materialize(op.operands[anchors + i], a, slots[i].layout);
  }
  const std::int64_t mark = scratch_now_;

  Value *begin = c64(0), *end = nullptr;
  const std::int64_t slot = op.list >= 0 ? list_slot(p_, op.list) : 0;
  const bool row = op.over == LoopOver::row;
  auto load32 = [&](std::int64_t array, Value* at) {
    return b_.CreateSExt(
        b_.CreateLoad(b_.getInt32Ty(), b_.CreateGEP(b_.getInt32Ty(), pointer_argument(slot + array), at)),
        b_.getInt64Ty());
  };
  if (op.over == LoopOver::axis) {
    end = block_count(op.axis, op.extent);
  } else {
    Value* number = rep(op.operands[0]).number;
    if (op.over == LoopOver::part) {
      begin = b_.CreateMul(number, c64(op.count));
      end = min64(b_.CreateAdd(begin, c64(op.count)), block_count(op.axis, op.extent));
    } else {
      begin = load32(row ? 3 : 5, number);
      end = load32(row ? 3 : 5, b_.CreateAdd(number, c64(1)));
    }
  }
  Carried last = counted_loop(b_, begin, end, c64(1), init, [&](Value* i, const Carried& now) {
    if (op.list < 0) {
      rep(body.args[0]) = make_block(op.axis, op.extent, i);
    } else {
      const ir::ListInfo& l = p_.lists[static_cast<std::size_t>(op.list)];
      Value* k = load32(row ? 4 : 6, i);
      rep(body.args[0]).number = k;
      rep(body.args[1]) =
          make_block(row ? l.column_axis : l.row_axis, row ? l.column_extent : l.row_extent, load32(row ? 2 : 1, k));
    }
    std::size_t at = 0;
    for (std::size_t c = 0; c < count; ++c) {
      Rep& r = rep(body.args[vars + c]);
      r.base = now[at++];
      r.layout = slots[c].layout;
      if (!slots[c].grows) ++at;
    }
    region(body);
    Carried next;
    at = 0;
    for (std::size_t c = 0; c < count; ++c) {
      Value* current = now[at++];
      if (slots[c].grows) {
        next.push_back(current);
        continue;
      }
      Value* other = now[at++];
      materialize(body.ops.back().operands[c], other, slots[c].layout);
      next.push_back(other);
      next.push_back(current);
    }
    return next;
  });
  std::size_t at = 0;
  for (std::size_t c = 0; c < count; ++c) {
    Rep& r = rep(op.results[c]);
    r.base = last[at++];
    r.layout = slots[c].layout;
    if (!slots[c].grows) ++at;
  }
  scratch_now_ = mark;
}

}  // namespace kerf::codegen::cpu
