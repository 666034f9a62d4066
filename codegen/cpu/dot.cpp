// dot on the CPU. One operand ("lanes", x) is packed so that one vector load gives a k-step of `lanes` columns; of the
// other ("rows", y) single elements are broadcast. The micro-kernel keeps rows x vectors accumulators in registers over
// the whole contracted block and adds them to the tile once, so long sums are made of short ones, which keeps f32 exact
// enough over thousands of terms. bf16 pairs (AVX512-BF16) work the same with two products per lane and step.
//
//   x: panels of P = lanes * vectors columns: [panel][k / pair][P][pair]    a transposition when k is contiguous in
//   memory y: [row][k] or [k / pair][row][pair], whichever the memory order makes a plain copy; f32 buffers are used as
//   they lie
//
// What lies outside the tensor is packed as zeros up to the next full step, so loops end at the real size rounded up.
#include <algorithm>

#include "codegen/cpu/emit.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

using ir::Op;
using ir::OpKind;
using ir::ValueId;
using llvm::Value;

namespace {
constexpr int unroll = 4;  // k-steps of the micro-kernel per round
std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }
}  // namespace

Value* Emitter::bound(Value* limit, std::int64_t extent, std::int64_t step) {
  if (!limit) return c64(round_up(extent, step));
  return b_.CreateMul(b_.CreateUDiv(b_.CreateAdd(limit, c64(step - 1)), c64(step)), c64(step));
}

std::int64_t Emitter::packed_lanes_bytes(bool pairs, std::int64_t k_extent, std::int64_t extent) const {
  const std::int64_t pair = pairs ? 2 : 1;
  return round_up(k_extent, cpu_.lanes * pair) * round_up(extent, plan_.micro.panel()) * (pairs ? 2 : 4);
}

std::int64_t Emitter::packed_rows_bytes(bool pairs, std::int64_t k_extent, std::int64_t extent) const {
  const std::int64_t pair = pairs ? 2 : 1;
  return round_up(k_extent, cpu_.lanes * pair) * round_up(extent, cpu_.lanes) * (pairs ? 2 : 4);
}

Emitter::Line Emitter::line(const View& v, int axis, Value* i, bool may_pass_end) {
  Line l{v.base, nullptr};
  const ViewDim* d = v.dim(axis);
  auto also = [&](Value* c) { l.exists = l.exists ? b_.CreateAnd(l.exists, c) : c; };
  if (!d) {
    if (may_pass_end) also(b_.CreateICmpSLT(i, c64(1)));
    return l;
  }
  if (d->limit || may_pass_end) also(b_.CreateICmpSLT(i, d->limit ? d->limit : c64(d->extent)));
  Value* index = i;
  if (d->indices >= 0) {
    Point pt = scalar_point();
    // An index tile has storage for full vectors only up to its extent; past it read the last one.
    pt.index[static_cast<std::size_t>(axis)] = may_pass_end ? min64(i, c64(d->extent - 1)) : i;
    index = index_of(d->indices, pt);
    also(b_.CreateICmpULT(index, d->size));
    index = b_.CreateSelect(l.exists, index, c64(0));
  }
  llvm::Type* element = v.wide_storage ? buffer_type(v.dtype) : tensor_type(v.dtype);
  l.ptr = b_.CreateGEP(element, v.base, b_.CreateMul(index, d->stride));
  return l;
}

void Emitter::transpose(std::vector<Value*>& rows) {
  const int n = static_cast<int>(rows.size());
  for (int h = n / 2; h >= 1; h /= 2)
    for (int r = 0; r < n; ++r) {
      if (r & h) continue;
      Value *a = rows[static_cast<std::size_t>(r)], *b = rows[static_cast<std::size_t>(r + h)];
      std::vector<int> low, high;
      for (int j = 0; j < n; ++j) {
        low.push_back(j & h ? n + j - h : j);
        high.push_back(j & h ? n + j : j + h);
      }
      rows[static_cast<std::size_t>(r)] = b_.CreateShuffleVector(a, b, low);
      rows[static_cast<std::size_t>(r + h)] = b_.CreateShuffleVector(a, b, high);
    }
}

View Emitter::operand_view(ValueId v, int k, int own) {
  const Op* op = plan_.def(v);
  const Form form = plan_.form(v);
  auto fits = [&](const View& view) {
    bool unit = false;
    for (const ViewDim& d : view.dims) {
      if (d.axis != k && d.axis != own) return false;
      if (d.indices >= 0 && p_.type(d.indices).axes.size() != 1) return false;
      unit = unit || d.unit;
    }
    return unit && view.fill == 0;
  };
  if (form == Form::view && fits(*rep(v).view)) return *rep(v).view;
  if (form == Form::memory) {
    View view = memory_view(v);
    if (fits(view)) return view;
  }
  // Anything else is computed into a buffer of its own first.
  View view;
  const ir::Type& t = p_.type(v);
  const Layout layout = plan_.layout(t);
  view.base = allocate(layout.elements * buffer_bytes(t.dtype));
  view.dtype = t.dtype;
  view.wide_storage = true;
  each_point(t.axes, [&](const Point& pt) {
    Memo memo;
    Value* x = form == Form::in_place ? eval_op(*op, pt, memo) : eval(v, pt, memo);
    Value* offset = c64(0);
    for (std::size_t i = 0; i < layout.axes.size(); ++i)
      offset = b_.CreateAdd(offset,
                            b_.CreateMul(pt.index[static_cast<std::size_t>(layout.axes[i])], c64(layout.strides[i])));
    store_vector(splat(x, pt.lane >= 0 ? pt.width : 1), element_ptr(buffer_type(t.dtype), view.base, offset), nullptr);
  });
  for (std::size_t i = 0; i < layout.axes.size(); ++i) {
    ViewDim d;
    d.axis = layout.axes[i];
    d.extent = layout.extents[i];
    d.stride = c64(layout.strides[i]);
    d.unit = i + 1 == layout.axes.size();
    view.dims.push_back(d);
  }
  return view;
}

PackedLanes Emitter::pack_lanes(const View& x, const DotPlan& d, std::int64_t k_extent, std::int64_t extent,
                                Value* to) {
  const int w = cpu_.lanes, panel = plan_.micro.panel(), pair = d.pairs ? 2 : 1;
  const ViewDim *kd = x.dim(d.k), *ld = x.dim(d.lane);
  PackedLanes out{to, kd ? kd->limit : nullptr, ld ? ld->limit : nullptr};
  llvm::Type* packed = d.pairs ? static_cast<llvm::Type*>(b_.getInt16Ty()) : b_.getFloatTy();
  llvm::Type* element = x.wide_storage ? buffer_type(x.dtype) : tensor_type(x.dtype);
  Value* zero = llvm::Constant::getNullValue(element);
  const std::int64_t steps = round_up(k_extent, w * pair) / pair;
  Value* panels = b_.CreateUDiv(bound(out.limit, extent, panel), c64(panel));
  // The packed form of a vector: f32, or the bits of bf16.
  auto convert = [&](Value* raw) -> Value* {
    if (!d.pairs) return to_compute(raw, x.dtype, x.wide_storage);
    return x.wide_storage ? math_.narrow(b_, raw, DType::bf16) : raw;
  };
  auto at = [&](Value* p, Value* step, Value* lane) {  // element of a panel
    Value* o = b_.CreateMul(b_.CreateAdd(b_.CreateMul(p, c64(steps)), step), c64(panel));
    return element_ptr(packed, to, b_.CreateMul(b_.CreateAdd(o, lane), c64(pair)));
  };

  if (kd && kd->unit && ld) {  // k is contiguous: transposition of w columns by w steps
    Value* strips = bound(out.k_limit, k_extent, w * pair);
    loop(c64(0), b_.CreateMul(panels, c64(plan_.micro.vectors)), 1, [&](Value* group) {
      std::vector<Line> lines;
      for (int l = 0; l < w; ++l)
        lines.push_back(line(x, d.lane, b_.CreateAdd(b_.CreateMul(group, c64(w)), c64(l)), extent % panel != 0));
      Value* p = b_.CreateUDiv(group, c64(plan_.micro.vectors));
      Value* lane = b_.CreateMul(b_.CreateURem(group, c64(plan_.micro.vectors)), c64(w));
      loop(c64(0), strips, w * pair, [&](Value* k) {
        Value* inside = out.k_limit             ? lane_mask(k, out.k_limit, w * pair)
                        : k_extent % (w * pair) ? lane_mask(k, c64(k_extent), w * pair)
                                                : nullptr;
        std::vector<Value*> rows;
        for (const Line& l : lines) {
          Value* mask = inside;
          if (l.exists) {
            mask = splat(l.exists, w * pair);
            if (inside) mask = b_.CreateAnd(mask, inside);
          }
          Value* v = convert(load_vector(element, element_ptr(element, l.ptr, k), w * pair, mask, zero));
          if (d.pairs) v = b_.CreateBitCast(v, llvm::FixedVectorType::get(b_.getInt32Ty(), static_cast<unsigned>(w)));
          rows.push_back(v);
        }
        transpose(rows);
        Value* step = b_.CreateUDiv(k, c64(pair));
        for (int r = 0; r < w; ++r)
          b_.CreateAlignedStore(rows[static_cast<std::size_t>(r)], at(p, b_.CreateAdd(step, c64(r)), lane),
                                llvm::Align(4));
      });
    });
    return out;
  }

  // Columns are contiguous: rows of k are copied, two of them interleaved for pairs.
  Value* k_end = b_.CreateUDiv(bound(out.k_limit, k_extent, unroll * pair), c64(pair));
  loop(c64(0), k_end, 1, [&](Value* step) {
    std::vector<Line> lines;
    for (int j = 0; j < pair; ++j)
      lines.push_back(
          line(x, d.k, b_.CreateAdd(b_.CreateMul(step, c64(pair)), c64(j)), k_extent % (unroll * pair) != 0));
    loop(c64(0), panels, 1, [&](Value* p) {
      for (int v = 0; v < plan_.micro.vectors; ++v) {
        Value* first = b_.CreateAdd(b_.CreateMul(p, c64(panel)), c64(v * w));
        Value* inside = !ld              ? lane_mask(first, c64(1), w)
                        : ld->limit      ? lane_mask(first, ld->limit, w)
                        : extent % panel ? lane_mask(first, c64(extent), w)
                                         : nullptr;
        std::vector<Value*> rows;
        for (const Line& l : lines) {
          Value* mask = inside;
          if (l.exists) {
            mask = splat(l.exists, w);
            if (inside) mask = b_.CreateAnd(mask, inside);
          }
          rows.push_back(convert(load_vector(element, element_ptr(element, l.ptr, first), w, mask, zero)));
        }
        Value* value = rows[0];
        if (pair == 2) {
          std::vector<int> mix;
          for (int i = 0; i < w; ++i) {
            mix.push_back(i);
            mix.push_back(w + i);
          }
          value = b_.CreateShuffleVector(rows[0], rows[1], mix);
        }
        b_.CreateAlignedStore(value, at(p, step, c64(v * w)), llvm::Align(2));
      }
    });
  });
  return out;
}

PackedRows Emitter::pack_rows(const View& y, const DotPlan& d, std::int64_t k_extent, std::int64_t extent, Value* to) {
  const int w = cpu_.lanes, pair = d.pairs ? 2 : 1;
  const ViewDim *kd = y.dim(d.k), *rd = y.dim(d.row);
  PackedRows out{to, kd ? kd->limit : nullptr, rd ? rd->limit : nullptr, 0, 0};
  llvm::Type* element = y.wide_storage ? buffer_type(y.dtype) : tensor_type(y.dtype);

  // f32 with fixed strides and nothing outside: broadcast from where it lies, as far as whole rounds go.
  auto fixed = [](const ViewDim* v) {
    return v && v->indices < 0 && !v->limit && llvm::isa<llvm::ConstantInt>(v->stride);
  };
  if (!d.pairs && element->isFloatTy() && fixed(kd) && fixed(rd) && k_extent % unroll == 0) {
    out.base = y.base;
    out.k_stride = llvm::cast<llvm::ConstantInt>(kd->stride)->getSExtValue();
    out.row_stride = llvm::cast<llvm::ConstantInt>(rd->stride)->getSExtValue();
    return out;
  }

  llvm::Type* packed = d.pairs ? static_cast<llvm::Type*>(b_.getInt16Ty()) : b_.getFloatTy();
  Value* zero = llvm::Constant::getNullValue(element);
  const std::int64_t steps = round_up(k_extent, w * pair) / pair;
  auto convert = [&](Value* raw) -> Value* {
    if (!d.pairs) return to_compute(raw, y.dtype, y.wide_storage);
    return y.wide_storage ? math_.narrow(b_, raw, DType::bf16) : raw;
  };
  if (kd && kd->unit) {  // k is contiguous: [row][k]
    out.row_stride = steps;
    out.k_stride = 1;
    Value* rows = out.limit ? min64(bound(out.limit, extent, plan_.micro.rows), c64(extent)) : c64(extent);
    Value* strips = bound(out.k_limit, k_extent, w * pair);
    loop(c64(0), rows, 1, [&](Value* m) {
      const Line l = line(y, d.row, m, false);
      loop(c64(0), strips, w * pair, [&](Value* k) {
        Value* mask = out.k_limit             ? lane_mask(k, out.k_limit, w * pair)
                      : k_extent % (w * pair) ? lane_mask(k, c64(k_extent), w * pair)
                                              : nullptr;
        if (l.exists) mask = mask ? b_.CreateAnd(mask, splat(l.exists, w * pair)) : splat(l.exists, w * pair);
        Value* v = convert(load_vector(element, element_ptr(element, l.ptr, k), w * pair, mask, zero));
        Value* at = b_.CreateAdd(b_.CreateMul(m, c64(steps * pair)), k);
        b_.CreateAlignedStore(v, element_ptr(packed, to, at), llvm::Align(2));
      });
    });
    return out;
  }
  // Rows are contiguous: [k / pair][row][pair]
  const std::int64_t padded = round_up(extent, w);
  out.row_stride = 1;
  out.k_stride = padded;
  Value* k_end = b_.CreateUDiv(bound(out.k_limit, k_extent, unroll * pair), c64(pair));
  loop(c64(0), k_end, 1, [&](Value* step) {
    std::vector<Line> lines;
    for (int j = 0; j < pair; ++j)
      lines.push_back(
          line(y, d.k, b_.CreateAdd(b_.CreateMul(step, c64(pair)), c64(j)), k_extent % (unroll * pair) != 0));
    loop(c64(0), c64(padded), w, [&](Value* m) {
      Value* inside = !rd          ? lane_mask(m, c64(1), w)
                      : rd->limit  ? lane_mask(m, rd->limit, w)
                      : extent % w ? lane_mask(m, c64(extent), w)
                                   : nullptr;
      std::vector<Value*> rows;
      for (const Line& l : lines) {
        Value* mask = inside;
        if (l.exists) {
          mask = splat(l.exists, w);
          if (inside) mask = b_.CreateAnd(mask, inside);
        }
        rows.push_back(convert(load_vector(element, element_ptr(element, l.ptr, m), w, mask, zero)));
      }
      Value* value = rows[0];
      if (pair == 2) {
        std::vector<int> mix;
        for (int i = 0; i < w; ++i) {
          mix.push_back(i);
          mix.push_back(w + i);
        }
        value = b_.CreateShuffleVector(rows[0], rows[1], mix);
      }
      Value* at = b_.CreateMul(b_.CreateAdd(b_.CreateMul(step, c64(padded)), m), c64(pair));
      b_.CreateAlignedStore(value, element_ptr(packed, to, at), llvm::Align(2));
    });
  });
  return out;
}

void Emitter::micro_kernel(const Micro& m, Value* panel, Value* row, int rows) {
  const int w = cpu_.lanes, nv = plan_.micro.vectors, pair = m.pairs ? 2 : 1;
  llvm::Type* f32 = b_.getFloatTy();
  auto* vec = llvm::FixedVectorType::get(f32, static_cast<unsigned>(w));
  llvm::Type* packed = m.pairs ? static_cast<llvm::Type*>(b_.getInt16Ty()) : f32;
  llvm::Type* step_type = m.pairs ? static_cast<llvm::Type*>(b_.getInt32Ty()) : f32;  // one step of one row
  auto* pair_vec = llvm::FixedVectorType::get(b_.getBFloatTy(), static_cast<unsigned>(2 * w));
  const std::int64_t width = plan_.micro.panel();

  Value* x = element_ptr(packed, m.x.base, b_.CreateMul(panel, c64(m.steps * width * pair)));
  Value* y = element_ptr(step_type, m.y.base, b_.CreateMul(row, c64(m.y.row_stride)));
  Carried init(static_cast<std::size_t>(rows * nv), llvm::Constant::getNullValue(vec));
  init.push_back(x);
  init.push_back(y);
  Carried acc = counted_loop(b_, c64(0), m.k_steps, c64(unroll), init, [&](Value*, const Carried& now) {
    Carried next = now;
    Value *xp = now[now.size() - 2], *yp = now[now.size() - 1];
    for (int u = 0; u < unroll; ++u) {
      std::vector<Value*> xs;
      for (int v = 0; v < nv; ++v) {
        Value* at = element_ptr(packed, xp, c64((u * width + v * w) * pair));
        xs.push_back(b_.CreateAlignedLoad(m.pairs ? static_cast<llvm::Type*>(pair_vec) : vec, at, llvm::Align(4)));
      }
      for (int r = 0; r < rows; ++r) {
        Value* at = element_ptr(step_type, yp, c64(r * m.y.row_stride + u * m.y.k_stride));
        Value* one = splat(b_.CreateAlignedLoad(step_type, at, llvm::Align(4)), w);
        if (m.pairs) one = b_.CreateBitCast(one, pair_vec);
        for (int v = 0; v < nv; ++v) {
          Value*& a = next[static_cast<std::size_t>(r * nv + v)];
          a = m.pairs ? b_.CreateIntrinsic(llvm::Intrinsic::x86_avx512bf16_dpbf16ps_512, {},
                                           {a, xs[static_cast<std::size_t>(v)], one})
                      : emit_fma(b_, xs[static_cast<std::size_t>(v)], one, a, cpu_);
        }
      }
    }
    next[next.size() - 2] = element_ptr(packed, xp, c64(unroll * width * pair));
    next[next.size() - 1] = element_ptr(step_type, yp, c64(unroll * m.y.k_stride));
    return next;
  });
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < nv; ++v) {
      Value* o = b_.CreateAdd(b_.CreateMul(b_.CreateAdd(row, c64(r)), c64(m.out_stride)),
                              b_.CreateAdd(b_.CreateMul(panel, c64(width)), c64(v * w)));
      Value* at = element_ptr(f32, m.out, o);
      Value* sum = acc[static_cast<std::size_t>(r * nv + v)];
      if (m.add) sum = b_.CreateFAdd(b_.CreateAlignedLoad(vec, at, llvm::Align(4)), sum);
      b_.CreateAlignedStore(sum, at, llvm::Align(4));
    }
}

void Emitter::zero_tile(Value* base, std::int64_t elements) {
  auto* vec = llvm::FixedVectorType::get(b_.getFloatTy(), static_cast<unsigned>(cpu_.lanes));
  loop(c64(0), c64(elements), cpu_.lanes, [&](Value* i) {
    b_.CreateAlignedStore(llvm::Constant::getNullValue(vec), element_ptr(b_.getFloatTy(), base, i), llvm::Align(4));
  });
}

void Emitter::emit_dot(const Op& op) {
  const DotPlan d = plan_.dot(op);
  const ValueId v = op.results[0];
  const ValueId wide = op.operands[static_cast<std::size_t>(d.wide)],
                narrow = op.operands[static_cast<std::size_t>(1 - d.wide)];
  const std::int64_t k_extent = p_.type(wide).extent(d.k);
  const std::int64_t lane_extent = d.lane >= 0 ? p_.type(wide).extent(d.lane) : 1;
  const std::int64_t row_extent = d.row >= 0 ? p_.type(narrow).extent(d.row) : 1;
  if (p_.type(wide).axes.size() > 2 || p_.type(narrow).axes.size() > 2)
    throw DeviceError("cpu: dot takes operands of at most two axes; " + ir::to_text(p_, p_.type(wide)) + " or " +
                      ir::to_text(p_, p_.type(narrow)) + " has more");

  // The tile: rows of padded lanes. Its own buffer, or the carried one it adds to.
  Rep& r = rep(v);
  const bool add = op.operands.size() == 3;
  r.layout = plan_.layout(p_.type(v), true);
  bool in_place = false;
  if (add) {
    const ValueId acc = op.operands[2];
    for (const Op* user : plan_.users(v))
      in_place = in_place || (user->kind == OpKind::yield && !plan_.def(acc) && plan_.uses(acc) == 1 &&
                              plan_.uses(v) == 1 && grows_.contains(acc));
    if (in_place) r.base = rep(acc).base;
  }
  if (!in_place) r.base = allocate(r.layout.elements * 4);
  if (add && !in_place) {
    // Not `materialize` of v itself: what is copied is the value added to.
    Value* base = r.base;
    const Layout layout = r.layout;
    materialize(op.operands[2], base, layout);
  }
  const std::int64_t mark = scratch_now_;

  PackedLanes x;
  if (rep(wide).lanes) {
    x = *rep(wide).lanes;
  } else {
    const View view = operand_view(wide, d.k, d.lane);
    x = pack_lanes(view, d, k_extent, lane_extent, allocate(packed_lanes_bytes(d.pairs, k_extent, lane_extent)));
  }
  PackedRows y;
  if (rep(narrow).rows) {
    y = *rep(narrow).rows;
  } else {
    const View view = operand_view(narrow, d.k, d.row);
    y = pack_rows(view, d, k_extent, row_extent, allocate(packed_rows_bytes(d.pairs, k_extent, row_extent)));
  }

  const int pair = d.pairs ? 2 : 1, panel = plan_.micro.panel(), rows = plan_.micro.rows;
  Value* k_limit = x.k_limit ? x.k_limit : y.k_limit;
  const std::int64_t steps = round_up(k_extent, cpu_.lanes * pair) / pair;
  const std::int64_t out_stride = lane_extent > 1 ? round_up(lane_extent, panel) : panel;
  Value* out = r.base;
  // A tile with one lane is narrower than a vector: it is made beside the buffer and copied.
  const bool thin = lane_extent == 1;
  if (thin) out = allocate(row_extent * panel * 4);
  const bool adds = add && !thin;
  if (!adds && (x.limit || y.limit)) zero_tile(out, row_extent * out_stride);
  const Micro m{x,   y,          d.pairs, steps, b_.CreateUDiv(bound(k_limit, k_extent, unroll * pair), c64(pair)),
                out, out_stride, adds};
  loop(c64(0), b_.CreateUDiv(bound(x.limit, lane_extent, panel), c64(panel)), 1, [&](Value* p) {
    const std::int64_t full = row_extent / rows * rows;
    const int rest = static_cast<int>(row_extent - full);
    if (full)
      loop(c64(0), y.limit ? min64(y.limit, c64(full)) : c64(full), rows,
           [&](Value* row) { micro_kernel(m, p, row, rows); });
    if (rest) {
      auto tail = [&] { micro_kernel(m, p, c64(full), rest); };
      if (y.limit)
        emit_branch(b_, b_.CreateICmpSGT(y.limit, c64(full)), tail);
      else
        tail();
    }
  });
  if (thin)
    loop(c64(0), c64(row_extent), 1, [&](Value* row) {
      Value* to = element_ptr(b_.getFloatTy(), r.base, b_.CreateMul(row, c64(d.row >= 0 ? r.layout.stride(d.row) : 0)));
      Value* sum = b_.CreateLoad(b_.getFloatTy(), element_ptr(b_.getFloatTy(), out, b_.CreateMul(row, c64(panel))));
      if (add) sum = b_.CreateFAdd(b_.CreateLoad(b_.getFloatTy(), to), sum);
      b_.CreateStore(sum, to);
    });
  scratch_now_ = mark;
}

}  // namespace kerf::codegen::cpu
