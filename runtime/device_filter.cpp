// The filtered backward: which tiles of dz matter is found from block_lse, lists of them are built, and the three
// products walk the lists. Everything is decided where the numbers are: the host launches as many ranges of the
// vocabulary as there could be, and those that turn out to be empty return at once.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kerf/error.h"
#include "runtime/cuda/device.h"
#include "runtime/device_call.h"
#include "runtime/filter_space.h"

namespace kerf::runtime {

FilterRanges DeviceLoss::filter_ranges(std::int64_t rows) const {
  std::size_t limit = filter_limit(desc_, filtered_->copies_c());
  limit -= std::min(limit, block_lse_bytes(rows));
  return choose_filter_ranges(desc_, rows, *filtered_, limit);
}

std::array<std::int64_t, 2> DeviceLoss::block_lse_shape(std::int64_t rows) const {
  return {blocks_of(desc_.vocabulary, filtered_->blocks().backward.v), label_blocks(rows) * kernels::label_block};
}

std::size_t DeviceLoss::block_lse_bytes(std::int64_t rows) const {
  if (!filters(rows)) return 0;
  const auto [blocks, tokens] = block_lse_shape(rows);
  return static_cast<std::size_t>(blocks * tokens) * sizeof(float);
}

void DeviceLoss::read_back(void* to, const void* from, std::size_t bytes, Stream stream) const {
  if (pool_) {
    std::memcpy(to, from, bytes);
    return;
  }
  const auto gpu = cuda::Device::open(desc_.device.ordinal);
  cuda::download(*gpu, to, from, bytes, stream);
  cuda::synchronize(*gpu, stream);
}

FilterReport DeviceLoss::filter_report(const TensorRef& workspace, Stream stream) const {
  FilterFigures f;
  read_back(&f, workspace.data, sizeof f, stream);
  // The call may have had other blocks than this.
  FilterReport r{.tiles = f.tiles, .kept = f.kept};
  if (r.kept == kernels::every_tile) {
    const kernels::Blocks& b = filtered_->blocks().backward;
    r.kept = r.tiles = blocks_of(f.valid, b.n) * blocks_of(desc_.vocabulary, b.v);
  }
  r.kept_share = r.tiles > 0 ? static_cast<double>(r.kept) / static_cast<double>(r.tiles) : 1;
  r.dropped_mass = f.left_out;
  return r;
}

void DeviceLoss::set_order(const std::vector<std::int64_t>& order, const char* call) {
  const std::lock_guard lock(order_->mutex);
  order_->order.set(order, desc_.vocabulary, desc_.device, call);
}

void DeviceLoss::find_order(const TensorRef& e, const TensorRef& c, const char* call, Stream stream) {
  const std::lock_guard lock(order_->mutex);
  sort_vocabulary(e, c, call, stream);
}

void DeviceLoss::sort_vocabulary(const TensorRef& e, const TensorRef& c, const char* call, Stream stream) {
  // Sums of rows in blocks, then scores: both small enough to be allocated for this call.
  const std::int64_t N = e.shape[0], D = desc_.hidden, V = desc_.vocabulary;
  const std::int64_t S = std::max<std::int64_t>(1, blocks_of(N, kernels::label_block));
  std::vector<float> here(pool_ ? static_cast<std::size_t>(V + S * D) : 0), score(static_cast<std::size_t>(V));
  cuda::Buffer there;
  if (!pool_)
    there = cuda::Buffer(cuda::Device::open(desc_.device.ordinal), static_cast<std::size_t>(V + S * D) * sizeof(float));
  auto* memory = static_cast<float*>(pool_ ? here.data() : there.data());
  const Call steps{*this, *filtered_, stream};
  const TensorRef sums = steps.at(memory + V, f32, {S, D});
  steps.run(DeviceProgram::sum_rows, {.tensors = {{"e", e}, {"sum", sums}}});
  steps.run(DeviceProgram::score_rows, {.tensors = {{"c", c}, {"sum", sums}, {"score", steps.at(memory, f32, {V})}}});
  read_back(score.data(), memory, score.size() * sizeof(float), stream);
  order_->order.set(vocabulary_order({score.begin(), score.end()}), desc_.vocabulary, desc_.device, call);
  // No rows say nothing, nor do rows of which one is not finite.
  order_->provisional = N == 0 || std::none_of(score.begin(), score.end(), [](float x) { return std::isfinite(x); });
}

void DeviceLoss::require_given_order(const std::string& name) const {
  if (desc_.order == Order::given && !order_->order.known())
    throw UsageError(name + ": block_lse is given and the plan has no order of the vocabulary; call Plan::set_order");
}

TensorRef DeviceLoss::known_order(const TensorRef& compact, const LabelSpace& labels, const TensorRef& c,
                                  const std::string& name, Stream stream) {
  const std::lock_guard lock(order_->mutex);  // one of several first calls finds it
  if (order_->order.known() && !order_->provisional) return order_->order.order();
  if (desc_.order == Order::identity) {  // rows are copied for another reason
    std::vector<std::int64_t> same(static_cast<std::size_t>(desc_.vocabulary));
    std::iota(same.begin(), same.end(), 0);
    order_->order.set(same, desc_.vocabulary, desc_.device, name.c_str());
    return order_->order.order();
  }
  std::int64_t valid = 0;
  read_back(&valid, labels.valid, sizeof valid, stream);
  TensorRef rows = compact;
  rows.shape[0] = valid;
  sort_vocabulary(rows, c, name.c_str(), stream);
  return order_->order.order();
}

/// One filtered backward.
struct DeviceLoss::FilteredCall {
  const DeviceLoss& loss;
  const BackwardCall& a;
  bool accumulate_dc;
  Stream stream;

  const PlanDesc& desc = loss.desc_;
  DevicePrograms& programs = *loss.filtered_;
  const Call call{loss, programs, stream};
  const kernels::Blocks& b = programs.blocks().backward;
  const FilterRanges ranges = loss.filter_ranges(a.labels.rows);
  const FilterSpace space = lay_out_filter(a.memory, desc, a.labels.rows, programs, ranges);
  const LabelSpace& s = space.labels;
  // Rows, at least one (a box cannot be empty), rounded up, in blocks; blocks of the vocabulary.
  const std::int64_t N = a.labels.rows, M = std::max<std::int64_t>(N, 1), D = desc.hidden;
  const std::int64_t P = label_blocks(N) * kernels::label_block, R = ranges.rows, B = ranges.all_columns;
  const bool corrects_e = desc.correction && desc.filter_e && a.de.given();
  const bool corrects_c = desc.correction && desc.filter_c && a.dc.given();
  const std::vector<std::pair<std::string, const std::int64_t*>> sizes = {{"N", s.valid}};

  // Rows of its order once group_rows has been.
  const TensorRef rows = call.at(space.rows, i64, {M}), valid = call.at(s.valid, i64, {});
  const TensorRef g = call.at(space.moved_g, f32, {M}), scale = call.at(space.scale, f32, {});
  const TensorRef compact = apart(call.at(space.compact, desc.dtype, {M, D}), copied_row(desc));
  const TensorRef sum = call.at(space.sum, f32, {M, D});

  /// What the products read of the vocabulary: all of it, or a window of blocks that was copied in order.
  struct Window {
    std::int64_t first, blocks;
    TensorRef c, target, order;
  };

  void run() const {
    call.compact_labels(a.labels, s);
    if (programs.ordered()) call.place_targets(s.target, P, loss.order_->order.place());
    call.upstream(a.grad_loss, s, N, space.g, space.largest, space.scale);
    if (groups_rows(desc)) group_rows();
    call.compact_rows(a.e, rows, compact);
    decide();
    if (ranges.most_pieces > 0 && a.de.given())
      call.run(DeviceProgram::count_up, {.tensors = {{"items", call.at(space.counting, i32, {ranges.pieces() + 1})}}});
    for (std::int64_t first = 0; first < B; first += ranges.columns) {
      const Window w = window(first);
      rank(w);
      for (std::int64_t range = 0; range < ranges.count(); ++range) products(w, range);
    }
    call.run(DeviceProgram::count_kept, {.tensors = {{"kept_count", call.at(space.kept_count, i64, {B})},
                                                     {"lost", call.at(space.lost, f32, {B})},
                                                     {"valid", valid},
                                                     {"kept", call.at(space.kept, i64, {1})},
                                                     {"tiles", call.at(space.tiles, i64, {1})},
                                                     {"left_out", call.at(space.left_out, f32, {1})}}});
    if (!a.de.given()) return;
    LaunchArgs end{.tensors = {{"sum", call.at(space.sum, f32, {1, M, D})}, {"rows", rows}, {"de", a.de}}};
    if (desc.dtype == f16) end.tensors.emplace_back("scale", scale);
    call.run(DeviceProgram::sum_parts, end);
    call.clear_rows(call.at(s.label, i32, {N}), a.de);
  }

  /// Puts rows together that ask for the same blocks.
  void group_rows() const {
    const TensorRef from_rows = call.at(s.rows, i64, {P}), from_target = call.at(s.target, i32, {P});
    const TensorRef from_g = call.at(space.g, f32, {P}), place = call.at(space.place, i64, {P});
    const TensorRef askers = call.at(space.askers, i32, {B}), rating = call.at(space.rating, i32, {P});
    const TensorRef outside = call.at(space.outside, f32, {P});
    call.run(DeviceProgram::mass_outside, {.tensors = {{"block_lse", a.block_lse},
                                                       {"lse", a.lse},
                                                       {"rows", from_rows},
                                                       {"target", from_target},
                                                       {"outside", outside}}});
    LaunchArgs asked{.tensors = {{"block_lse", a.block_lse},
                                 {"lse", a.lse},
                                 {"rows", from_rows},
                                 {"target", from_target},
                                 {"g", from_g},
                                 {"outside", outside},
                                 {"askers", askers}}};
    call.run(DeviceProgram::count_askers, asked);
    asked.tensors.emplace_back("rating", rating);
    call.run(DeviceProgram::rate_rows, asked);
    call.run(DeviceProgram::place_rows, {.tensors = {{"rating", rating}, {"of_all", rating}, {"place", place}},
                                         .axes = {{"G", blocks_of(P, kernels::grouped_rows)}}});
    call.run(DeviceProgram::move_rows, {.tensors = {{"place", place},
                                                    {"rows", from_rows},
                                                    {"target", from_target},
                                                    {"g", from_g},
                                                    {"outside", outside},
                                                    {"from", call.at(space.from, i64, {P})},
                                                    {"moved_rows", call.at(space.rows, i64, {P})},
                                                    {"moved_target", call.at(space.moved_target, i32, {P})},
                                                    {"moved_g", call.at(space.moved_g, f32, {P})},
                                                    {"moved_outside", call.at(space.moved_outside, f32, {P})}}});
  }

  /// Which tiles to keep, and what the rest is worth.
  void decide() const {
    LaunchArgs keep{.tensors = {{"block_lse", a.block_lse},
                                {"lse", a.lse},
                                {"rows", call.at(space.rows, i64, {P})},
                                {"target", call.at(space.moved_target, i32, {P})},
                                {"g", call.at(space.moved_g, f32, {P})},
                                {"keep", call.at(space.keep, i32, {B, R})},
                                {"left_out", call.at(space.block_left_out, f32, {B, R})}}};
    if (groups_rows(desc)) {
      keep.tensors.emplace_back("from", call.at(space.from, i64, {P}));
      keep.tensors.emplace_back("outside", call.at(space.moved_outside, f32, {P}));
    }
    if (desc.correction) keep.tensors.emplace_back("m", call.at(space.m, desc.dtype, {B, P}));
    call.run(DeviceProgram::keep_tiles, keep);
    const TensorRef m = call.at(space.m, desc.dtype, {B, M}).with_strides({P, 1});
    if (corrects_e) {
      const TensorRef cmean = apart(call.at(space.cmean, desc.dtype, {B, D}), copied_row(desc));
      LaunchArgs means{.tensors = {{"c", a.c}, {"cmean", cmean}}};
      if (programs.ordered()) means.tensors.emplace_back("order", loss.order_->order.order());
      call.run(DeviceProgram::block_means, means);
      call.run(DeviceProgram::correct_e,
               {.tensors = {{"m", m}, {"cmean", cmean}, {"sum", sum}}, .device_sizes = sizes});
    }
    if (corrects_c)
      call.run(
          DeviceProgram::correct_c,
          {.tensors = {{"m", m}, {"e", compact}, {"added", call.at(space.added, f32, {B, D})}}, .device_sizes = sizes});
  }

  Window window(std::int64_t first) const {
    Window w{first, std::min(ranges.columns, B - first), a.c, call.at(space.moved_target, i32, {M}), {}};
    if (!programs.ordered()) return w;
    const std::int64_t tokens = programs.window();
    w.order = loss.order_->order.order(first * b.v, tokens);
    if (programs.copies_c()) w.c = call.ordered_rows(a.c, space.c, w.order);
    if (tokens < desc.vocabulary) {
      w.target = call.at(space.target, i32, {M});
      call.run(DeviceProgram::shift_targets,
               {.tensors = {{"target", call.at(space.moved_target, i32, {M})}, {"shifted", w.target}},
                .axes = {{"first", first * b.v}}});
    }
    return w;
  }

  /// Where the kept tiles of a window lie in its lists.
  void rank(const Window& w) const {
    const std::int64_t W = w.blocks, Q = W + 1;
    const TensorRef keep = kept_of(w), item_begin = call.at(space.item_begin, i64, {Q});
    const TensorRef item_count = call.at(space.item_count, i64, {W}), count = call.at(space.column_count, i64, {W});
    call.run(DeviceProgram::rank_columns,
             {.tensors = {{"keep", keep},
                          {"left_out", call.at(space.block_left_out + w.first * R, f32, {W, R})},
                          {"item_rank", call.at(space.item_rank, i32, {W, R})},
                          {"item_count", item_count},
                          {"column_rank", call.at(space.column_rank, i32, {W, R})},
                          {"column_count", count},
                          {"kept_count", call.at(space.kept_count + w.first, i64, {W})},
                          {"lost", call.at(space.lost + w.first, f32, {W})}},
              .axes = {{"N", M}},
              .device_sizes = sizes});
    call.run(DeviceProgram::rank_rows, {.tensors = {{"keep", keep}, {"row_rank", call.at(space.row_rank, i32, {Q, R})}},
                                        .axes = {{"N", M}},
                                        .device_sizes = sizes});
    call.run(DeviceProgram::begin_columns, {.tensors = {{"count", item_count}, {"begin", item_begin}}});
    call.run(DeviceProgram::begin_columns,
             {.tensors = {{"count", count}, {"begin", call.at(space.column_begin, i64, {Q})}}});
    call.run(DeviceProgram::cut_ranges, {.tensors = {{"begin", item_begin},
                                                     {"valid", valid},
                                                     {"first", call.at(space.first, i64, {ranges.count() + 1})},
                                                     {"range_rows", call.at(space.range_rows, i64, {ranges.count()})}},
                                         .axes = {{"quota", ranges.quota()}}});
  }

  /// dz of the kept tiles of one range of a window, and what they add to dc and de.
  void products(const Window& w, std::int64_t range) const {
    const std::int64_t Q = w.blocks + 1;
    const TensorRef row_rank = call.at(space.row_rank, i32, {Q, R}), item_begin = call.at(space.item_begin, i64, {Q});
    const TensorRef begin = call.at(space.column_begin, i64, {Q});
    const TileListRef& kept = space.list.ref;
    const TensorRef row_begin = call.at(kept.row_begin, i32, {R + 1});
    const std::vector<std::pair<std::string, std::int64_t>> columns = {{"first", w.blocks}, {"last", w.blocks}};
    const std::vector<std::pair<std::string, const std::int64_t*>> device_columns = {{"first", space.first + range},
                                                                                     {"last", space.first + range + 1}};
    call.run(DeviceProgram::begin_rows, {.tensors = {{"row_rank", row_rank}, {"row_begin", row_begin}},
                                         .axes = columns,
                                         .device_sizes = device_columns});
    call.run(DeviceProgram::begin_list, {.tensors = {{"item_begin", item_begin},
                                                     {"begin", begin},
                                                     {"column_begin", call.at(kept.column_begin, i32, {Q})},
                                                     {"count", call.at(kept.device_count, i32, {1})}},
                                         .axes = columns,
                                         .device_sizes = device_columns});
    const std::int64_t K = kept.count;
    LaunchArgs list{.tensors = {{"keep", kept_of(w)},
                                {"row_begin", row_begin},
                                {"item_rank", call.at(space.item_rank, i32, {w.blocks, R})},
                                {"item_begin", item_begin},
                                {"column_rank", call.at(space.column_rank, i32, {w.blocks, R})},
                                {"begin", begin},
                                {"row_rank", row_rank},
                                {"row", call.at(kept.row, i32, {K})},
                                {"column", call.at(kept.column, i32, {K})},
                                {"row_items", call.at(kept.row_items, i32, {K})},
                                {"column_items", call.at(kept.column_items, i32, {K})},
                                {"item_piece", call.at(space.item_piece, i32, {K})}},
                    .axes = columns,
                    .device_sizes = device_columns};
    list.axes.emplace_back("N", M);
    list.device_sizes.emplace_back("N", s.valid);
    call.run(DeviceProgram::list_selected, list);

    const TensorRef dz = call.at(space.dz, desc.dtype, {K * b.v * b.n});
    LaunchArgs tiles{
        .tensors =
            {{"e", compact}, {"c", w.c}, {"rows", rows}, {"target", w.target}, {"lse", a.lse}, {"g", g}, {"dz", dz}},
        .lists = {{"kept", kept}},
        .device_sizes = sizes};
    if (groups_rows(desc)) tiles.tensors.emplace_back("outside", call.at(space.moved_outside, f32, {M}));
    gather(w, tiles);
    call.run(DeviceProgram::grad_tiles, tiles);
    if (a.dc.given()) {
      const TileListRef written =
          call.list(DeviceProgram::list_written, space.written, D, 0, w.blocks, nullptr, device_columns);
      LaunchArgs args{.tensors = {{"e", compact}, {"dz", dz}, {"dc", a.dc}},
                      .lists = {{"kept", kept}, {"written", written}},
                      .device_sizes = sizes};
      if (desc.dtype == f16) args.tensors.emplace_back("scale", scale);
      if (corrects_c) args.tensors.emplace_back("added", call.at(space.added + w.first * D, f32, {ranges.columns, D}));
      if (programs.ordered()) args.tensors.emplace_back("order", w.order);
      call.run(call.form_of_dc(a.dc, accumulate_dc, DeviceProgram::grad_c, DeviceProgram::grad_c_add,
                               DeviceProgram::grad_c_f32, DeviceProgram::grad_c_f32_add),
               args);
    }
    if (a.de.given()) sum_rows(w, range, dz);
  }

  /// Adds a range's part of de to the sum, or begins it.
  void sum_rows(const Window& w, std::int64_t range, const TensorRef& dz) const {
    const bool begins = w.first == 0 && range == 0 && !corrects_e;
    const std::int64_t* rows_here = begins ? s.valid : space.range_rows + range;
    TileListRef list = space.list.ref;
    if (ranges.most_pieces == 0) {
      LaunchArgs args{.tensors = {{"c", w.c}, {"dz", dz}, {"sum", sum}},
                      .lists = {{"kept", list}},
                      .device_sizes = {{"N", rows_here}}};
      gather(w, args);
      call.run(begins ? DeviceProgram::grad_e_begin : DeviceProgram::grad_e_add, args);
      return;
    }
    const std::int64_t S = ranges.pieces();
    const TensorRef row_begin = call.at(list.row_begin, i32, {R + 1});
    const TensorRef start = call.at(space.piece_start, i32, {ranges.most_pieces, R});
    call.run(DeviceProgram::cut_rows, {.tensors = {{"row_begin", row_begin},
                                                   {"start", start},
                                                   {"begin", call.at(space.begin_of_piece, i32, {S + 1})},
                                                   {"piece_begin", call.at(space.piece_begin, i32, {R + 1})},
                                                   {"piece_items", call.at(space.piece_items, i32, {S + 1})},
                                                   {"piece_row", call.at(space.piece_row, i32, {S + 1})},
                                                   {"count", call.at(space.piece_count, i32, {1})},
                                                   {"rows", call.at(space.piece_rows, i64, {1})}},
                                       .axes = {{"R2", R}}});
    const std::int64_t K = list.count;
    call.run(DeviceProgram::place_items, {.tensors = {{"row_begin", row_begin},
                                                      {"row_items", call.at(list.row_items, i32, {K})},
                                                      {"row", call.at(list.row, i32, {K})},
                                                      {"start", start},
                                                      {"piece_begin", call.at(space.piece_begin, i32, {R + 1})},
                                                      {"piece_items", call.at(space.piece_items, i32, {S + 1})},
                                                      {"item_piece", call.at(space.item_piece, i32, {K})},
                                                      {"items", call.at(space.items_of_pieces, i32, {K})}}});
    list.row = space.item_piece;
    list.row_begin = space.begin_of_piece;
    list.row_items = space.items_of_pieces;
    const TensorRef part = call.at(space.part, f32, {S * b.n, D});
    LaunchArgs pieces{.tensors = {{"c", w.c}, {"dz", dz}, {"sum", part}},
                      .lists = {{"kept", list}},
                      .device_sizes = {{"N", space.piece_rows}}};
    gather(w, pieces);
    call.run(DeviceProgram::grad_e_begin, pieces);
    const TileListRef of_rows{.count = S,
                              .row = space.piece_row,
                              .column = space.counting,
                              .row_begin = space.piece_begin,
                              .row_items = space.piece_items,
                              .column_begin = space.counting,
                              .column_items = space.counting,
                              .device_count = space.piece_count};
    call.run(begins ? DeviceProgram::sum_pieces : DeviceProgram::sum_pieces_add,
             {.tensors = {{"part", part}, {"sum", sum}},
              .lists = {{"pieces", of_rows}},
              .device_sizes = {{"N", rows_here}}});
  }

  TensorRef kept_of(const Window& w) const { return call.at(space.keep + w.first * R, i32, {w.blocks, R}); }
  /// The order, for programs that gather rows of c.
  void gather(const Window& w, LaunchArgs& args) const {
    if (programs.ordered() && !programs.copies_c()) args.tensors.emplace_back("order", w.order);
  }
};

void DeviceLoss::filtered_backward(const BackwardCall& a, bool accumulate_dc, Stream stream) {
  require_given_order(a.name);
  if (filtered_->ordered() && !order_->order.known())
    throw UsageError(a.name +
                     ": block_lse is given and the plan has no order of the vocabulary yet; the forward finds it");
  FilteredCall{*this, a, accumulate_dc, stream}.run();
}

}  // namespace kerf::runtime
