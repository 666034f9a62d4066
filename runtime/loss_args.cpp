#include "runtime/loss_args.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kerf/error.h"
#include "runtime/device_programs.h"

namespace kerf::runtime {

namespace {

constexpr const char* device_name(DeviceType t) { return t == DeviceType::cpu ? "cpu" : "cuda"; }

bool overlap(std::uintptr_t a0, std::uintptr_t a1, std::uintptr_t b0, std::uintptr_t b1) { return a0 < b1 && b0 < a1; }

}  // namespace

void ArgumentCheck::fail(const std::string& what) const { throw UsageError(call_ + ": " + what); }

void ArgumentCheck::memory(const char* name, const TensorRef& t, bool output) {
  if (t.rank < 0 || t.rank > TensorRef::max_rank)
    fail(fmt::format("{} has {} dimensions; at most {} are allowed", name, t.rank, +TensorRef::max_rank));
  if (t.device != desc_.device)
    fail(fmt::format("{} lies on {}:{} and the plan computes on {}:{}", name, device_name(t.device.type),
                     t.device.ordinal, device_name(desc_.device.type), desc_.device.ordinal));
  const std::int64_t size = size_of(t.dtype);
  std::int64_t elements = 1, last = 0, reach = 0;  // last: offset of the last element
  bool fits = true, empty = false;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] < 0) fail(fmt::format("{} is {}; sizes must not be negative", name, t.describe()));
    empty = empty || t.shape[i] == 0;
    if (t.shape[i] > 1 && t.strides[i] < 0)
      fail(fmt::format("{} is {}; strides must not be negative", name, t.describe()));
  }
  for (int i = 0; i < t.rank && !empty; ++i) {
    fits = fits && !__builtin_mul_overflow(elements, t.shape[i], &elements);
    if (t.shape[i] == 1) continue;
    fits = fits && !__builtin_mul_overflow(t.shape[i] - 1, t.strides[i], &reach) &&
           !__builtin_add_overflow(last, reach, &last);
  }
  std::int64_t bytes = 0;
  fits = fits && !__builtin_mul_overflow(elements, size, &bytes) && !__builtin_mul_overflow(last, size, &bytes) &&
         !__builtin_add_overflow(bytes, size, &bytes);
  const auto begin = reinterpret_cast<std::uintptr_t>(t.data);
  if (!fits || begin + static_cast<std::uintptr_t>(bytes) < begin)
    fail(fmt::format("{} is {}; its size in bytes passes 2^63", name, t.describe()));
  if (empty) return;
  if (!t.data) fail(fmt::format("{} is {} at a null pointer", name, t.describe()));
  if (begin % static_cast<std::uintptr_t>(size))
    fail(fmt::format("{} is {} at {}, which is not aligned to the {} bytes of an element", name, t.describe(), t.data,
                     size));
  // Rows along the last dimension, evenly spaced along the one before: enough to tell interleaved matrices apart.
  Span s{name, begin, begin + static_cast<std::uintptr_t>(bytes), bytes, bytes, output};
  if (t.rank >= 2 && (t.rank == 2 || t.strides[0] == t.shape[1] * t.strides[1]) && t.strides[t.rank - 1] == 1) {
    s.width = t.shape[t.rank - 1] * size;
    s.step = t.strides[t.rank - 2] * size;
  }
  spans_.push_back(s);
}

void ArgumentCheck::no_overlap() const {
  for (std::size_t i = 0; i < spans_.size(); ++i) {
    for (std::size_t j = i + 1; j < spans_.size(); ++j) {
      const Span &a = spans_[i], &b = spans_[j];
      if (!(a.output || b.output) || !overlap(a.begin, a.end, b.begin, b.end)) continue;
      if (a.step == b.step && a.step > 0) {  // columns of one matrix
        const auto step = static_cast<std::uintptr_t>(a.step);
        const std::uintptr_t gap =
            b.begin >= a.begin ? (b.begin - a.begin) % step : (step - (a.begin - b.begin) % step) % step;
        if (gap >= static_cast<std::uintptr_t>(a.width) && gap + static_cast<std::uintptr_t>(b.width) <= step) continue;
      }
      fail(fmt::format(
          "{} and {} share memory: bytes [{:#x}, {:#x}) and [{:#x}, {:#x}); {} is written, so give it memory "
          "of its own",
          a.name, b.name, a.begin, a.end, b.begin, b.end, a.output ? a.name : b.name));
    }
  }
}

void ArgumentCheck::require_given(const char* name, const TensorRef& t) const {
  if (!t.given()) fail(fmt::format("{} is not given", name));
}

void ArgumentCheck::require_dtype(const char* name, const TensorRef& t, bool ok, const char* wanted) const {
  if (!ok) fail(fmt::format("{} is {}; it must be {}", name, t.describe(), wanted));
}

std::string ArgumentCheck::row_shape() const {
  return e_.rank == 2 ? fmt::format("[{}]", e_.shape[0]) : fmt::format("[{}, {}]", e_.shape[0], e_.shape[1]);
}

void ArgumentCheck::require_rows(const char* name, const TensorRef& t) const {
  if (t.rank != e_.rank - 1 || !std::equal(t.shape, t.shape + t.rank, e_.shape))
    fail(fmt::format("{} is {} and e is {}; {} must be {}, one element per row of e", name, t.describe(), e_.describe(),
                     name, row_shape()));
}

TensorRef ArgumentCheck::flat_rows(const char* name, const TensorRef& t) const {
  const std::int64_t D = t.shape[t.rank - 1], count = t.rank == 2 ? t.shape[0] : t.shape[0] * t.shape[1];
  std::int64_t step = D;
  if (count > 0 && D > 1 && t.strides[t.rank - 1] != 1)
    fail(fmt::format("{} is {}; its rows must be contiguous (last stride 1)", name, t.describe()));
  if (count > 1) {
    step = t.strides[t.rank == 3 && t.shape[1] == 1 ? 0 : t.rank - 2];
    if (step < D)
      fail(fmt::format("{} is {}; rows overlap: the step from one to the next must be at least {}", name, t.describe(),
                       D));
    if (t.rank == 3 && t.shape[0] > 1 && t.shape[1] > 1 && t.strides[0] != t.shape[1] * step)
      fail(
          fmt::format("{} is {}; rows must be evenly spaced across sequences (first stride {}): to leave out the last "
                      "rows of each, pass all of them and set PlanDesc::shift",
                      name, t.describe(), t.shape[1] * step));
  }
  TensorRef flat(t.data, t.dtype, {count, D}, t.device);
  flat.strides[0] = step;
  return flat;
}

TensorRef ArgumentCheck::dense_rows(const char* name, const TensorRef& t, std::int64_t count) const {
  std::int64_t expect = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] > 1 && t.strides[i] != expect) fail(fmt::format("{} is {}; it must be dense", name, t.describe()));
    expect *= t.shape[i];
  }
  return TensorRef(t.data, t.dtype, {count}, t.device);
}

TensorRef ArgumentCheck::embeddings(const TensorRef& e, const TensorRef& c) {
  require_given("e", e);
  require_given("c", c);
  if (e.rank != 2 && e.rank != 3) fail(fmt::format("e is {}; it must be [N, D] or [B, T, D]", e.describe()));
  if (c.rank != 2) fail(fmt::format("c is {}; it must be [V, D]", c.describe()));
  const std::int64_t D = e.shape[e.rank - 1];
  if (D != c.shape[1]) fail(fmt::format("e is {}, c is {}; both end in D and D differs", e.describe(), c.describe()));
  if (D != desc_.hidden || c.shape[0] != desc_.vocabulary)
    fail(fmt::format("e is {}, c is {} and the plan was made for D = {}, V = {}", e.describe(), c.describe(),
                     desc_.hidden, desc_.vocabulary));
  for (const auto& [name, t] : {std::pair{"e", &e}, {"c", &c}})
    if (t->dtype != desc_.dtype)
      fail(fmt::format("{} is {} and the plan was made for {}", name, t->describe(), name_of(desc_.dtype)));
  memory("e", e, false);
  memory("c", c, false);
  flat_rows("c", c);
  e_ = e;
  const TensorRef flat = flat_rows("e", e);
  rows_ = flat.shape[0];
  return flat;
}

Labels ArgumentCheck::labels(const TensorRef& target, const TensorRef& cu_seqlens) {
  require_given("target", target);
  require_dtype("target", target, is_integer(target.dtype), "i32 or i64");
  memory("target", target, false);
  require_rows("target", target);
  Labels l{.target = target,
           .rows = rows_,
           .sequences = e_.rank == 3 ? std::max<std::int64_t>(e_.shape[0], 1) : 1,
           .cu_seqlens = cu_seqlens,
           .shift = desc_.shift,
           .ignore_index = desc_.ignore_index,
           .vocabulary = desc_.vocabulary};
  if (!cu_seqlens.given()) {
    if (desc_.shift > 0 && e_.rank == 2)
      fail(
          fmt::format("e is {} and the plan shifts labels by {}: give e as [B, T, D], or cu_seqlens, to tell where "
                      "sequences end",
                      e_.describe(), desc_.shift));
    return l;
  }
  const TensorRef& cu = cu_seqlens;
  if (e_.rank == 3) fail(fmt::format("e is {} and cu_seqlens is given; it goes with e as [N, D]", e_.describe()));
  require_dtype("cu_seqlens", cu, is_integer(cu.dtype), "i32 or i64");
  memory("cu_seqlens", cu, false);
  if (cu.rank != 1 || cu.shape[0] < 2)
    fail(fmt::format("cu_seqlens is {}; it must be [sequences + 1], at least 2 elements", cu.describe()));
  l.sequences = cu.shape[0] - 1;
  if (desc_.device.type == DeviceType::cpu) check_sequences(cu, rows_, call_);
  return l;
}

TensorRef ArgumentCheck::per_row(const char* name, const TensorRef& t, bool output) {
  require_given(name, t);
  require_dtype(name, t, t.dtype == f32, "f32");
  memory(name, t, output);
  require_rows(name, t);
  return dense_rows(name, t, rows_);
}

TensorRef ArgumentCheck::single(const char* name, const TensorRef& t, bool output) {
  require_dtype(name, t, t.dtype == f32, "f32");
  memory(name, t, output);
  if (t.elements() != 1)
    fail(fmt::format("{} is {}; with reduction {} it is one element", name, t.describe(), name_of(desc_.reduction)));
  return t;
}

void ArgumentCheck::upstream(const TensorRef& t) {
  if (!t.given()) fail("grad_loss is not given; with reduction none it has one element per row");
  require_dtype("grad_loss", t, t.dtype == f32, "f32");
  memory("grad_loss", t, false);
  require_rows("grad_loss", t);
}

TensorRef ArgumentCheck::grad_e(const TensorRef& t) {
  if (t.rank != e_.rank || !std::equal(t.shape, t.shape + t.rank, e_.shape) || t.dtype != desc_.dtype)
    fail(fmt::format("de is {} and e is {}; shape and dtype must be the same", t.describe(), e_.describe()));
  memory("de", t, true);
  return flat_rows("de", t);
}

TensorRef ArgumentCheck::grad_c(const TensorRef& t) {
  if (t.rank != 2 || t.shape[0] != desc_.vocabulary || t.shape[1] != desc_.hidden)
    fail(fmt::format("dc is {}; it must be [{}, {}] like c", t.describe(), desc_.vocabulary, desc_.hidden));
  if (t.dtype != desc_.dtype && t.dtype != f32)
    fail(fmt::format("dc is {}; it must be {} like c, or f32", t.describe(), name_of(desc_.dtype)));
  memory("dc", t, true);
  return flat_rows("dc", t);
}

TensorRef ArgumentCheck::block_lse(const TensorRef& t, const BlockLseShape& shape, bool output) {
  if (!shape) fail("block_lse is given and the plan does not filter (PlanDesc::filter)");
  require_dtype("block_lse", t, t.dtype == f32, "f32");
  memory("block_lse", t, output);
  const auto [blocks, tokens] = shape(rows_);
  if (t.rank != 2 || t.shape[0] != blocks || t.shape[1] != tokens)
    fail(fmt::format("block_lse is {}; for {} rows it must be [{}, {}] (Plan::block_lse_shape)", t.describe(), rows_,
                     blocks, tokens));
  dense_rows("block_lse", t, t.elements());
  return t;
}

void ArgumentCheck::stash(const TensorRef& t) {
  if (!stashes(desc_))
    fail(
        fmt::format("stash is given and the plan's strategy is {}; those with a stash are exact_stash and dense, and "
                    "automatic with "
                    "a workspace_limit where nothing is filtered",
                    name_of(desc_.strategy)));
  memory("stash", t, true);
  dense_rows("stash", t, t.elements());
  if (reinterpret_cast<std::uintptr_t>(t.data) % 64)
    fail(fmt::format("stash at {} is not aligned to 64 bytes", t.data));
}

std::byte* ArgumentCheck::workspace(const TensorRef& t, std::size_t needed) {
  if (t.given()) memory("workspace", t, true);
  const auto given = t.given() ? static_cast<std::size_t>(t.elements() * size_of(t.dtype)) : 0;
  if (given < needed)
    fail(fmt::format("workspace has {} bytes; the least that works for {} rows is {} (Plan::workspace_bytes)", given,
                     rows_, needed));
  if (needed == 0) return nullptr;
  dense_rows("workspace", t, t.elements());
  if (reinterpret_cast<std::uintptr_t>(t.data) % 64)
    fail(fmt::format("workspace at {} is not aligned to 64 bytes", t.data));
  return static_cast<std::byte*>(t.data);
}

void check_sequences(const TensorRef& cu, std::int64_t rows, const std::string& call) {
  const std::int64_t last = cu.shape[0] - 1;
  for (std::int64_t i = 0, before = 0; i <= last; ++i) {
    const std::int64_t at = integer_at(cu, i * cu.strides[0]);
    if ((i == 0 && at != 0) || at < before || at > rows || (i == last && at != rows))
      throw UsageError(
          fmt::format("{}: cu_seqlens[{}] is {} after {}; it must rise from 0 to N = {}", call, i, at, before, rows));
    before = at;
  }
}

ForwardCall check_forward(const PlanDesc& desc, const ForwardArgs& a, const WorkspaceBytes& needed,
                          const BlockLseShape& block_lse) {
  ArgumentCheck check("Plan::forward", desc);
  ForwardCall call{.c = a.c, .name = check.call()};
  call.e = check.embeddings(a.e, a.c);
  call.labels = check.labels(a.target, a.cu_seqlens);
  if (a.loss.given())
    call.loss =
        desc.reduction == Reduction::none ? check.per_row("loss", a.loss, true) : check.single("loss", a.loss, true);
  if (a.lse.given()) call.lse = check.per_row("lse", a.lse, true);
  if (a.block_lse.given()) call.block_lse = check.block_lse(a.block_lse, block_lse, true);
  if (a.stash.given()) check.stash(call.stash = a.stash);
  call.memory = check.workspace(a.workspace, needed(check.rows()));
  check.no_overlap();
  return call;
}

BackwardCall check_backward(const PlanDesc& desc, const BackwardArgs& a, const WorkspaceBytes& needed,
                            const BlockLseShape& block_lse) {
  ArgumentCheck check("Plan::backward", desc);
  BackwardCall call{.c = a.c, .grad_loss = a.grad_loss, .name = check.call()};
  call.e = check.embeddings(a.e, a.c);
  call.labels = check.labels(a.target, a.cu_seqlens);
  call.lse = check.per_row("lse", a.lse, false);
  if (desc.reduction == Reduction::none)
    check.upstream(a.grad_loss);
  else if (a.grad_loss.given())
    check.single("grad_loss", a.grad_loss, false);
  if (a.de.given()) call.de = check.grad_e(a.de);
  if (a.dc.given()) call.dc = check.grad_c(a.dc);
  if (a.block_lse.given()) call.block_lse = check.block_lse(a.block_lse, block_lse, false);
  if (a.stash.given()) check.stash(call.stash = a.stash);
  call.bytes = needed(check.rows());
  call.memory = check.workspace(a.workspace, call.bytes);
  check.no_overlap();
  return call;
}

}  // namespace kerf::runtime
