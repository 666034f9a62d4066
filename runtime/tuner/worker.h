// Candidates in another process: one that hangs, faults or leaves a GPU's context in ruins takes that process with it,
// and a new one is started for the next.
//
// Both sides speak lines of JSON over a socket: {"id":7,"do":"run","x":..} there, {"id":7,"ms":1.25} back. Answers come
// in any order, so that several candidates are compiled at once.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "runtime/tuner/search.h"

namespace kerf::runtime {

class WorkerSubject : public TuneSubject {
 public:
  /// Starts `program tune-worker` when first needed and gives it `setup`. A step of a candidate that takes more than
  /// `seconds` is ended; the setup may take ten times that.
  WorkerSubject(std::string program, std::string setup, double seconds, bool overlaps);
  ~WorkerSubject() override;

  /// Throws what the setup throws there: UsageError, DeviceError, InternalError.
  void start();
  std::optional<KernelResources> compile(const TunePoint& point) override;
  std::string check(const TunePoint& point) override;
  double run(const TunePoint& point) override;
  void forget(const TunePoint& point) override;
  bool overlaps() const override { return overlaps_; }
  bool isolated() const override { return true; }

 private:
  struct Process;
  struct Answer {
    std::string line;
    bool ended = false, timed_out = false;
    std::string how;  // it ended
  };
  Answer ask(const std::string& what, const TunePoint& point);
  Answer ask_once(const std::string& what, const TunePoint& point);
  /// The answer's line; TuneFailure where there is none or it tells of one.
  std::string require(const Answer& answer) const;
  std::shared_ptr<Process> process();

  const std::string program_, setup_;
  const double seconds_;
  const bool overlaps_;
  std::mutex alone_;  // held by who asks again, after a process ended that several had asked
  std::mutex mutex_;  // guards what follows
  std::shared_ptr<Process> process_;
};

/// The other side: makes a subject of the setup it is sent and answers until the socket closes. Returns an exit code.
int serve_candidates(int socket, const std::function<std::unique_ptr<TuneSubject>(const std::string& setup)>& make);

}  // namespace kerf::runtime
