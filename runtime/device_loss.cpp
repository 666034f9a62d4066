#include "runtime/device_loss.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kerf/error.h"
#include "lib/kernels/kernels.h"
#include "runtime/cuda/device.h"
#include "runtime/device_call.h"
#include "runtime/filter_space.h"

namespace kerf::runtime {

namespace {

constexpr std::int64_t few_tiles = 2 * 132;    // that keep a large GPU busy
constexpr std::int64_t longest_sum = 1 << 15;  // columns: 2048 additions of 16 products, cut off by 2^-23 each
// Strategy::automatic, in the time that the logits of one token take: what a token in the stash saves, and what a range
// costs, which reads and writes the sum of de. A sixteenth of the columns pays for a forward by tiles of dz.
constexpr double saved_by_token = 0.8, cost_of_range = 1024;
constexpr std::int64_t least_share_of_stash = 16;

/// Whether rows begin where boxes of memory may.
bool boxes_fit(const TensorRef& t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.strides[0] * size_of(t.dtype) % 16 == 0;
}

/// Where the range that begins there ends: ranges do not reach across the end of the stash.
std::int64_t range_end(const Ranges& r, std::int64_t begin, std::int64_t stashed) {
  return std::min(begin + r.width, begin < stashed ? stashed : r.columns);
}

std::size_t bytes_of(const TensorRef& t) {
  return t.given() ? static_cast<std::size_t>(t.elements() * size_of(t.dtype)) : 0;
}

}  // namespace

DeviceLoss::DeviceLoss(const PlanDesc& desc, std::shared_ptr<CodeCache> cache, const LossPoints& points,
                       std::shared_ptr<KnownOrder> order)
    : desc_(desc), order_(std::move(order)) {
  const kernels::Shape shape{desc.vocabulary, desc.hidden, desc.dtype};
  const Target target = target_of(desc);
  const bool boxes = reads_in_boxes(desc, target);
  programs_.push_back(
      std::make_unique<DevicePrograms>(desc, device_blocks(desc, target, points), target, false, cache));
  if (boxes)
    programs_.push_back(
        std::make_unique<DevicePrograms>(desc, choose_plain_blocks(shape), Target::cuda("sm_80"), false, cache));
  if (kerf::runtime::filters(desc))
    filtered_ = std::make_unique<DevicePrograms>(desc, filtered_blocks(desc, target, points), target, true, cache);
}

DeviceLoss::DeviceLoss(const PlanDesc& desc, const DeviceBlocks& boxed, const DeviceBlocks& plain,
                       std::shared_ptr<ThreadPool> pool)
    : desc_(desc), pool_(std::move(pool)) {
  for (const DeviceBlocks& blocks : {boxed, plain})
    programs_.push_back(std::make_unique<DevicePrograms>(desc, blocks, Target::host()));
  if (kerf::runtime::filters(desc)) filtered_ = std::make_unique<DevicePrograms>(desc, boxed, Target::host(), true);
}

DeviceLoss::DeviceLoss(const PlanDesc& desc, const DeviceBlocks& blocks, std::shared_ptr<ThreadPool> pool,
                       std::shared_ptr<CodeCache> cache, std::shared_ptr<KnownOrder> order)
    : desc_(desc), pool_(std::move(pool)), order_(std::move(order)) {
  if (kerf::runtime::filters(desc))
    filtered_ = std::make_unique<DevicePrograms>(desc, blocks, Target::host(), true, std::move(cache));
  else
    programs_.push_back(std::make_unique<DevicePrograms>(desc, blocks, Target::host(), false, std::move(cache)));
}

bool DeviceLoss::filters_with(const TensorRef& c, std::int64_t rows) const {
  if (!filters(rows)) return false;
  return boxes_fit(c) || !filtered_->blocks().boxed || filtered_->copies_c();
}

BlockLseShape DeviceLoss::shape_of_block_lse() const {
  if (!filtered_) return {};
  return [this](std::int64_t rows) { return block_lse_shape(rows); };
}

DevicePrograms& DeviceLoss::programs_for(const TensorRef& c, const TensorRef& de) const {
  const bool kept_in_de = desc_.strategy == Strategy::min_memory && de.given();
  const bool read = boxes_fit(c) || programs_.front()->copies_c();
  return read && (!kept_in_de || boxes_fit(de)) ? *programs_.front() : *programs_.back();
}

std::int64_t DeviceLoss::chunk(const DevicePrograms& p, std::int64_t rows) const {
  const std::int64_t all = label_blocks(rows) * kernels::label_block;
  return p.chunk() ? std::min(p.chunk(), all) : all;
}

DeviceProgram DeviceLoss::forward_program(const DevicePrograms& p, std::int64_t rows) const {
  return kerf::runtime::forward_program(desc_, p.blocks(), rows);
}

std::int64_t DeviceLoss::parts(const DevicePrograms& p, std::int64_t rows) const {
  const kernels::Blocks &b = p.blocks().forward, &tall = p.blocks().tall;
  switch (forward_program(p, rows)) {
    case DeviceProgram::lse_forward_tall: return blocks_of(desc_.vocabulary, tall.v * tall.split);
    case DeviceProgram::lse_forward_run: return blocks_of(desc_.vocabulary, b.v * b.split);
    default: return blocks_of(desc_.vocabulary, b.v);
  }
}

Ranges DeviceLoss::ranges(const DevicePrograms& p, std::int64_t rows) const {
  const kernels::Blocks& b = p.blocks().backward;
  const std::int64_t columns = blocks_of(desc_.vocabulary, b.v);
  if (desc_.strategy == Strategy::min_memory) {
    const std::int64_t down = label_blocks(rows) * kernels::label_block / b.n;
    return {columns, std::clamp<std::int64_t>(blocks_of(few_tiles, down), 1, columns)};
  }
  std::size_t limit = desc_.workspace_limit - std::min(desc_.workspace_limit, block_lse_bytes(rows));
  if (desc_.workspace_limit == 0) {
    limit = std::size_t{pool_ && stashes(desc_) ? 64U : 1024U} << 20;  // as on the host
    if (p.copies_c()) limit += static_cast<std::size_t>(desc_.vocabulary * copied_row(desc_) * size_of(desc_.dtype));
  }
  // Each of de's sums over a range is made in one go, and tensor cores cut off a little at every step of it.
  const std::int64_t widest = desc_.dtype == f32 ? columns : std::max<std::int64_t>(1, longest_sum / b.v);
  Ranges most = choose_ranges(
      columns, limit, [&](const Ranges& r) { return lay_out_device_backward(nullptr, desc_, rows, p, r).bytes; });
  if (most.width > widest) most.width = blocks_of(columns, blocks_of(columns, widest));
  if (desc_.strategy != Strategy::automatic || !stashes(desc_)) return most;
  // Narrower ranges leave more of the limit to the stash.
  Ranges best = most;
  double most_saved = -std::numeric_limits<double>::infinity();
  for (Ranges r = most;; r.width = blocks_of(r.width, 2)) {
    const StashSpace held = stash_beside(p, rows, lay_out_device_backward(nullptr, desc_, rows, p, r).bytes);
    const double saved = saved_by_token * static_cast<double>(held.columns * b.v) - cost_of_range * r.count();
    if (saved > most_saved) best = r, most_saved = saved;
    if (r.width == 1) return best;
  }
}

StashSpace DeviceLoss::stash_beside(const DevicePrograms& p, std::int64_t rows, std::size_t backward) const {
  if (backward >= desc_.workspace_limit) return {};
  const StashSpace s = lay_out_stash(nullptr, desc_.workspace_limit - backward, desc_, rows, p);
  const std::int64_t columns = blocks_of(desc_.vocabulary, p.blocks().backward.v);
  return s.columns * least_share_of_stash >= columns ? s : StashSpace{};
}

std::size_t DeviceLoss::workspace(const DevicePrograms& p, std::int64_t rows, bool backward) const {
  if (rows / p.blocks().backward.n >= most_row_blocks) return too_large;
  if (backward && p.filtered()) return lay_out_filter(nullptr, desc_, rows, p, filter_ranges(rows)).bytes;
  if (backward) return lay_out_device_backward(nullptr, desc_, rows, p, ranges(p, rows)).bytes;
  const Ranges r = stashes_with(rows) ? ranges(p, rows) : Ranges{};
  return lay_out_device_forward(nullptr, desc_, rows, p, chunk(p, rows), std::max(parts(p, rows), r.columns), r.width)
      .bytes;
}

std::size_t DeviceLoss::workspace(std::int64_t rows, bool backward) const {
  if (rows < 0) throw UsageError(fmt::format("Plan: {} rows; their number must not be negative", rows));
  std::size_t bytes = 0;
  for (const auto& p : programs_) bytes = std::max(bytes, workspace(*p, rows, backward));
  if (filters(rows)) bytes = std::max(bytes, workspace(*filtered_, rows, backward));
  if (bytes == too_large) throw UsageError(fmt::format("Plan: the workspace for {} rows passes 2^63 bytes", rows));
  return bytes;
}

std::size_t DeviceLoss::stash_bytes(std::int64_t rows) const {
  if (rows < 0) throw UsageError(fmt::format("Plan: {} rows; their number must not be negative", rows));
  if (desc_.strategy == Strategy::automatic)
    return stash_beside(*programs_[0], rows, std::max(workspace(rows, true), room_(rows))).bytes;
  std::size_t bytes = 0;
  for (const auto& p : programs_)
    bytes =
        std::max(bytes, rows / p->blocks().backward.n >= most_row_blocks ? too_large
                                                                         : kerf::runtime::stash_bytes(desc_, rows, *p));
  if (bytes == too_large) throw UsageError(fmt::format("Plan: the stash for {} rows passes 2^63 bytes", rows));
  return bytes;
}

bool DeviceLoss::stashes_with(std::int64_t rows) const {
  return stashes(desc_) && (desc_.strategy != Strategy::automatic || stash_bytes(rows) > 0);
}

StashSpace DeviceLoss::stash_space(const TensorRef& stash, const DevicePrograms& p, std::int64_t rows,
                                   const std::string& call, bool needed) const {
  if (desc_.strategy == Strategy::dense && (stash.given() || needed)) {
    if (!stash.given())
      throw UsageError(call +
                       ": stash is not given; with strategy dense it holds what the forward left (exact_stash "
                       "works without)");
    if (const std::size_t all = stash_bytes(rows); bytes_of(stash) < all)
      throw UsageError(
          fmt::format("{}: stash has {} bytes; with strategy dense it holds everything, for {} rows {} bytes "
                      "(Plan::stash_bytes); exact_stash takes any size",
                      call, bytes_of(stash), rows, all));
  }
  if (!stash.given() || !stashes_with(rows)) return {};
  return lay_out_stash(static_cast<std::byte*>(stash.data), bytes_of(stash), desc_, rows, p);
}

void DeviceLoss::check_on_host(const Labels& labels, const std::string& call, Stream stream) const {
  if (pool_) return static_cast<void>(check_labels(labels, call));
  const auto gpu = cuda::Device::open(desc_.device.ordinal);
  std::vector<std::vector<std::byte>> copies;
  const auto fetch = [&](TensorRef t, const char* name) {
    std::int64_t elements = t.elements() > 0 ? 1 : 0;  // from the first to the last
    for (int i = 0; i < t.rank && elements > 0; ++i) elements += (t.shape[i] - 1) * t.strides[i];
    std::vector<std::byte>& copy = copies.emplace_back(static_cast<std::size_t>(elements * size_of(t.dtype)));
    if (!copy.empty()) {
      gpu->require_memory(t.data, call + ": " + name);
      cuda::download(*gpu, copy.data(), t.data, copy.size(), stream);
    }
    t.data = copy.data();
    t.device = {};
    return t;
  };
  Labels host = labels;
  host.target = fetch(labels.target, "target");
  if (labels.cu_seqlens.given()) host.cu_seqlens = fetch(labels.cu_seqlens, "cu_seqlens");
  cuda::synchronize(*gpu, stream);
  if (labels.cu_seqlens.given()) check_sequences(host.cu_seqlens, host.rows, call);
  check_labels(host, call);
}

void DeviceLoss::forward(const ForwardArgs& a, Stream stream) {
  const auto [e, given_c, labels, loss, lse, block_lse, stash, memory, name] = check_forward(
      desc_, a, [&](std::int64_t rows) { return workspace(rows, false); }, shape_of_block_lse());
  if (desc_.check_labels) check_on_host(labels, name, stream);
  if (!loss.given() && !lse.given() && !block_lse.given() && !stash.given()) return;
  const bool filtered = block_lse.given() && filters_with(given_c, labels.rows);
  if (filtered) require_given_order(name);
  if (block_lse.given() && !filtered)
    Call{*this, *filtered_, stream}.run(DeviceProgram::forget_masses, {.tensors = {{"block_lse", block_lse}}});
  const std::int64_t N = labels.rows, P = label_blocks(N) * kernels::label_block;
  DevicePrograms& programs = filtered ? *filtered_ : programs_for(given_c, {});
  const StashSpace stashed = stash_space(stash, programs, N, name, false);
  const Ranges all = stashes_with(N) ? ranges(programs, N) : Ranges{};
  const std::int64_t step = chunk(programs, N), run_parts = parts(programs, N);
  const std::int64_t S = stashed.columns > 0 ? all.columns : run_parts;
  const DeviceForwardSpace space =
      lay_out_device_forward(memory, desc_, N, programs, step, std::max(run_parts, all.columns), all.width);
  const LabelSpace& s = space.labels;
  const Call call{*this, programs, stream};

  const bool each = loss.given() && desc_.reduction == Reduction::none;
  const TensorRef row_lse = lse.given() ? lse : call.at(space.lse, f32, {N});
  const TensorRef row_loss = each ? loss : call.at(space.loss, f32, {N});
  call.compact_labels(labels, s, row_loss, row_lse);

  const std::int64_t chunks = blocks_of(P, step);
  const std::int64_t* count = s.valid;
  if (programs.chunk()) {
    call.run(DeviceProgram::chunk_rows,
             {.tensors = {{"valid", call.at(s.valid, i64, {})}, {"count", call.at(space.chunk_rows, i64, {chunks})}}});
    count = space.chunk_rows;
  }
  const TensorRef part_max = call.at(stashed.columns > 0 ? stashed.part_max : space.part_max, f32, {S, step}),
                  part_sum = call.at(space.part_sum, f32, {S, step});
  const TensorRef part_target = call.at(space.part_target, f32, {S, step});
  const TensorRef compact = apart(call.at(space.compact, desc_.dtype, {step, desc_.hidden}), copied_row(desc_));
  TensorRef order;
  if (programs.ordered()) {
    if (N > 0) call.compact_rows(e, call.at(s.rows, i64, {step}), compact);
    order = known_order(compact, s, given_c, name, stream);
    call.place_targets(s.target, P, order_->order.place());
  }
  const TensorRef c = call.readable(given_c, space.c, order);
  for (std::int64_t i = 0; i < blocks_of(N, step); ++i) {
    const TensorRef rows = call.at(s.rows + i * step, i64, {step}), target = call.at(s.target + i * step, i32, {step});
    if (!programs.ordered()) call.compact_rows(e, rows, compact);
    LaunchArgs product{.tensors = {{"e", compact},
                                   {"c", c},
                                   {"target", target},
                                   {"part_max", part_max},
                                   {"part_sum", part_sum},
                                   {"part_target", part_target}},
                       .device_sizes = {{"N", count + i}}};
    if (filtered) product.tensors.emplace_back("block_lse", block_lse);
    if (programs.ordered() && !programs.copies_c()) product.tensors.emplace_back("order", order);
    for (std::int64_t begin = 0; begin < all.columns && stashed.columns > 0;) {
      const std::int64_t end = range_end(all, begin, stashed.columns);
      LaunchArgs tiles = product;
      tiles.lists = {{"kept", call.list(DeviceProgram::list_kept, space.kept, step, begin, end, s.valid)}};
      if (begin < stashed.columns) tiles.tensors.emplace_back("stash", call.stash_tiles(stashed, begin, end));
      call.run(begin < stashed.columns ? DeviceProgram::stash_tiles : DeviceProgram::lse_tiles, tiles);
      begin = end;
    }
    if (stashed.columns == 0) call.run(forward_program(programs, N), product);
    call.run(DeviceProgram::combine, {.tensors = {{"part_max", part_max},
                                                  {"part_sum", part_sum},
                                                  {"part_target", part_target},
                                                  {"rows", rows},
                                                  {"lse", row_lse},
                                                  {"loss", row_loss}},
                                      .device_sizes = {{"N", count + i}}});
  }
  if (!loss.given() || each) return;
  const TensorRef partial = call.at(space.partial, f32, {std::max<std::int64_t>(1, blocks_of(N, kernels::loss_block))});
  call.run(DeviceProgram::sum_losses, {.tensors = {{"loss", row_loss}, {"partial", partial}}});
  LaunchArgs finish{.tensors = {{"partial", partial}, {"loss", scalar(loss)}}};
  if (desc_.reduction == Reduction::mean) finish.tensors.emplace_back("valid", call.at(s.valid, i64, {}));
  call.run(DeviceProgram::finish_loss, finish);
}

void DeviceLoss::backward(const BackwardArgs& a, Stream stream) {
  const BackwardCall checked = check_backward(
      desc_, a, [&](std::int64_t rows) { return workspace(rows, true); }, shape_of_block_lse());
  const auto& [e, given_c, labels, lse, grad_loss, de, dc, block_lse, stash, memory, bytes, name] = checked;
  if (desc_.check_labels) check_on_host(labels, name, stream);
  if (!de.given() && !dc.given()) return;
  if (block_lse.given() && filters_with(given_c, labels.rows))
    return filtered_backward(checked, a.accumulate_dc, stream);
  if (block_lse.given()) {
    auto* figures = reinterpret_cast<FilterFigures*>(memory);
    const Call call{*this, *filtered_, stream};
    call.run(DeviceProgram::keep_all, {.tensors = {{"kept", call.at(&figures->kept, i64, {1})},
                                                   {"left_out", call.at(&figures->left_out, f32, {1})}}});
  }
  const std::int64_t N = labels.rows, D = desc_.hidden, P = label_blocks(N) * kernels::label_block;
  const std::int64_t M = std::max<std::int64_t>(N, 1);  // a box cannot be empty
  DevicePrograms& programs = programs_for(given_c, de);
  const Ranges all = ranges(programs, N);
  const StashSpace stashed = stash_space(stash, programs, N, name, true);
  const DeviceBackwardSpace space = lay_out_device_backward(memory, desc_, N, programs, all);
  const LabelSpace& s = space.labels;
  const Call call{*this, programs, stream};
  call.compact_labels(labels, s);

  // Arrays over the valid rows are told as long as the rows of e, which a copy in `de` has.
  const TensorRef rows = call.at(s.rows, i64, {M}), target = call.at(s.target, i32, {M}),
                  g = call.at(space.g, f32, {M});
  const TensorRef scale = call.at(space.scale, f32, {});
  const std::vector<std::pair<std::string, const std::int64_t*>> sizes = {{"N", s.valid}};
  call.upstream(grad_loss, s, N, space.g, space.largest, space.scale);

  const bool several = range_end(all, 0, stashed.columns) < all.columns;
  const bool in_de = desc_.strategy == Strategy::min_memory && several && de.given() && N > 0;
  const TensorRef compact = in_de ? de : apart(call.at(space.compact, desc_.dtype, {M, D}), copied_row(desc_));
  const TensorRef c = call.readable(given_c, space.c);
  call.compact_rows(e, rows, compact);
  const kernels::Blocks& b = programs.blocks().backward;
  const bool split = space.parts > 1;
  const std::int64_t down = std::max<std::int64_t>(1, blocks_of(N, b.n));
  for (std::int64_t begin = 0, end = 0; begin < all.columns; begin = end) {
    end = range_end(all, begin, stashed.columns);
    const bool held = begin < stashed.columns;
    const TileListRef kept = call.list(DeviceProgram::list_kept, space.kept, M, begin, end, s.valid);
    const TensorRef dz =
        held ? call.stash_tiles(stashed, begin, end) : call.at(space.dz, desc_.dtype, {kept.count * b.v * b.n});
    LaunchArgs tiles{.tensors = {{"rows", rows}, {"target", target}, {"lse", lse}, {"g", g}},
                     .lists = {{"kept", kept}},
                     .device_sizes = sizes};
    if (held)
      tiles.tensors.insert(
          tiles.tensors.end(),
          {{"stash", dz}, {"part_max", call.at(stashed.part_max, f32, {all.columns, M}).with_strides({P, 1})}});
    else
      tiles.tensors.insert(tiles.tensors.end(), {{"e", compact}, {"c", c}, {"dz", dz}});
    call.run(held ? DeviceProgram::dz_of_stash : DeviceProgram::grad_tiles, tiles);
    if (dc.given() && space.row_parts > 1) {
      TileListRef items = space.row_part_items;
      items.count = kept.count;
      const std::int64_t S = space.row_parts, width = end - begin, K = kept.count, Q = S * width + 1;
      const std::int64_t first = begin * b.v, here = std::min(end * b.v, desc_.vocabulary) - first, M = width * b.v;
      call.run(DeviceProgram::list_row_parts,
               {.tensors = {{"item_column", call.at(items.column, i32, {K})},
                            {"items", call.at(items.column_items, i32, {K})},
                            {"begin", call.at(items.column_begin, i32, {Q})}},
                .axes = {{"N", rows.shape[0]}, {"I", std::max(K, Q)}, {"width", width}, {"parts", S}},
                .device_sizes = sizes});
      call.run(DeviceProgram::grad_c_parts,
               {.tensors = {{"e", compact}, {"dz", dz}, {"sum", call.at(space.dc_sum, f32, {S * M, D})}},
                .lists = {{"kept", items}},
                .device_sizes = sizes});
      TensorRef dc_here = dc;
      dc_here.data = static_cast<std::byte*>(dc.data) + first * dc.strides[0] * size_of(dc.dtype);
      dc_here.shape[0] = here;
      LaunchArgs args{
          .tensors = {{"sum", call.at(space.dc_sum, f32, {S, here, D}).with_strides({M * D, D, 1})}, {"dc", dc_here}}};
      if (desc_.dtype == f16) args.tensors.emplace_back("scale", scale);
      call.run(call.form_of_dc(dc, a.accumulate_dc, DeviceProgram::sum_dc, DeviceProgram::sum_dc_add,
                               DeviceProgram::sum_dc_f32, DeviceProgram::sum_dc_f32_add),
               args);
    } else if (dc.given()) {
      const TileListRef written = call.list(DeviceProgram::list_written, space.written, D, begin, end, nullptr);
      LaunchArgs args{.tensors = {{"e", compact}, {"dz", dz}, {"dc", dc}},
                      .lists = {{"kept", kept}, {"written", written}},
                      .device_sizes = sizes};
      if (desc_.dtype == f16) args.tensors.emplace_back("scale", scale);
      call.run(call.form_of_dc(dc, a.accumulate_dc, DeviceProgram::grad_c, DeviceProgram::grad_c_add,
                               DeviceProgram::grad_c_f32, DeviceProgram::grad_c_f32_add),
               args);
    }
    if (de.given() && split) {
      TileListRef items = space.part_items;
      items.count = kept.count;
      const std::int64_t K = kept.count, Q = space.parts * down + 1;
      call.run(DeviceProgram::list_parts, {.tensors = {{"item_row", call.at(items.row, i32, {K})},
                                                       {"items", call.at(items.row_items, i32, {K})},
                                                       {"begin", call.at(items.row_begin, i32, {Q})}},
                                           .axes = {{"N", M},
                                                    {"I", std::max(K, Q)},
                                                    {"first", begin},
                                                    {"last", end},
                                                    {"parts", space.parts},
                                                    {"down", down}},
                                           .device_sizes = sizes});
      call.run(begin == 0 ? DeviceProgram::grad_e_begin : DeviceProgram::grad_e_add,
               {.tensors = {{"c", c}, {"dz", dz}, {"sum", call.at(space.sum, f32, {space.parts * down * b.n, D})}},
                .lists = {{"kept", items}}});
    } else if (de.given() && several) {
      call.run(begin == 0 ? DeviceProgram::grad_e_begin : DeviceProgram::grad_e_add,
               {.tensors = {{"c", c}, {"dz", dz}, {"sum", call.at(space.sum, f32, {M, D})}},
                .lists = {{"kept", kept}},
                .device_sizes = sizes});
    } else if (de.given()) {
      LaunchArgs args{.tensors = {{"c", c}, {"dz", dz}, {"rows", rows}, {"de", de}},
                      .lists = {{"kept", kept}},
                      .device_sizes = sizes};
      if (desc_.dtype == f16) args.tensors.emplace_back("scale", scale);
      call.run(DeviceProgram::grad_e, args);
    }
  }
  if (de.given() && (split || several)) {  // after all that reads the copy of e in its place
    LaunchArgs args{.tensors = {{"sum", call.at(space.sum, f32, {space.parts, down * b.n, D})},
                                {"rows", call.at(s.rows, i64, {down * b.n})},
                                {"de", de}}};
    if (desc_.dtype == f16) args.tensors.emplace_back("scale", scale);
    call.run(DeviceProgram::sum_parts, args);
  }
  if (de.given()) call.clear_rows(call.at(s.label, i32, {N}), de);
}

}  // namespace kerf::runtime
