// The programs of a plan for one choice of blocks, and what follows from these: workspace, ranges, stash.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "kerf/loss.h"
#include "runtime/device_loss.h"
#include "runtime/loss_parts.h"
#include "runtime/loss_programs.h"
#include "runtime/loss_space.h"

namespace kerf::runtime {

/// More than any choice by the number of rows asks for.
inline constexpr std::int64_t many_rows = 1 << 20;

class LossRoute {
 public:
  /// `order` is the plan's, whatever the blocks.
  LossRoute(const PlanDesc& desc, std::shared_ptr<ThreadPool> pool, std::shared_ptr<CodeCache> cache,
            std::shared_ptr<KnownOrder> order, const LossPoints& points);

  const PlanDesc& desc() const { return desc_; }
  ThreadPool& pool() const { return *pool_; }
  LossPrograms& programs() { return programs_; }

  DeviceLoss* stepped() const { return device_ ? device_.get() : steps_.get(); }
  /// Whether calls of so many rows that are given what the plan wants, or all, are made in steps.
  bool in_steps(std::int64_t rows) const { return device_ || filter() || stash_bytes(rows) > 0; }
  /// What makes this call, or null: `programs`.
  DeviceLoss* stepped(const auto& call) const {
    if (device_) return device_.get();
    const bool asked = call.block_lse.given() || call.stash.given() || desc_.strategy == Strategy::dense;
    return steps_ && asked && in_steps(std::max<std::int64_t>(0, call.target.elements())) ? steps_.get() : nullptr;
  }
  /// What filters, or null.
  DeviceLoss* filter() const;
  /// Those of a filtered call of so many rows or one with a stash, or of any on a device; null: `programs`.
  DevicePrograms* main_programs(std::int64_t rows) const;

  kernels::Shape shape() const { return {desc_.vocabulary, desc_.hidden, desc_.dtype}; }
  /// Of the vocabulary, in the forward.
  std::int64_t parts() const;
  /// Bytes of scratch that any program of a direction needs.
  std::size_t scratch(bool backward);
  Ranges ranges(std::int64_t rows, std::size_t limit);
  std::size_t stash_bytes(std::int64_t rows) const;
  /// Of the backward's workspace.
  std::size_t limit(std::int64_t rows) const;
  std::size_t workspace(std::int64_t rows, bool backward);
  /// "n=256 v=256 d=256"
  std::string forward_blocks(std::int64_t rows) const;
  /// Compiles everything that calls of so many rows need, on `pool` at once.
  void prepare(ThreadPool& pool, std::int64_t rows);

 private:
  PlanDesc desc_;
  std::shared_ptr<ThreadPool> pool_;  // null on a GPU
  LossPrograms programs_;
  std::unique_ptr<DeviceLoss> device_;  // in place of the programs
  std::unique_ptr<DeviceLoss> steps_;   // CPU: beside them, for calls with block_lse or a stash
};

}  // namespace kerf::runtime
