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
  /// Asks wisdom, and with Tuning::on_first_use measures what it lacks where `may_tune`.
  LossChoice choose(std::int64_t tokens, bool may_tune);
  /// Why a point is none of a part; empty: it is.
  std::string refusal(LossPart part, const WisdomParameters& parameters) const;
  Tuning tuning() const { return tuning_; }

 private:
  void look_up(LossPart part, std::int64_t tokens, LossChoice& choice);
  void look_up_all(std::int64_t tokens, LossChoice& choice);
  /// Whether a part was neither given nor found in the bucket.
  bool lacks(const LossChoice& choice) const;
  void tune(std::int64_t tokens, LossChoice& choice);
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
};

}  // namespace kerf::runtime
