// Linear cross-entropy without its logits: the reason for all the rest.
//
//   z = e c^T,  lse[n] = log sum_v exp z[n,v],  loss[n] = lse[n] - z[n, target[n]]
//
// N tokens, V vocabulary, D hidden. No buffer of N x V elements is made, but a stash on request.
// Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kerf/kernel.h"
#include "kerf/tensor.h"
#include "kerf/wisdom.h"

namespace [[gnu::visibility("default")]] kerf {

enum class Reduction : std::uint8_t { none, mean, sum };
/// How the backward gets its gradients. exact_recompute: logits are made again, range by range, in ranges as wide as
/// workspace_limit allows. min_memory: the same in the narrowest ranges that keep the device busy, and on a GPU the
/// forward and backward without a copy of the rows that count. filtered: tiles of the gradient that hardly matter are
/// left out, as Filter says; needs block_lse of the forward. exact_stash: the forward leaves softmax numerators in
/// ForwardArgs::stash, so that the backward need not make those logits again: three products in all in place of four;
/// what a stash has no room for, or calls without one, are as with exact_recompute. dense: the same with a stash that
/// holds everything, which the backward then needs nearly no workspace beside. automatic: filtered where the plan
/// filters and the calls are given block_lse; else exact_stash where workspace_limit is set and leaves room for a
/// sixteenth of the logits, shared out so that stash and few ranges together save most; else exact_recompute. It never
/// takes min_memory, nor dense, which refuses calls without a stash.
enum class Strategy : std::uint8_t { automatic, exact_recompute, min_memory, filtered, exact_stash, dense };
/// Which tiles (a block of rows by a block of the vocabulary) of dz a filtered backward leaves out. mass: those in
/// which no row has its target, nor probabilities that add up to filter_threshold (of blocks of at least 128 tokens; of
/// smaller ones, and of rows that are sure of their token, to as much less). largest: those in which no row has
/// its target, nor a probability of filter_threshold (the rule of cut-cross-entropy, without a correction, to compare
/// with). automatic: mass with bf16 and f16 and a vocabulary of at least 16384, or with Strategy::filtered; else off;
/// on a GPU calls of fewer than 512 tokens, which would not pay for copies of c in an order, are exact as well.
enum class Filter : std::uint8_t { automatic, off, mass, largest };
/// The order in which tokens of the vocabulary form blocks. Few tiles matter, and the correction of the others is good,
/// where tokens of a block are alike. automatic: by c times the mean of e, found in the first call and kept;
/// refresh_order finds it again. given: by set_order. identity: as they are, for a vocabulary kept in such an order.
enum class Order : std::uint8_t { automatic, given, identity };
std::string_view name_of(Reduction r);
std::string_view name_of(Strategy s);
std::string_view name_of(Filter f);
std::string_view name_of(Order o);

/// Where a plan finds the blocks of its programs. off: made from the sizes and, on the CPU, the number of tokens where
/// it is below 256. lookup: of wisdom, where it knows this machine and number of tokens, else of the nearest number,
/// else as with off; nothing is ever timed. record: the same, and what wisdom lacks is noted (user_misses_file).
/// on_first_use: what wisdom lacks is measured within tuning_seconds when it is first asked for, by workspace_bytes, a
/// call or prepare, and kept in the user's wisdom; not while the call's stream is captured. Calls for as many tokens
/// wait for that, others do not. from_environment: as KERF_TUNE names it, off, lookup, record or auto; lookup where it
/// is not set. What was chosen for a number of tokens stays for the life of the plan.
enum class Tuning : std::uint8_t { from_environment, off, lookup, record, on_first_use };

/// What is fixed for the life of a plan.
struct PlanDesc {
  std::int64_t hidden = 0;      // D, at least 1
  std::int64_t vocabulary = 0;  // V, at least 1
  DType dtype = DType::f32;     // of e and c: f32, bf16 or f16
  Reduction reduction = Reduction::mean;
  std::int64_t ignore_index = -100;  // rows with this label: loss, lse and gradients 0, at no cost; any integer
  /// k > 0: row t of a sequence is scored against label t + k of the same sequence; the last k rows of each sequence
  /// have no label and count as ignored. Sequences: rows of a [B, T, D] e, or cu_seqlens.
  std::int64_t shift = 0;
  Strategy strategy = Strategy::automatic;
  /// Bytes the backward may ask for; the least that works is used if larger. 0: 64 MiB on the CPU, 1 GiB on a GPU.
  /// min_memory does not look at it. On a GPU a copy of c comes on top with a hidden size that is no multiple of 8 and
  /// nothing set here. What filters counts block_lse, and without a limit has 256 MiB on the CPU, 1 GiB on a GPU,
  /// or 1.25 GiB where c is copied in the order of the vocabulary, in two halves if they take no more than half the
  /// limit: beside them the sums in f32 and the copy of e of very many tokens may pass it. With automatic a stash
  /// counts too, and without a limit there is none.
  std::size_t workspace_limit = 0;
  Filter filter = Filter::automatic;
  double filter_threshold = 0;            // 0: 2^-12, or half of a block's share of the vocabulary if that is less
  bool filter_e = true, filter_c = true;  // a side that is not filtered uses all tiles
  /// Adds to de and dc nearly what the dropped tiles would have: their mass times the mean row of c in the block.
  bool correction = true;
  Order order = Order::automatic;
  int threads = 0;  // CPU: 0 for KERF_NUM_THREADS or all processors; results do not depend on it
  /// Where all tensors of a call lie, and where it computes.
  Device device = {};
  /// GPU: the architecture to generate code for ("sm_80", which every later GPU runs too); empty: the device's own.
  std::string arch = {};
  /// GPU: wait for the stream and look at labels and cu_seqlens before each call, which then refuses what the CPU
  /// always refuses. Without it nothing waits, and a label outside the vocabulary makes its row's loss and lse NaN (and
  /// so their sum and mean), counts as no label in the backward, and is counted: a workspace begins with two i64, the
  /// number of rows with a label and the number of labels outside the vocabulary. cu_seqlens must then rise from 0 to
  /// N.
  bool check_labels = false;
  Tuning tuning = Tuning::from_environment;
  double tuning_seconds = 10;  // for one number of tokens, with Tuning::on_first_use
};

struct ForwardArgs {
  TensorRef e = {};           // [N, D] or [B, T, D], desc.dtype; rows contiguous, at one distance from each other
  TensorRef c = {};           // [V, D], desc.dtype; rows contiguous, any row stride
  TensorRef target = {};      // [N] or [B, T], i32 or i64: in [0, V), or ignore_index
  TensorRef cu_seqlens = {};  // optional [sequences + 1], i32 or i64, from 0 to N, with shift on a packed e [N, D]
  TensorRef loss = {};        // optional output, f32, nats: [N] or [B, T] for none, else one element
  TensorRef lse = {};         // optional output, f32, nats: [N] or [B, T]; the backward needs it
  /// Optional output of a plan that filters, f32, dense, of the shape that block_lse_shape tells: log-sum-exp of each
  /// row with a label over each block of the vocabulary. The filtered backward needs it; it counts to workspace_limit.
  TensorRef block_lse = {};
  /// Optional output of a plan that stashes: bytes (any dtype, dense), aligned to 64, kept for the backward. dense
  /// needs stash_bytes(N), exact_stash and automatic take any size and use what holds everything.
  TensorRef stash = {};
  TensorRef workspace = {};  // bytes (any dtype, dense), at least workspace_bytes(N, false), aligned to 64
};

struct BackwardArgs {
  TensorRef e = {}, c = {}, target = {}, cu_seqlens = {};  // as in the forward
  TensorRef lse = {};                                      // as the forward wrote it
  /// f32: dL/dloss, [N] or [B, T] for none (required), one element else (optional, 1 when not given).
  TensorRef grad_loss = {};
  TensorRef de = {};           // optional output, like e, desc.dtype; not given: costs nothing
  TensorRef dc = {};           // optional output, like c, desc.dtype or f32; not given: costs nothing
  bool accumulate_dc = false;  // add to what dc holds (a main gradient) instead of overwriting it
  TensorRef block_lse = {};    // as the forward wrote it, the order being the same; without it the backward is exact
  /// As the forward of the same e, c and target wrote it, all of it; what the backward leaves in it means nothing.
  /// dense needs it.
  TensorRef stash = {};
  TensorRef workspace = {};  // at least workspace_bytes(N, true)
};

/// What a call of this size does.
struct PlanReport {
  Strategy strategy = Strategy::exact_recompute;
  std::size_t forward_workspace = 0, backward_workspace = 0;  // bytes
  std::size_t stash = 0;                                      // bytes, as stash_bytes
  int ranges = 1;                                             // vocabulary ranges of the backward, at most
  int threads = 1;
  std::string blocks;  // "n=256 v=256 d=256"
  /// Where the blocks of a direction are from: "default", "wisdom", "nearest bucket" (wisdom of another number of
  /// tokens), "tuned" (now, on first use) or "given".
  std::string forward_from, backward_from;
  std::vector<std::string> notes;  // wisdom that was passed over, tuning that was not done, and why
};

/// What a filtered backward did.
struct FilterReport {
  std::int64_t tiles = 0, kept = 0;  // of the rows that have a label
  double kept_share = 1;
  double dropped_mass = 0;  // of a row's probability, the mean share in tiles that are not kept; largest: at least
};

/// Blocks by the names that tune_loss tells, for all numbers of tokens; a part that is empty is chosen by the plan.
struct LossBlocks {
  WisdomParameters forward = {}, backward = {};
  WisdomParameters filtered = {};  // of calls with block_lse, both directions
};

/// What plans may have in common; the plan makes what is not given.
struct Shared {
  std::shared_ptr<ThreadPool> pool = nullptr;  // in place of desc.threads; not given on a GPU, made for prepare alone
  std::shared_ptr<CodeCache> cache = nullptr;  // the one of the environment
  std::shared_ptr<const WisdomLayers> wisdom = nullptr;  // WisdomLayers::open, read when first asked
  LossBlocks blocks = {};                                // UsageError where the plan has no such blocks
};

/// One linear cross-entropy, compiled for one hidden size, vocabulary and dtype; any number of tokens.
/// Immutable once prepared; calls on one plan from several threads take turns on its thread pool.
class Plan {
 public:
  /// Throws UsageError for sizes, dtypes or options that make no sense, DeviceError where the device is not there.
  /// Compiles nothing.
  explicit Plan(const PlanDesc& desc, Shared shared = {});
  ~Plan();
  Plan(Plan&&) noexcept;
  Plan& operator=(Plan&&) noexcept;

  /// Compiles every program that the cache does not have; without it the first forward and the first backward do. A
  /// plan that filters or stashes compiles those of calls with block_lse or a stash. On a GPU of compute capability 9.0
  /// a c (with min_memory also a de) in bf16 or f16 whose rows do not begin at multiples of 16 bytes has slower
  /// programs of its own, compiled when first needed.
  void prepare();
  /// The same for calls of so many tokens, with the blocks that these have; none: with those that the default has for
  /// 256 tokens or more.
  void prepare(const std::vector<std::int64_t>& token_counts);
  /// Bytes of workspace for N tokens. Fewer tokens may need more, since how they are cut differs: memory for several
  /// numbers of tokens is the most that any of them asks for.
  std::size_t workspace_bytes(std::int64_t tokens, bool backward) const;
  /// Bytes of a stash that holds everything for N tokens: about those of the logits in desc.dtype. With automatic what
  /// workspace_limit has room for, 0 where that is too little to save time; 0 with a strategy that has no stash.
  std::size_t stash_bytes(std::int64_t tokens) const;
  PlanReport report(std::int64_t tokens) const;
  const PlanDesc& desc() const;
  /// Whether a backward that is given block_lse filters.
  bool filters() const;
  /// Rows and columns of block_lse: blocks of the vocabulary, and tokens rounded up.
  std::array<std::int64_t, 2> block_lse_shape(std::int64_t tokens) const;
  /// Order::given: the i-th token of the order is row order[i] of c; a permutation of [0, V).
  void set_order(const std::vector<std::int64_t>& order);
  /// Order::automatic: finds the order anew from e [N, D], whose rows are all finite, and c. Waits for the stream. Not
  /// between a forward and its backward.
  void refresh_order(const TensorRef& e, const TensorRef& c, Stream stream = {});
  /// What the last filtered backward with this workspace did. Waits for the stream.
  FilterReport filter_report(const TensorRef& workspace, Stream stream = {}) const;

  /// loss and lse. On the CPU returns when done; on a GPU queues work on the stream and returns, allocating nothing and
  /// waiting for nothing. N = 0 is legal (mean is NaN). Throws UsageError when shapes, dtypes, pointers or labels are
  /// wrong, before anything is written; on a GPU labels are looked at with PlanDesc::check_labels alone.
  void forward(const ForwardArgs& args, Stream stream = {});
  /// de and dc: dz[n,v] = g[n] (exp(z - lse) - [v = target]), de = dz c, dc = dz^T e; g[n] is grad_loss times the
  /// reduction's factor (1, 1 / valid rows, 1).
  void backward(const BackwardArgs& args, Stream stream = {});

  /// One program of this plan, by name ("lse_forward", "combine", "grad_tiles", "grad_e", "grad_c", ...), as text.
  std::vector<std::string> program_names() const;
  std::string emit(const std::string& program, Stage stage, const Target& target = Target::host()) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The tokens of a vocabulary by falling score, equal ones as they are. Scores that make good orders: counts of tokens
/// in a large text, mean probabilities, norms of rows of c, c times a mean hidden state.
std::vector<std::int64_t> vocabulary_order(const std::vector<double>& score);

/// Results that own their memory, for host tensors.
struct LossResult {
  std::vector<float> loss;        // N, or one element
  std::vector<float> lse;         // N
  std::vector<std::byte> de, dc;  // like e and c, dense, in their dtype; empty when not asked for
};
struct LossWanted {
  bool de = true, dc = true;
};
/// Loss and gradients in one call, with workspace and results allocated inside; the gradients are those of the mean or
/// sum, or of the sum of the losses for `none`.
LossResult linear_cross_entropy(Plan& plan, const TensorRef& e, const TensorRef& c, const TensorRef& target,
                                LossWanted wanted = {});
/// The same with a plan made for this one call; D, V and dtype are taken from e and c.
LossResult linear_cross_entropy(const TensorRef& e, const TensorRef& c, const TensorRef& target, PlanDesc desc = {},
                                LossWanted wanted = {});

}  // namespace kerf
