#include "runtime/blocks.h"

#include <algorithm>

namespace kerf::runtime {

namespace {

constexpr std::int64_t part_bytes = std::int64_t{8} << 20;  // of c in one part of the forward: stays in a shared cache
constexpr std::int64_t staged_bytes = std::int64_t{640} << 10;  // of e that a thread may keep packed for all of D

std::int64_t clip(std::int64_t block, std::int64_t axis) { return std::min(block, (axis + 15) / 16 * 16); }

/// What a block of rows is cut down to where there are not more of them.
std::int64_t shortest_block(std::int64_t tokens) {
  std::int64_t rows = 16;
  while (rows < tokens && rows < many_tokens) rows *= 2;
  return rows;
}

/// Blocks of the vocabulary in a part of the forward: as many as a shared cache holds, but few enough that a single
/// block of rows has work for many threads.
std::int64_t blocks_in_part(const kernels::Shape& s, std::int64_t v) {
  constexpr std::int64_t least_parts = 32;
  const std::int64_t blocks = (s.vocabulary + v - 1) / v;
  return std::max<std::int64_t>(std::min(part_bytes / size_of(s.dtype) / v / s.hidden, blocks / least_parts), 1);
}

}  // namespace

Target target_of(const PlanDesc& desc) { return desc.arch.empty() ? Target::of(desc.device) : Target::cuda(desc.arch); }

bool reads_in_boxes(const PlanDesc& desc, const Target& target) {
  // Others have too little shared memory for two stages of the blocks below.
  const bool large = target.cpu == "sm_90a" || target.cpu == "sm_90" || target.cpu == "sm_80" || target.cpu == "sm_87";
  return large && desc.dtype != f32 && (desc.hidden % 8 == 0 || desc.strategy != Strategy::min_memory);
}

std::int64_t copied_row(const PlanDesc& desc) { return desc.dtype == f32 ? desc.hidden : (desc.hidden + 7) / 8 * 8; }

DeviceBlocks choose_boxed_blocks(const kernels::Shape& s, const Target& target) {
  const auto power = [](std::int64_t most, std::int64_t axis) {
    std::int64_t b = 64;
    while (b < most && b < axis) b *= 2;
    return b;
  };
  const kernels::Blocks b{.n = 128, .v = power(256, s.vocabulary), .d = 64, .split = 8};
  DeviceBlocks out{.forward = b,
                   .backward = b,
                   .grad_e_d = power(256, s.hidden),
                   .grad_c_d = power(128, s.hidden),
                   .boxed = true,
                   .pieces = 8 * 132};
  // Three warpgroups that multiply read a fifth less than two for the same work, and a GPU at its limit of power is
  // the faster for it; shorter parts leave fewer multiprocessors idle at the end.
  if (target.cpu == "sm_90a") out.tall = {.n = 192, .v = b.v, .d = b.d, .split = 4};
  return out;
}

DeviceBlocks choose_plain_blocks(const kernels::Shape& s) {
  const kernels::Blocks b{.n = 64, .v = 64, .d = s.dtype == f32 ? 32 : 64, .split = 8};
  return {.forward = b, .backward = b, .grad_e_d = 64, .grad_c_d = 64};
}

DeviceBlocks choose_filter_blocks(const kernels::Shape& s) {
  const PlanBlocks exact = choose_blocks(s);
  const std::int64_t d = clip(128, s.hidden);
  DeviceBlocks b{.forward = exact.forward, .backward = exact.backward, .grad_e_d = d, .grad_c_d = d};
  // Few tiles of 128 x 128 matter; of larger ones, more.
  b.forward.v = b.backward.v = clip(128, s.vocabulary);
  b.backward.n = 128;
  b.backward.d = b.forward.d;
  b.forward.split = blocks_in_part(s, b.forward.v);
  b.many = 1;
  b.forward_schedule = exact.forward_schedule;
  return b;
}

PlanBlocks choose_blocks(const kernels::Shape& s, std::int64_t tokens) {
  // 256 rows share what each block of c costs to copy; measured best of 128 to 256 rows and 128 to 512 columns; 128 of
  // d in the products of the backward keep every thread busy when rows are few. A packed copy of e for all of D saves
  // its repacking and pays for narrower blocks of V, as long as it fits beside the tile.
  constexpr std::int64_t rows = many_tokens;
  kernels::Blocks b{.n = rows, .v = clip(256, s.vocabulary), .d = clip(128, s.hidden), .split = 1};
  // f32 sums over one block of d start anew, so short blocks keep the rounding of large logits down: one chain over all
  // of D = 256 left an lse of a trained model off by 1.8e-5. Long rows are made of many blocks anyway.
  const std::int64_t forward_d = s.hidden <= 256 ? 64 : s.hidden <= 1024 ? 128 : 256;
  PlanBlocks out{.forward = b, .backward = b, .forward_schedule = {}};
  out.forward.d = clip(forward_d, s.hidden);
  out.forward_schedule.stage = rows * s.hidden * (s.dtype == bf16 ? 2 : 4) <= staged_bytes;
  if (out.forward_schedule.stage) out.forward.v = clip(128, s.vocabulary);
  out.forward.split = blocks_in_part(s, out.forward.v);
  out.forward.n = out.backward.n = shortest_block(tokens);
  // So few rows do not pay for what is copied of two vectors of the vocabulary at a time.
  if (out.forward.n == 16) out.forward_schedule.dot_vectors = 1;
  return out;
}

}  // namespace kerf::runtime
