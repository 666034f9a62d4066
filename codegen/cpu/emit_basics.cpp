// The small pieces of the CPU emitter: constants, counted loops, scratch, arguments, masks.
#include "codegen/cpu/emit.h"
#include "codegen/cpu/jit.h"

namespace kerf::codegen::cpu {

using llvm::Value;

const ViewDim* View::dim(int axis) const {
  for (const ViewDim& d : dims)
    if (d.axis == axis) return &d;
  return nullptr;
}

MicroShape micro_shape(const CpuInfo& cpu, const Schedule& schedule) {
  MicroShape m;
  m.lanes = cpu.lanes;
  m.vectors = schedule.dot_vectors ? schedule.dot_vectors : 2;
  m.rows = schedule.dot_rows ? schedule.dot_rows : cpu.registers >= 32 ? 12 : 6;
  return m;
}

Value* Emitter::splat(Value* x, int width) {
  return width == 1 || x->getType()->isVectorTy() ? x : b_.CreateVectorSplat(static_cast<unsigned>(width), x);
}

Value* Emitter::iota(llvm::Type* element, int width) {
  std::vector<llvm::Constant*> lanes;
  for (int i = 0; i < width; ++i) lanes.push_back(llvm::ConstantInt::get(element, static_cast<std::uint64_t>(i)));
  return width == 1 ? static_cast<Value*>(lanes[0]) : llvm::ConstantVector::get(lanes);
}

Value* Emitter::min64(Value* x, Value* y) { return b_.CreateSelect(b_.CreateICmpSLT(x, y), x, y); }

Value* Emitter::clamp64(Value* x, Value* low, Value* high) {
  x = b_.CreateSelect(b_.CreateICmpSLT(x, low), low, x);
  return min64(x, high);
}

llvm::Type* Emitter::buffer_type(DType t) {
  return t == DType::boolean ? static_cast<llvm::Type*>(b_.getInt8Ty()) : register_type(b_, t);
}

llvm::Type* Emitter::tensor_type(DType t) {
  return t == DType::bf16 || t == DType::f16 ? static_cast<llvm::Type*>(b_.getInt16Ty()) : buffer_type(t);
}

std::int64_t Emitter::buffer_bytes(DType t) { return t == DType::boolean ? 1 : t == DType::i64 ? 8 : 4; }

Value* Emitter::element_ptr(llvm::Type* element, Value* base, Value* offset) {
  return b_.CreateInBoundsGEP(element, base, offset);
}

Value* Emitter::argument(std::int64_t slot) {
  auto& v = arguments_[slot];
  if (!v) {  // loaded once, in the entry block, so that it reaches everything
    llvm::IRBuilder<> at(&fn_->getEntryBlock(), fn_->getEntryBlock().begin());
    v = at.CreateLoad(at.getInt64Ty(),
                      at.CreateInBoundsGEP(at.getInt64Ty(), args_, at.getInt64(static_cast<std::uint64_t>(slot))));
  }
  return v;
}

Value* Emitter::pointer_argument(std::int64_t slot) { return b_.CreateIntToPtr(argument(slot), b_.getPtrTy()); }

Value* Emitter::allocate(std::int64_t bytes) {
  Value* at = b_.CreateInBoundsGEP(b_.getInt8Ty(), scratch_, c64(scratch_now_));
  scratch_now_ += (bytes + 63) / 64 * 64;
  scratch_most_ = std::max(scratch_most_, scratch_now_);
  return at;
}

Value* Emitter::axis_size(int axis) {
  const std::int64_t size = p_.axes[static_cast<std::size_t>(axis)].size;
  return size != ir::unknown ? c64(size) : argument(axis);
}

Value* Emitter::block_count(int axis, std::int64_t extent) {
  return b_.CreateSDiv(b_.CreateAdd(axis_size(axis), c64(extent - 1)), c64(extent));
}

Emitter::Rep Emitter::make_block(int axis, std::int64_t extent, Value* number) {
  Rep r;
  r.number = number;
  const std::int64_t size = p_.axes[static_cast<std::size_t>(axis)].size;
  if (size == ir::unknown || size % extent != 0)
    r.limit = clamp64(b_.CreateSub(axis_size(axis), b_.CreateMul(number, c64(extent))), c64(0), c64(extent));
  return r;
}

void Emitter::loop(Value* begin, Value* end, std::int64_t step, const std::function<void(Value*)>& body) {
  auto* first = llvm::dyn_cast<llvm::ConstantInt>(begin);
  auto* last = llvm::dyn_cast<llvm::ConstantInt>(end);
  if (first && last && first->getSExtValue() + step >= last->getSExtValue()) {  // at most one round
    if (first->getSExtValue() < last->getSExtValue()) body(begin);
    return;
  }
  counted_loop(b_, begin, end, c64(step), {}, [&](Value* i, const Carried&) {
    body(i);
    return Carried{};
  });
}

Value* Emitter::lane_mask(Value* start, Value* limit, int width) {
  Value* left = clamp64(b_.CreateSub(limit, start), c64(0), c64(width));
  return b_.CreateICmpULT(iota(b_.getInt32Ty(), width), splat(b_.CreateTrunc(left, b_.getInt32Ty()), width));
}

std::int64_t tensor_slot(const ir::Program& p, int tensor) {
  std::int64_t slot = static_cast<std::int64_t>(p.axes.size());
  for (int t = 0; t < tensor; ++t)
    slot += 1 + static_cast<std::int64_t>(p.tensors[static_cast<std::size_t>(t)].axes.size());
  return slot;
}

std::int64_t list_slot(const ir::Program& p, int list) {
  return tensor_slot(p, static_cast<int>(p.tensors.size())) + 8 * static_cast<std::int64_t>(list);
}

std::vector<std::int64_t> pack_args(const ir::Program& p, const ir::Bound& bound) {
  std::vector<std::int64_t> out(bound.axis_size.begin(), bound.axis_size.end());
  auto pointer = [](const void* q) { return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(q)); };
  for (std::size_t t = 0; t < p.tensors.size(); ++t) {
    const TensorRef& ref = bound.tensors[t];
    out.push_back(pointer(ref.data));
    for (std::size_t i = 0; i < p.tensors[t].axes.size(); ++i)
      out.push_back(p.tensors[t].list >= 0 ? 0 : ref.strides[i]);  // packed tiles are dense
  }
  for (const TileListRef& l : bound.lists)
    for (std::int64_t x : {l.count, pointer(l.row), pointer(l.column), pointer(l.row_begin), pointer(l.row_items),
                           pointer(l.column_begin), pointer(l.column_items), pointer(l.device_count)})
      out.push_back(x);
  return out;
}

}  // namespace kerf::codegen::cpu
