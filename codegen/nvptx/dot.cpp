// dot on a GPU. Both operands go to shared memory as [row][k], zeros outside the tensor; each warp then makes its part
// of the tile from fragments: mma.sync m16n8k16 for bf16 and f16, fused multiply-adds for f32. The accumulator layout
// is one for both. Rows lie 16 bytes further apart than they are long, so that the eight rows of a fragment fall into
// different banks.
#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/jit.h"
#include "codegen/nvptx/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::nvptx {

using ir::Op;
using ir::ValueId;
using llvm::Value;

Emitter::SharedTile Emitter::share(ValueId v, int k, int row, std::int64_t rows) {
  const ir::Type& t = p_.type(v);
  const std::int64_t size = size_of(t.dtype), step = t.dtype == DType::f32 ? 4 : 16;
  SharedTile s;
  s.k = (t.extent(k) + step - 1) / step * step;
  s.rows = rows;
  s.pitch = s.k * size + 16;
  s.base = reserve_shared(s.rows * s.pitch);
  llvm::Type* element = memory_type(t.dtype);
  auto at = [&](Value* r, Value* kk) {
    return shared_ptr(b_.CreateAdd(s.base, b_.CreateAdd(b_.CreateMul(r, c32(s.pitch)), b_.CreateMul(kk, c32(size)))));
  };
  const std::int64_t extent = row < static_cast<int>(p_.axes.size()) ? t.extent(row) : 1;
  if (!rep(v).registers.empty() || !rep(v).view.base) {
    // From registers: elements of the tile, and zeros where the padded tile has none.
    const Layout& l = layout(t);
    const Registers x = get(v, l);
    if (extent < s.rows || t.extent(k) < s.k)
      counted_loop(b_, to64(thread_), c64(s.rows * s.k), c64(32 << warp_bits_), {}, [&](Value* i, const Carried&) {
        Value* n = b_.CreateTrunc(i, b_.getInt32Ty());
        b_.CreateStore(llvm::Constant::getNullValue(element),
                       at(b_.CreateUDiv(n, c32(s.k)), b_.CreateURem(n, c32(s.k))));
        return Carried{};
      });
    if (extent < s.rows || t.extent(k) < s.k) barrier();
    for (int r = 0; r < l.register_count(); ++r) {
      Value* in = both(in_tile(l, t.axes, r), coordinates(l).first_copy);
      auto store = [&] {
        Value* i = t.has(row) ? index(l, row, r) : c32(0);
        b_.CreateStore(to_memory(x[static_cast<std::size_t>(r)], t.dtype), at(i, index(l, k, r)));
      };
      if (in)
        emit_branch(b_, in, store);
      else
        store();
    }
    return s;
  }
  // From the tensor: neighbouring threads take neighbours along its contiguous axis.
  const View& view = rep(v).view;
  const Subscript& last = view.subscripts.back();
  const bool k_fast = last.indices < 0 && last.axis == k;
  const std::int64_t fast = k_fast ? s.k : s.rows;
  counted_loop(b_, to64(thread_), c64(s.rows * s.k), c64(32 << warp_bits_), {}, [&](Value* number, const Carried&) {
    Value* n = b_.CreateTrunc(number, b_.getInt32Ty());
    Value *quick = b_.CreateURem(n, c32(fast)), *slow = b_.CreateUDiv(n, c32(fast));
    Value *kk = k_fast ? quick : slow, *r = k_fast ? slow : quick;
    Value *offset = c64(0), *exists = nullptr;
    if (t.extent(k) < s.k) exists = both(exists, b_.CreateICmpULT(kk, c32(t.extent(k))));
    if (extent < s.rows) exists = both(exists, b_.CreateICmpULT(r, c32(extent)));
    for (const Subscript& sub : view.subscripts) {
      Value* i = nullptr;
      if (sub.indices >= 0) {
        // Gather: the index was put into shared memory by emit_dot.
        Value* own = p_.type(sub.indices).has(k) ? kk : r;
        Value* bounded = b_.CreateSelect(b_.CreateICmpULT(own, c32(p_.type(sub.indices).elements())), own, c32(0));
        i = b_.CreateLoad(b_.getInt64Ty(),
                          shared_ptr(b_.CreateAdd(gathers_.at(sub.indices), b_.CreateMul(bounded, c32(8)))));
        exists = both(exists, b_.CreateICmpULT(i, sub.size));
      } else {
        i = b_.CreateAdd(sub.start, to64(sub.axis == k ? kk : sub.axis == row ? r : c32(0)));
        if (!sub.inside) exists = both(exists, b_.CreateICmpULT(i, sub.size));
      }
      offset = b_.CreateAdd(offset, b_.CreateMul(i, sub.stride));
    }
    Value* ptr = b_.CreateGEP(b_.getInt8Ty(), view.base, b_.CreateMul(offset, c64(size)));
    const std::string c = t.dtype == DType::f32 ? "f" : "h",
                      load = "ld.global." + memory_suffix(t.dtype) + " $0, [$1];";
    Value* raw = nullptr;
    if (exists)
      raw = asm_call(element,
                     fmt::format("{{ .reg .pred p; setp.ne.b32 p, $2, 0; {} $0, 0; @p {} }}",
                                 c == "f" ? "mov.b32" : "mov.b16", load),
                     "=&" + c + ",l,r", {ptr, b_.CreateZExt(exists, b_.getInt32Ty())}, false);
    else
      raw = asm_call(element, load, "=" + c + ",l", {ptr}, false);
    b_.CreateStore(raw, at(r, kk));
    return Carried{};
  });
  return s;
}

void Emitter::multiply(const SharedTile& x, const SharedTile& y, DType t, const Layout& l, int row, int column,
                       Registers& acc) {
  // Registers: column bit 0, row bit 3, then the columns of 8 and the rows of 16 that a warp repeats (mma_accumulator).
  int columns = 1, rows = 1;
  for (std::size_t i = 2; i < l.registers.size(); ++i) (l.registers[i].axis == column ? columns : rows) *= 2;
  Value *quad = b_.CreateAnd(lane_, c32(3)), *group = b_.CreateLShr(lane_, c32(2));
  const Coordinates& own = coordinates(l);
  auto without_lane = [&](int axis, std::int64_t lane_mask) {  // where the warp's part of an axis begins
    return b_.CreateAnd(own.base.at(axis), c32(~lane_mask));
  };
  Value *row0 = without_lane(row, 7), *column0 = without_lane(column, 7);
  const std::int64_t size = size_of(t);
  auto word = [&](const SharedTile& s, Value* r, Value* k) {
    return shared_ptr(b_.CreateAdd(s.base, b_.CreateAdd(b_.CreateMul(r, c32(s.pitch)), b_.CreateMul(k, c32(size)))));
  };
  llvm::Type *i32 = b_.getInt32Ty(), *f32 = b_.getFloatTy();
  const std::int64_t step = t == DType::f32 ? 4 : 16;
  acc = counted_loop(b_, c64(0), c64(x.k), c64(step), acc, [&](Value* k64, const Carried& now) {
    Value* k = b_.CreateTrunc(k64, i32);
    Carried next = now;
    if (t == DType::f32) {
      auto* v4 = llvm::FixedVectorType::get(f32, 4);
      auto four = [&](const SharedTile& s, Value* r) {
        return b_.CreateAlignedLoad(v4, word(s, r, k), llvm::Align(16));
      };
      std::vector<Value*> xs, ys;
      for (int i = 0; i < 2 * rows; ++i)
        xs.push_back(four(x, b_.CreateAdd(b_.CreateAdd(row0, group), c32(16 * (i / 2) + 8 * (i % 2)))));
      for (int j = 0; j < 2 * columns; ++j)
        ys.push_back(
            four(y, b_.CreateAdd(b_.CreateAdd(column0, b_.CreateShl(quad, c32(1))), c32(8 * (j / 2) + j % 2))));
      for (int u = 0; u < 4; ++u)
        for (int i = 0; i < 2 * rows; ++i)
          for (int j = 0; j < 2 * columns; ++j) {
            Value*& a = next[static_cast<std::size_t>((j % 2) + 2 * (i % 2) + 4 * ((j / 2) + columns * (i / 2)))];
            a = b_.CreateIntrinsic(
                llvm::Intrinsic::fma, {f32},
                {b_.CreateExtractElement(xs[static_cast<std::size_t>(i)], static_cast<std::uint64_t>(u)),
                 b_.CreateExtractElement(ys[static_cast<std::size_t>(j)], static_cast<std::uint64_t>(u)), a});
          }
      return next;
    }
    Value* pair = b_.CreateAdd(k, b_.CreateShl(quad, c32(1)));
    std::vector<std::vector<Value*>> as, bs;
    for (int i = 0; i < rows; ++i) {
      Value *r = b_.CreateAdd(b_.CreateAdd(row0, group), c32(16 * i)), *r8 = b_.CreateAdd(r, c32(8)),
            *p8 = b_.CreateAdd(pair, c32(8));
      as.push_back({b_.CreateLoad(i32, word(x, r, pair)), b_.CreateLoad(i32, word(x, r8, pair)),
                    b_.CreateLoad(i32, word(x, r, p8)), b_.CreateLoad(i32, word(x, r8, p8))});
    }
    for (int j = 0; j < columns; ++j) {
      Value* r = b_.CreateAdd(b_.CreateAdd(column0, group), c32(8 * j));
      bs.push_back({b_.CreateLoad(i32, word(y, r, pair)), b_.CreateLoad(i32, word(y, r, b_.CreateAdd(pair, c32(8))))});
    }
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        std::vector<Value*> fragments = as[static_cast<std::size_t>(i)];
        const auto& right = bs[static_cast<std::size_t>(j)];
        fragments.insert(fragments.end(), right.begin(), right.end());
        add_product(fragments, next, static_cast<std::size_t>(4 * (j + columns * i)), t);
      }
    return next;
  });
}

void Emitter::add_product(const std::vector<Value*>& fragments, Registers& acc, std::size_t at, DType t) {
  std::vector<Value*> args = fragments;
  const auto first = acc.begin() + static_cast<std::ptrdiff_t>(at);
  args.insert(args.end(), first, first + 4);
  auto* four = llvm::StructType::get(b_.getContext(), std::vector<llvm::Type*>(4, b_.getFloatTy()));
  Value* d = asm_call(four,
                      fmt::format("mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 {{$0, $1, $2, $3}}, "
                                  "{{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};",
                                  name_of(t)),
                      "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3", args, true);
  for (unsigned e = 0; e < 4; ++e) acc[at + e] = b_.CreateExtractValue(d, e);
}

void Emitter::emit_dot(const Op& op) {
  const ValueId v = op.results[0];
  const ir::Type &a = p_.type(op.operands[0]), &b = p_.type(op.operands[1]);
  if (a.axes.size() > 2 || b.axes.size() > 2)
    throw DeviceError(p_.name + ": dot takes operands of at most two axes on a GPU; " + ir::to_text(p_, a) + " or " +
                      ir::to_text(p_, b) + " has more");
  int k = -1, row = layouts_.no_row(), column = layouts_.no_column();
  for (const auto& x : a.axes) (b.has(x.axis) ? k : row) = x.axis;
  for (const auto& x : b.axes)
    if (!a.has(x.axis)) column = x.axis;
  const ir::Type& t = p_.type(v);
  // The layout made for a dot of these axes; another dot of the same tile may contract its operands the other way
  // round.
  Layout l = layouts_.of(t.axes);
  if (!l.has(row) || !l.has(column) || l.registers.empty() || l.registers[0].axis != column)
    l = layouts_.dot(row, column, t);
  const std::int64_t rows = std::int64_t{1} << l.axis_bits(row), columns = std::int64_t{1} << l.axis_bits(column);
  const std::int64_t mark = shared_now_;

  Registers acc(static_cast<std::size_t>(l.register_count()), register_constant(b_, DType::f32, 0));
  // Long sums are made of short ones: the block's own sum first, what it adds to at the end.
  barrier();  // the last readers of this part of shared memory are done
  for (ValueId o : {op.operands[0], op.operands[1]}) {
    if (!rep(o).registers.empty() || !rep(o).view.base) continue;
    for (const Subscript& s : rep(o).view.subscripts) {
      if (s.indices < 0 || gathers_.contains(s.indices)) continue;
      const ir::Type& type = p_.type(s.indices);
      const Layout& il = layout(type);
      const Registers index_registers = get(s.indices, il);
      Value* base = reserve_shared(std::int64_t{8} << il.axis_bits(type.axes.at(0).axis));
      gathers_[s.indices] = base;
      for (int r = 0; r < il.register_count(); ++r) {
        Value* wide = b_.CreateSExt(index_registers[static_cast<std::size_t>(r)], b_.getInt64Ty());
        b_.CreateStore(wide, shared_ptr(b_.CreateAdd(base, b_.CreateMul(index(il, type.axes[0].axis, r), c32(8)))));
      }
    }
  }
  if (!gathers_.empty()) barrier();
  const SharedTile x = share(op.operands[0], k, row, rows), y = share(op.operands[1], k, column, columns);
  barrier();
  multiply(x, y, a.dtype, l, row, column, acc);
  shared_now_ = mark;
  gathers_.clear();
  const Layout& want = layouts_.of(t.axes);
  if (!(l == want)) acc = convert(acc, l, want, t.axes, DType::f32);
  if (op.operands.size() == 3) {
    const Registers more = get(op.operands[2], want);
    for (std::size_t i = 0; i < acc.size(); ++i) acc[i] = b_.CreateFAdd(more[i], acc[i]);
  }
  rep(v).registers = acc;
}

}  // namespace kerf::codegen::nvptx
