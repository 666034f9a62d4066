// The programs of a loss whose arguments lie on a device: labels are looked at there, so nothing waits for the host.
// Each is recorded and compiled when first asked for.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>
#include <string_view>
#include <vector>

#include "kerf/kernel.h"
#include "kerf/loss.h"
#include "runtime/blocks.h"

namespace kerf::runtime {

enum class DeviceProgram : std::uint8_t {
  label_rows_i32,  // by the dtype of target; sequences of equal length
  label_rows_i64,
  label_rows_i32_i32,  // by the dtypes of target and cu_seqlens
  label_rows_i32_i64,
  label_rows_i64_i32,
  label_rows_i64_i64,
  compact_labels,
  compact_labels_begin_losses,
  chunk_rows,
  compact_rows,
  compact_rows_by_8,  // bytes, where rows lie so
  copy_rows,
  lse_forward,      // one block of v in a part: few rows
  lse_forward_run,  // several: many rows
  lse_forward_tall,
  combine,
  sum_losses,
  finish_loss,
  upstream,
  upstream_one,  // grad_loss is not given
  scale_upstream,
  list_kept,
  list_written,
  list_parts,  // few rows: the vocabulary in parts
  sum_parts,
  list_row_parts,  // few blocks of dc: the rows in parts
  grad_c_parts,
  sum_dc,
  sum_dc_add,
  sum_dc_f32,
  sum_dc_f32_add,
  clear_rows,
  clear_rows_by_8,
  grad_tiles,
  grad_e,        // one vocabulary range
  grad_e_begin,  // several: the first begins the f32 sum, sum_parts makes de of it
  grad_e_add,
  grad_c,
  grad_c_add,
  grad_c_f32,  // dc in f32 beside a c of another dtype
  grad_c_f32_add,
  lse_tiles,    // with a stash: the forward by tiles of dz
  stash_tiles,  // the same where the stash has room
  dz_of_stash,
  mass_outside,  // what follows: of a filtered backward
  count_askers,
  rate_rows,
  place_rows,
  move_rows,
  keep_tiles,
  rank_columns,
  rank_rows,
  begin_columns,
  cut_ranges,
  begin_rows,
  begin_list,
  list_selected,
  count_kept,
  keep_all,  // calls that cannot filter: c lies where boxes cannot read it
  forget_masses,
  cut_rows,
  place_items,
  count_up,
  sum_pieces,
  sum_pieces_add,
  block_means,
  correct_e,
  correct_c,
  shift_targets,
  place_targets,  // where the vocabulary has an order
  order_rows,
  order_rows_by_8,
  sum_rows,
  score_rows,
};
inline constexpr std::size_t device_programs = 74;
/// Whether a plan filters.
bool filters(const PlanDesc& desc);
/// Whether tokens of a plan that filters are not the rows of c one after the other. `boxed`: c is read in boxes.
bool orders_c(const PlanDesc& desc, bool boxed);
/// Whether calls of so many rows do, of a plan that filters: unless that was asked for by name, not where rows are too
/// few to pay for copies of c in the order of its vocabulary.
bool filters(const PlanDesc& desc, bool boxed, std::int64_t rows);
/// Whether rows are put together that ask for the same blocks: the rule of the largest probability takes them as they
/// lie.
bool groups_rows(const PlanDesc& desc);
/// Whether the forward of such a plan may leave a stash.
bool stashes(const PlanDesc& desc);
/// What keep_tiles goes by on a side of a plan that filters.
double filter_eps(const PlanDesc& desc, const kernels::Blocks& blocks);
/// Bytes that a filtered backward may ask for, block_lse among them.
std::size_t filter_limit(const PlanDesc& desc, bool copies_c);

/// Which form of the forward so many rows take.
DeviceProgram forward_program(const PlanDesc& desc, const DeviceBlocks& blocks, std::int64_t rows);

class DevicePrograms {
 public:
  /// `filtered`: of a filtered backward and the forward before it. Without a cache every program is compiled.
  DevicePrograms(const PlanDesc& desc, const DeviceBlocks& blocks, const Target& target, bool filtered = false,
                 std::shared_ptr<CodeCache> cache = nullptr);

  const DeviceBlocks& blocks() const { return blocks_; }
  bool filtered() const { return filtered_; }
  /// Whether the programs' tokens are not the rows of c one after the other.
  bool ordered() const { return filtered_ && orders_c(desc_, blocks_.boxed); }
  /// Whether c is copied: to rows that boxes can have, in the order of the vocabulary.
  bool copies_c() const { return blocks_.boxed && (desc_.hidden % 8 != 0 || ordered()); }
  /// Tokens of the vocabulary that a filtered backward copies at a time, whole blocks of them; or all.
  std::int64_t window() const { return window_; }
  /// Rows of a pass of the forward; 0: all.
  std::int64_t chunk() const { return desc_.strategy == Strategy::min_memory ? blocks_.forward.n : 0; }
  /// Those that a plan of this kind may call.
  std::vector<DeviceProgram> all() const;
  static std::string_view name(DeviceProgram which);
  Program record(DeviceProgram which) const;
  Schedule schedule(DeviceProgram which) const;
  /// Compiles it on first use for the device of the plan: one caller does, others wait.
  const Kernel& kernel(DeviceProgram which);

 private:
  bool used(DeviceProgram which) const;

  PlanDesc desc_;
  DeviceBlocks blocks_;
  Target target_;
  std::shared_ptr<CodeCache> cache_;
  bool filtered_;
  std::int64_t window_;
  std::array<std::once_flag, device_programs> compiled_;
  std::array<Kernel, device_programs> kernels_;
};

}  // namespace kerf::runtime
