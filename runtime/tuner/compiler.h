// Candidates compiled side by side.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
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

/// Compiles candidates on threads of its own, in their order, from the moment it is made; null stands for nothing to
/// do.
class CandidateCompiler {
 public:
  struct Result {
    std::optional<KernelResources> resources;
    double ms = 0;
    std::exception_ptr error;
    bool done = false;
  };

  /// The points live as long as this.
  CandidateCompiler(TuneSubject& subject, std::vector<const TunePoint*> points, std::size_t threads);
  /// Begins no more of them; waits for those that were begun.
  ~CandidateCompiler();
  CandidateCompiler(const CandidateCompiler&) = delete;
  CandidateCompiler& operator=(const CandidateCompiler&) = delete;
  void stop();
  std::size_t size() const { return results_.size(); }
  /// Waits for the i-th, and says whether it is there: while it is not, `give_up` is asked now and then.
  bool wait(std::size_t i, const std::function<bool()>& give_up);
  /// After wait.
  const Result& operator[](std::size_t i) const { return results_[i]; }

 private:
  void work();

  TuneSubject& subject_;
  const std::vector<const TunePoint*> points_;
  std::vector<Result> results_;
  std::mutex mutex_;  // of what follows, and of results
  std::condition_variable done_;
  std::size_t next_ = 0;
  std::vector<std::jthread> threads_;  // last: joined before the results go
};

}  // namespace kerf::runtime
