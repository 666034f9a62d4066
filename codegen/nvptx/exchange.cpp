// Data that moves between threads: from one layout to another, and in reductions. Within a thread it is a renaming of
// registers, within a warp a shuffle, between warps it goes through shared memory, each element written by the first
// thread that holds it. Orders are fixed, so results are the same bits every time.
#include <algorithm>

#include "codegen/nvptx/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::nvptx {

using ir::Op;
using ir::OpKind;
using ir::ValueId;
using llvm::Value;

Value* Emitter::shared_ptr(Value* byte_offset) { return b_.CreateGEP(b_.getInt8Ty(), shared_, byte_offset); }

Value* Emitter::reserve_shared(std::int64_t bytes) {
  Value* at = c32(shared_now_);
  shared_now_ += (bytes + 127) / 128 * 128;
  shared_most_ = std::max(shared_most_, shared_now_);
  return at;
}

namespace {

/// Number of an element in a dense array over the padded axes.
struct Dense {
  std::vector<std::pair<int, int>> axes;  // axis, bits
  std::int64_t elements = 1;
};
Dense dense(const Layout& a, const Layout& b, const std::vector<ir::AxisExtent>& axes) {
  Dense d;
  for (const auto& x : axes) {
    const int bits = std::max({a.axis_bits(x.axis), b.axis_bits(x.axis), bits_of(x.extent)});
    d.axes.emplace_back(x.axis, bits);
    d.elements <<= bits;
  }
  return d;
}

}  // namespace

Emitter::Registers Emitter::convert(const Registers& from, const Layout& a, const Layout& to,
                                    const std::vector<ir::AxisExtent>& axes, DType t) {
  if (how(a, to) == Move::registers && a.axis_bits(-1) == to.axis_bits(-1)) {
    Registers out;
    for (int r = 0; r < to.register_count(); ++r) {
      const int source = matching_register(a, to, r);
      out.push_back(from[static_cast<std::size_t>(source)]);
    }
    return out;
  }
  const Dense d = dense(a, to, axes);
  const std::int64_t bytes = t == DType::i64 ? 8 : 4, mark = shared_now_;
  Value* base = reserve_shared(d.elements * bytes);
  llvm::Type* type = t == DType::boolean ? static_cast<llvm::Type*>(b_.getInt32Ty()) : register_type(b_, t);
  auto at = [&](const Layout& l, int r) {
    Value* n = c32(0);
    for (const auto& [axis, bits] : d.axes) n = b_.CreateAdd(b_.CreateShl(n, c32(bits)), index(l, axis, r));
    return shared_ptr(b_.CreateAdd(base, b_.CreateMul(n, c32(bytes))));
  };
  barrier();
  for (int r = 0; r < a.register_count(); ++r) {
    auto write = [&] {
      Value* x = from[static_cast<std::size_t>(r)];
      b_.CreateStore(t == DType::boolean ? b_.CreateZExt(x, type) : x, at(a, r));
    };
    // Of a dot that lacks an axis only the first row or column is the tile.
    if (Value* condition = both(coordinates(a).first_copy, in_tile(a, {}, r)))
      emit_branch(b_, condition, write);
    else
      write();
  }
  barrier();
  Registers out;
  for (int r = 0; r < to.register_count(); ++r) {
    Value* x = b_.CreateLoad(type, at(to, r));
    out.push_back(t == DType::boolean ? b_.CreateICmpNE(x, c32(0)) : x);
  }
  shared_now_ = mark;
  return out;
}

void Emitter::emit_reduce(const Op& op) {
  const ValueId source = op.operands[0], result = op.results[0];
  const ir::Type &from = p_.type(source), &to = p_.type(result);
  const Layout& l = layout(from);
  const Registers x = get(source, l);
  const bool arg = op.kind == OpKind::reduce_argmax;
  Value* identity = reduction_identity(b_, op.kind, from.dtype);

  // Each running result: a value and, for argmax, its position.
  struct Best {
    Value *x = nullptr, *at = nullptr;
  };
  auto join = [&](const Best& a, const Best& b) -> Best {
    if (!a.x) return b;
    if (!arg) return {emit_combine(b_, op.kind, a.x, b.x, math_), nullptr};
    Value* take = emit_better(b_, from.dtype, b.x, a.x, b.at, a.at);
    return {b_.CreateSelect(take, b.x, a.x), b_.CreateSelect(take, b.at, a.at)};
  };

  // Inside a thread: registers that differ only along the axis, four chains, joined in order.
  const Layout rest = l.without(op.axis);
  std::vector<std::vector<Best>> chains(static_cast<std::size_t>(rest.register_count()), std::vector<Best>(4));
  std::vector<int> seen(chains.size());
  for (int r = 0; r < l.register_count(); ++r) {
    const int group = matching_register(rest, l, r);
    Best b{x[static_cast<std::size_t>(r)], arg ? index(l, op.axis, r) : nullptr};
    // Past the end of a padded axis nothing may count.
    if ((std::int64_t{1} << l.axis_bits(op.axis)) > from.extent(op.axis))
      b.x = b_.CreateSelect(b_.CreateICmpULT(index(l, op.axis, r), c32(from.extent(op.axis))), b.x, identity);
    auto& chain =
        chains[static_cast<std::size_t>(group)][static_cast<std::size_t>(seen[static_cast<std::size_t>(group)]++ % 4)];
    chain = join(chain, b);
  }
  std::vector<Best> best;
  for (const auto& c : chains) {
    Best b;
    for (const Best& one : c)
      if (one.x) b = join(b, one);
    best.push_back(b);
  }

  // Inside a warp: a butterfly over the lane bits of the axis. Every lane ends with the same bits.
  auto shuffle32 = [&](Value* v, int distance) {
    return b_.CreateIntrinsic(llvm::Intrinsic::nvvm_shfl_sync_bfly_i32, {}, {c32(-1), v, c32(distance), c32(31)});
  };
  auto shuffle = [&](Value* v, int distance) -> Value* {
    llvm::Type* type = v->getType();
    if (type->isFloatTy()) return b_.CreateBitCast(shuffle32(b_.CreateBitCast(v, b_.getInt32Ty()), distance), type);
    if (type->isIntegerTy(1)) return b_.CreateICmpNE(shuffle32(b_.CreateZExt(v, b_.getInt32Ty()), distance), c32(0));
    if (type->isIntegerTy(32)) return shuffle32(v, distance);
    Value* low = shuffle32(b_.CreateTrunc(v, b_.getInt32Ty()), distance);
    Value* high = shuffle32(b_.CreateTrunc(b_.CreateLShr(v, c64(32)), b_.getInt32Ty()), distance);
    return b_.CreateOr(to64(low), b_.CreateShl(to64(high), c64(32)));
  };
  for (std::size_t bit = 0; bit < l.lanes.size(); ++bit)
    if (l.lanes[bit].axis == op.axis)
      for (Best& b : best) {
        const Best other{shuffle(b.x, 1 << bit), arg ? shuffle(b.at, 1 << bit) : nullptr};
        b = join(b, other);
      }

  // Between warps: each writes its part, all read all parts and join them in order.
  std::vector<std::size_t> parts;
  for (std::size_t bit = 0; bit < l.warps.size(); ++bit)
    if (l.warps[bit].axis == op.axis) parts.push_back(bit);
  if (!parts.empty()) {
    const Dense d = dense(rest, rest, to.axes);
    const std::int64_t count = std::int64_t{1} << parts.size(), mark = shared_now_;
    llvm::Type* type =
        from.dtype == DType::boolean ? static_cast<llvm::Type*>(b_.getInt32Ty()) : register_type(b_, from.dtype);
    const std::int64_t bytes = from.dtype == DType::i64 ? 8 : 4;
    Value* values = reserve_shared(d.elements * count * bytes);
    Value* places = arg ? reserve_shared(d.elements * count * 4) : nullptr;
    Value* mine = c32(0);
    for (std::size_t k = 0; k < parts.size(); ++k) {
      Value* bit = b_.CreateAnd(b_.CreateLShr(warp_, c32(static_cast<std::int64_t>(parts[k]))), c32(1));
      mine = b_.CreateOr(mine, b_.CreateShl(bit, c32(static_cast<std::int64_t>(k))));
    }
    auto at = [&](Value* base, Value* part, int r, std::int64_t size) {
      Value* n = c32(0);
      for (const auto& [axis, bits] : d.axes) n = b_.CreateAdd(b_.CreateShl(n, c32(bits)), index(rest, axis, r));
      n = b_.CreateAdd(n, b_.CreateMul(part, c32(d.elements)));
      return shared_ptr(b_.CreateAdd(base, b_.CreateMul(n, c32(size))));
    };
    barrier();
    for (int r = 0; r < rest.register_count(); ++r) {  // copies write the same bits to the same place
      const Best& b = best[static_cast<std::size_t>(r)];
      b_.CreateStore(from.dtype == DType::boolean ? b_.CreateZExt(b.x, type) : b.x, at(values, mine, r, bytes));
      if (arg) b_.CreateStore(b.at, at(places, mine, r, 4));
    }
    barrier();
    for (int r = 0; r < rest.register_count(); ++r) {
      Best sum;
      for (std::int64_t part = 0; part < count; ++part) {
        Value* v = b_.CreateLoad(type, at(values, c32(part), r, bytes));
        if (from.dtype == DType::boolean) v = b_.CreateICmpNE(v, c32(0));
        sum = join(sum, {v, arg ? b_.CreateLoad(b_.getInt32Ty(), at(places, c32(part), r, 4)) : nullptr});
      }
      best[static_cast<std::size_t>(r)] = sum;
    }
    shared_now_ = mark;
  }

  Registers out;
  for (const Best& b : best) out.push_back(arg ? b.at : b.x);
  const Layout& want = layout(to);
  rep(result).registers = rest == want ? out : convert(out, rest, want, to.axes, to.dtype);
}

// In shared memory, by doubling: after the round with distance 2^k each element is the sum of the last 2^(k+1) up to
// it. The order of the additions depends on nothing but the extent.
void Emitter::emit_running_sum(const Op& op) {
  const ir::Type& type = p_.type(op.results[0]);
  const Layout& l = layout(type);
  Registers x = get(op.operands[0], l);
  const Dense d = dense(l, l, type.axes);
  const std::int64_t bytes = type.dtype == DType::i64 ? 8 : 4, mark = shared_now_;
  Value* base = reserve_shared(d.elements * bytes);
  auto at = [&](int r, Value* along) {
    Value* n = c32(0);
    for (const auto& [axis, bits] : d.axes)
      n = b_.CreateAdd(b_.CreateShl(n, c32(bits)), axis == op.axis ? along : index(l, axis, r));
    return shared_ptr(b_.CreateAdd(base, b_.CreateMul(n, c32(bytes))));
  };
  for (std::int64_t distance = 1; distance < type.extent(op.axis); distance *= 2) {
    barrier();
    for (int r = 0; r < l.register_count(); ++r) {
      auto write = [&] { b_.CreateStore(x[static_cast<std::size_t>(r)], at(r, index(l, op.axis, r))); };
      // Of a dot that lacks an axis only the first row or column is the tile.
      if (Value* condition = both(coordinates(l).first_copy, in_tile(l, {}, r)))
        emit_branch(b_, condition, write);
      else
        write();
    }
    barrier();
    for (int r = 0; r < l.register_count(); ++r) {
      Value *own = index(l, op.axis, r), *far = b_.CreateICmpUGE(own, c32(distance));
      Value* before = b_.CreateLoad(register_type(b_, type.dtype),
                                    at(r, b_.CreateSelect(far, b_.CreateSub(own, c32(distance)), own)));
      Value*& sum = x[static_cast<std::size_t>(r)];
      sum = b_.CreateSelect(far, emit_combine(b_, OpKind::reduce_sum, before, sum, math_), sum);
    }
  }
  shared_now_ = mark;
  rep(op.results[0]).registers = x;
}

}  // namespace kerf::codegen::nvptx
