// Plan: arguments checked, valid rows compacted, programs launched over parts and ranges of the vocabulary, losses
// reduced in a fixed order.
#include "kerf/loss.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kerf/error.h"
#include "runtime/device_loss.h"
#include "runtime/loss_args.h"
#include "runtime/loss_programs.h"
#include "runtime/loss_space.h"
#include "runtime/tile_lists.h"

namespace kerf {

using runtime::LossProgram;

std::string_view name_of(Reduction r) {
  constexpr std::string_view names[] = {"none", "mean", "sum"};
  return names[static_cast<std::size_t>(r)];
}

std::string_view name_of(Strategy s) {
  constexpr std::string_view names[] = {"automatic", "exact_recompute", "min_memory",
                                        "filtered",  "exact_stash",     "dense"};
  return names[static_cast<std::size_t>(s)];
}

std::string_view name_of(Filter f) {
  constexpr std::string_view names[] = {"automatic", "off", "mass", "largest"};
  return names[static_cast<std::size_t>(f)];
}

std::string_view name_of(Order o) {
  constexpr std::string_view names[] = {"automatic", "given", "identity"};
  return names[static_cast<std::size_t>(o)];
}

namespace {

const PlanDesc& checked(const PlanDesc& d) {
  const auto positive = [](const char* name, std::int64_t value) {
    if (value < 1) throw UsageError(fmt::format("PlanDesc: {} is {}; it must be at least 1", name, value));
  };
  positive("hidden", d.hidden);
  positive("vocabulary", d.vocabulary);
  if (d.vocabulary > std::numeric_limits<std::int32_t>::max())
    throw UsageError(fmt::format("PlanDesc: vocabulary is {}; it must be below 2^31", d.vocabulary));
  if (!is_float(d.dtype))
    throw UsageError(fmt::format("PlanDesc: dtype is {}; it must be f32, bf16 or f16", name_of(d.dtype)));
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(d.vocabulary, d.hidden, &bytes) || __builtin_mul_overflow(bytes, size_of(d.dtype), &bytes))
    throw UsageError(fmt::format("PlanDesc: c of [{}, {}] {}: its size in bytes passes 2^63", d.vocabulary, d.hidden,
                                 name_of(d.dtype)));
  if (d.shift < 0) throw UsageError(fmt::format("PlanDesc: shift is {}; it must not be negative", d.shift));
  if (!d.arch.empty() && d.device.type == DeviceType::cpu)
    throw UsageError(
        fmt::format("PlanDesc: arch is {} and the plan computes on the cpu; name a GPU in device", d.arch));
  if (!(d.filter_threshold >= 0 && d.filter_threshold <= 1))
    throw UsageError(fmt::format("PlanDesc: filter_threshold is {}; it must be between 0 (found from the sizes) and 1",
                                 d.filter_threshold));
  if (d.filter == Filter::largest && d.filter_threshold == 0)
    throw UsageError("PlanDesc: filter is largest and filter_threshold is 0; give the least probability that matters");
  if (d.strategy == Strategy::filtered && (d.filter == Filter::off || !(d.filter_e || d.filter_c)))
    throw UsageError(fmt::format(
        "PlanDesc: strategy is filtered, and nothing is to be filtered (filter {}, filter_e {}, filter_c {})",
        name_of(d.filter), d.filter_e, d.filter_c));
  if (d.check_labels && d.device.type == DeviceType::cpu)
    throw UsageError("PlanDesc: check_labels is set and the plan computes on the cpu, which always checks labels");
  return d;
}

/// The largest probability of a block does not say what a correction would have to put in place of it.
PlanDesc without_impossible(PlanDesc d) {
  d.correction = d.correction && d.filter != Filter::largest;
  return d;
}

/// Sets the rows of m that are not in rows[0 .. valid) to zero.
void clear_other_rows(const TensorRef& m, const std::int64_t* rows, std::int64_t valid, ThreadPool& pool) {
  const std::int64_t size = size_of(m.dtype), row_bytes = m.shape[1] * size, step = m.strides[0] * size;
  if (m.shape[0] == valid) return;
  pool.run(m.shape[0], [&](std::int64_t begin, std::int64_t end, int) {
    const std::int64_t* next = std::lower_bound(rows, rows + valid, begin);
    for (std::int64_t n = begin; n < end; ++n) {
      if (next != rows + valid && *next == n)
        ++next;
      else
        std::memset(static_cast<std::byte*>(m.data) + n * step, 0, static_cast<std::size_t>(row_bytes));
    }
  });
}

/// Writes g[n] = upstream gradient times the reduction's factor for each valid row. For f16 all are multiplied by a
/// power of two that brings the largest to 2^14, so that small elements of dz do not underflow; returns its inverse.
float fill_upstream(const TensorRef& grad, Reduction reduction, DType dtype, const std::int64_t* rows,
                    std::int64_t valid, float* g) {
  const auto* data = static_cast<const float*>(grad.data);
  if (reduction == Reduction::none) {
    for (std::int64_t n = 0; n < valid; ++n) {
      const std::int64_t r = rows[n];
      g[n] = grad.rank == 1 ? data[r * grad.strides[0]]
                            : data[r / grad.shape[1] * grad.strides[0] + r % grad.shape[1] * grad.strides[1]];
    }
  } else {
    const double all = grad.given() ? *data : 1;
    std::fill_n(g, valid, static_cast<float>(reduction == Reduction::mean ? all / static_cast<double>(valid) : all));
  }
  if (dtype != f16) return 1;
  float largest = 0;
  for (std::int64_t n = 0; n < valid; ++n)
    if (std::isfinite(g[n])) largest = std::max(largest, std::abs(g[n]));
  if (largest == 0) return 1;
  const int exponent = std::clamp(14 - std::ilogb(largest), -126, 126);
  for (std::int64_t n = 0; n < valid; ++n) g[n] = std::ldexp(g[n], exponent);
  return std::ldexp(1.0f, -exponent);
}

}  // namespace

struct Plan::Impl {
  PlanDesc desc;
  std::shared_ptr<ThreadPool> pool;
  std::shared_ptr<CodeCache> cache;
  runtime::LossPrograms programs;
  std::unique_ptr<runtime::DeviceLoss> device;  // in place of the programs
  std::unique_ptr<runtime::DeviceLoss> steps;   // CPU: beside them, for calls with block_lse or a stash

  Impl(const PlanDesc& d, Shared shared)
      : desc(without_impossible(checked(d))),
        pool(std::move(shared.pool)),
        cache(shared.cache ? std::move(shared.cache) : std::make_shared<CodeCache>()),
        programs({d.vocabulary, d.hidden, d.dtype}, cache) {
    if (!pool && desc.device.type == DeviceType::cpu) pool = std::make_shared<ThreadPool>(desc.threads);
    if (desc.device.type == DeviceType::cuda) {
      device = std::make_unique<runtime::DeviceLoss>(desc, cache);
    } else if (runtime::filters(desc) || runtime::stashes(desc)) {
      PlanDesc checked = desc;
      checked.check_labels = true;
      steps = std::make_unique<runtime::DeviceLoss>(checked, runtime::choose_filter_blocks(shape()), pool, cache);
    }
  }

  runtime::DeviceLoss* stepped() const { return device ? device.get() : steps.get(); }
  /// Whether calls of so many rows that are given what the plan wants, or all, are made in steps.
  bool in_steps(std::int64_t rows) const { return device || filter() || stash_bytes(rows) > 0; }
  /// What makes this call, or null: `programs`.
  runtime::DeviceLoss* stepped(const auto& call) const {
    if (device) return device.get();
    const bool asked = call.block_lse.given() || call.stash.given() || desc.strategy == Strategy::dense;
    return steps && asked && in_steps(std::max<std::int64_t>(0, call.target.elements())) ? steps.get() : nullptr;
  }
  /// What filters, or null.
  runtime::DeviceLoss* filter() const {
    runtime::DeviceLoss* loss = stepped();
    return loss && loss->filters() ? loss : nullptr;
  }
  /// Those of a filtered call or one with a stash, or of any on a device; null: `programs`.
  runtime::DevicePrograms* main_programs() const {
    if (filter()) return &filter()->filtered_programs();
    return stepped() ? &stepped()->programs() : nullptr;
  }
  runtime::DeviceLoss& require_filter(const char* call) const {
    if (!filter()) throw UsageError(fmt::format("{}: the plan does not filter (PlanDesc::filter)", call));
    return *filter();
  }

  kernels::Shape shape() const { return {desc.vocabulary, desc.hidden, desc.dtype}; }
  std::int64_t parts() const {
    const kernels::Blocks& b = programs.blocks().forward;
    return (desc.vocabulary + b.v * b.split - 1) / (b.v * b.split);
  }

  /// Bytes of scratch that any program of a direction needs.
  std::size_t scratch(bool backward) {
    std::size_t bytes = 0;
    for (LossProgram w : programs.all())
      if ((w != LossProgram::lse_forward && w != LossProgram::combine) == backward)
        bytes = std::max(bytes, programs.scratch_bytes(w));
    return bytes * static_cast<std::size_t>(pool->size());
  }

  runtime::Ranges ranges(std::int64_t rows, std::size_t limit) {
    return runtime::choose_ranges(rows, shape(), programs.blocks().backward, scratch(true), limit);
  }
  std::size_t stash_bytes(std::int64_t rows) const { return runtime::stashes(desc) ? stepped()->stash_bytes(rows) : 0; }
  std::size_t limit(std::int64_t rows) const {
    if (desc.strategy == Strategy::min_memory) return 0;
    if (desc.workspace_limit == 0) return std::size_t{64} << 20;
    return desc.workspace_limit - (desc.strategy == Strategy::automatic ? stash_bytes(rows) : 0);
  }
  std::size_t workspace(std::int64_t rows, bool backward) {
    if (device) return device->workspace(rows, backward);
    if (rows < 0) throw UsageError(fmt::format("Plan: {} rows; their number must not be negative", rows));
    if (rows == 0) return in_steps(0) ? steps->workspace(0, backward) : 0;
    std::size_t bytes = runtime::too_large;
    const kernels::Blocks& b = programs.blocks().backward;
    if (rows / b.n < runtime::most_row_blocks)
      bytes = backward
                  ? runtime::lay_out_backward(nullptr, rows, shape(), b, ranges(rows, limit(rows)), scratch(true)).bytes
                  : runtime::lay_out_forward(nullptr, rows, parts(), scratch(false)).bytes;
    if (bytes == runtime::too_large)
      throw UsageError(fmt::format("Plan: the workspace for {} rows passes 2^63 bytes", rows));
    if (in_steps(rows)) bytes = std::max(bytes, steps->workspace(rows, backward));
    return bytes;
  }
};

Plan::Plan(const PlanDesc& desc, Shared shared) : impl_(std::make_unique<Impl>(desc, std::move(shared))) {}
Plan::~Plan() = default;
Plan::Plan(Plan&&) noexcept = default;
Plan& Plan::operator=(Plan&&) noexcept = default;

namespace {
void compile_all(auto& programs, ThreadPool& pool) {
  const auto all = programs.all();
  pool.run(std::ssize(all), [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) programs.kernel(all[static_cast<std::size_t>(i)]);
  });
}
}  // namespace

void Plan::prepare() {
  runtime::DevicePrograms* programs = impl_->main_programs();
  if (!programs) return compile_all(impl_->programs, *impl_->pool);
  const auto pool = impl_->pool ? impl_->pool : std::make_shared<ThreadPool>(impl_->desc.threads);
  compile_all(*programs, *pool);
}
std::size_t Plan::workspace_bytes(std::int64_t tokens, bool backward) const {
  return impl_->workspace(tokens, backward);
}
std::size_t Plan::stash_bytes(std::int64_t tokens) const { return impl_->stash_bytes(tokens); }
const PlanDesc& Plan::desc() const { return impl_->desc; }

PlanReport Plan::report(std::int64_t tokens) const {
  Impl& p = *impl_;
  PlanReport r;
  r.stash = stash_bytes(tokens);
  r.strategy = p.desc.strategy != Strategy::automatic ? p.desc.strategy
               : p.filter()                           ? Strategy::filtered
               : r.stash > 0                          ? Strategy::exact_stash
                                                      : Strategy::exact_recompute;
  r.forward_workspace = workspace_bytes(tokens, false);
  r.backward_workspace = workspace_bytes(tokens, true);
  const bool in_steps = p.in_steps(tokens);
  if (p.filter())
    r.ranges = static_cast<int>(p.filter()->filter_ranges(tokens).count());
  else if (tokens > 0)
    r.ranges = (in_steps ? p.stepped()->ranges(tokens) : p.ranges(tokens, p.limit(tokens))).count();
  r.threads = p.pool ? p.pool->size() : 1;
  const kernels::Blocks& b = in_steps ? p.main_programs()->blocks().forward : p.programs.blocks().forward;
  r.blocks = fmt::format("n={} v={} d={}", b.n, b.v, b.d);
  return r;
}

void Plan::forward(const ForwardArgs& a, Stream stream) {
  Impl& p = *impl_;
  const PlanDesc& desc = p.desc;
  if (runtime::DeviceLoss* steps = p.stepped(a)) return steps->forward(a, stream);
  const auto [e, c, labels, loss, lse, block_lse, stash, memory, name] =
      runtime::check_forward(desc, a, [&](std::int64_t rows) { return p.workspace(rows, false); });
  const std::int64_t N = labels.rows, valid = check_labels(labels, name);
  if (!loss.given() && !lse.given()) return;

  // Ignored rows are 0; valid ones are written by `combine`.
  const bool each = loss.given() && desc.reduction == Reduction::none;
  if (each) std::fill_n(static_cast<float*>(loss.data), N, 0.0f);
  if (lse.given()) std::fill_n(static_cast<float*>(lse.data), N, 0.0f);
  double sum = 0;
  if (valid > 0) {
    const std::int64_t parts = p.parts();
    const runtime::ForwardSpace space = runtime::lay_out_forward(memory, N, parts, p.scratch(false));
    compact(labels, space.rows, space.target);
    const TensorRef rows(space.rows, i64, {valid}), target(space.target, i32, {valid});
    const TensorRef part_max(space.part_max, {parts, valid}), part_sum(space.part_sum, {parts, valid});
    const TensorRef part_target(space.part_target, {parts, valid});
    const TensorRef row_lse = lse.given() ? lse : TensorRef(space.lse, {N});
    const TensorRef row_loss = each ? loss : TensorRef(space.loss, {N});
    p.programs.kernel(LossProgram::lse_forward)
        .launch({.tensors = {{"e", e},
                             {"c", c},
                             {"rows", rows},
                             {"target", target},
                             {"part_max", part_max},
                             {"part_sum", part_sum},
                             {"part_target", part_target}},
                 .scratch = space.scratch},
                *p.pool);
    p.programs.kernel(LossProgram::combine)
        .launch({.tensors = {{"part_max", part_max},
                             {"part_sum", part_sum},
                             {"part_target", part_target},
                             {"rows", rows},
                             {"lse", row_lse},
                             {"loss", row_loss}},
                 .scratch = space.scratch},
                *p.pool);
    for (std::int64_t n = 0; n < valid; ++n) sum += static_cast<const float*>(row_loss.data)[space.rows[n]];
  }
  if (!loss.given() || each) return;
  if (desc.reduction == Reduction::mean) sum /= static_cast<double>(valid);  // NaN without a valid row
  *static_cast<float*>(loss.data) = static_cast<float>(sum);
}

void Plan::backward(const BackwardArgs& a, Stream stream) {
  Impl& p = *impl_;
  const PlanDesc& desc = p.desc;
  if (runtime::DeviceLoss* steps = p.stepped(a)) return steps->backward(a, stream);
  const auto [e, c, labels, lse, grad_loss, de, dc, block_lse, stash, memory, bytes, name] =
      runtime::check_backward(desc, a, [&](std::int64_t rows) { return p.workspace(rows, true); });
  const std::int64_t valid = check_labels(labels, name);
  if (!de.given() && !dc.given()) return;

  if (valid == 0) {
    if (de.given()) clear_other_rows(de, nullptr, 0, *p.pool);
    if (dc.given() && !a.accumulate_dc) clear_other_rows(dc, nullptr, 0, *p.pool);
    return;
  }
  const kernels::Blocks& b = p.programs.blocks().backward;
  const runtime::Ranges ranges = p.ranges(valid, bytes);
  const runtime::BackwardSpace space = runtime::lay_out_backward(memory, valid, p.shape(), b, ranges, p.scratch(true));
  compact(labels, space.rows, space.target);
  *space.scale = fill_upstream(grad_loss, desc.reduction, desc.dtype, space.rows, valid, space.g);
  if (de.given()) clear_other_rows(de, space.rows, valid, *p.pool);
  if (de.given() && space.sum) std::fill_n(space.sum, valid * desc.hidden, 0.0f);

  const TensorRef rows(space.rows, i64, {valid}), target(space.target, i32, {valid}), g(space.g, {valid});
  const TensorRef scale(space.scale, f32, {}), sum(space.sum, {valid, desc.hidden});
  const std::int64_t row_blocks = (valid + b.n - 1) / b.n, hidden_blocks = (desc.hidden + b.d - 1) / b.d;
  for (int range = 0; range < ranges.count(); ++range) {
    const std::int64_t begin = range * ranges.width, end = std::min(begin + ranges.width, ranges.columns);
    const TileListRef kept = runtime::fill_by_column({row_blocks, ranges.columns, begin, end}, space.kept);
    const TensorRef dz(space.dz, desc.dtype, {kept.count * b.v * b.n});
    p.programs.kernel(LossProgram::grad_tiles)
        .launch(
            {.tensors = {{"e", e}, {"c", c}, {"rows", rows}, {"target", target}, {"lse", lse}, {"g", g}, {"dz", dz}},
             .lists = {{"kept", kept}},
             .scratch = space.scratch},
            *p.pool);
    if (de.given()) {
      const bool last = range + 1 == ranges.count(), several = ranges.count() > 1;
      LaunchArgs args{.tensors = {{"c", c}, {"dz", dz}}, .lists = {{"kept", kept}}, .scratch = space.scratch};
      if (several) args.tensors.emplace_back("sum", sum);
      if (last) {
        args.tensors.emplace_back("rows", rows);
        args.tensors.emplace_back("de", de);
        if (desc.dtype == f16) args.tensors.emplace_back("scale", scale);
      }
      p.programs.kernel(!several ? LossProgram::grad_e
                        : last   ? LossProgram::grad_e_end
                                 : LossProgram::grad_e_begin)
          .launch(args, *p.pool);
    }
    if (dc.given()) {
      const TileListRef written = runtime::fill_by_column({hidden_blocks, ranges.columns, begin, end}, space.written);
      LaunchArgs args{.tensors = {{"e", e}, {"rows", rows}, {"dz", dz}, {"dc", dc}},
                      .lists = {{"kept", kept}, {"written", written}},
                      .scratch = space.scratch};
      if (desc.dtype == f16) args.tensors.emplace_back("scale", scale);
      const bool mixed = dc.dtype != desc.dtype;
      p.programs
          .kernel(mixed             ? a.accumulate_dc ? LossProgram::grad_c_f32_add : LossProgram::grad_c_f32
                  : a.accumulate_dc ? LossProgram::grad_c_add
                                    : LossProgram::grad_c)
          .launch(args, *p.pool);
    }
  }
}

bool Plan::filters() const { return impl_->filter() != nullptr; }

std::array<std::int64_t, 2> Plan::block_lse_shape(std::int64_t tokens) const {
  if (tokens < 0) throw UsageError(fmt::format("Plan: {} rows; their number must not be negative", tokens));
  return impl_->require_filter("Plan::block_lse_shape").block_lse_shape(tokens);
}

void Plan::set_order(const std::vector<std::int64_t>& order) {
  runtime::DeviceLoss& loss = impl_->require_filter("Plan::set_order");
  if (impl_->desc.order != Order::given)
    throw UsageError(
        fmt::format("Plan::set_order: PlanDesc::order is {}; it must be given", name_of(impl_->desc.order)));
  loss.set_order(order, "Plan::set_order");
}

void Plan::refresh_order(const TensorRef& e, const TensorRef& c, Stream stream) {
  runtime::DeviceLoss& loss = impl_->require_filter("Plan::refresh_order");
  if (impl_->desc.order != Order::automatic)
    throw UsageError(
        fmt::format("Plan::refresh_order: PlanDesc::order is {}; it must be automatic", name_of(impl_->desc.order)));
  runtime::ArgumentCheck check("Plan::refresh_order", impl_->desc);
  const TensorRef rows = check.embeddings(e, c);
  loss.find_order(rows, c, "Plan::refresh_order", stream);
}

FilterReport Plan::filter_report(const TensorRef& workspace, Stream stream) const {
  const runtime::DeviceLoss& loss = impl_->require_filter("Plan::filter_report");
  runtime::ArgumentCheck check("Plan::filter_report", impl_->desc);
  check.workspace(workspace, sizeof(runtime::FilterFigures));
  return loss.filter_report(workspace, stream);
}

std::vector<std::string> Plan::program_names() const {
  std::vector<std::string> names;
  if (const runtime::DevicePrograms* programs = impl_->main_programs())
    for (runtime::DeviceProgram w : programs->all()) names.emplace_back(runtime::DevicePrograms::name(w));
  else
    for (LossProgram w : impl_->programs.all()) names.emplace_back(runtime::LossPrograms::name(w));
  return names;
}

std::string Plan::emit(const std::string& program, Stage stage, const Target& target) const {
  if (const runtime::DevicePrograms* programs = impl_->main_programs()) {
    for (runtime::DeviceProgram w : programs->all())
      if (runtime::DevicePrograms::name(w) == program)
        return kerf::emit(programs->record(w), stage, target, programs->schedule(w));
  } else {
    for (LossProgram w : impl_->programs.all())
      if (runtime::LossPrograms::name(w) == program)
        return kerf::emit(impl_->programs.record(w), stage, target, impl_->programs.schedule(w));
  }
  throw UsageError(
      fmt::format("Plan::emit: no program '{}'; this plan has {}", program, fmt::join(program_names(), ", ")));
}

}  // namespace kerf
