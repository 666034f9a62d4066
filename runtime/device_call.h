// Steps that calls of a loss on a device share: what of runtime/device_loss.h is launched, with which tensors.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lib/kernels/kernels.h"
#include "runtime/device_loss.h"

namespace kerf::runtime {

/// A tensor of integers or gradients that lies in two dimensions of any strides, with a third of one element, so that
/// its innermost stride is 1. One dimension counts as one sequence.
inline TensorRef by_element(const TensorRef& t) {
  TensorRef r = t;
  const bool two = t.rank == 2;
  r.rank = 3;
  r.shape[0] = two ? t.shape[0] : 1;
  r.shape[1] = two ? t.shape[1] : t.shape[0];
  r.shape[2] = 1;
  r.strides[0] = two ? t.strides[0] : 0;
  r.strides[1] = two ? t.strides[1] : t.strides[0];
  r.strides[2] = 1;
  return r;
}

/// The same by one dimension.
inline TensorRef column(const TensorRef& t) {
  TensorRef r = t;
  r.rank = 2;
  r.shape[1] = 1;
  r.strides[1] = 1;
  return r;
}

/// The rows of a matrix, `row` elements apart.
inline TensorRef apart(const TensorRef& t, std::int64_t row) { return t.with_strides({row, 1}); }

/// The same rows in elements of 8 bytes; none where they do not begin and end at multiples of that.
inline std::optional<TensorRef> by_8(const TensorRef& t) {
  const std::int64_t size = size_of(t.dtype), row = t.shape[1] * size, step = t.strides[0] * size;
  if ((static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(t.data)) | row | step) % 8 != 0) return {};
  return TensorRef(t.data, i64, {t.shape[0], row / 8}, t.device).with_strides({step / 8, 1});
}

inline TensorRef scalar(const TensorRef& t) { return TensorRef(t.data, t.dtype, {}, t.device); }

/// The launches of one call.
struct DeviceLoss::Call {
  const DeviceLoss& loss;
  DevicePrograms& programs;
  Stream stream;
  Device device = loss.desc_.device;

  void run(DeviceProgram which, const LaunchArgs& args) const {
    const Kernel& kernel = programs.kernel(which);
    if (loss.pool_)
      kernel.launch(args, *loss.pool_);
    else
      kernel.launch(args, stream);
  }
  template <class T>
  TensorRef at(T* data, DType dtype, std::initializer_list<std::int64_t> shape) const {
    return TensorRef(data, dtype, shape, device);
  }

  /// Finds the rows that have a label. loss, lse: what the others have is written there.
  void compact_labels(const Labels& labels, const LabelSpace& s, const TensorRef& loss = {},
                      const TensorRef& lse = {}) const {
    const std::int64_t R = label_blocks(labels.rows), L = kernels::label_block, P = R * L;
    const bool packed = labels.cu_seqlens.given() && labels.shift > 0, wide = labels.target.dtype == i64;
    LaunchArgs find{.tensors = {{"target", by_element(labels.target)},
                                {"label", at(s.label, i32, {R, L})},
                                {"count", at(s.count, i64, {R})},
                                {"outside", at(s.outside, i64, {R})}}};
    DeviceProgram which = wide ? DeviceProgram::label_rows_i64 : DeviceProgram::label_rows_i32;
    if (packed) {
      find.tensors.emplace_back("cu_seqlens", column(labels.cu_seqlens));
      const bool wide_ends = labels.cu_seqlens.dtype == i64;
      which = wide        ? wide_ends ? DeviceProgram::label_rows_i64_i64 : DeviceProgram::label_rows_i64_i32
              : wide_ends ? DeviceProgram::label_rows_i32_i64
                          : DeviceProgram::label_rows_i32_i32;
    }
    run(which, find);
    LaunchArgs compact{.tensors = {{"label", at(s.label, i32, {R, L})},
                                   {"count", at(s.count, i64, {R})},
                                   {"outside", at(s.outside, i64, {R})},
                                   {"valid", at(s.valid, i64, {1})},
                                   {"strays", at(s.strays, i64, {1})},
                                   {"rows", at(s.rows, i64, {P})},
                                   {"target", at(s.target, i32, {P})}}};
    if (loss.given()) compact.tensors.insert(compact.tensors.end(), {{"loss", loss}, {"lse", lse}});
    run(loss.given() ? DeviceProgram::compact_labels_begin_losses : DeviceProgram::compact_labels, compact);
  }

  /// Copies rows of e side by side.
  void compact_rows(const TensorRef& e, const TensorRef& rows, const TensorRef& compact) const {
    const auto from = by_8(e), to = by_8(compact);
    const bool both = from && to;
    run(both ? DeviceProgram::compact_rows_by_8 : DeviceProgram::compact_rows,
        {.tensors = {{"e", both ? *from : e}, {"rows", rows}, {"compact", both ? *to : compact}}});
  }

  /// Zeros in rows of de without a label.
  void clear_rows(const TensorRef& label, const TensorRef& de) const {
    const auto wide = by_8(de);
    run(wide ? DeviceProgram::clear_rows_by_8 : DeviceProgram::clear_rows,
        {.tensors = {{"label", label}, {"de", wide.value_or(de)}}});
  }

  /// Labels by their place in the order of the vocabulary.
  void place_targets(std::int32_t* target, std::int64_t rows, const TensorRef& place) const {
    run(DeviceProgram::place_targets, {.tensors = {{"place", place}, {"target", at(target, i32, {rows})}}});
  }

  /// The tiles of columns [begin, end), which the stash has room for.
  TensorRef stash_tiles(const StashSpace& s, std::int64_t begin, std::int64_t end) const {
    const DType dtype = loss.desc_.dtype;
    return at(s.tiles + begin * s.column_bytes, dtype, {(end - begin) * s.column_bytes / size_of(dtype)});
  }

  /// g of the valid rows, of `rows` in all, and for f16 its scale.
  void upstream(const TensorRef& grad_loss, const LabelSpace& s, std::int64_t rows, float* g, float* largest,
                float* scale) const {
    const PlanDesc& desc = loss.desc_;
    const std::int64_t M = std::max<std::int64_t>(rows, 1);
    const TensorRef g_rows = at(g, f32, {M}), valid = at(s.valid, i64, {});
    LaunchArgs args{.tensors = {{"g", g_rows}}, .device_sizes = {{"N", s.valid}}};
    if (desc.reduction == Reduction::none) {
      args.tensors.insert(args.tensors.end(), {{"grad", by_element(grad_loss)}, {"rows", at(s.rows, i64, {M})}});
    } else {
      if (grad_loss.given()) args.tensors.emplace_back("grad", scalar(grad_loss));
      if (desc.reduction == Reduction::mean) args.tensors.emplace_back("valid", valid);
    }
    const TensorRef most = at(largest, f32, {label_blocks(rows)});
    if (desc.dtype == f16) args.tensors.emplace_back("largest", most);
    run(grad_loss.given() ? DeviceProgram::upstream : DeviceProgram::upstream_one, args);
    if (desc.dtype == f16)
      run(DeviceProgram::scale_upstream, {.tensors = {{"largest", most}, {"g", g_rows}, {"scale", at(scale, f32, {1})}},
                                          .device_sizes = {{"N", s.valid}}});
  }

  /// The program for this dc: of c's dtype or f32, written or added to.
  DeviceProgram form_of_dc(const TensorRef& dc, bool add, DeviceProgram own, DeviceProgram own_add, DeviceProgram other,
                           DeviceProgram other_add) const {
    return dc.dtype != loss.desc_.dtype ? (add ? other_add : other) : (add ? own_add : own);
  }

  /// c, or a copy of it in `copy` whose rows boxes can have, in `order` where there is one.
  TensorRef readable(const TensorRef& c, std::byte* copy, const TensorRef& order = {}) const {
    if (!programs.copies_c()) return c;
    const PlanDesc& desc = loss.desc_;
    const TensorRef to = apart(at(copy, desc.dtype, {desc.vocabulary, desc.hidden}), copied_row(desc));
    if (order.given()) return ordered_rows(c, copy, order);
    run(DeviceProgram::copy_rows, {.tensors = {{"c", c}, {"copy", to}}});
    return to;
  }

  /// A copy of the rows of c that `order` names, side by side.
  TensorRef ordered_rows(const TensorRef& c, std::byte* copy, const TensorRef& order) const {
    const PlanDesc& desc = loss.desc_;
    const TensorRef to = apart(at(copy, desc.dtype, {order.shape[0], desc.hidden}), copied_row(desc));
    const auto from_8 = by_8(c), to_8 = by_8(to);
    const bool both = from_8 && to_8;
    run(both ? DeviceProgram::order_rows_by_8 : DeviceProgram::order_rows,
        {.tensors = {{"e", both ? *from_8 : c}, {"rows", order}, {"compact", both ? *to_8 : to}}});
    return to;
  }

  /// All tiles of the row blocks of `rows` rows, or of as many as device_rows says, and the columns [first, last), or
  /// those of them that device_columns says.
  TileListRef list(DeviceProgram which, const ListSpace& space, std::int64_t rows, std::int64_t first,
                   std::int64_t last, const std::int64_t* device_rows,
                   const std::vector<std::pair<std::string, const std::int64_t*>>& device_columns = {}) const {
    TileListRef l = space.ref;
    l.count = space.rows * (last - first);
    const std::int64_t K = l.count, R = space.rows + 1, C = space.columns + 1;
    LaunchArgs args{
        .tensors = {{"row", at(l.row, i32, {K})},
                    {"column", at(l.column, i32, {K})},
                    {"row_items", at(l.row_items, i32, {K})},
                    {"column_items", at(l.column_items, i32, {K})},
                    {"row_begin", at(l.row_begin, i32, {R})},
                    {"column_begin", at(l.column_begin, i32, {C})},
                    {"count", at(l.device_count, i32, {1})}},
        .axes = {
            {"N", rows}, {"I", std::max({K, R, C})}, {"first", device_columns.empty() ? first : last}, {"last", last}}};
    args.device_sizes = device_columns;
    if (device_rows) args.device_sizes.emplace_back("N", device_rows);
    run(which, args);
    return l;
  }
};

}  // namespace kerf::runtime
