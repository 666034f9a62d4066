#include "runtime/loss_route.h"

#include <fmt/format.h>

#include <algorithm>

#include "kerf/error.h"

namespace kerf::runtime {

LossRoute::LossRoute(const PlanDesc& desc, std::shared_ptr<ThreadPool> pool, std::shared_ptr<CodeCache> cache,
                     std::shared_ptr<KnownOrder> order, const LossPoints& points)
    : desc_(desc),
      pool_(std::move(pool)),
      programs_({desc.vocabulary, desc.hidden, desc.dtype},
                host_blocks(desc, desc.device.type == DeviceType::cpu ? points : LossPoints{}), cache) {
  if (desc.device.type == DeviceType::cuda) {
    device_ = std::make_unique<DeviceLoss>(desc, cache, points, std::move(order));
  } else if (filters(desc) || stashes(desc)) {
    PlanDesc checked = desc;
    checked.check_labels = true;
    const DeviceBlocks blocks =
        filters(desc) ? filtered_blocks(desc, Target::host(), points) : choose_filter_blocks(shape());
    steps_ = std::make_unique<DeviceLoss>(checked, blocks, pool_, cache, std::move(order));
    // Where a caller leaves the stash out, the backward is that of this route.
    steps_->leave_room([this](std::int64_t rows) {
      const kernels::Blocks& b = programs_.blocks().backward;
      const Ranges narrowest{blocks_of(desc_.vocabulary, b.v), 1};
      return lay_out_backward(nullptr, rows, this->shape(), b, narrowest, scratch(true)).bytes;
    });
  }
}

DeviceLoss* LossRoute::filter() const {
  DeviceLoss* loss = stepped();
  return loss && loss->filters() ? loss : nullptr;
}

DevicePrograms* LossRoute::main_programs(std::int64_t rows) const {
  if (filter() && filter()->filters(rows)) return &filter()->filtered_programs();
  return stepped() ? &stepped()->programs() : nullptr;
}

std::int64_t LossRoute::parts() const {
  const kernels::Blocks& b = programs_.blocks().forward;
  return (desc_.vocabulary + b.v * b.split - 1) / (b.v * b.split);
}

std::size_t LossRoute::scratch(bool backward) {
  std::size_t bytes = 0;
  for (LossProgram w : programs_.all())
    if ((w != LossProgram::lse_forward && w != LossProgram::combine) == backward)
      bytes = std::max(bytes, programs_.scratch_bytes(w));
  return bytes * static_cast<std::size_t>(pool_->size());
}

Ranges LossRoute::ranges(std::int64_t rows, std::size_t limit) {
  return choose_ranges(rows, shape(), programs_.blocks().backward, scratch(true), limit);
}

std::size_t LossRoute::stash_bytes(std::int64_t rows) const {
  return stashes(desc_) ? stepped()->stash_bytes(rows) : 0;
}

std::size_t LossRoute::limit(std::int64_t rows) const {
  if (desc_.strategy == Strategy::min_memory) return 0;
  if (desc_.workspace_limit == 0) return std::size_t{64} << 20;
  const std::size_t beside = filter()                                ? filter()->block_lse_bytes(rows)
                             : desc_.strategy == Strategy::automatic ? stash_bytes(rows)
                                                                     : 0;
  return desc_.workspace_limit - std::min(desc_.workspace_limit, beside);
}

std::size_t LossRoute::workspace(std::int64_t rows, bool backward) {
  if (device_) return device_->workspace(rows, backward);
  if (rows < 0) throw UsageError(fmt::format("Plan: {} rows; their number must not be negative", rows));
  if (rows == 0) return in_steps(0) ? steps_->workspace(0, backward) : 0;
  std::size_t bytes = too_large;
  const kernels::Blocks& b = programs_.blocks().backward;
  if (rows / b.n < most_row_blocks)
    bytes = backward ? lay_out_backward(nullptr, rows, shape(), b, ranges(rows, limit(rows)), scratch(true)).bytes
                     : lay_out_forward(nullptr, rows, parts(), scratch(false)).bytes;
  if (bytes == too_large) throw UsageError(fmt::format("Plan: the workspace for {} rows passes 2^63 bytes", rows));
  if (in_steps(rows)) bytes = std::max(bytes, steps_->workspace(rows, backward));
  return bytes;
}

std::string LossRoute::forward_blocks(std::int64_t rows) const {
  const kernels::Blocks& b = in_steps(rows) ? main_programs(rows)->blocks().forward : programs_.blocks().forward;
  return fmt::format("n={} v={} d={}", b.n, b.v, b.d);
}

void LossRoute::prepare(ThreadPool& pool, std::int64_t rows) {
  const auto compile_all = [&](auto& programs) {
    const auto all = programs.all();
    pool.run(std::ssize(all), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) programs.kernel(all[static_cast<std::size_t>(i)]);
    });
  };
  if (filter() && !filter()->filters(rows))  // what such calls make of block_lse
    for (const DeviceProgram w : {DeviceProgram::forget_masses, DeviceProgram::keep_all})
      filter()->filtered_programs().kernel(w);
  if (DevicePrograms* programs = main_programs(rows))
    compile_all(*programs);
  else
    compile_all(programs_);
}

}  // namespace kerf::runtime
