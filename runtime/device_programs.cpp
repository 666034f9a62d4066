#include "runtime/device_programs.h"

#include <algorithm>
#include <limits>

#include "kerf/error.h"
#include "lib/kernels/kernels.h"
#include "runtime/carver.h"

namespace kerf::runtime {

namespace {

constexpr std::string_view names[device_programs] = {
    "label_rows_i32",
    "label_rows_i64",
    "label_rows_i32_i32",
    "label_rows_i32_i64",
    "label_rows_i64_i32",
    "label_rows_i64_i64",
    "compact_labels",
    "compact_labels_begin_losses",
    "chunk_rows",
    "compact_rows",
    "compact_rows_by_8",
    "copy_rows",
    "lse_forward",
    "lse_forward_run",
    "lse_forward_tall",
    "combine",
    "sum_losses",
    "finish_loss",
    "upstream",
    "upstream_one",
    "scale_upstream",
    "list_kept",
    "list_written",
    "list_parts",
    "sum_parts",
    "list_row_parts",
    "grad_c_parts",
    "sum_dc",
    "sum_dc_add",
    "sum_dc_f32",
    "sum_dc_f32_add",
    "clear_rows",
    "clear_rows_by_8",
    "grad_tiles",
    "grad_e",
    "grad_e_begin",
    "grad_e_add",
    "grad_c",
    "grad_c_add",
    "grad_c_f32",
    "grad_c_f32_add",
    "lse_tiles",
    "stash_tiles",
    "dz_of_stash",
    "mass_outside",
    "count_askers",
    "rate_rows",
    "place_rows",
    "move_rows",
    "keep_tiles",
    "rank_columns",
    "rank_rows",
    "begin_columns",
    "cut_ranges",
    "begin_rows",
    "begin_list",
    "list_selected",
    "count_kept",
    "keep_all",
    "forget_masses",
    "cut_rows",
    "place_items",
    "count_up",
    "sum_pieces",
    "sum_pieces_add",
    "block_means",
    "correct_e",
    "correct_c",
    "shift_targets",
    "place_targets",
    "order_rows",
    "order_rows_by_8",
    "sum_rows",
    "score_rows",
};

kernels::Blocks with_d(kernels::Blocks b, std::int64_t d) {
  b.d = d;
  return b;
}
kernels::Blocks with_split(kernels::Blocks b, std::int64_t split) {
  b.split = split;
  return b;
}

}  // namespace

bool groups_rows(const PlanDesc& desc) { return desc.filter != Filter::largest; }

bool filters(const PlanDesc& desc) {
  constexpr std::int64_t worth_it = 16384;  // tokens: below, what decides costs as much as what it saves
  const bool may = desc.strategy == Strategy::automatic || desc.strategy == Strategy::filtered;
  if (!may || desc.filter == Filter::off || !(desc.filter_e || desc.filter_c)) return false;
  return desc.filter != Filter::automatic || desc.strategy == Strategy::filtered ||
         (desc.dtype != f32 && desc.vocabulary >= worth_it);
}

bool orders_c(const PlanDesc& desc, bool boxed) {
  return desc.order != Order::identity || (boxed && desc.hidden % 8 != 0);
}

bool filters(const PlanDesc& desc, bool boxed, std::int64_t rows) {
  // Forward and backward copy c, and means of blocks read it: as long as a product of 900 rows takes on an H200. A
  // backward that keeps a quarter saves two and a half products.
  constexpr std::int64_t pays = 512;
  const bool asked = desc.strategy == Strategy::filtered || desc.filter != Filter::automatic;
  return asked || !boxed || !orders_c(desc, boxed) || rows >= pays;
}

bool stashes(const PlanDesc& desc) {
  if (desc.strategy == Strategy::automatic) return desc.workspace_limit > 0 && !filters(desc);
  return desc.strategy == Strategy::exact_stash || desc.strategy == Strategy::dense;
}

double filter_eps(const PlanDesc& desc, const kernels::Blocks& b) {
  if (desc.filter == Filter::largest) return desc.filter_threshold;
  // Masses of smaller blocks are as much smaller, and there are more of them to lose.
  const double share = std::min(1.0, static_cast<double>(b.v) / 128);
  if (desc.filter_threshold > 0) return desc.filter_threshold * share;
  return std::min(0x1p-12 * share, static_cast<double>(b.v) / (2.0 * static_cast<double>(desc.vocabulary)));
}

std::size_t filter_limit(const PlanDesc& desc, bool copies_c) {
  if (desc.workspace_limit > 0) return desc.workspace_limit;
  if (desc.device.type == DeviceType::cpu) return std::size_t{256} << 20;
  return std::size_t{copies_c ? 1280U : 1024U} << 20;
}

DeviceProgram forward_program(const PlanDesc& desc, const DeviceBlocks& blocks, std::int64_t rows) {
  const kernels::Blocks &b = blocks.forward, &tall = blocks.tall;
  if (desc.strategy == Strategy::min_memory) return DeviceProgram::lse_forward_run;
  const auto many = [&](const kernels::Blocks& of) {
    return blocks_of(desc.vocabulary, of.v * of.split) * blocks_of(rows, of.n) >= blocks.many;
  };
  const auto height = [&](std::int64_t n) { return blocks_of(rows, n) * n; };
  // What tall blocks gain is lost where they hold a few per cent more rows that are not there.
  if (tall.n > 0 && many(tall) && height(tall.n) - height(b.n) <= rows / 64) return DeviceProgram::lse_forward_tall;
  return many(b) ? DeviceProgram::lse_forward_run : DeviceProgram::lse_forward;
}

DevicePrograms::DevicePrograms(const PlanDesc& desc, const DeviceBlocks& blocks, const Target& target, bool filtered,
                               std::shared_ptr<CodeCache> cache)
    : desc_(desc),
      blocks_(blocks),
      target_(target),
      cache_(std::move(cache)),
      filtered_(filtered),
      window_(desc.vocabulary) {
  if (!filtered || !copies_c()) return;
  const auto block_bytes = static_cast<std::size_t>(blocks.backward.v * copied_row(desc) * size_of(desc.dtype));
  const std::int64_t all = blocks_of(desc.vocabulary, blocks.backward.v);
  // Two windows where they fit beside as much again, since each costs a pass over the sums; else narrow ones.
  const std::size_t limit = filter_limit(desc, true);
  const bool two = static_cast<std::size_t>(blocks_of(all, 2)) * block_bytes <= limit / 2;
  const auto most = static_cast<std::int64_t>((two ? limit / 2 : limit / 4) / block_bytes);
  const std::int64_t windows = blocks_of(all, std::clamp<std::int64_t>(most, 1, all));
  if (windows > 1) window_ = blocks_of(all, windows) * blocks.backward.v;
}

std::string_view DevicePrograms::name(DeviceProgram which) { return names[static_cast<std::size_t>(which)]; }

bool DevicePrograms::used(DeviceProgram which) const {
  const bool corrects_e = desc_.correction && desc_.filter_e, corrects_c = desc_.correction && desc_.filter_c;
  switch (which) {
    case DeviceProgram::mass_outside:
    case DeviceProgram::count_askers:
    case DeviceProgram::rate_rows:
    case DeviceProgram::place_rows:
    case DeviceProgram::move_rows: return filtered_ && groups_rows(desc_);
    case DeviceProgram::keep_tiles:
    case DeviceProgram::rank_columns:
    case DeviceProgram::rank_rows:
    case DeviceProgram::begin_columns:
    case DeviceProgram::cut_ranges:
    case DeviceProgram::begin_rows:
    case DeviceProgram::begin_list:
    case DeviceProgram::list_selected:
    case DeviceProgram::count_kept:
    case DeviceProgram::keep_all:
    case DeviceProgram::forget_masses:
    case DeviceProgram::cut_rows:
    case DeviceProgram::place_items:
    case DeviceProgram::count_up:
    case DeviceProgram::sum_pieces_add: return filtered_;
    case DeviceProgram::sum_pieces: return filtered_ && !corrects_e;
    case DeviceProgram::block_means:
    case DeviceProgram::correct_e: return filtered_ && corrects_e;
    case DeviceProgram::correct_c: return filtered_ && corrects_c;
    case DeviceProgram::shift_targets: return filtered_ && window_ < desc_.vocabulary;
    case DeviceProgram::place_targets: return ordered();
    case DeviceProgram::order_rows: return ordered() && copies_c();
    case DeviceProgram::order_rows_by_8: return ordered() && copies_c() && desc_.hidden * size_of(desc_.dtype) % 8 == 0;
    case DeviceProgram::sum_rows:
    case DeviceProgram::score_rows: return filtered_ && desc_.order == Order::automatic;
    case DeviceProgram::stash_tiles:
    case DeviceProgram::dz_of_stash: return stashes(desc_);
    case DeviceProgram::lse_tiles: return stashes(desc_) && desc_.strategy != Strategy::dense;
    case DeviceProgram::grad_tiles: return desc_.strategy != Strategy::dense;
    case DeviceProgram::list_kept:
    case DeviceProgram::list_parts:
    case DeviceProgram::grad_e: return !filtered_;
    case DeviceProgram::label_rows_i32_i32:
    case DeviceProgram::label_rows_i32_i64:
    case DeviceProgram::label_rows_i64_i32:
    case DeviceProgram::label_rows_i64_i64: return desc_.shift > 0;
    case DeviceProgram::chunk_rows: return chunk() > 0;
    case DeviceProgram::compact_rows_by_8:
    case DeviceProgram::clear_rows_by_8: return desc_.hidden * size_of(desc_.dtype) % 8 == 0;
    case DeviceProgram::copy_rows: return copies_c() && !ordered();
    case DeviceProgram::lse_forward: return chunk() == 0;
    case DeviceProgram::lse_forward_tall: return chunk() == 0 && blocks_.tall.n > 0;
    case DeviceProgram::sum_losses:
    case DeviceProgram::finish_loss:
    case DeviceProgram::upstream_one: return desc_.reduction != Reduction::none;
    case DeviceProgram::scale_upstream: return desc_.dtype == f16;
    case DeviceProgram::list_row_parts:
    case DeviceProgram::grad_c_parts:
    case DeviceProgram::sum_dc:
    case DeviceProgram::sum_dc_add: return desc_.strategy != Strategy::min_memory && !filtered_;
    case DeviceProgram::sum_dc_f32:
    case DeviceProgram::sum_dc_f32_add:
      return desc_.dtype != f32 && desc_.strategy != Strategy::min_memory && !filtered_;
    case DeviceProgram::grad_c_f32:
    case DeviceProgram::grad_c_f32_add: return desc_.dtype != f32;
    default: return true;
  }
}

std::vector<DeviceProgram> DevicePrograms::all() const {
  std::vector<DeviceProgram> list;
  for (std::size_t i = 0; i < device_programs; ++i)
    if (const auto which = static_cast<DeviceProgram>(i); used(which)) list.push_back(which);
  return list;
}

Program DevicePrograms::record(DeviceProgram which) const {
  constexpr std::int64_t few = 16, many = 256;  // rows and columns of a program that copies or clears
  const kernels::Blocks &forward = blocks_.forward, &backward = blocks_.backward;
  const kernels::Shape compact{desc_.vocabulary, desc_.hidden, desc_.dtype, true, ordered() && !blocks_.boxed};
  const kernels::Shape ordered_all{desc_.vocabulary, desc_.hidden, desc_.dtype, true, ordered()};
  const kernels::Shape windowed{window_, desc_.hidden, desc_.dtype, true, ordered() && !blocks_.boxed};
  const kernels::Shape scattered{window_, desc_.hidden, desc_.dtype, true, ordered()};
  const kernels::Sides sides{desc_.filter_e, desc_.filter_c};
  // The rule to compare with stays as it is known.
  const bool by_mass = groups_rows(desc_);
  constexpr double sure = 0.125;  // at 0 the worst row of a model's softmax loses 0.7 of itself, so 0.04
  const double eps = filtered_ ? filter_eps(desc_, backward) : 0;
  const kernels::KeepRule keep_rule{.eps = eps,
                                    .correct = desc_.correction,
                                    .together = by_mass ? 16 * eps : 0,
                                    .group = by_mass,
                                    .sure = by_mass ? sure : 0};
  const auto statistic = !filtered_                        ? kernels::BlockStatistic::none
                         : desc_.filter == Filter::largest ? kernels::BlockStatistic::largest
                                                           : kernels::BlockStatistic::lse;
  const kernels::Shape by_8{desc_.vocabulary, desc_.hidden * size_of(desc_.dtype) / 8, i64};
  const auto label_rows = [&](bool packed, DType target, DType cu_seqlens) {
    return kernels::label_rows({.target = target,
                                .packed = packed,
                                .cu_seqlens = cu_seqlens,
                                .shift = desc_.shift,
                                .ignore_index = desc_.ignore_index,
                                .vocabulary = desc_.vocabulary});
  };
  const auto upstream = [&](bool given) {
    return kernels::upstream(desc_.reduction == Reduction::none   ? kernels::Upstream::each
                             : desc_.reduction == Reduction::mean ? kernels::Upstream::mean
                                                                  : kernels::Upstream::sum,
                             given, desc_.dtype == f16);
  };
  const auto grad_e = [&](bool from_sum, bool to_sum) {
    return kernels::grad_e(windowed, with_d(backward, blocks_.grad_e_d), from_sum, to_sum, true);
  };
  const auto grad_c = [&](DType out, bool accumulate) {
    return kernels::grad_c(scattered, with_d(backward, blocks_.grad_c_d), out, accumulate,
                           filtered_ && desc_.correction && desc_.filter_c);
  };
  const auto sum_dc = [&](DType out, bool accumulate) { return kernels::sum_dc(compact, out, accumulate, 8, 2, many); };
  switch (which) {
    case DeviceProgram::label_rows_i32: return label_rows(false, i32, i64);
    case DeviceProgram::label_rows_i64: return label_rows(false, i64, i64);
    case DeviceProgram::label_rows_i32_i32: return label_rows(true, i32, i32);
    case DeviceProgram::label_rows_i32_i64: return label_rows(true, i32, i64);
    case DeviceProgram::label_rows_i64_i32: return label_rows(true, i64, i32);
    case DeviceProgram::label_rows_i64_i64: return label_rows(true, i64, i64);
    case DeviceProgram::compact_labels: return kernels::compact_labels(false);
    case DeviceProgram::compact_labels_begin_losses: return kernels::compact_labels(true);
    case DeviceProgram::chunk_rows: return kernels::chunk_rows(chunk());
    case DeviceProgram::compact_rows: return kernels::compact_rows(compact, few, many);
    case DeviceProgram::compact_rows_by_8: return kernels::compact_rows(by_8, few, many / 4);
    case DeviceProgram::copy_rows: return kernels::copy_rows(compact, few, many);
    case DeviceProgram::lse_forward: return kernels::lse_forward(compact, with_split(forward, 1), statistic);
    case DeviceProgram::lse_forward_run: return kernels::lse_forward(compact, forward, statistic);
    case DeviceProgram::lse_forward_tall: return kernels::lse_forward(compact, blocks_.tall, statistic);
    case DeviceProgram::combine: return kernels::combine(32, 32);
    case DeviceProgram::sum_losses: return kernels::sum_losses();
    case DeviceProgram::finish_loss: return kernels::finish_loss(desc_.reduction == Reduction::mean);
    case DeviceProgram::upstream: return upstream(true);
    case DeviceProgram::upstream_one: return upstream(false);
    case DeviceProgram::scale_upstream: return kernels::scale_upstream();
    case DeviceProgram::list_kept: return kernels::list_tiles(backward.n, blocks_.list_band);
    case DeviceProgram::list_written:
      return kernels::list_tiles(blocks_.grad_c_d, (desc_.hidden + blocks_.grad_c_d - 1) / blocks_.grad_c_d);
    case DeviceProgram::list_parts: return kernels::list_parts(backward.n, blocks_.list_band);
    case DeviceProgram::sum_parts: return kernels::sum_parts(compact, few, many);
    case DeviceProgram::list_row_parts: return kernels::list_row_parts(backward.n, blocks_.list_band);
    case DeviceProgram::grad_c_parts: return kernels::grad_c_parts(compact, with_d(backward, blocks_.grad_c_d));
    case DeviceProgram::sum_dc: return sum_dc(desc_.dtype, false);
    case DeviceProgram::sum_dc_add: return sum_dc(desc_.dtype, true);
    case DeviceProgram::sum_dc_f32: return sum_dc(f32, false);
    case DeviceProgram::sum_dc_f32_add: return sum_dc(f32, true);
    case DeviceProgram::clear_rows: return kernels::clear_rows(compact, few, many);
    case DeviceProgram::clear_rows_by_8: return kernels::clear_rows(by_8, few, many / 4);
    case DeviceProgram::grad_tiles: return kernels::grad_tiles(windowed, backward, filtered_ && by_mass);
    case DeviceProgram::grad_e: return grad_e(false, false);
    case DeviceProgram::grad_e_begin: return grad_e(false, true);
    case DeviceProgram::grad_e_add: return grad_e(true, true);
    case DeviceProgram::grad_c: return grad_c(desc_.dtype, false);
    case DeviceProgram::grad_c_add: return grad_c(desc_.dtype, true);
    case DeviceProgram::grad_c_f32: return grad_c(f32, false);
    case DeviceProgram::grad_c_f32_add: return grad_c(f32, true);
    case DeviceProgram::lse_tiles: return kernels::lse_tiles(compact, backward, false);
    case DeviceProgram::stash_tiles: return kernels::lse_tiles(compact, backward, true);
    case DeviceProgram::dz_of_stash: return kernels::dz_of_stash(compact, backward);
    case DeviceProgram::mass_outside: return kernels::mass_outside(compact, backward);
    case DeviceProgram::count_askers: return kernels::count_askers(compact, backward, keep_rule);
    case DeviceProgram::rate_rows: return kernels::rate_rows(compact, backward, keep_rule);
    case DeviceProgram::place_rows: return kernels::place_rows(kernels::grouped_rows);
    case DeviceProgram::move_rows: return kernels::move_rows();
    case DeviceProgram::keep_tiles: return kernels::keep_tiles(compact, backward, keep_rule);
    case DeviceProgram::rank_columns: return kernels::rank_columns(sides, backward.n);
    case DeviceProgram::rank_rows: return kernels::rank_rows(sides, backward.n);
    case DeviceProgram::begin_columns: return kernels::begin_columns();
    case DeviceProgram::cut_ranges: return kernels::cut_ranges();
    case DeviceProgram::begin_rows: return kernels::begin_rows();
    case DeviceProgram::begin_list: return kernels::begin_list();
    case DeviceProgram::list_selected: return kernels::list_selected(sides, backward.n);
    case DeviceProgram::count_kept: return kernels::count_kept(backward.n);
    case DeviceProgram::keep_all: return kernels::keep_all();
    case DeviceProgram::forget_masses: return kernels::forget_masses();
    case DeviceProgram::cut_rows: return kernels::cut_rows(backward.n);
    case DeviceProgram::place_items: return kernels::place_items();
    case DeviceProgram::count_up: return kernels::count_up();
    case DeviceProgram::sum_pieces: return kernels::sum_pieces(compact, with_d(backward, 32), false);
    case DeviceProgram::sum_pieces_add: return kernels::sum_pieces(compact, with_d(backward, 32), true);
    case DeviceProgram::block_means: return kernels::block_means(ordered_all, with_d(backward, many));
    case DeviceProgram::correct_e: return kernels::correct_e(compact, with_d(backward, blocks_.grad_e_d));
    case DeviceProgram::correct_c: return kernels::correct_c(compact, with_d(backward, blocks_.grad_e_d));
    case DeviceProgram::shift_targets: return kernels::shift_targets(window_);
    case DeviceProgram::place_targets: return kernels::place_targets(desc_.vocabulary);
    case DeviceProgram::order_rows: return kernels::compact_rows(compact, few, many);
    case DeviceProgram::order_rows_by_8: return kernels::compact_rows(by_8, few, many / 4);
    case DeviceProgram::sum_rows: return kernels::sum_rows(compact, kernels::label_block, many);
    case DeviceProgram::score_rows: return kernels::score_rows(compact, few, many);
  }
  throw InternalError("DevicePrograms::record: no such program");
}

Schedule DevicePrograms::schedule(DeviceProgram which) const {
  Schedule schedule = blocks_.forward_schedule;
  schedule.band = static_cast<int>(blocks_.band);
  switch (which) {
    case DeviceProgram::lse_forward:
    case DeviceProgram::lse_forward_run: return schedule;
    case DeviceProgram::lse_forward_tall:
      schedule.band = static_cast<int>(blocks_.band * blocks_.forward.n / blocks_.tall.n);
      return schedule;
    default: return {};
  }
}

const Kernel& DevicePrograms::kernel(DeviceProgram which) {
  const auto i = static_cast<std::size_t>(which);
  std::call_once(compiled_[i],
                 [&] { kernels_[i] = compile(record(which), target_, schedule(which), desc_.device, cache_); });
  return kernels_[i];
}

}  // namespace kerf::runtime
