// What a worker needs to know to measure a part of the loss, as text.
#pragma once

#include <memory>
#include <string>

#include "runtime/tuner/loss_subject.h"

namespace kerf::runtime {

struct LossSetup {
  PlanDesc desc;
  std::int64_t tokens = 0;
  std::size_t memory = 0;
  LossPart part = LossPart::forward;
  LossPoints others = {};
};
std::string to_text(const LossSetup& setup);
/// Throws UsageError where the text is none.
LossSetup parse_setup(const std::string& text);

/// The subject of such a text, with all that it needs.
std::unique_ptr<TuneSubject> subject_of(const std::string& text);

}  // namespace kerf::runtime
