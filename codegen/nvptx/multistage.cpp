// The engine of sm_80: a product read ahead by cp.async. While the tensor cores work on one stage of shared memory the
// copies of the next ones are under way; every thread copies and multiplies. Source of the scheme: CUTLASS's multistage
// kernels; of the instructions: PTX ISA 7.0, cp.async, ldmatrix and mma.
//
// A stage holds 64 elements of k: [row][64 k] where k is contiguous in memory, else [row / 64][k][64 rows], lines of
// 128 bytes in both. Unit u of 16 bytes of line l lies at u ^ (l % 8), so that the eight lines of a fragment fall into
// different banks.
#include <fmt/format.h>

#include "codegen/nvptx/emit.h"

namespace kerf::codegen::nvptx {

using ir::Op;
using ir::OpKind;
using llvm::Value;

void Emitter::copy_step(const Factor& f, Value* at, Value* step) {
  const ir::TensorInfo& tensor = p_.tensors[static_cast<std::size_t>(f.load->tensor)];
  const bool packed = f.load->kind == OpKind::load_packed;
  const View view = packed ? packed_view(*f.load, f.load->operands[0]) : tensor_view(*f.load, 0);
  const bool slow_is_k = tensor.axes[0] == mma_->product.k;
  Value* k0 = b_.CreateShl(step, c64(6));  // of this step in the turn
  Value* slow0 = view.subscripts[0].start;
  Value* fast0 = view.subscripts[1].start;
  (slow_is_k ? slow0 : fast0) = b_.CreateAdd(slow_is_k ? slow0 : fast0, k0);
  // Lines of the matrix in memory, and units of 16 bytes along them; a thread keeps its unit and takes every
  // (threads / units)th line.
  const std::int64_t lines = f.k_contiguous ? f.extent : MmaPlan::step;
  const std::int64_t units = (f.k_contiguous ? MmaPlan::step : f.extent) / 8, threads = 32 << warp_bits_;
  const std::int64_t apart = std::min(threads / units, lines);
  Value *unit = b_.CreateURem(thread_, c32(units)), *line = b_.CreateUDiv(thread_, c32(units));
  Value* column = b_.CreateAdd(fast0, to64(b_.CreateShl(unit, 3)));
  auto clamp = [&](Value* x, std::int64_t most) {
    x = b_.CreateSelect(b_.CreateICmpSLT(x, c64(most)), x, c64(most));
    return b_.CreateSelect(b_.CreateICmpSGT(x, c64(0)), x, c64(0));
  };
  Value* bytes = c32(16);
  if (!view.subscripts[1].inside)
    bytes = b_.CreateShl(b_.CreateTrunc(clamp(b_.CreateSub(view.subscripts[1].size, column), 8), b_.getInt32Ty()), 1);
  Value* stride = b_.CreateMul(view.subscripts[0].stride, c64(2));
  Value* from =
      b_.CreateGEP(b_.getInt8Ty(), view.base,
                   b_.CreateAdd(b_.CreateMul(b_.CreateAdd(slow0, to64(line)), stride), b_.CreateMul(column, c64(2))));
  // Where the first line goes; lines a multiple of 8 further have the same place in their units.
  Value* piece = b_.CreateMul(b_.CreateLShr(unit, 3), c32(MmaPlan::step * 128));  // of 64 rows, if k is not contiguous
  Value* first_line = b_.CreateMul(line, c32(128));
  auto body = [&] {
    for (std::int64_t i = 0; i < lines; i += apart) {
      Value* l = b_.CreateAdd(line, c32(i));
      Value* in_line = b_.CreateShl(b_.CreateXor(b_.CreateAnd(unit, c32(7)), b_.CreateAnd(l, c32(7))), 4);
      Value* to = b_.CreateAdd(b_.CreateAdd(at, piece), b_.CreateAdd(first_line, c32(i * 128)));
      Value* size = bytes;
      if (!view.subscripts[0].inside)
        size = b_.CreateSelect(b_.CreateICmpSLT(b_.CreateAdd(slow0, to64(l)), view.subscripts[0].size), bytes, c32(0));
      Value* source = b_.CreateGEP(b_.getInt8Ty(), from, b_.CreateMul(stride, c64(i)));
      // A copy of nothing must name an address all the same.
      if (!view.subscripts[0].inside || !view.subscripts[1].inside)
        source = b_.CreateSelect(b_.CreateICmpSGT(size, c32(0)), source, view.base);
      asm_call(b_.getVoidTy(), "cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r,~{memory}",
               {b_.CreateAdd(to, in_line), source, size}, true);
    }
  };
  if (threads > units * lines)
    emit_branch(b_, b_.CreateICmpULT(thread_, c32(units * lines)), body);
  else
    body();
}

Emitter::Registers Emitter::multiply_stage(const Registers& acc, Value* rows_at, Value* columns_at) {
  const Product& product = mma_->product;
  const int rows = static_cast<int>(product.row.extent) >> mma_->row_warp_bits;
  const int columns = static_cast<int>(product.column.extent) >> mma_->column_warp_bits;
  Value* row_warp = b_.CreateAnd(warp_, c32((1 << mma_->row_warp_bits) - 1));
  Value* column_warp = b_.CreateLShr(warp_, mma_->row_warp_bits);
  Value *quarter = b_.CreateLShr(lane_, 3), *in_quarter = b_.CreateAnd(lane_, c32(7));
  Value *odd = b_.CreateAnd(quarter, c32(1)), *high = b_.CreateLShr(quarter, 1);
  auto* four = llvm::StructType::get(b_.getContext(), std::vector<llvm::Type*>(4, b_.getInt32Ty()));
  // ldmatrix reads four 8 x 8 pieces; lane l names line l % 8 of piece l / 8. `own` and `k` say which of the two groups
  // of 8 along each axis a piece has.
  auto fragment = [&](const Factor& f, Value* base, Value* first, std::int64_t row, std::int64_t k, Value* own8,
                      Value* k8) {
    Value *line = nullptr, *unit = nullptr, *offset = c32(0);
    if (f.k_contiguous) {
      line = b_.CreateAdd(b_.CreateAdd(first, c32(row)), b_.CreateAdd(b_.CreateShl(own8, 3), in_quarter));
      unit = b_.CreateAdd(k8, c32(k / 8));
    } else {
      line = b_.CreateAdd(b_.CreateAdd(b_.CreateShl(k8, 3), in_quarter), c32(k));
      Value* at = b_.CreateAdd(b_.CreateAdd(first, c32(row)), b_.CreateShl(own8, 3));
      unit = b_.CreateAnd(b_.CreateLShr(at, 3), c32(7));
      offset = b_.CreateMul(b_.CreateLShr(at, 6), c32(MmaPlan::step * 128));
    }
    Value* swizzled = b_.CreateShl(b_.CreateXor(unit, in_quarter), 4);
    Value* address = b_.CreateAdd(b_.CreateAdd(base, offset), b_.CreateAdd(b_.CreateShl(line, 7), swizzled));
    return asm_call(four,
                    fmt::format("ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{$0, $1, $2, $3}}, [$4];",
                                f.k_contiguous ? "" : ".trans"),
                    "=r,=r,=r,=r,r,~{memory}", {address}, true);
  };
  Value *first_row = b_.CreateMul(row_warp, c32(rows)), *first_column = b_.CreateMul(column_warp, c32(columns));
  Registers next = acc;
  for (std::int64_t k = 0; k < MmaPlan::step; k += 16) {
    std::vector<Value*> as, bs;
    for (int i = 0; i < rows / 16; ++i) as.push_back(fragment(product.row, rows_at, first_row, 16 * i, k, odd, high));
    for (int j = 0; j < columns / 16; ++j)
      bs.push_back(fragment(product.column, columns_at, first_column, 16 * j, k, high, odd));
    for (int i = 0; i < rows / 16; ++i)
      for (int j = 0; j < columns / 8; ++j) {
        std::vector<Value*> fragments;
        for (unsigned r = 0; r < 4; ++r) fragments.push_back(b_.CreateExtractValue(as[static_cast<std::size_t>(i)], r));
        for (unsigned r = 0; r < 2; ++r)
          fragments.push_back(
              b_.CreateExtractValue(bs[static_cast<std::size_t>(j / 2)], 2 * static_cast<unsigned>(j % 2) + r));
        add_product(fragments, next, static_cast<std::size_t>(4 * (j + columns / 8 * i)), product.dtype);
      }
  }
  return next;
}

void Emitter::emit_multistage(const Op& op) {
  const Product& product = mma_->product;
  const std::int64_t mark = shared_now_;
  const std::int64_t ahead = mma_->stages - 1, in_turn = product.turn / MmaPlan::step;
  Value* ring =
      b_.CreateAdd(b_.CreatePtrToInt(shared_, b_.getInt32Ty()), reserve_shared(mma_->stage_bytes() * mma_->stages));
  const Range range = turns(op);
  Value* steps = b_.CreateMul(b_.CreateSub(range.end, range.begin), c64(in_turn));
  auto stage_at = [&](Value* stage) { return b_.CreateAdd(ring, b_.CreateMul(stage, c32(mma_->stage_bytes()))); };
  // What a turn is about comes from lists in memory: asked for one step before it is needed.
  std::vector<ir::ValueId> told(op.regions[0].args.begin(), op.regions[0].args.begin() + op.loop_vars());
  auto look_up = [&](Value* step) -> Carried {
    Value* last = b_.CreateSub(steps, c64(1));
    Value* bounded = b_.CreateSelect(b_.CreateICmpSLT(step, last), step, last);
    Carried numbers;
    enter_turn(op, b_.CreateAdd(range.begin, b_.CreateSDiv(bounded, c64(in_turn))));
    for (ir::ValueId v : told) numbers.push_back(rep(v).number);
    return numbers;
  };
  auto copy = [&](Value* step, const Carried& numbers, Value* stage) {
    for (std::size_t i = 0; i < told.size(); ++i) rep(told[i]).number = numbers[i];
    emit_branch(b_, b_.CreateICmpSLT(step, steps), [&] {
      Value *at = stage_at(stage), *in = b_.CreateSRem(step, c64(in_turn));
      copy_step(product.row, at, in);
      copy_step(product.column, b_.CreateAdd(at, c32(mma_->row_bytes())), in);
    });
    asm_call(b_.getVoidTy(), "cp.async.commit_group;", "~{memory}", {}, true);
  };

  Registers init = get(op.operands[static_cast<std::size_t>(op.anchors())], layout(p_.type(op.results[0])));
  Value* any = b_.CreateICmpSGT(steps, c64(0));
  // Without a turn there is nothing to look up; the loop below makes none either.
  auto* before = b_.GetInsertBlock();
  auto* some = llvm::BasicBlock::Create(b_.getContext(), "some", fn_);
  auto* after = llvm::BasicBlock::Create(b_.getContext(), "made", fn_);
  b_.CreateCondBr(any, some, after);
  b_.SetInsertPoint(some);
  barrier();  // the last readers of this part of shared memory are done
  Carried state = init, numbers = look_up(c64(0));
  for (std::int64_t i = 0; i < ahead; ++i) {
    copy(c64(i), numbers, c32(i));
    numbers = look_up(c64(i + 1));
  }
  const std::size_t count = init.size();
  state.insert(state.end(), {c32(0), c32(ahead)});  // the stage to multiply, the stage to fill
  state.insert(state.end(), numbers.begin(), numbers.end());
  const Carried done = counted_loop(
      b_, c64(0), steps, c64(1), state,
      [&](Value* i, const Carried& now) {
        asm_call(b_.getVoidTy(), fmt::format("cp.async.wait_group {};", ahead - 1), "~{memory}", {}, true);
        barrier();  // of all threads; and the stage before has been read by all
        Carried next(now.begin(), now.begin() + static_cast<std::ptrdiff_t>(count));
        Value *stage = now[count], *filled = now[count + 1];
        copy(b_.CreateAdd(i, c64(ahead)), Carried(now.begin() + static_cast<std::ptrdiff_t>(count + 2), now.end()),
             filled);
        const Carried looked_up = look_up(b_.CreateAdd(i, c64(ahead + 1)));
        Value* at = stage_at(stage);
        next = multiply_stage(next, at, b_.CreateAdd(at, c32(mma_->row_bytes())));
        auto following = [&](Value* s) {
          Value* n = b_.CreateAdd(s, c32(1));
          return b_.CreateSelect(b_.CreateICmpEQ(n, c32(mma_->stages)), c32(0), n);
        };
        next.insert(next.end(), {following(stage), following(filled)});
        next.insert(next.end(), looked_up.begin(), looked_up.end());
        return next;
      },
      false);
  asm_call(b_.getVoidTy(), "cp.async.wait_all;", "~{memory}", {}, true);
  barrier();  // all have read the last stage; what follows may use its memory
  auto* end = b_.GetInsertBlock();
  b_.CreateBr(after);
  b_.SetInsertPoint(after);
  Registers out;
  for (std::size_t i = 0; i < count; ++i) {
    auto* phi = b_.CreatePHI(b_.getFloatTy(), 2);
    phi->addIncoming(init[i], before);
    phi->addIncoming(done[i], end);
    out.push_back(phi);
  }
  rep(op.results[0]).registers = out;
  shared_now_ = mark;
}

}  // namespace kerf::codegen::nvptx
