#include "runtime/tuner/loss_subject.h"

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

std::vector<LossProgram> main_programs(LossPart part, bool several) {
  if (part == LossPart::forward) return {LossProgram::lse_forward, LossProgram::combine};
  if (several)
    return {LossProgram::grad_tiles, LossProgram::grad_e_begin, LossProgram::grad_e_end, LossProgram::grad_c};
  return {LossProgram::grad_tiles, LossProgram::grad_e, LossProgram::grad_c};
}

}  // namespace

LossSubject::LossSubject(LossBench& bench, LossPart part, const LossPoints& others)
    : bench_(bench), part_(part), others_(others) {
  const bool filtered = part == LossPart::filtered;
  // A stash is written by tiles of the backward: what that costs the forward is the backward's.
  const bool stash = part == LossPart::backward && stashes(bench.desc());
  calls_ = {.forward = part != LossPart::backward || stash,
            .backward = part != LossPart::forward,
            .block_lse = filtered,
            .stash = stash};
  if (bench.desc().device.type == DeviceType::cuda) warm_up();
  if (calls_.backward) bench.begin_backward();
}

void LossSubject::warm_up() {
  LossRoute route(bench_.desc(), nullptr, bench_.cache(), std::make_shared<KnownOrder>(), others_);
  DevicePrograms& programs =
      part_ == LossPart::filtered ? route.stepped()->filtered_programs() : route.stepped()->programs();
  const std::vector<DeviceProgram> all = programs.all();
  bench_.pool()->run(std::ssize(all), [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) programs.kernel(all[static_cast<std::size_t>(i)]);
  });
}

std::optional<KernelResources> LossSubject::compile(const TunePoint& point) {
  LossPoints points = others_;
  points.of(part_) = point;
  // A plan compiles everything; here only what is called, into the cache that the plan shares.
  const auto loaded =
      std::make_shared<LossRoute>(bench_.desc(), bench_.pool(), bench_.cache(), std::make_shared<KnownOrder>(), points);
  LossRoute& route = *loaded;
  std::optional<KernelResources> resources;
  const std::int64_t N = bench_.tokens();
  const bool on_gpu = bench_.desc().device.type == DeviceType::cuda;
  if (on_gpu || part_ == LossPart::filtered) {
    DeviceLoss& loss = *route.stepped();
    DevicePrograms& programs = part_ == LossPart::filtered ? loss.filtered_programs() : loss.programs();
    if (on_gpu) resources.emplace();
    if (part_ == LossPart::backward)
      for (const DeviceProgram w : {DeviceProgram::list_kept, DeviceProgram::list_written}) programs.kernel(w);
    for (const DeviceProgram w : main_programs(loss, programs, part_, N, bench_.desc())) {
      const KernelResources one = programs.kernel(w).resources();
      if (resources) take_larger(*resources, one);
    }
  } else {
    const bool several = part_ == LossPart::backward && route.ranges(N, route.limit(N)).count() > 1;
    for (const LossProgram w : main_programs(part_, several)) route.programs().kernel(w);
  }
  LossBlocks blocks{.forward = to_wisdom(points.forward),
                    .backward = to_wisdom(points.backward),
                    .filtered = to_wisdom(points.filtered)};
  auto plan = std::make_unique<Plan>(
      bench_.desc(), Shared{.pool = bench_.pool(), .cache = bench_.cache(), .wisdom = nullptr, .blocks = blocks});
  const std::lock_guard lock(mutex_);
  plans_[point] = {loaded, std::move(plan)};
  return resources;
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
