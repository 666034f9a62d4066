// Candidates compiled side by side.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/tuner/search.h"

namespace kerf::runtime {

/// How a candidate ended, from what was thrown.
struct Ending {
  WisdomStatus status = WisdomStatus::fault;
  std::string reason;
};
/// `otherwise`: where the error does not tell. What a device refuses to compile is `resources`.
Ending ending_of(const std::exception_ptr& error, WisdomStatus otherwise);

/// Compiles each on a thread of its own from the moment it is made; null stands for nothing to do.
class CandidateCompiler {
 public:
  struct Result {
    std::optional<KernelResources> resources;
    double ms = 0;
    std::exception_ptr error;
  };

  /// The points live until wait has returned.
  CandidateCompiler(TuneSubject& subject, const std::vector<const TunePoint*>& points);
  CandidateCompiler(CandidateCompiler&&) noexcept = default;
  CandidateCompiler& operator=(CandidateCompiler&&) noexcept = default;
  void wait() { threads_.clear(); }
  std::size_t size() const { return results_.size(); }
  const Result& operator[](std::size_t i) const { return results_[i]; }

 private:
  std::vector<Result> results_;
  std::vector<std::jthread> threads_;  // last: joined before the results go
};

}  // namespace kerf::runtime
