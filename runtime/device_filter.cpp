// The filtered backward: which tiles of dz matter is found from block_lse, lists of them are built, and the three
// products walk the lists. Everything is decided where the numbers are: the host launches as many ranges of the
// vocabulary as there could be, and those that turn out to be empty return at once.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kerf/error.h"
#include "runtime/cuda/device.h"
#include "runtime/device_call.h"
#include "runtime/filter_space.h"

namespace kerf::runtime {

bool filters(const PlanDesc& desc) {
  constexpr std::int64_t worth_it = 16384;  // tokens: below, what decides costs as much as what it saves
  const bool may = desc.strategy == Strategy::automatic || desc.strategy == Strategy::filtered;
  if (!may || desc.filter == Filter::off || !(desc.filter_e || desc.filter_c)) return false;
  return desc.filter != Filter::automatic || desc.strategy == Strategy::filtered ||
         (desc.dtype != f32 && desc.vocabulary >= worth_it);
}

FilterRanges DeviceLoss::filter_ranges(std::int64_t rows) const {
  std::size_t limit = desc_.workspace_limit;
  if (limit == 0) {
    limit = pool_ ? std::size_t{256} << 20 : std::size_t{1} << 30;
    if (filtered_->copies_c())
      limit += static_cast<std::size_t>(desc_.vocabulary * copied_row(desc_) * size_of(desc_.dtype));
  }
  return choose_filter_ranges(desc_, rows, *filtered_, limit);
}

std::array<std::int64_t, 2> DeviceLoss::block_lse_shape(std::int64_t rows) const {
  return {blocks_of(desc_.vocabulary, filtered_->blocks().backward.v), label_blocks(rows) * kernels::label_block};
}

FilterReport DeviceLoss::filter_report(const TensorRef& workspace, Stream stream) const {
  FilterFigures f;
  if (pool_) {
    std::memcpy(&f, workspace.data, sizeof f);
  } else {
    const auto gpu = cuda::Device::open(desc_.device.ordinal);
    cuda::download(*gpu, &f, workspace.data, sizeof f, stream);
    cuda::synchronize(*gpu, stream);
  }
  const kernels::Blocks& b = filtered_->blocks().backward;
  FilterReport r{.tiles = blocks_of(f.valid, b.n) * blocks_of(desc_.vocabulary, b.v), .kept = f.kept};
  if (r.kept == kernels::every_tile) r.kept = r.tiles;
  r.kept_share = r.tiles > 0 ? static_cast<double>(r.kept) / static_cast<double>(r.tiles) : 1;
  r.dropped_mass = f.left_out;
  return r;
}

void DeviceLoss::set_order(const std::vector<std::int64_t>& order, const char* call) {
  const std::lock_guard lock(order_mutex_);
  order_.set(order, desc_.vocabulary, desc_.device, call);
}

void DeviceLoss::find_order(const TensorRef& e, const TensorRef& c, const char* call, Stream stream) {
  // Sums of rows in blocks, then scores: both small enough to be allocated for this call.
  const std::int64_t N = e.shape[0], D = desc_.hidden, V = desc_.vocabulary;
  const std::int64_t S = std::max<std::int64_t>(1, blocks_of(N, kernels::label_block));
  std::vector<float> score(static_cast<std::size_t>(V)), sum(pool_ ? static_cast<std::size_t>(S * D) : 0);
  cuda::Buffer score_there, sum_there;
  std::shared_ptr<const cuda::Device> gpu;
  if (!pool_) {
    gpu = cuda::Device::open(desc_.device.ordinal);
    score_there = cuda::Buffer(gpu, score.size() * sizeof(float));
    sum_there = cuda::Buffer(gpu, static_cast<std::size_t>(S * D) * sizeof(float));
  }
  const Call steps{*this, *filtered_, stream};
  const TensorRef sums = steps.at(pool_ ? sum.data() : sum_there.data(), f32, {S, D});
  const TensorRef scores = steps.at(pool_ ? score.data() : score_there.data(), f32, {V});
  steps.run(DeviceProgram::sum_rows, {.tensors = {{"e", e}, {"sum", sums}}});
  steps.run(DeviceProgram::score_rows, {.tensors = {{"c", c}, {"sum", sums}, {"score", scores}}});
  if (!pool_) {
    score_there.download(score.data(), score_there.bytes(), stream);
    cuda::synchronize(*gpu, stream);
  }
  set_order(vocabulary_order({score.begin(), score.end()}), call);
}

TensorRef DeviceLoss::known_order(const TensorRef& compact, const LabelSpace& labels, const TensorRef& c,
                                  const std::string& name, Stream stream) {
  if (order_.known() && !provisional_order_) return order_.order();
  if (desc_.order == Order::given)
    throw UsageError(name + ": block_lse is given and the plan has no order of the vocabulary; call Plan::set_order");
  std::int64_t valid = 0;
  if (pool_) {
    valid = *labels.valid;
  } else {
    const auto gpu = cuda::Device::open(desc_.device.ordinal);
    cuda::download(*gpu, &valid, labels.valid, sizeof valid, stream);
    cuda::synchronize(*gpu, stream);
  }
  TensorRef rows = compact;
  rows.shape[0] = valid;
  find_order(rows, c, name.c_str(), stream);
  provisional_order_ = valid == 0;  // a batch without labels says nothing
  return order_.order();
}

void DeviceLoss::filtered_backward(const BackwardCall& a, bool accumulate_dc, Stream stream) {
  DevicePrograms& programs = *filtered_;
  const std::int64_t N = a.labels.rows, D = desc_.hidden, M = std::max<std::int64_t>(N, 1);
  const FilterRanges ranges = filter_ranges(N);
  const FilterSpace space = lay_out_filter(a.memory, desc_, N, programs, ranges);
  const LabelSpace& s = space.labels;
  const Call call{*this, programs, stream};
  const std::int64_t P = label_blocks(N) * kernels::label_block, R = ranges.rows, B = ranges.columns, Q = B + 1;
  const TensorRef de = a.de, dc = a.dc;
  if (programs.ordered() && !order_.known())
    throw UsageError(a.name +
                     ": block_lse is given and the plan has no order of the vocabulary yet; the forward finds it");

  call.compact_labels(a.labels, s);
  if (programs.ordered()) call.place_targets(s.target, P, order_.place());
  const TensorRef rows = call.at(s.rows, i64, {M}), target = call.at(s.target, i32, {M});
  const TensorRef g = call.at(space.g, f32, {M}), scale = call.at(space.scale, f32, {});
  const std::vector<std::pair<std::string, const std::int64_t*>> sizes = {{"N", s.valid}};
  call.upstream(a.grad_loss, s, N, space.g, space.largest, space.scale);
  const TensorRef compact = apart(call.at(space.compact, desc_.dtype, {M, D}), copied_row(desc_));
  call.compact_rows(a.e, rows, compact);
  const TensorRef order = programs.ordered() ? order_.order() : TensorRef();
  const TensorRef c = call.readable(a.c, space.c, order);
  const bool gathers = programs.ordered() && !programs.copies_c();
  const auto with_order = [&](LaunchArgs args, bool used) {
    if (used) args.tensors.emplace_back("order", order);
    return args;
  };

  // What to keep, and what the rest is worth.
  const TensorRef keep = call.at(space.keep, i32, {B, R}), left_out = call.at(space.block_left_out, f32, {B, R});
  const TensorRef m = call.at(space.m, desc_.dtype, {B, P});
  const TensorRef m_rows = call.at(space.m, desc_.dtype, {B, M}).with_strides({P, 1});
  LaunchArgs decide{.tensors = {{"block_lse", a.block_lse},
                                {"lse", a.lse},
                                {"rows", call.at(s.rows, i64, {P})},
                                {"target", call.at(s.target, i32, {P})},
                                {"g", call.at(space.g, f32, {P})},
                                {"keep", keep},
                                {"left_out", left_out}}};
  if (desc_.correction) decide.tensors.emplace_back("m", m);
  call.run(DeviceProgram::keep_tiles, decide);
  const bool corrects_e = desc_.correction && desc_.filter_e && de.given();
  const bool corrects_c = desc_.correction && desc_.filter_c;
  const TensorRef sum = call.at(space.sum, f32, {M, D}), added = call.at(space.added, f32, {B, D});
  if (corrects_e) {
    const TensorRef cmean = apart(call.at(space.cmean, desc_.dtype, {B, D}), copied_row(desc_));
    call.run(DeviceProgram::block_means, with_order({.tensors = {{"c", c}, {"cmean", cmean}}}, gathers));
    call.run(DeviceProgram::correct_e,
             {.tensors = {{"m", m_rows}, {"cmean", cmean}, {"sum", sum}}, .device_sizes = sizes});
  }
  if (corrects_c && dc.given())
    call.run(DeviceProgram::correct_c,
             {.tensors = {{"m", m_rows}, {"e", compact}, {"added", added}}, .device_sizes = sizes});

  // Where the kept tiles lie in the lists.
  const TensorRef item_rank = call.at(space.item_rank, i32, {B, R}), row_rank = call.at(space.row_rank, i32, {Q, R});
  const TensorRef column_rank = call.at(space.column_rank, i32, {B, R});
  const TensorRef item_count = call.at(space.item_count, i64, {B}),
                  column_count = call.at(space.column_count, i64, {B});
  const TensorRef item_begin = call.at(space.item_begin, i64, {Q}), begin = call.at(space.column_begin, i64, {Q});
  const TensorRef kept_count = call.at(space.kept_count, i64, {B}), lost = call.at(space.lost, f32, {B});
  const TensorRef valid = call.at(s.valid, i64, {});
  call.run(DeviceProgram::rank_columns, {.tensors = {{"keep", keep},
                                                     {"left_out", left_out},
                                                     {"item_rank", item_rank},
                                                     {"item_count", item_count},
                                                     {"column_rank", column_rank},
                                                     {"column_count", column_count},
                                                     {"kept_count", kept_count},
                                                     {"lost", lost}},
                                         .axes = {{"N", M}},
                                         .device_sizes = sizes});
  call.run(DeviceProgram::rank_rows,
           {.tensors = {{"keep", keep}, {"row_rank", row_rank}}, .axes = {{"N", M}}, .device_sizes = sizes});
  call.run(DeviceProgram::begin_columns, {.tensors = {{"count", item_count}, {"begin", item_begin}}});
  call.run(DeviceProgram::begin_columns, {.tensors = {{"count", column_count}, {"begin", begin}}});
  call.run(DeviceProgram::count_kept, {.tensors = {{"kept_count", kept_count},
                                                   {"lost", lost},
                                                   {"valid", valid},
                                                   {"kept", call.at(space.kept, i64, {1})},
                                                   {"left_out", call.at(space.left_out, f32, {1})}}});
  const std::int64_t count = ranges.count();
  call.run(DeviceProgram::cut_ranges, {.tensors = {{"begin", item_begin},
                                                   {"valid", valid},
                                                   {"first", call.at(space.first, i64, {count + 1})},
                                                   {"range_rows", call.at(space.range_rows, i64, {count})}},
                                       .axes = {{"quota", ranges.quota()}}});

  const kernels::Blocks& b = programs.blocks().backward;
  TileListRef kept = space.list.ref;
  const std::int64_t K = kept.count;
  const TensorRef row_begin = call.at(kept.row_begin, i32, {R + 1}),
                  dz = call.at(space.dz, desc_.dtype, {K * b.v * b.n});
  // de of the kept tiles of a range, added to what the sum holds.
  const std::int64_t S = ranges.pieces();
  if (S > 0 && de.given())
    call.run(DeviceProgram::count_up, {.tensors = {{"items", call.at(space.piece_items, i32, {S + 1})}}});
  const auto sum_range = [&](std::int64_t range, const TileListRef& list) {
    const bool begins = range == 0 && !corrects_e;
    const std::int64_t* rows_here = begins ? s.valid : space.range_rows + range;
    if (S == 0) {
      call.run(begins ? DeviceProgram::grad_e_begin : DeviceProgram::grad_e_add,
               with_order({.tensors = {{"c", c}, {"dz", dz}, {"sum", sum}},
                           .lists = {{"kept", list}},
                           .device_sizes = {{"N", rows_here}}},
                          gathers));
      return;
    }
    call.run(DeviceProgram::cut_rows, {.tensors = {{"row_begin", row_begin},
                                                   {"piece_begin", call.at(space.piece_begin, i32, {R + 1})},
                                                   {"begin", call.at(space.begin_of_piece, i32, {S + 1})},
                                                   {"rows", call.at(space.piece_rows, i64, {1})}},
                                       .axes = {{"R", R}, {"most", ranges.most_pieces}}});
    TileListRef pieces = list;
    pieces.row_begin = space.begin_of_piece;
    const TensorRef part = call.at(space.part, f32, {S * b.n, D});
    call.run(DeviceProgram::grad_e_begin, with_order({.tensors = {{"c", c}, {"dz", dz}, {"sum", part}},
                                                      .lists = {{"kept", pieces}},
                                                      .device_sizes = {{"N", space.piece_rows}}},
                                                     gathers));
    const TileListRef of_rows{.count = S,
                              .row = space.piece_items,
                              .column = space.piece_items,
                              .row_begin = space.piece_begin,
                              .row_items = space.piece_items,
                              .column_begin = space.begin_of_piece,
                              .column_items = space.piece_items};
    call.run(begins ? DeviceProgram::sum_pieces : DeviceProgram::sum_pieces_add,
             {.tensors = {{"part", part}, {"sum", sum}},
              .lists = {{"pieces", of_rows}},
              .device_sizes = {{"N", rows_here}}});
  };
  for (std::int64_t range = 0; range < count; ++range) {
    const std::int64_t *first = space.first + range, *last = first + 1;
    const std::vector<std::pair<std::string, std::int64_t>> columns = {{"first", B}, {"last", B}};
    const std::vector<std::pair<std::string, const std::int64_t*>> device_columns = {{"first", first}, {"last", last}};
    call.run(DeviceProgram::begin_rows, {.tensors = {{"row_rank", row_rank}, {"row_begin", row_begin}},
                                         .axes = columns,
                                         .device_sizes = device_columns});
    call.run(DeviceProgram::begin_list, {.tensors = {{"item_begin", item_begin},
                                                     {"begin", begin},
                                                     {"column_begin", call.at(kept.column_begin, i32, {Q})},
                                                     {"count", call.at(kept.device_count, i32, {1})}},
                                         .axes = columns,
                                         .device_sizes = device_columns});
    LaunchArgs list{.tensors = {{"keep", keep},
                                {"row_begin", row_begin},
                                {"item_rank", item_rank},
                                {"item_begin", item_begin},
                                {"column_rank", column_rank},
                                {"begin", begin},
                                {"row_rank", row_rank},
                                {"row", call.at(kept.row, i32, {K})},
                                {"column", call.at(kept.column, i32, {K})},
                                {"row_items", call.at(kept.row_items, i32, {K})},
                                {"column_items", call.at(kept.column_items, i32, {K})}},
                    .axes = columns,
                    .device_sizes = device_columns};
    list.axes.emplace_back("N", M);
    list.device_sizes.emplace_back("N", s.valid);
    call.run(DeviceProgram::list_selected, list);

    call.run(
        DeviceProgram::grad_tiles,
        with_order(
            {.tensors =
                 {{"e", compact}, {"c", c}, {"rows", rows}, {"target", target}, {"lse", a.lse}, {"g", g}, {"dz", dz}},
             .lists = {{"kept", kept}},
             .device_sizes = sizes},
            gathers));
    if (dc.given()) {
      const TileListRef written =
          call.list(DeviceProgram::list_written, space.written, D, 0, B, nullptr, device_columns);
      LaunchArgs args{.tensors = {{"e", compact}, {"dz", dz}, {"dc", dc}},
                      .lists = {{"kept", kept}, {"written", written}},
                      .device_sizes = sizes};
      if (desc_.dtype == f16) args.tensors.emplace_back("scale", scale);
      if (corrects_c) args.tensors.emplace_back("added", added);
      call.run(call.form_of_dc(dc, accumulate_dc, DeviceProgram::grad_c, DeviceProgram::grad_c_add,
                               DeviceProgram::grad_c_f32, DeviceProgram::grad_c_f32_add),
               with_order(std::move(args), programs.ordered()));
    }
    if (de.given()) sum_range(range, kept);
  }
  if (!de.given()) return;
  LaunchArgs end{.tensors = {{"sum", call.at(space.sum, f32, {1, M, D})}, {"rows", rows}, {"de", de}}};
  if (desc_.dtype == f16) end.tensors.emplace_back("scale", scale);
  call.run(DeviceProgram::sum_parts, end);
  call.clear_rows(call.at(s.label, i32, {N}), de);
}

}  // namespace kerf::runtime
