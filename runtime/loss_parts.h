// What of a plan can be chosen: the parts, their parameters, and the blocks that a choice makes.
#pragma once

#include <cstdint>
#include <string>

#include "kerf/loss.h"
#include "kerf/tuner.h"
#include "runtime/blocks.h"

namespace kerf::runtime {

/// forward and backward: of calls that do not filter. filtered: both directions of those that do, which share tiles.
enum class LossPart : std::uint8_t { forward, backward, filtered };
std::string_view name_of(LossPart part);

/// Points by part; an empty one stands for the default of many tokens.
struct LossPoints {
  TunePoint forward = {}, backward = {}, filtered = {};
  TunePoint& of(LossPart part);
  const TunePoint& of(LossPart part) const;
  friend auto operator<=>(const LossPoints&, const LossPoints&) = default;
};

/// The blocks of a plan's programs.
PlanBlocks host_blocks(const PlanDesc& desc, const LossPoints& points);
DeviceBlocks device_blocks(const PlanDesc& desc, const Target& target, const LossPoints& points);
DeviceBlocks filtered_blocks(const PlanDesc& desc, const Target& target, const LossPoints& points);

/// Whether a plan has the part at all.
bool has_part(const PlanDesc& desc, LossPart part);
/// Whether calls of so many tokens come to it.
bool has_part(const PlanDesc& desc, const Target& target, LossPart part, std::int64_t tokens);
/// The parameters of a part and their rules, which depend on neither the number of tokens nor the machine's load.
Space loss_space(const PlanDesc& desc, const Target& target, LossPart part);
/// What the default comes to for so many tokens.
TunePoint default_point(const PlanDesc& desc, const Target& target, LossPart part, std::int64_t tokens);
/// The key of a choice, tokens rounded up. `threads`: of the pool, on the CPU.
WisdomKey loss_key(const PlanDesc& desc, const Target& target, LossPart part, std::int64_t tokens, int threads);

/// Milliseconds by a model of the machine, made for ranking: products, what is copied for them, and waves of instances
/// that do not come out even.
struct Machine {
  int units = 1;  // threads or multiprocessors
  std::int64_t l2_bytes = 0;
};
double predicted_ms(const PlanDesc& desc, const Target& target, const Machine& machine, LossPart part,
                    std::int64_t tokens, const TunePoint& point);

}  // namespace kerf::runtime
