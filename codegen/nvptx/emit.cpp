// The GPU emitter: the kernel around a program, its regions and loops, elementwise operations on registers. Memory is
// in memory.cpp, reductions and moves between layouts in exchange.cpp, dots in dot.cpp.
#include "codegen/nvptx/emit.h"

#include <algorithm>

#include "codegen/cpu/jit.h"
#include "kerf/error.h"

namespace kerf::codegen::nvptx {

using ir::LoopOver;
using ir::Op;
using ir::OpKind;
using ir::ValueId;
using llvm::Value;

// ---- mathematics ----

Value* GpuMath::exp(B& b, V x) const {
  V t = b.CreateFMul(x, llvm::ConstantFP::get(b.getFloatTy(), 1.4426950408889634));
  return b.CreateIntrinsic(llvm::Intrinsic::nvvm_ex2_approx_ftz_f, {}, {t});
}
Value* GpuMath::log(B& b, V x) const { return cpu::emit_log(b, x, scalar_); }
Value* GpuMath::tanh(B& b, V x) const { return cpu::emit_tanh(b, x, scalar_); }
Value* GpuMath::max(B& b, V x, V y) const { return b.CreateBinaryIntrinsic(llvm::Intrinsic::maximum, x, y); }
Value* GpuMath::min(B& b, V x, V y) const { return b.CreateBinaryIntrinsic(llvm::Intrinsic::minimum, x, y); }
Value* GpuMath::widen(B& b, V bits, DType from) const { return cpu::emit_widen(b, bits, from, scalar_); }
Value* GpuMath::narrow(B& b, V x, DType to) const { return cpu::emit_narrow(b, x, to, scalar_); }

// ---- layouts of a program ----

namespace {

/// Axis of a dot's operand that the other lacks, or `none`.
int own_axis(const ir::Type& a, const ir::Type& b, int none) {
  for (const auto& x : a.axes)
    if (!b.has(x.axis)) return x.axis;
  return none;
}

/// Whether a packed tile is read for what is computed element by element, and by no dot.
bool reads_pairs(const ir::Program& p, const Engine& engine) {
  bool reads = false, dots = false;
  ir::walk(p.body, [&](const Op& op) {
    reads = reads || (op.kind == OpKind::load_packed && is_float(p.tensors[static_cast<std::size_t>(op.tensor)].dtype));
    dots = dots || op.kind == OpKind::dot;
  });
  return engine.pairs && reads && !dots;
}

}  // namespace

Layouts::Layouts(const ir::Program& p, int warp_bits, const Engine& engine)
    : axes_(static_cast<int>(p.axes.size())), warp_bits_(warp_bits), groups_alike_(engine.wgmma.has_value()) {
  std::vector<int> votes(p.axes.size());
  ir::walk(p.body, [&](const Op& op) {
    if (op.kind == OpKind::dot) {
      const ir::Type &a = p.type(op.operands[0]), &b = p.type(op.operands[1]);
      // A row or column that no axis stands for is not part of how the tile is held: every such thread has a copy.
      const ir::Type& t = p.type(op.results[0]);
      if (engine.wgmma || engine.mma) {
        const Product& product = engine.wgmma ? engine.wgmma->product : engine.mma->product;
        const ir::AxisExtent row{product.row.own, product.row.extent},
            column{product.column.own, product.column.extent};
        dots_.emplace_back(t.axes, engine.wgmma ? wgmma_accumulator(row, column, engine.wgmma->slices, warp_bits)
                                                : mma_accumulator(row, column, engine.mma->row_warp_bits,
                                                                  engine.mma->column_warp_bits));
        return;
      }
      dots_.emplace_back(t.axes, dot(own_axis(a, b, no_row()), own_axis(b, a, no_column()), t).only(t.axes));
    } else if ((op.kind == OpKind::load || op.kind == OpKind::store) &&
               !p.tensors[static_cast<std::size_t>(op.tensor)].axes.empty()) {
      ++votes[static_cast<std::size_t>(p.tensors[static_cast<std::size_t>(op.tensor)].axes.back())];
    }
  });
  if (reads_pairs(p, engine)) vector_ = 2;
  if (!votes.empty()) fast_ = static_cast<int>(std::max_element(votes.begin(), votes.end()) - votes.begin());
}

Layout Layouts::dot(int row, int column, const ir::Type& t) const {
  const int row_warps = (warp_bits_ + 1) / 2, column_warps = warp_bits_ / 2;
  return mma_accumulator({row, std::max<std::int64_t>(t.extent(row), std::int64_t{16} << row_warps)},
                         {column, std::max<std::int64_t>(t.extent(column), std::int64_t{8} << column_warps)}, row_warps,
                         column_warps);
}

Layout Layouts::make(const std::vector<ir::AxisExtent>& axes) const {
  std::vector<ir::AxisExtent> wide;  // an axis of one index takes no part
  std::copy_if(axes.begin(), axes.end(), std::back_inserter(wide), [](const auto& x) { return x.extent > 1; });
  for (const auto* some : {&axes, static_cast<const std::vector<ir::AxisExtent>*>(&wide)})
    for (const auto& [of, l] : dots_) {
      const bool part = std::all_of(some->begin(), some->end(),
                                    [&](const auto& x) { return std::find(of.begin(), of.end(), x) != of.end(); });
      if (part && !some->empty()) return some->size() == of.size() ? l : l.only(*some);
    }
  int fast = axes.empty() ? -1 : axes.back().axis;
  for (const auto& x : axes)
    if (x.axis == fast_) fast = fast_;
  if (!groups_alike_) return blocked(axes, fast, vector_, warp_bits_);
  Layout l = blocked(axes, fast, 1, 2);
  l.warps.resize(static_cast<std::size_t>(warp_bits_));
  return l;
}

const Layout& Layouts::of(const std::vector<ir::AxisExtent>& axes) const {
  std::vector<std::pair<int, std::int64_t>> key;
  for (const auto& x : axes) key.emplace_back(x.axis, x.extent);
  auto it = known_.find(key);
  if (it == known_.end()) it = known_.emplace(std::move(key), make(axes)).first;
  return it->second;
}

// ---- the kernel ----

Emitter::Emitter(const ir::Program& p, llvm::Module& module, const Schedule& schedule, const Engine& engine)
    : p_(p),
      module_(module),
      b_(module.getContext()),
      schedule_(schedule),
      plan_(engine.wgmma),
      mma_(engine.mma),
      pairs_(reads_pairs(p, engine)),
      layouts_(
          p,
          [&] {
            if (engine.wgmma) return 2 + bits_of(engine.wgmma->groups);
            if (engine.mma) return engine.mma->warp_bits();
            std::int64_t largest = 0;
            for (const ir::Type& t : p.values)
              if (t.is_tile()) largest = std::max(largest, t.elements());
            return largest > 8192 ? 3 : 2;
          }(),
          engine),
      warp_bits_(layouts_.warp_bits()),
      reps_(p.values.size()),
      defs_(p.values.size()),
      users_(p.values.size()) {
  ir::walk(p.body, [&](const Op& op) {
    for (ValueId v : op.results) defs_[static_cast<std::size_t>(v)] = &op;
    for (ValueId v : op.operands) users_[static_cast<std::size_t>(v)].push_back(&op);
  });
}

Code Emitter::run() {
  Code code;
  code.entry = p_.name;
  code.threads = plan_ ? plan_->threads() : 32 << warp_bits_;
  if (plan_) plan_shared_memory();
  code.maps = maps_;
  std::int64_t words = static_cast<std::int64_t>(p_.axes.size() * 2) + 8 * static_cast<std::int64_t>(p_.lists.size());
  for (const auto& t : p_.tensors) words += 1 + static_cast<std::int64_t>(t.axes.size());
  code.argument_words = words;

  llvm::LLVMContext& context = module_.getContext();
  auto* block = llvm::ArrayType::get(b_.getInt64Ty(), static_cast<std::uint64_t>(words));
  const auto maps = static_cast<unsigned>(maps_.size());
  fn_ = llvm::Function::Create(
      llvm::FunctionType::get(b_.getVoidTy(), std::vector<llvm::Type*>(maps + 1, b_.getPtrTy()), false),
      llvm::Function::ExternalLinkage, p_.name, module_);
  for (unsigned i = 0; i <= maps; ++i) {
    auto* type = i < maps ? llvm::ArrayType::get(b_.getInt8Ty(), 128) : block;
    fn_->addParamAttr(i, llvm::Attribute::getWithByValType(context, type));
    fn_->addParamAttr(i, llvm::Attribute::getWithAlignment(context, llvm::Align(i < maps ? 64 : 8)));
  }
  fn_->addFnAttr(llvm::Attribute::NoUnwind);
  auto number = [&](std::int64_t x) {
    return llvm::ConstantAsMetadata::get(b_.getInt32(static_cast<std::uint32_t>(x)));
  };
  auto annotate = [&](const char* key, llvm::Metadata* x) {
    module_.getOrInsertNamedMetadata("nvvm.annotations")
        ->addOperand(
            llvm::MDNode::get(context, {llvm::ValueAsMetadata::get(fn_), llvm::MDString::get(context, key), x}));
  };
  annotate("kernel", number(1));
  annotate("maxntidx", number(code.threads));
  annotate("minctasm", number(pairs_ ? 2 : 1));  // what waits for memory wants others to go on
  if (maps > 0) {  // TMA reads the maps where the driver put them; parameters are counted from 1
    std::vector<llvm::Metadata*> which;
    for (unsigned i = 1; i <= maps; ++i) which.push_back(number(i));
    annotate("grid_constant", llvm::MDNode::get(context, which));
  }
  shared_ = new llvm::GlobalVariable(module_, llvm::ArrayType::get(b_.getInt8Ty(), 0), false,
                                     llvm::GlobalValue::ExternalLinkage, nullptr, "shared", nullptr,
                                     llvm::GlobalValue::NotThreadLocal, 3);
  shared_->setAlignment(llvm::Align(1024));

  setup_ = llvm::BasicBlock::Create(context, "setup", fn_);
  auto* start = llvm::BasicBlock::Create(context, "start", fn_);
  b_.SetInsertPoint(setup_);
  thread_ = b_.CreateIntrinsic(llvm::Intrinsic::nvvm_read_ptx_sreg_tid_x, {}, {});
  lane_ = b_.CreateAnd(thread_, c32(31));
  warp_ = b_.CreateLShr(thread_, c32(5));
  b_.CreateBr(start);
  b_.SetInsertPoint(start);
  if (plan_)
    emit_roles();
  else
    for_each_instance([&] { region(p_.body); });
  b_.CreateRetVoid();
  code.shared_bytes = shared_most_;
  if (mma_)
    for (const Factor* f : {&mma_->product.row, &mma_->product.column}) code.aligned.push_back(f->load->tensor);
  if (pairs_)
    for (std::size_t t = 0; t < p_.tensors.size(); ++t)
      if (p_.tensors[t].list >= 0 && is_float(p_.tensors[t].dtype)) code.aligned.push_back(static_cast<int>(t));
  return code;
}

void Emitter::plan_shared_memory() {
  const Product& product = plan_->product;
  for (const Factor* f : {&product.row, &product.column})
    maps_.push_back({.tensor = f->load->tensor, .rows = f->k_contiguous ? f->extent : WgmmaPlan::step});
  std::int64_t bytes = plan_->stage_bytes() * plan_->stages;
  const ir::Type& result = p_.type(product.loop->results[0]);
  ir::walk(p_.body, [&](const Op& op) {
    if (op.kind != OpKind::store_packed || store_map_ >= 0 || (plan_->groups > 1 && !plan_->take_turns)) return;
    const ir::TensorInfo& t = p_.tensors[static_cast<std::size_t>(op.tensor)];
    if (p_.type(op.operands[0]).axes != result.axes || (t.dtype != DType::bf16 && t.dtype != DType::f16)) return;
    store_map_ = static_cast<int>(maps_.size());
    const bool transposed = t.axes[1] == product.row.own;
    maps_.push_back({.tensor = op.tensor, .rows = transposed ? product.column.extent : 64});
    staging_at_ = bytes;
    bytes += 64 * plan_->slices * product.column.extent * 2;
  });
  barriers_at_ = bytes;
  reserve_shared(bytes + 16 * plan_->stages);
}

void Emitter::for_each_instance(const std::function<void()>& body) {
  Value* first = to64(b_.CreateIntrinsic(llvm::Intrinsic::nvvm_read_ptx_sreg_ctaid_x, {}, {}));
  Value* step = to64(b_.CreateIntrinsic(llvm::Intrinsic::nvvm_read_ptx_sreg_nctaid_x, {}, {}));
  struct Dimension {
    const Op* op;
    Value* count;
  };
  std::vector<Dimension> grid;
  Value* instances = c64(1);
  for (const Op& op : p_.body.ops)
    if (op.kind == OpKind::parallel) {
      grid.push_back({&op, op.list >= 0 ? tile_count(op.list) : block_count(op.axis, op.extent)});
      instances = b_.CreateMul(instances, grid.back().count);
    }
  const bool banded = schedule_.band > 0 && grid.size() == 2 && grid[0].op->list < 0 && grid[1].op->list < 0;
  counted_loop(
      b_, first, instances, step, {},
      [&](Value* instance, const Carried&) {
        if (banded) {
          Value *outer = grid[0].count, *inner = grid[1].count, *band = c64(schedule_.band);
          Value *in_band = b_.CreateMul(band, outer), *number = b_.CreateUDiv(instance, in_band);
          Value *begin = b_.CreateMul(number, band), *left = b_.CreateSub(inner, begin);
          Value* width = b_.CreateSelect(b_.CreateICmpSLT(left, band), left, band);
          Value* rest = b_.CreateSub(instance, b_.CreateMul(number, in_band));
          rep(grid[0].op->results[0]).number = b_.CreateUDiv(rest, width);
          rep(grid[1].op->results[0]).number = b_.CreateAdd(begin, b_.CreateURem(rest, width));
          body();
          return Carried{};
        }
        Value* rest = instance;  // the last `parallel` varies fastest
        for (std::size_t g = grid.size(); g-- > 0;) {
          const auto& [op, count] = grid[g];
          Value* number = g == 0 ? rest : b_.CreateURem(rest, count);
          if (g != 0) rest = b_.CreateUDiv(rest, count);
          rep(op->results[0]).number = number;
          if (op->list < 0) continue;
          for (int side = 0; side < 2; ++side)
            rep(op->results[static_cast<std::size_t>(1 + side)]).number = list_entry(op->list, 1 + side, number);
        }
        body();
        return Carried{};
      },
      plan_ == std::nullopt);
}

Value* Emitter::argument(std::int64_t word) {
  auto& v = arguments_[word];
  if (!v) {
    llvm::IRBuilder<> at(setup_, setup_->begin());
    v = at.CreateLoad(at.getInt64Ty(),
                      at.CreateConstInBoundsGEP1_64(at.getInt64Ty(), fn_->getArg(static_cast<unsigned>(maps_.size())),
                                                    static_cast<std::uint64_t>(word)));
  }
  return v;
}

Value* Emitter::pointer_argument(std::int64_t word) {
  return b_.CreateIntToPtr(argument(word), llvm::PointerType::get(module_.getContext(), 1));
}

Value* Emitter::computed_anew(Value* x) { return asm_call(x->getType(), "mov.b64 $0, $1;", "=l,l", {x}, true); }

Value* Emitter::asm_call(llvm::Type* result, const std::string& text, const std::string& constraints,
                         const std::vector<Value*>& args, bool effects) {
  std::vector<llvm::Type*> types;
  for (Value* a : args) types.push_back(a->getType());
  auto* type = llvm::FunctionType::get(result, types, false);
  auto* call = b_.CreateCall(type, llvm::InlineAsm::get(type, text, constraints, effects), args);
  call->addFnAttr(llvm::Attribute::NoUnwind);
  if (effects) call->addFnAttr(llvm::Attribute::Convergent);
  return call;
}

void Emitter::barrier() {
  if (!plan_) {
    b_.CreateIntrinsic(llvm::Intrinsic::nvvm_barrier0, {}, {});
    return;
  }
  turns_broken_ = turns_broken_ || in_turn_;
  asm_call(b_.getVoidTy(), "bar.sync 1, $0;", "n,~{memory}", {c32(128 * plan_->groups)}, true);
}

Value* Emitter::axis_size(int axis) {
  const std::int64_t size = p_.axes[static_cast<std::size_t>(axis)].size;
  if (size != ir::unknown) return c64(size);
  return told_by(axis, cpu::list_slot(p_, static_cast<int>(p_.lists.size())) + axis, DType::i64);
}

Value* Emitter::tile_count(int list) {
  const std::int64_t slot = cpu::list_slot(p_, list);
  return told_by(slot, slot + 7, DType::i32);
}

Value* Emitter::told_by(std::int64_t word, std::int64_t address_word, DType t) {
  auto& v = arguments_[-1 - address_word];
  if (!v) {
    Value *host = argument(word), *address = argument(address_word);
    llvm::IRBuilder<>::InsertPointGuard guard(b_);
    b_.SetInsertPoint(setup_->getTerminator());
    Value* told = b_.CreateICmpNE(address, c64(0));
    Value* ptr = b_.CreateIntToPtr(address, llvm::PointerType::get(module_.getContext(), 1));
    if (t == DType::i32) host = b_.CreateTrunc(host, b_.getInt32Ty());
    v = load_global(ptr, t, told, host, true);
    if (t == DType::i32) v = b_.CreateSExt(v, b_.getInt64Ty());
  }
  return v;
}

Value* Emitter::block_count(int axis, std::int64_t extent) {
  return b_.CreateSDiv(b_.CreateAdd(axis_size(axis), c64(extent - 1)), c64(extent));
}

const Emitter::Coordinates& Emitter::coordinates(const Layout& l) {
  for (const auto& [known, c] : coordinates_)
    if (known == l) return c;
  Coordinates c;
  llvm::IRBuilder<>::InsertPointGuard guard(b_);
  b_.SetInsertPoint(setup_->getTerminator());
  std::uint32_t lane_copies = 0, warp_copies = 0;
  auto add = [&](const std::vector<Bit>& bits, Value* number, std::uint32_t& copies) {
    for (std::size_t i = 0; i < bits.size(); ++i) {
      if (bits[i].none()) {
        copies |= 1U << i;
        continue;
      }
      Value* bit = b_.CreateAnd(b_.CreateLShr(number, c32(static_cast<std::int64_t>(i))), c32(1));
      bit = b_.CreateShl(bit, c32(bits[i].bit));
      Value*& sum = c.base[bits[i].axis];
      sum = sum ? b_.CreateOr(sum, bit) : bit;
    }
  };
  add(l.lanes, lane_, lane_copies);
  add(l.warps, warp_, warp_copies);
  if (lane_copies || warp_copies) {
    Value* copies = b_.CreateOr(b_.CreateAnd(lane_, c32(lane_copies)), b_.CreateAnd(warp_, c32(warp_copies)));
    c.first_copy = b_.CreateICmpEQ(copies, c32(0));
  }
  coordinates_.emplace_back(l, c);
  return coordinates_.back().second;
}

Value* Emitter::index(const Layout& l, int axis, int reg) {
  const Coordinates& c = coordinates(l);
  const auto it = c.base.find(axis);
  const std::int64_t own = l.register_index(axis, reg);
  return it == c.base.end() ? c32(own) : b_.CreateOr(it->second, c32(own));
}

Value* Emitter::in_tile(const Layout& l, const std::vector<ir::AxisExtent>& axes, int reg) {
  Value* in = nullptr;
  for (const auto& x : axes)
    if ((std::int64_t{1} << l.axis_bits(x.axis)) > x.extent && !(plan_ && x.axis == plan_->product.row.own))
      in = both(in, b_.CreateICmpULT(index(l, x.axis, reg), c32(x.extent)));
  // A layout of a dot may have rows or columns that no axis stands for: the tile is the first of them.
  for (const auto* bits : {&l.registers, &l.lanes, &l.warps})
    for (const Bit& bit : *bits)
      if (bit.axis >= static_cast<int>(p_.axes.size())) in = both(in, b_.CreateICmpEQ(index(l, bit.axis, reg), c32(0)));
  return in;
}

Emitter::Registers Emitter::get(ValueId v, const Layout& want) {
  const ir::Type& t = p_.type(v);
  const Layout& have = layout(t);
  if (!rep(v).registers.empty())
    return have == want ? rep(v).registers : convert(rep(v).registers, have, want, t.axes, t.dtype);
  // Free to make in any layout.
  const Op* op = def(v);
  if (!op) throw InternalError("gpu emitter: a value without registers");
  Registers out;
  for (int r = 0; r < want.register_count(); ++r) switch (op->kind) {
      case OpKind::constant: out.push_back(register_constant(b_, *op, t.dtype)); break;
      case OpKind::splat: out.push_back(get(op->operands[0], layouts_.of({}))[0]); break;
      case OpKind::index:
      case OpKind::in_bounds: {
        const ir::AxisExtent& x = p_.type(op->operands[0]).axes[0];
        Value *start = b_.CreateMul(rep(op->operands[0]).number, c64(x.extent)), *at = index(want, x.axis, r);
        if (op->kind == OpKind::index) {
          llvm::Type* type = register_type(b_, t.dtype);
          out.push_back(b_.CreateAdd(b_.CreateTrunc(start, type), t.dtype == DType::i64 ? to64(at) : at));
          break;
        }
        // In 32 bits, against how many of the block are inside.
        Value* inside = b_.CreateSub(axis_size(x.axis), start);
        inside = b_.CreateSelect(b_.CreateICmpSLT(inside, c64(x.extent)), inside, c64(x.extent));
        out.push_back(b_.CreateICmpSLT(at, b_.CreateTrunc(inside, b_.getInt32Ty())));
        break;
      }
      default: throw InternalError("gpu emitter: '" + std::string(ir::info(op->kind).text) + "' has no registers");
    }
  return out;
}

bool Emitter::adds_product(const Op& op) const {
  if (op.kind != OpKind::add || p_.type(op.results[0]).dtype != DType::f32) return false;
  const Op *product = def(op.operands[0]), *held = def(op.operands[1]);
  if (held && held->kind == OpKind::cast) held = def(held->operands[0]);
  return product && product->kind == OpKind::mul && held && held->kind == OpKind::load &&
         p_.tensors[static_cast<std::size_t>(held->tensor)].access == ir::Access::inout;
}

Emitter::Registers Emitter::make(const Op& op) {
  const ir::Type& t = p_.type(op.results[0]);
  const Layout& l = layout(t);
  if (op.kind == OpKind::axis_size) return {axis_size(op.axis)};
  if (op.kind == OpKind::number) return {rep(op.operands[0]).number};
  std::vector<Registers> operands;
  std::vector<Layout> parts;
  std::vector<std::map<ValueId, Registers>> indices(op.operands.size());
  DType in = t.dtype;
  for (ValueId o : op.operands) {
    const ir::Type& type = p_.type(o);
    parts.push_back(type.axes.size() == t.axes.size() ? l : l.only(type.axes));
    if (rep(o).late) {
      barrier();  // sees what this block stored before
      indices[operands.size()] = gather_indices(rep(o).view, l);
      operands.emplace_back();
    } else {
      operands.push_back(get(o, parts.back()));
    }
    in = type.dtype;
  }
  Registers out;
  for (int r = 0; r < l.register_count(); ++r) {
    std::vector<Value*> x;
    for (std::size_t o = 0; o < operands.size(); ++o) {
      if (const Rep& operand = rep(op.operands[o]); operand.late) {
        x.push_back(load_register(operand.view, t.axes, r, indices[o], false));
        continue;
      }
      // The operand's register whose bits are the result's, as far as it has them.
      const int from = matching_register(parts[o], l, r);
      x.push_back(operands[o][static_cast<std::size_t>(from)]);
    }
    auto* product = adds_product(op) ? llvm::dyn_cast<llvm::BinaryOperator>(x[0]) : nullptr;
    if (product && product->getOpcode() == llvm::Instruction::FMul)
      out.push_back(b_.CreateIntrinsic(llvm::Intrinsic::fma, {x[1]->getType()},
                                       {product->getOperand(0), product->getOperand(1), x[1]}));
    else
      out.push_back(emit_elementwise(b_, op, x, in, t.dtype, math_));
  }
  return out;
}

void Emitter::region(const ir::Region& r) {
  for (const Op& op : r.ops) operation(op);
}

void Emitter::operation(const Op& op) {
  switch (op.kind) {
    case OpKind::parallel:
    case OpKind::yield:
    case OpKind::constant:
    case OpKind::splat:
    case OpKind::index:
    case OpKind::in_bounds: return;
    case OpKind::whole: rep(op.results[0]).number = c64(0); return;
    case OpKind::loop: return emit_loop_op(op);
    case OpKind::when: emit_branch(b_, get(op.operands[0], layouts_.of({}))[0], [&] { region(op.regions[0]); }); return;
    case OpKind::load:
    case OpKind::load_packed: {
      const ValueId v = op.results[0];
      const View view = op.kind == OpKind::load ? tensor_view(op, 0) : packed_view(op, op.operands[0]);
      const bool input = p_.tensors[static_cast<std::size_t>(op.tensor)].access == ir::Access::input;
      const auto& users = users_[static_cast<std::size_t>(v)];
      // What only dots multiply goes from the tensor to shared memory.
      const bool factor = std::all_of(users.begin(), users.end(), [v](const Op* u) {
        return u->kind == OpKind::dot && (u->operands.size() < 3 || u->operands[2] != v);
      });
      if (loads_late(op))
        rep(v).view = view, rep(v).late = true;
      else if (input && view.zero_fill && factor)
        rep(v).view = view;
      else
        rep(v).registers = load(view, p_.type(v).axes, input);
      return;
    }
    case OpKind::store:
    case OpKind::store_packed: return emit_store(op);
    case OpKind::dot: return emit_dot(op);
    case OpKind::reduce_sum:
    case OpKind::reduce_max:
    case OpKind::reduce_argmax:
    case OpKind::reduce_any: return emit_reduce(op);
    case OpKind::running_sum: return emit_running_sum(op);
    case OpKind::stage:
    case OpKind::take: throw InternalError("gpu emitter: staged loads are for the CPU");
    default: rep(op.results[0]).registers = make(op);
  }
}

void Emitter::emit_loop_op(const Op& op) {
  if (plan_ && &op == plan_->product.loop) return emit_product(op);
  if (mma_ && &op == mma_->product.loop) return emit_multistage(op);
  const ir::Region& body = op.regions[0];
  const auto vars = static_cast<std::size_t>(op.loop_vars()), anchors = static_cast<std::size_t>(op.anchors());
  Carried init;
  for (std::size_t i = 0; i < op.results.size(); ++i)
    for (Value* x : get(op.operands[anchors + i], layout(p_.type(op.results[i])))) init.push_back(x);

  const Range range = turns(op);
  auto hand_out = [&](const std::vector<ValueId>& to, std::size_t first, const Carried& from) {
    std::size_t at = 0;
    for (std::size_t i = first; i < to.size(); ++i) {
      Registers& r = rep(to[i]).registers;
      const auto n = static_cast<std::size_t>(layout(p_.type(to[i])).register_count());
      r.assign(from.begin() + static_cast<std::ptrdiff_t>(at), from.begin() + static_cast<std::ptrdiff_t>(at + n));
      at += n;
    }
  };
  const Carried done = counted_loop(
      b_, range.begin, range.end, c64(1), init,
      [&](Value* i, const Carried& now) {
        enter_turn(op, i);
        hand_out(body.args, vars, now);
        region(body);
        if (plan_ && &op == plan_->product.within) end_turn();
        Carried next;
        for (std::size_t k = 0; k < op.results.size(); ++k)
          for (Value* x : get(body.ops.back().operands[k], layout(p_.type(op.results[k])))) next.push_back(x);
        return next;
      },
      plan_ == std::nullopt);
  hand_out(op.results, 0, done);
}

Emitter::Range Emitter::turns(const Op& op) {
  if (op.over == LoopOver::axis) return {c64(0), block_count(op.axis, op.extent)};
  Value* number = rep(op.operands[0]).number;
  if (op.over == LoopOver::part) {
    Value *begin = b_.CreateMul(number, c64(op.count)), *last = b_.CreateAdd(begin, c64(op.count));
    Value* blocks = block_count(op.axis, op.extent);
    return {begin, b_.CreateSelect(b_.CreateICmpSLT(last, blocks), last, blocks)};
  }
  const std::int64_t begins = op.over == LoopOver::row ? 3 : 5;
  return {list_entry(op.list, begins, number), list_entry(op.list, begins, b_.CreateAdd(number, c64(1)))};
}

Value* Emitter::list_entry(int list, std::int64_t array, Value* at) {
  Value* ptr = b_.CreateGEP(b_.getInt32Ty(), pointer_argument(cpu::list_slot(p_, list) + array), at);
  return b_.CreateSExt(load_global(ptr, DType::i32, nullptr, nullptr, true), b_.getInt64Ty());
}

void Emitter::enter_turn(const Op& op, Value* i) {
  const auto& args = op.regions[0].args;
  if (op.list < 0) {
    rep(args[0]).number = i;
    return;
  }
  const bool row = op.over == LoopOver::row;
  rep(args[0]).number = list_entry(op.list, row ? 4 : 6, i);
  rep(args[1]).number = list_entry(op.list, row ? 2 : 1, rep(args[0]).number);
}

}  // namespace kerf::codegen::nvptx
