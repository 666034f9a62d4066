// Loads and stores of the GPU emitter. An element outside the tensor is not touched: its load is predicated off and
// gives the fill, its store is predicated off. Offsets are 64-bit.
#include <algorithm>
#include <array>

#include "codegen/cpu/jit.h"
#include "codegen/nvptx/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::nvptx {

using ir::Op;
using ir::OpKind;
using ir::ValueId;
using llvm::Value;

llvm::Type* Emitter::memory_type(DType t) {
  switch (t) {
    case DType::bf16:
    case DType::f16:
    case DType::boolean: return b_.getInt16Ty();  // PTX has no 8-bit registers
    case DType::i64: return b_.getInt64Ty();
    case DType::i32: return b_.getInt32Ty();
    case DType::f32: return b_.getFloatTy();
  }
  throw InternalError("gpu emitter: unknown dtype");
}

std::string Emitter::memory_suffix(DType t) {
  return t == DType::boolean ? "u8"
         : size_of(t) == 2   ? "b16"
         : size_of(t) == 8   ? "b64"
         : t == DType::f32   ? "f32"
                             : "b32";
}

Value* Emitter::to_register(Value* raw, DType t) {
  if (t == DType::boolean) return b_.CreateICmpNE(raw, b_.getInt16(0));
  return t == DType::bf16 || t == DType::f16 ? math_.widen(b_, raw, t) : raw;
}

Value* Emitter::to_memory(Value* x, DType t) {
  if (t == DType::boolean) return b_.CreateZExt(x, b_.getInt16Ty());
  return t == DType::bf16 || t == DType::f16 ? math_.narrow(b_, x, t) : x;
}

namespace {
std::string letter(DType t) {
  return t == DType::boolean || size_of(t) == 2 ? "h" : size_of(t) == 8 ? "l" : t == DType::f32 ? "f" : "r";
}
}  // namespace

Value* Emitter::load_global(Value* ptr, DType t, Value* exists, Value* fill, bool constant) {
  // What the program never writes may be read at any time, so LLVM may move and merge those loads.
  const std::string c = letter(t), load = "ld.global." + memory_suffix(t) + " $0, [$1];";
  const std::string memory = constant ? "" : ",~{memory}";
  Value* raw = nullptr;
  if (!exists) {
    raw = asm_call(memory_type(t), load, "=" + c + ",l" + memory, {ptr}, !constant);
  } else {
    const std::string move = t == DType::boolean || size_of(t) == 2 ? "mov.b16"
                             : size_of(t) == 8                      ? "mov.b64"
                                                                    : "mov.b32";
    Value* otherwise = fill ? to_memory(fill, t) : llvm::Constant::getNullValue(memory_type(t));
    raw =
        asm_call(memory_type(t), "{ .reg .pred p; setp.ne.b32 p, $2, 0; " + move + " $0, $3; @p " + load + " }",
                 "=&" + c + ",l,r," + c + memory, {ptr, b_.CreateZExt(exists, b_.getInt32Ty()), otherwise}, !constant);
  }
  return to_register(raw, t);
}

std::array<Value*, 2> Emitter::load_pair(Value* ptr, DType t, bool constant) {
  const std::string memory = constant ? "" : ",~{memory}";
  if (size_of(t) == 4) {
    auto* both = llvm::StructType::get(b_.getFloatTy(), b_.getFloatTy());
    Value* x = asm_call(both, "ld.global.v2.f32 {$0, $1}, [$2];", "=f,=f,l" + memory, {ptr}, !constant);
    return {b_.CreateExtractValue(x, 0), b_.CreateExtractValue(x, 1)};
  }
  Value* x = asm_call(b_.getInt32Ty(), "ld.global.b32 $0, [$1];", "=r,l" + memory, {ptr}, !constant);
  return {to_register(b_.CreateTrunc(x, b_.getInt16Ty()), t),
          to_register(b_.CreateTrunc(b_.CreateLShr(x, 16), b_.getInt16Ty()), t)};
}

void Emitter::store_global(Value* x, Value* ptr, DType t, Value* condition) {
  Value* raw = to_memory(x, t);
  const std::string store = "st.global." + memory_suffix(t) + " [$0], $1;";
  if (!condition)
    asm_call(b_.getVoidTy(), store, "l," + letter(t) + ",~{memory}", {ptr, raw}, true);
  else
    asm_call(b_.getVoidTy(), "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p " + store + " }",
             "l," + letter(t) + ",r,~{memory}", {ptr, raw, b_.CreateZExt(condition, b_.getInt32Ty())}, true);
}

Emitter::View Emitter::tensor_view(const Op& op, std::size_t first) {
  const ir::TensorInfo& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
  const std::int64_t slot = cpu::tensor_slot(p_, op.tensor);
  View view;
  view.base = pointer_argument(slot);
  view.dtype = t.dtype;
  view.sum = t.access == ir::Access::inout;
  for (std::size_t i = 0; i < t.axes.size(); ++i) {
    Subscript s;
    const ValueId v = op.operands[first + i];
    const ir::Type& type = p_.type(v);
    s.size = axis_size(t.axes[i]);
    s.stride = i + 1 == t.axes.size() ? c64(1) : argument(slot + 1 + static_cast<std::int64_t>(i));
    if (type.kind == ir::Type::Kind::block) {
      s.axis = type.axes[0].axis;
      s.extent = type.axes[0].extent;
      s.start = b_.CreateMul(rep(v).number, c64(s.extent));
      const std::int64_t size = p_.axes[static_cast<std::size_t>(s.axis)].size;
      s.inside = size != ir::unknown && size % s.extent == 0;
    } else {
      s.indices = v;
    }
    view.subscripts.push_back(s);
  }
  const std::size_t fill_at = first + t.axes.size();
  if (op.kind == OpKind::load && op.operands.size() > fill_at) {
    const Op* fill = def(op.operands[fill_at]);
    if (!fill || fill->kind != OpKind::constant) throw InternalError("gpu emitter: a fill is not a constant");
    view.fill = register_constant(b_, *fill, t.dtype);
    view.zero_fill = is_integer(t.dtype) ? fill->integer == 0 : fill->number == 0;
  }
  return view;
}

Emitter::View Emitter::packed_view(const Op& op, ValueId entry) {
  const ir::TensorInfo& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
  const ir::ListInfo& l = p_.lists[static_cast<std::size_t>(t.list)];
  View view;
  view.dtype = t.dtype;
  const std::int64_t tile = l.row_extent * l.column_extent;
  view.sum = t.access == ir::Access::inout;
  Value* byte = b_.CreateMul(rep(entry).number, c64(tile * size_of(t.dtype)));
  view.base = b_.CreateGEP(b_.getInt8Ty(), pointer_argument(cpu::tensor_slot(p_, op.tensor)), byte);
  for (int axis : t.axes) {
    Subscript s;
    s.axis = axis;
    s.extent = axis == l.row_axis ? l.row_extent : l.column_extent;
    s.start = c64(0);
    s.size = c64(s.extent);
    s.inside = true;
    view.subscripts.push_back(s);
  }
  view.pairs = pairs_ && is_float(t.dtype) && view.subscripts[1].extent % 2 == 0;
  view.subscripts[0].stride = c64(view.subscripts[1].extent);
  view.subscripts[1].stride = c64(1);
  return view;
}

std::map<ValueId, Emitter::Registers> Emitter::gather_indices(const View& view, const Layout& l) {
  std::map<ValueId, Registers> out;
  for (const Subscript& s : view.subscripts)
    if (s.indices >= 0) out.emplace(s.indices, get(s.indices, l.only(p_.type(s.indices).axes)));
  return out;
}

Value* Emitter::left_in(const Subscript& s, Value* first) {
  Value* left = b_.CreateSub(s.size, first);
  left = b_.CreateBinaryIntrinsic(llvm::Intrinsic::smin, left, c64(std::numeric_limits<std::int32_t>::max()));
  left = b_.CreateBinaryIntrinsic(llvm::Intrinsic::smax, left, c64(0));
  return b_.CreateTrunc(left, b_.getInt32Ty());
}

Value* Emitter::address(const View& view, const Layout& l, int reg, const std::map<ValueId, Registers>& indices,
                        Value*& exists) {
  // What the register number adds along the contiguous axis is a constant that fits the instruction: registers that
  // differ in nothing else share an address.
  Value* offset = c64(0);
  std::int64_t fixed = 0;
  exists = nullptr;
  for (const Subscript& s : view.subscripts) {
    if (s.indices >= 0) {
      const Layout part = l.only(p_.type(s.indices).axes);
      const int from = matching_register(part, l, reg);
      Value* i = b_.CreateSExt(indices.at(s.indices)[static_cast<std::size_t>(from)], b_.getInt64Ty());
      exists = both(exists, b_.CreateICmpULT(i, s.size));  // a negative index is a large unsigned number
      offset = b_.CreateAdd(offset, b_.CreateMul(i, s.stride));
      continue;
    }
    const std::int64_t own = l.register_index(s.axis, reg);
    const auto& base = coordinates(l).base;
    const auto lane = base.find(s.axis);
    Value* first = lane == base.end() ? s.start : b_.CreateAdd(s.start, to64(lane->second));
    if (!s.inside)
      exists = both(exists, view.sum ? b_.CreateICmpSLT(c32(own), left_in(s, first))
                                     : b_.CreateICmpULT(b_.CreateAdd(first, c64(own)), s.size));
    offset = b_.CreateAdd(offset, b_.CreateMul(first, s.stride));
    const auto* stride = llvm::dyn_cast<llvm::ConstantInt>(s.stride);
    if (stride)
      fixed += own * stride->getSExtValue();
    else
      offset = b_.CreateAdd(offset, b_.CreateMul(c64(own), s.stride));
  }
  Value* at = b_.CreateGEP(b_.getInt8Ty(), view.base, b_.CreateMul(offset, c64(size_of(view.dtype))));
  return b_.CreateGEP(b_.getInt8Ty(), at, c64(fixed * size_of(view.dtype)));
}

namespace {

/// The region that an operation stands in itself.
const ir::Region* region_of(const ir::Region& r, const Op& op) {
  for (const Op& x : r.ops) {
    if (&x == &op) return &r;
    for (const ir::Region& inner : x.regions)
      if (const ir::Region* found = region_of(inner, op)) return found;
  }
  return nullptr;
}

}  // namespace

Value* Emitter::element(const View& view, const std::vector<ir::AxisExtent>& axes, int reg,
                        const std::map<ValueId, Registers>& indices, Value*& exists) {
  const Layout& l = layouts_.of(axes);
  Value* ptr = address(view, l, reg, indices, exists);
  exists = both(exists, in_tile(l, axes, reg));
  return ptr;
}

Value* Emitter::load_register(const View& view, const std::vector<ir::AxisExtent>& axes, int reg,
                              const std::map<ValueId, Registers>& indices, bool constant) {
  Value *exists = nullptr, *ptr = element(view, axes, reg, indices, exists);
  return load_global(ptr, view.dtype, exists, view.fill, constant);
}

bool Emitter::loads_late(const Op& op) const {
  const ir::TensorInfo& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
  const auto& users = users_[static_cast<std::size_t>(op.results[0])];
  if (op.kind != OpKind::load || t.access != ir::Access::inout || users.size() != 1) return false;
  const Op* user = users[0];
  if (user->kind != OpKind::add || p_.type(user->results[0]).axes != p_.type(op.results[0]).axes) return false;
  // What is stored meanwhile must not be read, nor anything again and again.
  const std::vector<Op>& ops = region_of(p_.body, op)->ops;
  for (const Op* next = &op + 1; next != ops.data() + ops.size(); ++next) {
    if (next == user) return true;
    if (next->kind == OpKind::store || next->kind == OpKind::store_packed || !next->regions.empty()) return false;
  }
  return false;
}

Emitter::Registers Emitter::load(const View& view, const std::vector<ir::AxisExtent>& axes, bool constant) {
  const Layout& l = layouts_.of(axes);
  const auto indices = gather_indices(view, l);
  if (!constant) barrier();  // sees what this block stored before
  const bool pairs = view.pairs && !l.registers.empty() && l.registers[0] == Bit{view.subscripts.back().axis, 0};
  Registers out;
  for (int r = 0; r < l.register_count(); ++r) {
    Value *exists = nullptr, *ptr = element(view, axes, r, indices, exists);
    if (pairs && !exists) {
      for (Value* x : load_pair(ptr, view.dtype, constant)) out.push_back(x);
      ++r;
      continue;
    }
    out.push_back(load_global(ptr, view.dtype, exists, view.fill, constant));
  }
  return out;
}

Value* Emitter::pairs_fit(const View& view, const Layout& l, const Layout& part, int bytes) {
  if (view.subscripts.size() < 2) return nullptr;
  const Subscript& fast = view.subscripts.back();
  if (fast.indices >= 0 || l.registers.size() < 3 || part.registers.empty() || l.registers[0] != Bit{fast.axis, 0} ||
      part.registers[0] != l.registers[0] || !is_float(view.dtype) || fast.extent % 2 != 0)
    return nullptr;
  Value *misaligned = b_.CreatePtrToInt(view.base, b_.getInt64Ty()), *inside = b_.getTrue();
  for (const Subscript& s : view.subscripts) {
    if (&s != &fast) misaligned = b_.CreateOr(misaligned, b_.CreateMul(s.stride, c64(size_of(view.dtype))));
    if (s.indices < 0 && !s.inside)
      inside = b_.CreateAnd(inside, b_.CreateICmpSLE(b_.CreateAdd(s.start, c64(s.extent)), s.size));
  }
  misaligned = b_.CreateAnd(misaligned, c64(bytes - 1));
  return b_.CreateAnd(inside, b_.CreateICmpEQ(misaligned, c64(0)));
}

void Emitter::store_pair(Value* low, Value* high, Value* ptr, DType t, Value* condition) {
  const bool half = size_of(t) == 2;
  std::vector<Value*> args{ptr};
  if (half)
    args.push_back(packed_pair(low, high, t));
  else
    args.insert(args.end(), {low, high});
  const std::string store = half ? "st.global.b32 [$0], $1;" : "st.global.v2.f32 [$0], {$1, $2};";
  const std::string constraints = half ? "l,r" : "l,f,f";
  if (!condition) {
    asm_call(b_.getVoidTy(), store, constraints + ",~{memory}", args, true);
    return;
  }
  args.push_back(b_.CreateZExt(condition, b_.getInt32Ty()));
  asm_call(b_.getVoidTy(),
           "{ .reg .pred p; setp.ne.b32 p, $" + std::to_string(args.size() - 1) + ", 0; @p " + store + " }",
           constraints + ",r,~{memory}", args, true);
}

bool Emitter::quads_fit(const View& view, const Layout& l) {
  if (view.subscripts.empty()) return false;
  const int axis = view.subscripts.back().axis;
  if (view.subscripts.back().extent % 32 != 0) return false;
  const auto holds = [&](int bit) { return std::ranges::find(l.registers, Bit{axis, bit}) != l.registers.end(); };
  return size_of(view.dtype) == 2 && l.lanes.size() >= 2 && l.lanes[0] == Bit{axis, 1} && l.lanes[1] == Bit{axis, 2} &&
         holds(3) && holds(4);
}

std::array<Value*, 4> Emitter::turn_quad(std::array<Value*, 4> words) {
  // Lane q of four has words[j] = pair q of eight elements j, and gets all four pairs of eight elements q: a transpose
  // of 4 x 4, by one bit of the lane's number at a time.
  const auto exchange = [&](Value* upper, Value*& low, Value*& high, int mask) {
    Value* sent = b_.CreateSelect(upper, low, high);
    Value* got = b_.CreateIntrinsic(llvm::Intrinsic::nvvm_shfl_sync_bfly_i32, {}, {c32(-1), sent, c32(mask), c32(31)});
    Value* kept_low = b_.CreateSelect(upper, got, low);
    high = b_.CreateSelect(upper, high, got);
    low = kept_low;
  };
  Value* odd = b_.CreateICmpNE(b_.CreateAnd(lane_, c32(1)), c32(0));
  Value* upper = b_.CreateICmpNE(b_.CreateAnd(lane_, c32(2)), c32(0));
  exchange(odd, words[0], words[1], 1);
  exchange(odd, words[2], words[3], 1);
  exchange(upper, words[0], words[2], 2);
  exchange(upper, words[1], words[3], 2);
  return words;
}

Value* Emitter::packed_pair(Value* low, Value* high, DType t) {
  return asm_call(b_.getInt32Ty(), "cvt.rn." + std::string(name_of(t)) + "x2.f32 $0, $1, $2;", "=r,f,f", {high, low},
                  false);
}

void Emitter::emit_store(const Op& op) {
  if (plan_ && store_by_box(op)) return;
  View view = op.kind == OpKind::store ? tensor_view(op, 1) : packed_view(op, op.operands[1]);
  // Computed anew: conditions that the load of the same elements had would fill registers until here.
  if (view.sum)
    for (Subscript& s : view.subscripts) s.size = computed_anew(s.size);
  std::vector<ir::AxisExtent> axes = p_.type(op.operands[0]).axes;
  for (const Subscript& s : view.subscripts) {
    const auto more = s.indices < 0 ? std::vector<ir::AxisExtent>{{s.axis, s.extent}} : p_.type(s.indices).axes;
    axes = *ir::unite(axes, more);
  }
  const Layout& l = layouts_.of(axes);
  const ir::Type& t = p_.type(op.operands[0]);
  const Layout part = t.axes.size() == axes.size() ? l : l.only(t.axes);
  const auto indices = gather_indices(view, l);
  if (view.sum) barrier();  // every thread has read
  auto place = [&](const View& v, int r, Value*& exists) {
    Value* ptr = element(v, axes, r, indices, exists);
    exists = both(exists, coordinates(l).first_copy);
    return ptr;
  };
  auto holder = [&](int r) { return static_cast<std::size_t>(matching_register(part, l, r)); };
  const Registers value = get(op.operands[0], part);
  auto one_by_one = [&] {
    for (int r = 0; r < l.register_count(); ++r) {
      Value *exists = nullptr, *ptr = place(view, r, exists);
      store_global(value[holder(r)], ptr, view.dtype, exists);
    }
  };
  // Sixteen bytes a thread where four lanes can bring them together: whole sectors of memory, and few at once. Else two
  // elements, as a thread holds them.
  const bool quads = quads_fit(view, l);
  Value* quick = pairs_fit(view, l, part, quads ? 16 : 2 * static_cast<int>(size_of(view.dtype)));
  if (!quick) return one_by_one();
  // What is cast to the tensor's dtype on the way is rounded in pairs.
  const Op* made = def(op.operands[0]);
  const bool rounded = size_of(view.dtype) == 2 && made && made->kind == OpKind::cast &&
                       p_.type(made->operands[0]).dtype == DType::f32 &&
                       p_.type(made->operands[0]).axes == p_.type(op.operands[0]).axes;
  const Registers pairs = rounded ? get(made->operands[0], part) : value;
  View whole = view;
  for (Subscript& s : whole.subscripts) s.inside = s.inside || s.indices < 0;
  const auto store_pairs = [&] {
    for (int r = 0; r < l.register_count(); r += 2) {
      Value *exists = nullptr, *ptr = place(whole, r, exists);
      store_pair(pairs[holder(r)], pairs[holder(r + 1)], ptr, view.dtype, exists);
    }
  };
  const auto store_quads = [&] {
    const int axis = view.subscripts.back().axis;
    const auto step = [&](int bit) {
      return 1 << (std::ranges::find(l.registers, Bit{axis, bit}) - l.registers.begin());
    };
    const int steps[] = {0, step(3), step(4), step(3) | step(4)};
    Value* shift = b_.CreateMul(b_.CreateAnd(lane_, c32(3)), c32(12));  // from its pair to its eight elements, in bytes
    for (int r = 0; r < l.register_count(); r += 2) {
      if ((r & steps[3]) != 0) continue;
      std::array<Value*, 4> words{};
      for (std::size_t j = 0; j < 4; ++j)
        words[j] = packed_pair(pairs[holder(r | steps[j])], pairs[holder((r | steps[j]) + 1)], view.dtype);
      words = turn_quad(words);
      Value *exists = nullptr, *ptr = b_.CreateGEP(b_.getInt8Ty(), place(whole, r, exists), shift);
      asm_call(b_.getVoidTy(), "{ .reg .pred p; setp.ne.b32 p, $5, 0; @p st.global.v4.b32 [$0], {$1, $2, $3, $4}; }",
               "l,r,r,r,r,r,~{memory}",
               {ptr, words[0], words[1], words[2], words[3], exists ? b_.CreateZExt(exists, b_.getInt32Ty()) : c32(1)},
               true);
    }
  };
  if (view.pairs && !quads) return store_pairs();
  emit_branch(b_, quick, quads ? std::function<void()>(store_quads) : store_pairs);
  emit_branch(b_, b_.CreateNot(quick), one_by_one);
}

}  // namespace kerf::codegen::nvptx
