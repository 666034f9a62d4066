// The loss in one call, for host tensors: workspace and results are allocated here.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <new>

#include "kerf/error.h"
#include "kerf/loss.h"

namespace kerf {

namespace {

/// Uninitialised bytes aligned to 64.
struct Release {
  void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<std::byte[], Release>;
Buffer allocate(std::size_t bytes) { return Buffer(new (std::align_val_t{64}) std::byte[bytes]); }

/// A dense array of the shape of `like` without its last `drop` dimensions.
TensorRef dense_like(const TensorRef& like, int drop, void* data, DType dtype) {
  TensorRef t;
  t.data = data;
  t.dtype = dtype;
  t.rank = like.rank - drop;
  std::int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.shape[i] = like.shape[i];
    t.strides[i] = stride;
    stride *= like.shape[i];
  }
  return t;
}

void require_matrices(const TensorRef& e, const TensorRef& c) {
  std::int64_t rows = 0;
  const bool counts = (e.rank == 2 || e.rank == 3) && e.shape[0] >= 0 && e.shape[1] >= 0 && e.shape[e.rank - 1] >= 0 &&
                      !__builtin_mul_overflow(e.shape[0], e.rank == 3 ? e.shape[1] : 1, &rows);
  if (!counts || c.rank != 2)
    throw UsageError(fmt::format("linear_cross_entropy: e is {}, c is {}; they must be [N, D] or [B, T, D], and [V, D]",
                                 e.describe(), c.describe()));
  if (e.shape[e.rank - 1] != c.shape[1])
    throw UsageError(
        fmt::format("linear_cross_entropy: e is {}, c is {}; both end in D and D differs", e.describe(), c.describe()));
}

}  // namespace

LossResult linear_cross_entropy(Plan& plan, const TensorRef& e, const TensorRef& c, const TensorRef& target,
                                LossWanted wanted) {
  require_matrices(e, c);
  const PlanDesc& desc = plan.desc();
  const std::int64_t rows = e.rank == 2 ? e.shape[0] : e.shape[0] * e.shape[1];
  const bool each = desc.reduction == Reduction::none, backward = wanted.de || wanted.dc;
  std::size_t bytes = plan.workspace_bytes(rows, false);
  if (backward) bytes = std::max(bytes, plan.workspace_bytes(rows, true));
  const Buffer memory = allocate(bytes);
  const TensorRef workspace(memory.get(), boolean, {static_cast<std::int64_t>(bytes)});

  LossResult r;
  r.loss.resize(each ? static_cast<std::size_t>(rows) : 1);
  r.lse.resize(static_cast<std::size_t>(rows));
  const TensorRef lse = dense_like(e, 1, r.lse.data(), f32);
  Buffer block_memory;
  TensorRef block_lse;
  if (backward && plan.filters()) {
    const auto [blocks, tokens] = plan.block_lse_shape(rows);
    block_memory = allocate(static_cast<std::size_t>(blocks * tokens) * sizeof(float));
    block_lse = TensorRef(block_memory.get(), f32, {blocks, tokens});
  }
  const std::size_t stash_bytes = backward ? plan.stash_bytes(rows) : 0;
  Buffer stash_memory;
  TensorRef stash;
  if (stash_bytes > 0) {
    stash_memory = allocate(stash_bytes);
    stash = TensorRef(stash_memory.get(), boolean, {static_cast<std::int64_t>(stash_bytes)});
  }
  plan.forward({.e = e,
                .c = c,
                .target = target,
                .cu_seqlens = {},
                .loss = each ? dense_like(e, 1, r.loss.data(), f32) : TensorRef(r.loss.data(), {1}),
                .lse = lse,
                .block_lse = block_lse,
                .stash = stash,
                .workspace = workspace});
  if (!backward) return r;

  const std::vector<float> ones(each ? static_cast<std::size_t>(rows) : 0, 1.0f);
  BackwardArgs args{
      .e = e, .c = c, .target = target, .lse = lse, .block_lse = block_lse, .stash = stash, .workspace = workspace};
  if (each) args.grad_loss = dense_like(e, 1, const_cast<float*>(ones.data()), f32);
  const std::int64_t size = size_of(desc.dtype);
  if (wanted.de) {
    r.de.resize(static_cast<std::size_t>(rows * desc.hidden * size));
    args.de = dense_like(e, 0, r.de.data(), desc.dtype);
  }
  if (wanted.dc) {
    r.dc.resize(static_cast<std::size_t>(desc.vocabulary * desc.hidden * size));
    args.dc = dense_like(c, 0, r.dc.data(), desc.dtype);
  }
  plan.backward(args);
  return r;
}

LossResult linear_cross_entropy(const TensorRef& e, const TensorRef& c, const TensorRef& target, PlanDesc desc,
                                LossWanted wanted) {
  require_matrices(e, c);
  desc.hidden = e.shape[e.rank - 1];
  desc.vocabulary = c.shape[0];
  desc.dtype = e.dtype;
  Plan plan(desc);
  return linear_cross_entropy(plan, e, c, target, wanted);
}

}  // namespace kerf
