// Which blocks a plan takes for a number of tokens: those it was given, those that wisdom knows, or the default's.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kerf/loss.h"
#include "kerf/wisdom.h"
#include "runtime/loss_parts.h"

namespace kerf::runtime {

/// Tuning::from_environment as KERF_TUNE says: off, lookup, record or auto; lookup where it is not set. UsageError
/// for anything else.
Tuning tuning_of(Tuning asked);

struct LossChoice {
  LossPoints points = {};
  std::string forward_from = "default", backward_from = "default", filtered_from = "default";
  std::vector<std::string> notes = {};  // of wisdom: what was passed over, and why
};

class LossChooser {
 public:
  /// UsageError where the blocks that were given are none of the plan's.
  LossChooser(const PlanDesc& desc, const Shared& shared, int threads);
  /// Asks wisdom, and with Tuning::record notes what it lacks.
  LossChoice choose(std::int64_t tokens);
  /// Whether measure() would find better: with Tuning::on_first_use, where wisdom lacks a part.
  bool would_measure(const LossChoice& choice, std::int64_t tokens) const;
  /// Measures the parts that wisdom lacks, which takes as long as PlanDesc::tuning_seconds says. The one member that
  /// several threads may call, also while others are in use; one after the other, so that no search of this plan times
  /// another.
  void measure(std::int64_t tokens, LossChoice& choice);
  /// Why a point is none of a part; empty: it is.
  std::string refusal(LossPart part, const WisdomParameters& parameters) const;

 private:
  void look_up(LossPart part, std::int64_t tokens, LossChoice& choice);
  void look_up_all(std::int64_t tokens, LossChoice& choice);
  /// On the CPU: of few tokens the default has shorter blocks than the one that an empty point stands for.
  void fill_in_default(std::int64_t tokens, LossChoice& choice) const;
  /// Whether a part was neither given nor found in the bucket.
  bool lacks(const LossChoice& choice, std::int64_t tokens) const;
  const WisdomLayers& layers();
  WisdomKey key(LossPart part, std::int64_t tokens);

  PlanDesc desc_;
  LossBlocks given_;
  int threads_;
  Tuning tuning_;
  Target target_;
  std::shared_ptr<const WisdomLayers> layers_;
  std::optional<WisdomKey> keys_[3];
  std::optional<WisdomValidators> here_;
  std::mutex measuring_;
};

}  // namespace kerf::runtime
