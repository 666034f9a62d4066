// A tile value at one point: a scalar, or a vector where the value has the axis that runs over lanes. Elementwise
// operations become one LLVM instruction per operand pair; loads become masked vector loads, or gathers when lanes do
// not lie side by side.
#include "codegen/cpu/emit.h"
#include "codegen/cpu/jit.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

using ir::OpKind;
using ir::ValueId;
using llvm::Value;

namespace {
int width_of(Value* v) {
  auto* t = llvm::dyn_cast<llvm::FixedVectorType>(v->getType());
  return t ? static_cast<int>(t->getNumElements()) : 1;
}
}  // namespace

Value* Emitter::load_vector(llvm::Type* element, Value* ptr, int width, Value* mask, Value* otherwise) {
  const llvm::Align align(element->getPrimitiveSizeInBits() / 8);
  if (width == 1) {
    if (!mask) return b_.CreateAlignedLoad(element, ptr, align);
    // No branch: an element that does not exist is read from the scratch buffer, which always does.
    Value* safe = b_.CreateSelect(mask, ptr, scratch_);
    return b_.CreateSelect(mask, b_.CreateAlignedLoad(element, safe, align), otherwise);
  }
  auto* type = llvm::FixedVectorType::get(element, static_cast<unsigned>(width));
  if (!mask) return b_.CreateAlignedLoad(type, ptr, align);
  return b_.CreateMaskedLoad(type, ptr, align, mask, splat(otherwise, width));
}

void Emitter::store_vector(Value* x, Value* ptr, Value* mask) {
  const llvm::Align align(x->getType()->getScalarSizeInBits() / 8);
  if (!mask)
    b_.CreateAlignedStore(x, ptr, align);
  else if (width_of(x) == 1)
    emit_branch(b_, mask, [&] { b_.CreateAlignedStore(x, ptr, align); });
  else
    b_.CreateMaskedStore(x, ptr, align, mask);
}

Value* Emitter::to_compute(Value* raw, DType t, bool wide_storage) {
  if (t == DType::boolean) return b_.CreateICmpNE(raw, llvm::Constant::getNullValue(raw->getType()));
  if ((t == DType::bf16 || t == DType::f16) && !wide_storage) return math_.widen(b_, raw, t);
  return raw;
}

Value* Emitter::to_tensor(Value* x, DType t) {
  if (t == DType::bf16 || t == DType::f16) return math_.narrow(b_, x, t);
  return to_buffer(x, t);
}

Value* Emitter::to_buffer(Value* x, DType t) {
  if (t != DType::boolean) return x;
  llvm::Type* byte = b_.getInt8Ty();
  const int w = width_of(x);
  return b_.CreateZExt(x, w == 1 ? byte : llvm::FixedVectorType::get(byte, static_cast<unsigned>(w)));
}

Value* Emitter::index_of(ValueId indices, const Point& pt) {
  const bool one = plan_.form(indices) == Form::scalar;
  Value* i = one ? rep(indices).number : eval_memory(rep(indices), p_.type(indices).dtype, pt);
  llvm::Type* to = b_.getInt64Ty();
  const int w = width_of(i);
  return b_.CreateSExt(i, w == 1 ? to : llvm::FixedVectorType::get(to, static_cast<unsigned>(w)));
}

Value* Emitter::view_offset(const View& view, const Point& pt, Value*& exists, bool& contiguous) {
  Value* offset = c64(0);  // the same for all lanes
  Value* lanes = nullptr;  // the part that differs, when lanes do not lie side by side
  exists = nullptr;
  contiguous = pt.lane >= 0;
  auto also = [&](Value* condition) {
    if (!exists) {
      exists = condition;
    } else {
      const int w = std::max(width_of(exists), width_of(condition));
      exists = b_.CreateAnd(splat(exists, w), splat(condition, w));
    }
  };
  bool has_lane = false;
  for (const ViewDim& d : view.dims) {
    if (d.indices >= 0) {
      Value* i = index_of(d.indices, pt);
      const int w = width_of(i);
      also(b_.CreateICmpULT(i, splat(d.size, w)));  // a negative index is a large unsigned number
      Value* o = b_.CreateMul(i, splat(d.stride, w));
      if (w == 1) {
        offset = b_.CreateAdd(offset, o);
      } else {
        lanes = lanes ? b_.CreateAdd(lanes, o) : o;
        has_lane = true;
      }
      continue;
    }
    Value* i = pt.index[static_cast<std::size_t>(d.axis)];
    offset = b_.CreateAdd(offset, b_.CreateMul(i, d.stride));
    if (d.axis == pt.lane) {
      has_lane = true;
      if (d.limit || d.extent % pt.width) also(lane_mask(i, d.limit ? d.limit : c64(d.extent), pt.width));
      if (!d.unit) {
        Value* o = b_.CreateMul(iota(b_.getInt64Ty(), pt.width), splat(d.stride, pt.width));
        lanes = lanes ? b_.CreateAdd(lanes, o) : o;
      }
    } else if (d.limit) {
      also(b_.CreateICmpSLT(i, d.limit));
    }
  }
  if (lanes) {
    contiguous = false;
    // A unit-stride lane axis beside a gather over lanes: its lanes count too.
    for (const ViewDim& d : view.dims)
      if (d.indices < 0 && d.axis == pt.lane && d.unit) lanes = b_.CreateAdd(lanes, iota(b_.getInt64Ty(), pt.width));
    offset = b_.CreateAdd(splat(offset, pt.width), lanes);
  } else if (!has_lane) {
    contiguous = false;
  }
  return offset;
}

Value* Emitter::eval_view(const View& view, const Point& pt) {
  Value* exists = nullptr;
  bool contiguous = false;
  Value* offset = view_offset(view, pt, exists, contiguous);
  llvm::Type* element = view.wide_storage ? buffer_type(view.dtype) : tensor_type(view.dtype);
  // The fill in the element's own form.
  Value* fill = register_constant(b_, view.dtype, view.fill);
  fill = view.wide_storage ? to_buffer(fill, view.dtype) : to_tensor(fill, view.dtype);
  Value* raw = nullptr;
  if (offset->getType()->isVectorTy()) {
    Value* ptrs = b_.CreateGEP(element, view.base, offset);
    Value* mask =
        exists
            ? splat(exists, pt.width)
            : llvm::ConstantInt::getTrue(llvm::FixedVectorType::get(b_.getInt1Ty(), static_cast<unsigned>(pt.width)));
    auto* type = llvm::FixedVectorType::get(element, static_cast<unsigned>(pt.width));
    raw = b_.CreateMaskedGather(type, ptrs, llvm::Align(element->getPrimitiveSizeInBits() / 8), mask,
                                splat(fill, pt.width));
  } else {
    const int w = contiguous ? pt.width : 1;
    Value* ptr = b_.CreateGEP(element, view.base, offset);
    raw = load_vector(element, ptr, w, exists ? splat(exists, w) : nullptr, fill);
  }
  return to_compute(raw, view.dtype, view.wide_storage);
}

Value* Emitter::eval_memory(const Rep& r, DType dtype, const Point& pt) {
  Value* offset = c64(0);
  bool lane = false;
  for (std::size_t i = 0; i < r.layout.axes.size(); ++i) {
    const int axis = r.layout.axes[i];
    if (r.layout.extents[i] == 1) continue;
    offset = b_.CreateAdd(offset, b_.CreateMul(pt.index[static_cast<std::size_t>(axis)], c64(r.layout.strides[i])));
    lane = lane || axis == pt.lane;
  }
  llvm::Type* element = buffer_type(dtype);
  return to_compute(load_vector(element, element_ptr(element, r.base, offset), lane ? pt.width : 1, nullptr, nullptr),
                    dtype, true);
}

Value* Emitter::eval(ValueId v, const Point& pt, Memo& memo) {
  Value*& known = memo.values[v];
  if (known) return known;
  Value* x = eval_new(v, pt, memo);
  return memo.values[v] = x;
}

Value* Emitter::eval_new(ValueId v, const Point& pt, Memo& memo) {
  Rep& r = rep(v);
  switch (plan_.form(v)) {
    case Form::scalar: return r.number;
    case Form::memory: return eval_memory(r, p_.type(v).dtype, pt);
    case Form::view: return eval_view(*r.view, pt);
    case Form::in_place: return eval_op(*plan_.def(v), pt, memo);
    case Form::other: break;
  }
  throw InternalError("cpu emitter: a block was used as a tile");
}

Value* Emitter::eval_op(const ir::Op& op, const Point& pt, Memo& memo) {
  const ir::Type& t = p_.type(op.results.at(0));
  // One lane per point when the result lacks the lane axis.
  const int width = pt.lane >= 0 && t.has(pt.lane) ? pt.width : 1;
  std::vector<Value*> x;
  DType in = t.dtype;
  if (op.kind != OpKind::index && op.kind != OpKind::in_bounds)
    for (ValueId o : op.operands)
      if (p_.type(o).is_tile()) {
        x.push_back(splat(eval(o, pt, memo), width));
        in = p_.type(o).dtype;
      }
  switch (op.kind) {
    case OpKind::constant: return register_constant(b_, op, t.dtype);
    case OpKind::splat: return x[0];
    case OpKind::number: return rep(op.operands[0]).number;
    case OpKind::axis_size: return axis_size(op.axis);
    case OpKind::index:
    case OpKind::in_bounds: {
      const Rep& block = rep(op.operands[0]);
      const ir::AxisExtent& a = p_.type(op.operands[0]).axes[0];
      Value* i = pt.index[static_cast<std::size_t>(a.axis)];
      if (op.kind == OpKind::in_bounds) {
        if (!block.limit) return splat(b_.getTrue(), width);
        return width > 1 ? lane_mask(i, block.limit, width) : b_.CreateICmpSLT(i, block.limit);
      }
      Value* first = b_.CreateAdd(b_.CreateMul(block.number, c64(a.extent)), i);
      llvm::Type* e = register_type(b_, t.dtype);
      first = b_.CreateTrunc(first, e);
      return width > 1 ? b_.CreateAdd(splat(first, width), iota(e, width)) : first;
    }
    case OpKind::load:
    case OpKind::load_packed: {  // scalars; tiles are views
      return eval_view(*rep(op.results[0]).view, pt);
    }
    default: return emit_elementwise(b_, op, x, in, t.dtype, math_);
  }
}

}  // namespace kerf::codegen::cpu
