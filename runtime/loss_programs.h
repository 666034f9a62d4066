// The programs of one plan, each recorded and compiled when first asked for.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

#include "kerf/kernel.h"
#include "runtime/blocks.h"

namespace kerf::runtime {

enum class LossProgram : std::uint8_t {
  lse_forward,
  combine,
  grad_tiles,
  grad_e,        // one vocabulary range
  grad_e_begin,  // several: adds to the f32 sum
  grad_e_end,    // several: adds to the f32 sum and writes de
  grad_c,        // dc in the dtype of c
  grad_c_add,
  grad_c_f32,  // dc in f32 beside a c of another dtype
  grad_c_f32_add,
};
inline constexpr std::size_t loss_programs = 10;

class LossPrograms {
 public:
  LossPrograms(const kernels::Shape& shape, std::shared_ptr<CodeCache> cache)
      : LossPrograms(shape, choose_blocks(shape), std::move(cache)) {}
  LossPrograms(const kernels::Shape& shape, const PlanBlocks& blocks, std::shared_ptr<CodeCache> cache)
      : shape_(shape), blocks_(blocks), cache_(std::move(cache)) {}

  const PlanBlocks& blocks() const { return blocks_; }
  /// Those that this dtype has.
  std::vector<LossProgram> all() const;
  static std::string_view name(LossProgram which);
  Program record(LossProgram which) const;
  Schedule schedule(LossProgram which) const;
  /// Compiles it on first use: one caller does, others wait.
  const Kernel& kernel(LossProgram which);
  /// What the kernel needs for one thread; found without compiling it.
  std::size_t scratch_bytes(LossProgram which);

 private:
  kernels::Shape shape_;
  PlanBlocks blocks_;
  std::shared_ptr<CodeCache> cache_;
  std::array<std::once_flag, loss_programs> compiled_, measured_;
  std::array<Kernel, loss_programs> kernels_;
  std::array<std::size_t, loss_programs> scratch_{};
};

}  // namespace kerf::runtime
