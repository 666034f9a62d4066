// The engine of sm_90a: a kernel whose warpgroups have two roles. One walks the program for the numbers of its blocks
// alone and copies what the product will read, by TMA, into a ring of stages in shared memory; the others run the
// program and find the product's operands there. Full barriers say that a stage has arrived, empty ones that every
// group has multiplied it. Source of the scheme: CUTLASS's warp-specialised persistent kernels; of the instructions:
// PTX ISA 8.3, wgmma, cp.async.bulk.tensor and mbarrier.
//
// What follows a product (a softmax, a conversion) the groups do one after the other: left alone they would stay in
// step and leave the tensor cores idle at the same time. From the second tile on a group is late by one such piece of
// work, and no one waits.
#include <fmt/format.h>

#include "codegen/nvptx/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::nvptx {

using ir::Op;
using ir::OpKind;
using llvm::Value;

namespace {
// Named barriers: 0 is for all threads, 1 for all that multiply.
constexpr int turn_barrier = 2, own_barrier = 8;
}  // namespace

Value* Emitter::shared_address(std::int64_t offset) {
  return b_.CreateAdd(b_.CreatePtrToInt(shared_, b_.getInt32Ty()), c32(offset));
}

Emitter::Ring Emitter::make_ring(int parity) {
  llvm::IRBuilder<> at(setup_, setup_->begin());
  Ring ring{at.CreateAlloca(at.getInt32Ty()), at.CreateAlloca(at.getInt32Ty())};
  b_.CreateStore(c32(0), ring.stage);
  b_.CreateStore(c32(parity), ring.parity);
  return ring;
}

void Emitter::advance(const Ring& ring) {
  Value* next = b_.CreateAdd(b_.CreateLoad(b_.getInt32Ty(), ring.stage), c32(1));
  Value* around = b_.CreateICmpEQ(next, c32(plan_->stages));
  Value* parity = b_.CreateLoad(b_.getInt32Ty(), ring.parity);
  b_.CreateStore(b_.CreateSelect(around, c32(0), next), ring.stage);
  b_.CreateStore(b_.CreateXor(parity, b_.CreateZExt(around, b_.getInt32Ty())), ring.parity);
}

Value* Emitter::ring_barrier(const Ring& ring, bool empty) {
  Value* stage = b_.CreateLoad(b_.getInt32Ty(), ring.stage);
  return b_.CreateAdd(shared_address(barriers_at_ + (empty ? 8 * plan_->stages : 0)), b_.CreateShl(stage, 3));
}

void Emitter::wait_for(Value* barrier, Value* parity) {
  asm_call(b_.getVoidTy(),
           "{ .reg .pred done; WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; @done bra DONE; "
           "bra WAIT; DONE: }",
           "r,r,~{memory}", {barrier, parity}, true);
}

void Emitter::emit_roles() {
  const int groups = plan_->groups;
  llvm::LLVMContext& context = module_.getContext();
  auto block = [&](const char* name) { return llvm::BasicBlock::Create(context, name, fn_); };
  // The same number in each lane, so that the branch is known to be taken by whole warps.
  Value* warp = b_.CreateIntrinsic(llvm::Intrinsic::nvvm_shfl_sync_idx_i32, {}, {c32(-1), warp_, c32(0), c32(31)});
  group_ = b_.CreateLShr(warp, 2);
  emit_branch(b_, b_.CreateICmpEQ(thread_, c32(0)), [&] {
    for (int s = 0; s < plan_->stages; ++s)
      for (const auto& [at, arrivals] : {std::pair{8 * s, 1}, {8 * (plan_->stages + s), 4 * groups}})
        asm_call(b_.getVoidTy(), "mbarrier.init.shared::cta.b64 [$0], $1;", "r,r,~{memory}",
                 {shared_address(barriers_at_ + at), c32(arrivals)}, true);
    asm_call(b_.getVoidTy(), "fence.mbarrier_init.release.cluster;", "~{memory}", {}, true);
  });
  b_.CreateIntrinsic(llvm::Intrinsic::nvvm_barrier0, {}, {});

  auto *copy = block("copy"), *multiply = block("multiply"), *done = block("end");
  b_.CreateCondBr(b_.CreateICmpEQ(group_, c32(groups)), copy, multiply);
  b_.SetInsertPoint(copy);
  b_.CreateIntrinsic(llvm::Intrinsic::nvvm_setmaxnreg_dec_sync_aligned_u32, {}, {c32(plan_->copy_registers())});
  Value* one = b_.CreateAnd(b_.CreateICmpEQ(warp, c32(4 * groups)), b_.CreateICmpEQ(lane_, c32(0)));
  emit_branch(b_, one, [&] {
    const Ring ring = make_ring(1);
    choose_policies();
    for_each_instance([&] { copy_region(p_.body, ring); });
  });
  b_.CreateBr(done);

  b_.SetInsertPoint(multiply);
  b_.CreateIntrinsic(llvm::Intrinsic::nvvm_setmaxnreg_inc_sync_aligned_u32, {}, {c32(plan_->multiply_registers())});
  ring_ = make_ring(0);
  if (plan_->take_turns)
    emit_branch(b_, b_.CreateICmpEQ(group_, c32(groups - 1)),
                [&] { asm_call(b_.getVoidTy(), "bar.arrive $0, 256;", "r,~{memory}", {c32(turn_barrier)}, true); });
  for_each_instance([&] {
    region(p_.body);
    end_turn();
  });
  b_.CreateBr(done);
  b_.SetInsertPoint(done);
}

// ---- the group that copies ----

void Emitter::choose_policies() {
  if (schedule_.band == 0) return;
  int swept = -1;
  for (const Op& op : p_.body.ops)
    if (op.kind == OpKind::parallel) swept = op.axis;
  // What a band reads again and again stays, what passes it goes.
  for (int map : {0, 1}) {
    const Factor& f = map == 0 ? plan_->product.row : plan_->product.column;
    policies_[map] = asm_call(
        b_.getInt64Ty(),
        fmt::format("createpolicy.fractional.L2::{}.b64 $0, 1.0;", f.own == swept ? "evict_last" : "evict_first"), "=l",
        {}, true);
  }
}

void Emitter::copy_region(const ir::Region& r, const Ring& ring) {
  const Product& product = plan_->product;
  for (const Op& op : r.ops) {
    if (op.kind == OpKind::whole) rep(op.results[0]).number = c64(0);
    if (op.kind != OpKind::loop || (&op != product.loop && &op != product.within)) continue;
    const Range range = turns(op);
    counted_loop(
        b_, range.begin, range.end, c64(1), {},
        [&](Value* i, const Carried&) {
          enter_turn(op, i);
          if (&op == product.loop)
            copy_turn(ring);
          else
            copy_region(op.regions[0], ring);
          return Carried{};
        },
        false);
  }
}

void Emitter::copy_turn(const Ring& ring) {
  const Product& product = plan_->product;
  counted_loop(
      b_, c32(0), c32(product.turn / WgmmaPlan::step), c32(1), {},
      [&](Value* step, const Carried&) {
        wait_for(ring_barrier(ring, true), b_.CreateLoad(b_.getInt32Ty(), ring.parity));
        // Boxes that reach past the end of a tensor count in full.
        asm_call(b_.getVoidTy(), "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", "r,r,~{memory}",
                 {ring_barrier(ring, false), c32(plan_->stage_bytes())}, true);
        copy_box(product.row, 0, 0, step, ring);
        copy_box(product.column, 1, plan_->row_bytes(), step, ring);
        advance(ring);
        return Carried{};
      },
      false);
}

void Emitter::copy_box(const Factor& f, int map, std::int64_t offset, Value* step, const Ring& ring) {
  const ir::TensorInfo& tensor = p_.tensors[static_cast<std::size_t>(f.load->tensor)];
  Value *own = c32(0), *k = b_.CreateShl(step, c32(6));
  auto first = [&](Value* number, std::int64_t extent) {
    return b_.CreateTrunc(b_.CreateMul(number, c64(extent)), b_.getInt32Ty());
  };
  if (f.load->kind == OpKind::load_packed) {
    // Tiles lie one below the other.
    Value*& slow = f.k_contiguous ? own : k;
    const std::int64_t extent = f.k_contiguous ? f.extent : plan_->product.turn;
    slow = b_.CreateAdd(slow, first(rep(f.load->operands[0]).number, extent));
  } else {
    for (std::size_t i = 0; i < 2; ++i) {
      Value*& at = tensor.axes[i] == f.own ? own : k;
      const std::int64_t extent = p_.type(f.load->operands[i]).axes[0].extent;
      at = b_.CreateAdd(at, first(rep(f.load->operands[i]).number, extent));
    }
  }
  Value* stage = b_.CreateMul(b_.CreateLoad(b_.getInt32Ty(), ring.stage), c32(plan_->stage_bytes()));
  Value *to = b_.CreateAdd(shared_address(offset), stage), *full = ring_barrier(ring, false);
  Value* described = b_.CreatePtrToInt(fn_->getArg(static_cast<unsigned>(map)), b_.getInt64Ty());
  const std::int64_t boxes = f.k_contiguous ? 1 : f.extent / WgmmaPlan::step;
  for (std::int64_t i = 0; i < boxes; ++i) {
    Value *x = f.k_contiguous ? k : b_.CreateAdd(own, c32(64 * i)), *y = f.k_contiguous ? own : k;
    std::vector<Value*> args{b_.CreateAdd(to, c32(8192 * i)), described, x, y, full};
    if (policies_[map]) args.push_back(policies_[map]);
    asm_call(b_.getVoidTy(),
             fmt::format("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes{} [$0], "
                         "[$1, {{$2, $3}}], [$4]{};",
                         policies_[map] ? ".L2::cache_hint" : "", policies_[map] ? ", $5" : ""),
             policies_[map] ? "r,l,r,r,r,l,~{memory}" : "r,l,r,r,r,~{memory}", args, true);
  }
}

// ---- the groups that multiply ----

Emitter::Registers Emitter::multiply_step(const Registers& acc, bool fresh, const Ring& ring, int left_in_flight) {
  const Product& product = plan_->product;
  const int wide = plan_->columns_at_once, parts = static_cast<int>(product.column.extent) / wide, each = wide / 2;
  const int count = plan_->slices * parts * each;
  // Shared-memory descriptors: the 128-byte swizzle, groups of 8 rows 1024 bytes apart; where k is not contiguous,
  // pieces of 64 are 8192 bytes apart.
  auto descriptor = [&](const Factor& f, Value* at) {
    const std::uint64_t fields =
        std::uint64_t{1} << 62 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{f.k_contiguous ? 1U : 8192U >> 4} << 16;
    return b_.CreateOr(to64(b_.CreateLShr(at, 4)), c64(static_cast<std::int64_t>(fields)));
  };
  Value* stage = b_.CreateMul(b_.CreateLoad(b_.getInt32Ty(), ring.stage), c32(plan_->stage_bytes()));
  Value* rows = b_.CreateAdd(b_.CreateAdd(shared_address(0), stage), b_.CreateMul(group_, c32(8192 * plan_->slices)));
  Value* columns = b_.CreateAdd(shared_address(plan_->row_bytes()), stage);

  std::string constraints, text = "{ .reg .pred p; .reg .b64 da, db; wgmma.fence.sync.aligned;\n";
  std::vector<Value*> args;
  for (int i = 0; i < count; ++i) constraints += "=f,";
  if (!fresh)
    for (int i = 0; i < count; ++i) {
      constraints += std::to_string(i) + ",";
      args.push_back(acc[static_cast<std::size_t>(i)]);
    }
  const int a = count + static_cast<int>(args.size()), b = a + 1;
  constraints += "l,l,~{memory}";
  args.push_back(descriptor(product.row, rows));
  args.push_back(descriptor(product.column, columns));
  const int row_step = product.row.k_contiguous ? 2 : 128, column_step = product.column.k_contiguous ? 2 : 128;
  for (int k = 0; k < 4; ++k) {
    text += fmt::format("setp.ne.b32 p, {}, 0;\n", fresh && k == 0 ? 0 : 1);
    for (int m = 0; m < plan_->slices; ++m)
      for (int h = 0; h < parts; ++h) {
        std::string registers;
        for (int i = 0; i < each; ++i) registers += fmt::format("{}${}", i ? ", " : "", (m * parts + h) * each + i);
        text += fmt::format(
            "add.s64 da, ${}, {}; add.s64 db, ${}, {};\n"
            "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{}.{} {{{}}}, da, db, p, 1, 1, {}, {};\n",
            a, row_step * k + 512 * m, b, column_step * k + 8 * wide * h, wide, name_of(product.dtype),
            name_of(product.dtype), registers, product.row.k_contiguous ? 0 : 1, product.column.k_contiguous ? 0 : 1);
      }
  }
  text += "wgmma.commit_group.sync.aligned;\n";
  if (left_in_flight >= 0) text += fmt::format("wgmma.wait_group.sync.aligned {};\n", left_in_flight);
  auto* type = llvm::StructType::get(b_.getContext(),
                                     std::vector<llvm::Type*>(static_cast<std::size_t>(count), b_.getFloatTy()));
  Value* all = asm_call(type, text + "}", constraints, args, true);
  Registers out;
  for (int i = 0; i < count; ++i) out.push_back(b_.CreateExtractValue(all, static_cast<unsigned>(i)));
  return out;
}

Emitter::Registers Emitter::wait_with(const Registers& acc, const std::string& text, const std::vector<Value*>& more) {
  std::string constraints;
  for (std::size_t i = 0; i < acc.size(); ++i) constraints += "=f,";
  for (std::size_t i = 0; i < acc.size(); ++i) constraints += std::to_string(i) + ",";
  for (std::size_t i = 0; i < more.size(); ++i) constraints += "r,";
  std::vector<Value*> args = acc;
  args.insert(args.end(), more.begin(), more.end());
  auto* type = llvm::StructType::get(b_.getContext(), std::vector<llvm::Type*>(acc.size(), b_.getFloatTy()));
  Value* all = asm_call(type, text, constraints + "~{memory}", args, true);
  Registers out;
  for (std::size_t i = 0; i < acc.size(); ++i) out.push_back(b_.CreateExtractValue(all, static_cast<unsigned>(i)));
  return out;
}

void Emitter::release(Value* stage) {
  emit_branch(b_, b_.CreateICmpEQ(lane_, c32(0)), [&] {
    Value* empty = b_.CreateAdd(shared_address(barriers_at_ + 8 * plan_->stages), b_.CreateShl(stage, 3));
    asm_call(b_.getVoidTy(), "mbarrier.arrive.shared::cta.b64 _, [$0];", "r,~{memory}", {empty}, true);
  });
}

void Emitter::emit_product(const Op& op) {
  const Product& product = plan_->product;
  const Range range = turns(op);
  Value* steps = b_.CreateMul(b_.CreateSub(range.end, range.begin), c64(product.turn / WgmmaPlan::step));
  auto now = [&] { return b_.CreateLoad(b_.getInt32Ty(), ring_.stage); };
  auto before = [&](Value* stage) {
    return b_.CreateSelect(b_.CreateICmpEQ(stage, c32(0)), c32(plan_->stages - 1), b_.CreateSub(stage, c32(1)));
  };
  auto step = [&](const Registers& acc, bool fresh, int left) {
    wait_for(ring_barrier(ring_, false), b_.CreateLoad(b_.getInt32Ty(), ring_.parity));
    return multiply_step(acc, fresh, ring_, left);
  };
  const bool peel = product.from_zero && product.never_empty;
  Registers acc;
  if (peel) {
    acc = step({}, true, -1);
    advance(ring_);
  } else {
    acc = get(op.operands[static_cast<std::size_t>(op.anchors())], layout(p_.type(op.results[0])));
  }
  acc = counted_loop(
      b_, c64(peel ? 1 : 0), steps, c64(1), acc,
      [&](Value* i, const Carried& before_step) {
        const Carried next = step(before_step, false, 1);  // one left in flight: the stage before has been read
        if (peel)
          release(before(now()));
        else
          emit_branch(b_, b_.CreateICmpNE(i, c64(0)), [&] { release(before(now())); });
        advance(ring_);
        return next;
      },
      false);
  acc = wait_with(acc, "wgmma.wait_group.sync.aligned 0;", {});
  if (peel)
    release(before(now()));
  else
    emit_branch(b_, b_.CreateICmpSGT(steps, c64(0)), [&] { release(before(now())); });
  if (plan_->take_turns) {
    // ptxas would move arithmetic above a bare barrier, and with it what the turns are for; it moves none above a loop.
    // This one is never made twice: a grid has at least one block in every dimension.
    Value* blocks = b_.CreateIntrinsic(llvm::Intrinsic::nvvm_read_ptx_sreg_nctaid_y, {}, {});
    acc = wait_with(acc,
                    fmt::format("{{ .reg .pred again; TURN: bar.sync ${}, 256; setp.eq.u32 again, ${}, 0; "
                                "@again bra TURN; }}",
                                2 * acc.size(), 2 * acc.size() + 1),
                    {b_.CreateAdd(group_, c32(turn_barrier)), blocks});
    in_turn_ = true;
  }
  rep(op.results[0]).registers = acc;
}

void Emitter::end_turn() {
  if (!in_turn_) return;
  in_turn_ = false;
  Value* last = b_.CreateICmpEQ(group_, c32(plan_->groups - 1));
  Value* next = b_.CreateSelect(last, c32(turn_barrier), b_.CreateAdd(group_, c32(turn_barrier + 1)));
  asm_call(b_.getVoidTy(), "bar.arrive $0, 256;", "r,~{memory}", {next}, true);
}

void Emitter::group_barrier() {
  asm_call(b_.getVoidTy(), "bar.sync $0, 128;", "r,~{memory}", {b_.CreateAdd(group_, c32(own_barrier))}, true);
}

// ---- results ----

bool Emitter::store_by_box(const Op& op) {
  if (store_map_ < 0 || op.kind != OpKind::store_packed || (plan_->groups > 1 && !in_turn_)) return false;
  const ir::TensorInfo& tensor = p_.tensors[static_cast<std::size_t>(op.tensor)];
  if (maps_[static_cast<std::size_t>(store_map_)].tensor != op.tensor) return false;
  const Product& product = plan_->product;
  const bool transposed = tensor.axes[1] == product.row.own;
  const int columns = static_cast<int>(product.column.extent), slices = plan_->slices;
  const Op* made = def(op.operands[0]);
  const bool rounded = made && made->kind == OpKind::cast && p_.type(made->operands[0]).dtype == DType::f32 &&
                       p_.type(made->operands[0]).axes.size() == 2;
  const ir::ValueId source = rounded ? made->operands[0] : op.operands[0];
  const Registers x = get(source, layout(p_.type(source)));

  if (!in_turn_) group_barrier();  // the last box has left
  // stmatrix takes four 8 x 8 pieces: two of 8 columns, each with the upper and the lower 8 of a warp's 16 rows; lane
  // l says where row l % 8 of piece l / 8 goes, or column l % 8 where they are stored transposed. Units of 16 bytes lie
  // where the 128-byte swizzle wants them.
  Value *warp = b_.CreateAnd(warp_, c32(3)), *piece = b_.CreateLShr(lane_, 3), *line = b_.CreateAnd(lane_, c32(7));
  Value *lower = b_.CreateAnd(piece, c32(1)), *right = b_.CreateLShr(piece, 1);
  Value *row = nullptr, *unit = nullptr;  // of 128 bytes, and in it
  if (transposed) {
    row = b_.CreateAdd(b_.CreateShl(right, 3), line);
    unit = b_.CreateAdd(b_.CreateShl(warp, 1), lower);
  } else {
    row = b_.CreateAdd(b_.CreateAdd(b_.CreateShl(warp, 4), b_.CreateShl(lower, 3)), line);
    unit = right;
  }
  Value* base = b_.CreateAdd(shared_address(staging_at_), b_.CreateShl(row, 7));
  for (int m = 0; m < slices; ++m)
    for (int j = 0; j < columns / 8; j += 2) {
      std::vector<Value*> args;
      const std::int64_t at = transposed ? (static_cast<std::int64_t>(m) * columns + 8 * j) * 128
                                         : (static_cast<std::int64_t>(m) * (columns / 64) + j / 8) * 8192;
      Value* in_row = b_.CreateXor(transposed ? unit : b_.CreateAdd(unit, c32(j % 8)), line);
      args.push_back(b_.CreateAdd(b_.CreateAdd(base, c32(at)), b_.CreateShl(in_row, 4)));
      for (int piece_at = 0; piece_at < 4; ++piece_at) {
        const auto r = static_cast<std::size_t>(m * columns / 2 + 4 * (j + piece_at / 2) + 2 * (piece_at % 2));
        args.push_back(packed_pair(x[r], x[r + 1], tensor.dtype));
      }
      asm_call(b_.getVoidTy(),
               fmt::format("stmatrix.sync.aligned.m8n8.x4{}.shared.b16 [$0], {{$1, $2, $3, $4}};",
                           transposed ? ".trans" : ""),
               "r,r,r,r,r,~{memory}", args, true);
    }
  asm_call(b_.getVoidTy(), "fence.proxy.async.shared::cta;", "~{memory}", {}, true);
  group_barrier();
  emit_branch(b_, b_.CreateICmpEQ(b_.CreateAnd(thread_, c32(127)), c32(0)), [&] {
    Value* described = b_.CreatePtrToInt(fn_->getArg(static_cast<unsigned>(store_map_)), b_.getInt64Ty());
    const std::int64_t tile_rows = transposed ? columns : product.row.extent;
    Value* tile = b_.CreateTrunc(b_.CreateMul(rep(op.operands[1]).number, c64(tile_rows)), b_.getInt32Ty());
    Value* own = b_.CreateMul(group_, c32(64 * slices));
    for (int m = 0; m < slices; ++m)
      for (int chunk = 0; chunk < (transposed ? 1 : columns / 64); ++chunk) {
        Value* mine = b_.CreateAdd(own, c32(64 * m));
        Value *column = transposed ? mine : c32(64 * chunk), *first = transposed ? tile : b_.CreateAdd(tile, mine);
        const std::int64_t at = transposed ? static_cast<std::int64_t>(m) * columns * 128
                                           : (static_cast<std::int64_t>(m) * (columns / 64) + chunk) * 8192;
        asm_call(b_.getVoidTy(), "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [$0, {$1, $2}], [$3];",
                 "l,r,r,r,~{memory}", {described, column, first, shared_address(staging_at_ + at)}, true);
      }
    asm_call(b_.getVoidTy(), "cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;", "~{memory}", {}, true);
  });
  return true;
}

}  // namespace kerf::codegen::nvptx
