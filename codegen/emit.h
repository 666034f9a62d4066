// What both targets emit alike: elementwise operations on registers, counted loops, branches. Only codegen/ includes
// this.
#pragma once

#include <functional>
#include <vector>

#include "codegen/llvm.h"
#include "lib/ir/ir.h"

namespace kerf::codegen {

/// The mathematics of a target. Values are float or <W x float>; bits are i16 or <W x i16>.
class Math {
 public:
  virtual ~Math() = default;
  virtual llvm::Value* exp(llvm::IRBuilder<>& b, llvm::Value* x) const = 0;
  virtual llvm::Value* log(llvm::IRBuilder<>& b, llvm::Value* x) const = 0;
  virtual llvm::Value* tanh(llvm::IRBuilder<>& b, llvm::Value* x) const = 0;
  virtual llvm::Value* max(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y) const = 0;  // NaN if either is
  virtual llvm::Value* min(llvm::IRBuilder<>& b, llvm::Value* x, llvm::Value* y) const = 0;
  virtual llvm::Value* widen(llvm::IRBuilder<>& b, llvm::Value* bits, DType from) const = 0;
  virtual llvm::Value* narrow(llvm::IRBuilder<>& b, llvm::Value* x, DType to) const = 0;
};

/// The type of a tile's element in a register: bf16 and f16 are computed as f32 that holds their values, bool is i1.
llvm::Type* register_type(llvm::IRBuilder<>& b, DType t, int width = 1);
/// A number in that type.
llvm::Value* register_constant(llvm::IRBuilder<>& b, DType t, double x);
llvm::Value* register_constant(llvm::IRBuilder<>& b, const ir::Op& constant, DType t);

llvm::Value* emit_cast(llvm::IRBuilder<>& b, llvm::Value* x, DType from, DType to, const Math& math);
/// Arithmetic, comparison, logic, where and cast on operands of one width; `in` is the dtype of the last operand.
llvm::Value* emit_elementwise(llvm::IRBuilder<>& b, const ir::Op& op, const std::vector<llvm::Value*>& x, DType in,
                              DType out, const Math& math);
/// sum, max or any of two values of one width.
llvm::Value* emit_combine(llvm::IRBuilder<>& b, ir::OpKind reduction, llvm::Value* x, llvm::Value* y, const Math& math);
/// What a reduction starts from.
llvm::Value* reduction_identity(llvm::IRBuilder<>& b, ir::OpKind reduction, DType t);
/// Whether y is a better maximum than x: a NaN is largest. With positions also when they are equal and y's comes first.
llvm::Value* emit_better(llvm::IRBuilder<>& b, DType t, llvm::Value* y, llvm::Value* x, llvm::Value* y_at,
                         llvm::Value* x_at);

using Carried = std::vector<llvm::Value*>;
/// for (i = begin; i < end; i += step), carrying values; the insertion point ends up behind it. `unroll` false: a copy
/// of the body for each turn is not wanted.
Carried counted_loop(llvm::IRBuilder<>& b, llvm::Value* begin, llvm::Value* end, llvm::Value* step, const Carried& init,
                     const std::function<Carried(llvm::Value*, const Carried&)>& body, bool unroll = true);
void emit_branch(llvm::IRBuilder<>& b, llvm::Value* condition, const std::function<void()>& body);

}  // namespace kerf::codegen
