// Plan: arguments checked, valid rows compacted, programs launched over parts and ranges of the vocabulary, losses
// reduced in a fixed order.
#include "kerf/loss.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <set>

#include "kerf/error.h"
#include "runtime/cuda/device.h"
#include "runtime/loss_args.h"
#include "runtime/loss_chooser.h"
#include "runtime/loss_route.h"
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

std::int64_t rows_of(const TensorRef& target) { return std::max<std::int64_t>(0, target.elements()); }

}  // namespace

struct Plan::Impl {
  PlanDesc desc;
  std::shared_ptr<ThreadPool> pool;  // null on a GPU, unless shared
  std::shared_ptr<CodeCache> cache;
  std::shared_ptr<runtime::KnownOrder> order = std::make_shared<runtime::KnownOrder>();

  /// What is chosen for one bucket of tokens; blocks that several choose are compiled once.
  struct Chosen {
    runtime::LossChoice choice;
    std::shared_ptr<runtime::LossRoute> route;
  };
  const pid_t process = getpid();
  std::mutex mutex;  // guards what follows; not held while something is measured
  std::condition_variable measured;
  runtime::LossChooser chooser;
  std::map<std::int64_t, Chosen> chosen;
  std::set<std::int64_t> in_measurement;  // buckets

  Impl(const PlanDesc& d, Shared shared)
      : desc(without_impossible(checked(d))),
        pool(pool_for(desc, shared)),
        cache(shared.cache ? shared.cache : std::make_shared<CodeCache>()),
        chooser(desc, shared, pool ? pool->size() : 0) {
    standard = route_of(runtime::LossPoints{});
  }
  std::shared_ptr<runtime::LossRoute> standard;  // with the default's blocks

  static std::shared_ptr<ThreadPool> pool_for(const PlanDesc& desc, const Shared& shared) {
    if (shared.pool || desc.device.type == DeviceType::cuda) return shared.pool;
    return std::make_shared<ThreadPool>(desc.threads);
  }

  std::shared_ptr<runtime::LossRoute> route_of(const runtime::LossPoints& points) {
    if (standard && points == runtime::LossPoints{}) return standard;
    for (const auto& [tokens, c] : chosen)
      if (c.choice.points == points) return c.route;
    return std::make_shared<runtime::LossRoute>(desc, pool, cache, order, points);
  }
  const Chosen& chosen_for(std::int64_t tokens, Stream stream = {}) {
    if (process != getpid())
      throw DeviceError(
          "Plan: this process was forked after the plan was made, and the plan's threads, locks and GPU stayed with "
          "the "
          "parent; make plans after the fork, or start the child with exec or posix_spawn");
    const std::int64_t bucket = token_bucket(std::max<std::int64_t>(1, tokens));
    std::unique_lock lock(mutex);
    measured.wait(lock, [&] { return !in_measurement.contains(bucket); });
    if (const auto at = chosen.find(bucket); at != chosen.end()) return at->second;
    Chosen c{.choice = chooser.choose(bucket), .route = nullptr};
    if (chooser.would_measure(c.choice, bucket)) {
      if (captured(stream))
        c.choice.notes.emplace_back("the stream is being captured, so nothing was tuned; prepare the plan before");
      else
        measure(bucket, c.choice, lock);
    }
    c.route = route_of(c.choice.points);
    return chosen.emplace(bucket, std::move(c)).first->second;
  }
  void measure(std::int64_t bucket, runtime::LossChoice& choice, std::unique_lock<std::mutex>& lock) {
    in_measurement.insert(bucket);
    lock.unlock();
    std::exception_ptr error;
    try {
      chooser.measure(bucket, choice);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    in_measurement.erase(bucket);
    measured.notify_all();
    if (error) std::rethrow_exception(error);
  }
  runtime::LossRoute& route(std::int64_t tokens, Stream stream = {}) { return *chosen_for(tokens, stream).route; }
  bool captured(Stream stream) const {
    return desc.device.type == DeviceType::cuda && cuda::is_capturing(*cuda::Device::open(desc.device.ordinal), stream);
  }

  /// The default's: order and figures are the same for all.
  runtime::DeviceLoss& require_filter(const char* call) {
    runtime::DeviceLoss* filter = standard->filter();
    if (!filter) throw UsageError(fmt::format("{}: the plan does not filter (PlanDesc::filter)", call));
    return *filter;
  }
};

Plan::Plan(const PlanDesc& desc, Shared shared) : impl_(std::make_unique<Impl>(desc, std::move(shared))) {}
Plan::~Plan() = default;
Plan::Plan(Plan&&) noexcept = default;
Plan& Plan::operator=(Plan&&) noexcept = default;

void Plan::prepare() { prepare({}); }

void Plan::prepare(const std::vector<std::int64_t>& token_counts) {
  Impl& p = *impl_;
  const auto pool = p.pool ? p.pool : std::make_shared<ThreadPool>(p.desc.threads);
  if (token_counts.empty()) return p.standard->prepare(*pool, runtime::many_rows);
  for (const std::int64_t tokens : token_counts) {
    if (tokens < 0) throw UsageError(fmt::format("Plan::prepare: {} rows; their number must not be negative", tokens));
    p.route(tokens).prepare(*pool, tokens);
  }
}

std::size_t Plan::workspace_bytes(std::int64_t tokens, bool backward) const {
  return impl_->route(tokens).workspace(tokens, backward);
}
std::size_t Plan::stash_bytes(std::int64_t tokens) const { return impl_->route(tokens).stash_bytes(tokens); }
const PlanDesc& Plan::desc() const { return impl_->desc; }

PlanReport Plan::report(std::int64_t tokens) const {
  const Impl::Chosen& chosen = impl_->chosen_for(tokens);
  runtime::LossRoute& p = *chosen.route;
  PlanReport r;
  const bool filtered = p.filter() && p.filter()->filters(tokens);
  r.stash = stash_bytes(tokens);
  r.strategy = p.desc().strategy != Strategy::automatic ? p.desc().strategy
               : filtered                               ? Strategy::filtered
               : r.stash > 0                            ? Strategy::exact_stash
                                                        : Strategy::exact_recompute;
  r.forward_workspace = workspace_bytes(tokens, false);
  r.backward_workspace = workspace_bytes(tokens, true);
  const bool in_steps = p.in_steps(tokens);
  if (filtered)
    r.ranges = static_cast<int>(p.filter()->filter_ranges(tokens).count());
  else if (tokens > 0)
    r.ranges = (in_steps ? p.stepped()->ranges(tokens) : p.ranges(tokens, p.limit(tokens))).count();
  r.threads = impl_->pool ? p.pool().size() : 1;
  r.blocks = p.forward_blocks(tokens);
  r.forward_from = filtered ? chosen.choice.filtered_from : chosen.choice.forward_from;
  r.backward_from = filtered ? chosen.choice.filtered_from : chosen.choice.backward_from;
  r.notes = chosen.choice.notes;
  return r;
}

void Plan::forward(const ForwardArgs& a, Stream stream) {
  const PlanDesc& desc = impl_->desc;
  runtime::LossRoute& p = impl_->route(rows_of(a.target), stream);
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
    p.programs()
        .kernel(LossProgram::lse_forward)
        .launch({.tensors = {{"e", e},
                             {"c", c},
                             {"rows", rows},
                             {"target", target},
                             {"part_max", part_max},
                             {"part_sum", part_sum},
                             {"part_target", part_target}},
                 .scratch = space.scratch},
                p.pool());
    p.programs()
        .kernel(LossProgram::combine)
        .launch({.tensors = {{"part_max", part_max},
                             {"part_sum", part_sum},
                             {"part_target", part_target},
                             {"rows", rows},
                             {"lse", row_lse},
                             {"loss", row_loss}},
                 .scratch = space.scratch},
                p.pool());
    for (std::int64_t n = 0; n < valid; ++n) sum += static_cast<const float*>(row_loss.data)[space.rows[n]];
  }
  if (!loss.given() || each) return;
  if (desc.reduction == Reduction::mean) sum /= static_cast<double>(valid);  // NaN without a valid row
  *static_cast<float*>(loss.data) = static_cast<float>(sum);
}

void Plan::backward(const BackwardArgs& a, Stream stream) {
  const PlanDesc& desc = impl_->desc;
  runtime::LossRoute& p = impl_->route(rows_of(a.target), stream);
  if (runtime::DeviceLoss* steps = p.stepped(a)) return steps->backward(a, stream);
  const auto [e, c, labels, lse, grad_loss, de, dc, block_lse, stash, memory, bytes, name] =
      runtime::check_backward(desc, a, [&](std::int64_t rows) { return p.workspace(rows, true); });
  const std::int64_t valid = check_labels(labels, name);
  if (!de.given() && !dc.given()) return;

  if (valid == 0) {
    if (de.given()) clear_other_rows(de, nullptr, 0, p.pool());
    if (dc.given() && !a.accumulate_dc) clear_other_rows(dc, nullptr, 0, p.pool());
    return;
  }
  const kernels::Blocks& b = p.programs().blocks().backward;
  const runtime::Ranges ranges = p.ranges(valid, bytes);
  const runtime::BackwardSpace space = runtime::lay_out_backward(memory, valid, p.shape(), b, ranges, p.scratch(true));
  compact(labels, space.rows, space.target);
  *space.scale = fill_upstream(grad_loss, desc.reduction, desc.dtype, space.rows, valid, space.g);
  if (de.given()) clear_other_rows(de, space.rows, valid, p.pool());
  if (de.given() && space.sum) std::fill_n(space.sum, valid * desc.hidden, 0.0f);

  const TensorRef rows(space.rows, i64, {valid}), target(space.target, i32, {valid}), g(space.g, {valid});
  const TensorRef scale(space.scale, f32, {}), sum(space.sum, {valid, desc.hidden});
  const std::int64_t row_blocks = (valid + b.n - 1) / b.n, hidden_blocks = (desc.hidden + b.d - 1) / b.d;
  for (int range = 0; range < ranges.count(); ++range) {
    const std::int64_t begin = range * ranges.width, end = std::min(begin + ranges.width, ranges.columns);
    const TileListRef kept = runtime::fill_by_column({row_blocks, ranges.columns, begin, end}, space.kept);
    const TensorRef dz(space.dz, desc.dtype, {kept.count * b.v * b.n});
    p.programs()
        .kernel(LossProgram::grad_tiles)
        .launch(
            {.tensors = {{"e", e}, {"c", c}, {"rows", rows}, {"target", target}, {"lse", lse}, {"g", g}, {"dz", dz}},
             .lists = {{"kept", kept}},
             .scratch = space.scratch},
            p.pool());
    std::vector<KernelLaunch> products;  // of dz: de has few instances, and long ones
    if (de.given()) {
      const bool last = range + 1 == ranges.count(), several = ranges.count() > 1;
      LaunchArgs args{.tensors = {{"c", c}, {"dz", dz}}, .lists = {{"kept", kept}}, .scratch = space.scratch};
      if (several) args.tensors.emplace_back("sum", sum);
      if (last) {
        args.tensors.emplace_back("rows", rows);
        args.tensors.emplace_back("de", de);
        if (desc.dtype == f16) args.tensors.emplace_back("scale", scale);
      }
      const LossProgram which = !several ? LossProgram::grad_e
                                : last   ? LossProgram::grad_e_end
                                         : LossProgram::grad_e_begin;
      products.push_back({p.programs().kernel(which), std::move(args)});
    }
    if (dc.given()) {
      const TileListRef written = runtime::fill_by_column({hidden_blocks, ranges.columns, begin, end}, space.written);
      LaunchArgs args{.tensors = {{"e", e}, {"rows", rows}, {"dz", dz}, {"dc", dc}},
                      .lists = {{"kept", kept}, {"written", written}},
                      .scratch = space.scratch};
      if (desc.dtype == f16) args.tensors.emplace_back("scale", scale);
      const bool mixed = dc.dtype != desc.dtype;
      const LossProgram which = mixed ? a.accumulate_dc ? LossProgram::grad_c_f32_add : LossProgram::grad_c_f32
                                : a.accumulate_dc ? LossProgram::grad_c_add
                                                  : LossProgram::grad_c;
      products.push_back({p.programs().kernel(which), std::move(args)});
    }
    Kernel::launch_together(products, p.pool());
  }
}

bool Plan::filters() const { return impl_->standard->filter() != nullptr; }

std::array<std::int64_t, 2> Plan::block_lse_shape(std::int64_t tokens) const {
  if (tokens < 0) throw UsageError(fmt::format("Plan: {} rows; their number must not be negative", tokens));
  impl_->require_filter("Plan::block_lse_shape");
  return impl_->route(tokens).filter()->block_lse_shape(tokens);
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
  if (const runtime::DevicePrograms* programs = impl_->standard->main_programs(runtime::many_rows))
    for (runtime::DeviceProgram w : programs->all()) names.emplace_back(runtime::DevicePrograms::name(w));
  else
    for (LossProgram w : impl_->standard->programs().all()) names.emplace_back(runtime::LossPrograms::name(w));
  return names;
}

std::string Plan::emit(const std::string& program, Stage stage, const Target& target) const {
  if (const runtime::DevicePrograms* programs = impl_->standard->main_programs(runtime::many_rows)) {
    for (runtime::DeviceProgram w : programs->all())
      if (runtime::DevicePrograms::name(w) == program)
        return kerf::emit(programs->record(w), stage, target, programs->schedule(w));
  } else {
    for (LossProgram w : impl_->standard->programs().all())
      if (runtime::LossPrograms::name(w) == program)
        return kerf::emit(impl_->standard->programs().record(w), stage, target,
                          impl_->standard->programs().schedule(w));
  }
  throw UsageError(
      fmt::format("Plan::emit: no program '{}'; this plan has {}", program, fmt::join(program_names(), ", ")));
}

}  // namespace kerf
