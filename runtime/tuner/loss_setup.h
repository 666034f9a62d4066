// What a worker needs to know to measure the loss, as text.
#pragma once

#include <memory>
#include <string>

#include "runtime/tuner/loss_subject.h"

namespace kerf::runtime {

struct LossSetup {
  PlanDesc desc;
  std::int64_t tokens = 0;
  std::size_t memory = 0;
  bool compiles_only = false;  // measures nothing: has no input
};
/// What is tuned of it next; `others`: the blocks of the parts that are not.
struct LossStage {
  LossPart part = LossPart::forward;
  LossPoints others = {};
};
std::string to_text(const LossSetup& setup);
std::string to_text(const LossStage& stage);
/// Throw UsageError where the text is none.
LossSetup parse_setup(const std::string& text);
LossStage parse_stage(const std::string& text);

/// The subject of such a setup, with all that it needs; a stage begins a part.
std::unique_ptr<TuneSubject> subject_of(const std::string& text);

}  // namespace kerf::runtime
