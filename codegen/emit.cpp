#include "codegen/emit.h"

#include <limits>
#include <string>

#include "kerf/error.h"

namespace kerf::codegen {

using ir::OpKind;
using llvm::Value;

namespace {

int width_of(Value* v) {
  auto* t = llvm::dyn_cast<llvm::FixedVectorType>(v->getType());
  return t ? static_cast<int>(t->getNumElements()) : 1;
}

llvm::Type* with_width(llvm::Type* element, int width) {
  return width == 1 ? element : llvm::FixedVectorType::get(element, static_cast<unsigned>(width));
}

Value* integer_division(llvm::IRBuilder<>& b, Value* x, Value* y) {
  // By zero gives 0, by -1 negates: neither reaches the division, which would trap.
  Value* zero = llvm::Constant::getNullValue(y->getType());
  Value* is_zero = b.CreateICmpEQ(y, zero);
  Value* is_minus = b.CreateICmpEQ(y, llvm::Constant::getAllOnesValue(y->getType()));
  Value* safe = b.CreateSelect(b.CreateOr(is_zero, is_minus), llvm::ConstantInt::get(y->getType(), 1), y);
  Value* q = b.CreateSDiv(x, safe);
  return b.CreateSelect(is_zero, zero, b.CreateSelect(is_minus, b.CreateNeg(x), q));
}

}  // namespace

llvm::Type* register_type(llvm::IRBuilder<>& b, DType t, int width) {
  llvm::Type* e = t == DType::i32       ? static_cast<llvm::Type*>(b.getInt32Ty())
                  : t == DType::i64     ? b.getInt64Ty()
                  : t == DType::boolean ? b.getInt1Ty()
                                        : b.getFloatTy();
  return with_width(e, width);
}

Value* register_constant(llvm::IRBuilder<>& b, DType t, double x) {
  if (is_float(t)) return llvm::ConstantFP::get(b.getFloatTy(), x);
  if (t == DType::boolean) return b.getInt1(x != 0);
  return llvm::ConstantInt::get(register_type(b, t), static_cast<std::uint64_t>(static_cast<std::int64_t>(x)), true);
}

Value* register_constant(llvm::IRBuilder<>& b, const ir::Op& constant, DType t) {
  return is_integer(t) ? llvm::ConstantInt::get(register_type(b, t), static_cast<std::uint64_t>(constant.integer), true)
                       : register_constant(b, t, constant.number);
}

Value* emit_cast(llvm::IRBuilder<>& b, Value* x, DType from, DType to, const Math& math) {
  if (from == to) return x;
  llvm::Type* type = register_type(b, to, width_of(x));
  if (is_float(to)) {
    if (from == DType::boolean)
      x = b.CreateUIToFP(x, type);
    else if (!is_float(from))
      x = b.CreateSIToFP(x, type);
    return to == DType::f32 ? x : math.widen(b, math.narrow(b, x, to), to);
  }
  if (to == DType::boolean) {
    Value* zero = llvm::Constant::getNullValue(x->getType());
    return is_float(from) ? b.CreateFCmpUNE(x, zero) : b.CreateICmpNE(x, zero);
  }
  if (is_float(from)) return b.CreateIntrinsic(llvm::Intrinsic::fptosi_sat, {type, x->getType()}, {x});
  if (from == DType::boolean) return b.CreateZExt(x, type);
  return b.CreateSExtOrTrunc(x, type);
}

Value* emit_elementwise(llvm::IRBuilder<>& b, const ir::Op& op, const std::vector<Value*>& x, DType in, DType out,
                        const Math& math) {
  const bool real = is_float(in);
  switch (op.kind) {
    case OpKind::neg: return real ? b.CreateFNeg(x[0]) : b.CreateNeg(x[0]);
    case OpKind::add: return real ? b.CreateFAdd(x[0], x[1]) : b.CreateAdd(x[0], x[1]);
    case OpKind::sub: return real ? b.CreateFSub(x[0], x[1]) : b.CreateSub(x[0], x[1]);
    case OpKind::mul: return real ? b.CreateFMul(x[0], x[1]) : b.CreateMul(x[0], x[1]);
    case OpKind::div: return real ? b.CreateFDiv(x[0], x[1]) : integer_division(b, x[0], x[1]);
    case OpKind::max: return real ? math.max(b, x[0], x[1]) : b.CreateSelect(b.CreateICmpSGT(x[0], x[1]), x[0], x[1]);
    case OpKind::min: return real ? math.min(b, x[0], x[1]) : b.CreateSelect(b.CreateICmpSLT(x[0], x[1]), x[0], x[1]);
    case OpKind::exp: return math.exp(b, x[0]);
    case OpKind::log: return math.log(b, x[0]);
    case OpKind::tanh: return math.tanh(b, x[0]);
    case OpKind::sqrt: return b.CreateUnaryIntrinsic(llvm::Intrinsic::sqrt, x[0]);
    case OpKind::eq: return real ? b.CreateFCmpOEQ(x[0], x[1]) : b.CreateICmpEQ(x[0], x[1]);
    case OpKind::ne: return real ? b.CreateFCmpUNE(x[0], x[1]) : b.CreateICmpNE(x[0], x[1]);
    case OpKind::lt: return real ? b.CreateFCmpOLT(x[0], x[1]) : b.CreateICmpSLT(x[0], x[1]);
    case OpKind::le: return real ? b.CreateFCmpOLE(x[0], x[1]) : b.CreateICmpSLE(x[0], x[1]);
    case OpKind::gt: return real ? b.CreateFCmpOGT(x[0], x[1]) : b.CreateICmpSGT(x[0], x[1]);
    case OpKind::ge: return real ? b.CreateFCmpOGE(x[0], x[1]) : b.CreateICmpSGE(x[0], x[1]);
    case OpKind::logical_and: return b.CreateAnd(x[0], x[1]);
    case OpKind::logical_or: return b.CreateOr(x[0], x[1]);
    case OpKind::logical_not: return b.CreateNot(x[0]);
    case OpKind::where: return b.CreateSelect(x[0], x[1], x[2]);
    case OpKind::cast: return emit_cast(b, x[0], in, out, math);
    default: break;
  }
  throw InternalError("'" + std::string(ir::info(op.kind).text) + "' is not an elementwise operation");
}

Value* emit_combine(llvm::IRBuilder<>& b, OpKind reduction, Value* x, Value* y, const Math& math) {
  const bool real = x->getType()->isFPOrFPVectorTy();
  switch (reduction) {
    case OpKind::reduce_sum: return real ? b.CreateFAdd(x, y) : b.CreateAdd(x, y);
    case OpKind::reduce_max: return real ? math.max(b, x, y) : b.CreateSelect(b.CreateICmpSGT(x, y), x, y);
    case OpKind::reduce_any: return b.CreateOr(x, y);
    default: throw InternalError("'" + std::string(ir::info(reduction).text) + "' does not combine two values");
  }
}

Value* reduction_identity(llvm::IRBuilder<>& b, OpKind reduction, DType t) {
  if (reduction == OpKind::reduce_sum || t == DType::boolean) return register_constant(b, t, 0);
  if (is_float(t)) return register_constant(b, t, -std::numeric_limits<double>::infinity());
  llvm::Type* type = register_type(b, t);
  return llvm::ConstantInt::get(type, llvm::APInt::getSignedMinValue(type->getIntegerBitWidth()));
}

Value* emit_better(llvm::IRBuilder<>& b, DType t, Value* y, Value* x, Value* y_at, Value* x_at) {
  Value *more, *same;
  if (is_float(t)) {
    Value *nan_y = b.CreateFCmpUNO(y, y), *nan_x = b.CreateFCmpUNO(x, x);
    more = b.CreateOr(b.CreateFCmpOGT(y, x), b.CreateAnd(nan_y, b.CreateNot(nan_x)));
    same = b.CreateOr(b.CreateFCmpOEQ(y, x), b.CreateAnd(nan_y, nan_x));
  } else {
    more = b.CreateICmpSGT(y, x);
    same = b.CreateICmpEQ(y, x);
  }
  return y_at ? b.CreateOr(more, b.CreateAnd(same, b.CreateICmpSLT(y_at, x_at))) : more;
}

Carried counted_loop(llvm::IRBuilder<>& b, Value* begin, Value* end, Value* step, const Carried& init,
                     const std::function<Carried(Value*, const Carried&)>& body, bool unroll) {
  llvm::BasicBlock* before = b.GetInsertBlock();
  llvm::Function* fn = before->getParent();
  auto* head = llvm::BasicBlock::Create(b.getContext(), "head", fn);
  auto* inside = llvm::BasicBlock::Create(b.getContext(), "body", fn);
  auto* after = llvm::BasicBlock::Create(b.getContext(), "after", fn);
  b.CreateBr(head);
  b.SetInsertPoint(head);
  llvm::PHINode* i = b.CreatePHI(begin->getType(), 2);
  i->addIncoming(begin, before);
  std::vector<llvm::PHINode*> phis;
  Carried carried;
  for (Value* x : init) {
    phis.push_back(b.CreatePHI(x->getType(), 2));
    phis.back()->addIncoming(x, before);
    carried.push_back(phis.back());
  }
  b.CreateCondBr(b.CreateICmpSLT(i, end), inside, after);
  b.SetInsertPoint(inside);
  const Carried next = body(i, carried);
  i->addIncoming(b.CreateAdd(i, step, "", true, true), b.GetInsertBlock());
  for (std::size_t k = 0; k < phis.size(); ++k) phis[k]->addIncoming(next[k], b.GetInsertBlock());
  auto* back = b.CreateBr(head);
  if (!unroll) {
    llvm::LLVMContext& c = b.getContext();
    auto* id = llvm::MDNode::getDistinct(
        c, {nullptr, llvm::MDNode::get(c, llvm::MDString::get(c, "llvm.loop.unroll.disable"))});
    id->replaceOperandWith(0, id);
    back->setMetadata("llvm.loop", id);
  }
  b.SetInsertPoint(after);
  return carried;
}

void emit_branch(llvm::IRBuilder<>& b, Value* condition, const std::function<void()>& body) {
  llvm::Function* fn = b.GetInsertBlock()->getParent();
  auto* inside = llvm::BasicBlock::Create(b.getContext(), "then", fn);
  auto* after = llvm::BasicBlock::Create(b.getContext(), "done", fn);
  b.CreateCondBr(condition, inside, after);
  b.SetInsertPoint(inside);
  body();
  b.CreateBr(after);
  b.SetInsertPoint(after);
}

}  // namespace kerf::codegen
