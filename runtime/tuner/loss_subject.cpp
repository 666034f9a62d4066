#include "runtime/tuner/loss_subject.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "kerf/error.h"
#include "runtime/loss_route.h"

namespace kerf::runtime {

namespace {

/// Relative error of de and dc: rounding to the dtype with room, or what a filter may lose of rows it hardly matters
/// to.
double gradient_tolerance(DType dtype, bool filtered) {
  if (filtered) return 0.1;
  return dtype == f32 ? 1e-3 : 2e-2;
}

void take_larger(KernelResources& all, const KernelResources& one) {
  all.registers = std::max(all.registers, one.registers);
  all.threads = std::max(all.threads, one.threads);
  all.blocks = all.blocks == 0 ? one.blocks : std::min(all.blocks, one.blocks);
  all.shared_bytes = std::max(all.shared_bytes, one.shared_bytes);
  all.local_bytes = std::max(all.local_bytes, one.local_bytes);
}

LossBench::Calls calls_of(LossPart part, const PlanDesc& desc) {
  // A stash is written by tiles of the backward: what that costs the forward is the backward's.
  const bool stash = part == LossPart::backward && stashes(desc);
  return {.forward = part != LossPart::backward || stash,
          .backward = part != LossPart::forward,
          .block_lse = part == LossPart::filtered,
          .stash = stash};
}

/// Those that the part's time goes to.
std::vector<DeviceProgram> main_programs(const DeviceLoss& loss, const DevicePrograms& programs, LossPart part,
                                         std::int64_t tokens, const PlanDesc& desc) {
  std::vector<DeviceProgram> list;
  if (part != LossPart::backward) list.push_back(forward_program(desc, programs.blocks(), tokens));
  if (part == LossPart::forward) return list;
  list.push_back(desc.strategy == Strategy::dense ? DeviceProgram::dz_of_stash : DeviceProgram::grad_tiles);
  list.push_back(DeviceProgram::grad_c);
  const bool several = part == LossPart::filtered || loss.ranges(tokens).count() > 1;
  list.push_back(several ? DeviceProgram::grad_e_begin : DeviceProgram::grad_e);
  if (several) list.push_back(DeviceProgram::grad_e_add);
  return list;
}

/// Whether a tuner's call may launch it: labels are i64, dc has c's dtype and is written, losses are not reduced.
bool may_launch(DeviceProgram which, const DeviceLoss& loss, const DevicePrograms& programs, LossPart part,
                std::int64_t tokens, const PlanDesc& desc) {
  const LossBench::Calls calls = calls_of(part, desc);
  const bool by_8 = desc.hidden * size_of(desc.dtype) % 8 == 0;
  switch (which) {
    case DeviceProgram::label_rows_i64:
    case DeviceProgram::place_targets:
    case DeviceProgram::copy_rows: return true;
    case DeviceProgram::compact_rows:
    case DeviceProgram::order_rows: return !by_8;
    case DeviceProgram::compact_rows_by_8:
    case DeviceProgram::order_rows_by_8: return by_8;
    case DeviceProgram::lse_forward:
    case DeviceProgram::lse_forward_run:
    case DeviceProgram::lse_forward_tall:
      return part != LossPart::backward && which == forward_program(desc, programs.blocks(), tokens);
    case DeviceProgram::compact_labels_begin_losses:
    case DeviceProgram::chunk_rows:
    case DeviceProgram::combine:
    case DeviceProgram::sum_rows:
    case DeviceProgram::score_rows:
    case DeviceProgram::stash_tiles:
    case DeviceProgram::lse_tiles: return calls.forward;
    default: break;
  }
  if (!calls.backward) return false;
  const bool filtered = part == LossPart::filtered;
  const DeviceBackwardSpace space =
      filtered ? DeviceBackwardSpace{} : lay_out_device_backward(nullptr, desc, tokens, programs, loss.ranges(tokens));
  const bool one = !filtered && space.parts == 1 && loss.ranges(tokens).count() == 1 && !calls.stash;
  switch (which) {
    case DeviceProgram::label_rows_i32:
    case DeviceProgram::label_rows_i32_i32:
    case DeviceProgram::label_rows_i32_i64:
    case DeviceProgram::label_rows_i64_i32:
    case DeviceProgram::label_rows_i64_i64:
    case DeviceProgram::upstream_one:
    case DeviceProgram::sum_losses:
    case DeviceProgram::finish_loss:
    case DeviceProgram::grad_c_add:
    case DeviceProgram::grad_c_f32:
    case DeviceProgram::grad_c_f32_add:
    case DeviceProgram::sum_dc_add:
    case DeviceProgram::sum_dc_f32:
    case DeviceProgram::sum_dc_f32_add:
    case DeviceProgram::keep_all:
    case DeviceProgram::forget_masses: return false;
    case DeviceProgram::clear_rows: return !by_8;
    case DeviceProgram::clear_rows_by_8: return by_8;
    case DeviceProgram::list_parts: return space.parts > 1;
    case DeviceProgram::list_row_parts:
    case DeviceProgram::grad_c_parts:
    case DeviceProgram::sum_dc: return space.row_parts > 1;
    case DeviceProgram::grad_c: return space.row_parts <= 1;
    case DeviceProgram::grad_e: return one;
    case DeviceProgram::sum_parts:
    case DeviceProgram::grad_e_begin: return !one;
    case DeviceProgram::grad_e_add: return !one && (filtered || calls.stash || loss.ranges(tokens).count() > 1);
    default: return true;
  }
}

std::vector<LossProgram> main_programs(LossPart part, bool several) {
  if (part == LossPart::forward) return {LossProgram::lse_forward, LossProgram::combine};
  if (several)
    return {LossProgram::grad_tiles, LossProgram::grad_e_begin, LossProgram::grad_e_end, LossProgram::grad_c};
  return {LossProgram::grad_tiles, LossProgram::grad_e, LossProgram::grad_c};
}

void refuse_large(LossRoute& route, std::int64_t tokens, LossPart part, const LossPoints& points,
                  const std::shared_ptr<CodeCache>& cache) {
  const PlanDesc& desc = route.desc();
  if (desc.workspace_limit == 0 || part == LossPart::forward) return;
  const std::size_t bytes = route.workspace(tokens, true);
  if (bytes <= desc.workspace_limit) return;
  LossPoints standard = points;
  standard.of(part) = {};
  // With a limit that nothing keeps to a plan takes what it must.
  if (LossRoute(desc, std::make_shared<ThreadPool>(1), cache, std::make_shared<KnownOrder>(), standard)
          .workspace(tokens, true) > desc.workspace_limit)
    return;
  throw TuneFailure(WisdomStatus::resources, fmt::format("needs a workspace of {:.1f} MiB, the limit is {:.1f}",
                                                         static_cast<double>(bytes) / (1 << 20),
                                                         static_cast<double>(desc.workspace_limit) / (1 << 20)));
}

}  // namespace

LoadedLoss load_loss(const PlanDesc& desc, std::int64_t tokens, LossPart part, const LossPoints& points,
                     const std::shared_ptr<ThreadPool>& pool, const std::shared_ptr<CodeCache>& cache) {
  LoadedLoss loaded{.route = std::make_shared<LossRoute>(desc, pool, cache, std::make_shared<KnownOrder>(), points),
                    .resources = {}};
  LossRoute& route = *loaded.route;
  refuse_large(route, tokens, part, points, cache);
  const bool on_gpu = desc.device.type == DeviceType::cuda;
  if (!on_gpu && part != LossPart::filtered) {
    const bool several = part == LossPart::backward && route.ranges(tokens, route.limit(tokens)).count() > 1;
    for (const LossProgram w : main_programs(part, several)) route.programs().kernel(w);
    return loaded;
  }
  DeviceLoss& loss = *route.stepped();
  DevicePrograms& programs = part == LossPart::filtered ? loss.filtered_programs() : loss.programs();
  const std::vector<DeviceProgram> main = main_programs(loss, programs, part, tokens, desc);
  std::vector<DeviceProgram> launched = on_gpu ? programs.all() : main;
  if (on_gpu)
    std::erase_if(launched, [&](DeviceProgram w) { return !may_launch(w, loss, programs, part, tokens, desc); });
  // Processes that compile beside each other begin with different ones and find the others'.
  std::rotate(launched.begin(), launched.begin() + getpid() % std::ssize(launched), launched.end());
  pool->run(std::ssize(launched), [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) programs.kernel(launched[static_cast<std::size_t>(i)]);
  });
  if (on_gpu) {
    loaded.resources.emplace();
    for (const DeviceProgram w : main) take_larger(*loaded.resources, programs.kernel(w).resources());
  }
  return loaded;
}

LossSubject::LossSubject(LossBench& bench, LossPart part, const LossPoints& others)
    : bench_(bench), part_(part), calls_(calls_of(part, bench.desc())), others_(others) {
  if (calls_.backward) bench.begin_backward();
}

std::optional<KernelResources> LossSubject::compile(const TunePoint& point) {
  LossPoints points = others_;
  points.of(part_) = point;
  LoadedLoss loaded = load_loss(bench_.desc(), bench_.tokens(), part_, points, bench_.pool(), bench_.cache());
  LossBlocks blocks{.forward = to_wisdom(points.forward),
                    .backward = to_wisdom(points.backward),
                    .filtered = to_wisdom(points.filtered)};
  auto plan = std::make_unique<Plan>(
      bench_.desc(), Shared{.pool = bench_.pool(), .cache = bench_.cache(), .wisdom = nullptr, .blocks = blocks});
  if (part_ == LossPart::filtered && bench_.desc().order == Order::given) plan->set_order(bench_.order());
  const std::lock_guard lock(mutex_);
  plans_[point] = {std::move(loaded.route), std::move(plan)};
  return loaded.resources;
}

Plan& LossSubject::plan(const TunePoint& point) {
  const std::lock_guard lock(mutex_);
  return *plans_.at(point).plan;
}

std::string LossSubject::check(const TunePoint& point) {
  Plan& p = plan(point);
  bench_.forward_args(p, calls_);  // memory for what is poisoned
  bench_.poison();
  run(point);
  bench_.place().wait();
  if (calls_.forward)
    if (std::string wrong = bench_.wrong_forward(); !wrong.empty()) return wrong;
  return calls_.backward ? bench_.wrong_backward(gradient_tolerance(bench_.desc().dtype, part_ == LossPart::filtered))
                         : std::string();
}

double LossSubject::run(const TunePoint& point) {
  Plan& p = plan(point);
  const Stream stream = bench_.place().stream();
  const ForwardArgs forward = bench_.forward_args(p, calls_);
  const BackwardArgs backward = bench_.backward_args(forward, calls_);
  return bench_.place().time([&] {
    if (calls_.forward) p.forward(forward, stream);
    if (calls_.backward) p.backward(backward, stream);
  });
}

void LossSubject::forget(const TunePoint& point) {
  Candidate gone;
  const std::lock_guard lock(mutex_);
  if (const auto at = plans_.find(point); at != plans_.end()) {
    gone = std::move(at->second);
    plans_.erase(at);
  }
}

}  // namespace kerf::runtime
