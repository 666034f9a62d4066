// Candidates in another process: one that hangs, faults or leaves a GPU's context in ruins takes that process with it,
// and a new one is started for the next.
//
// Both sides speak lines of JSON over a socket: {"id":7,"do":"run","x":..} there, {"id":7,"ms":1.25} back. Answers come
// in any order, so that several candidates are compiled at once. Parts are tuned one after the other by the same
// process: {"do":"begin","part":..}.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/tuner/search.h"

namespace kerf::runtime {

/// Processes beside the one that measures, which only compile, into the caches that all share: what they load holds up
/// no launch. GPUs' drivers translate code under a lock of the process.
struct CompilerProcesses {
  std::string setup;
  int count = 0;
};

class WorkerSubject : public TuneSubject {
 public:
  /// Starts `program tune-worker` when first needed and gives it `setup`. A step of a candidate that takes more than
  /// `seconds` is ended; the setup may take ten times that.
  WorkerSubject(const std::string& program, const std::string& setup, double seconds,
                const CompilerProcesses& compilers = {});
  ~WorkerSubject() override;

  void begin(const std::string& part) override;
  void expect(const std::string& part, const std::vector<TunePoint>& points) override;
  /// Throws what the setup throws there: UsageError, DeviceError, InternalError.
  void wait_ready() override;
  std::optional<KernelResources> compile(const TunePoint& point) override;
  std::string check(const TunePoint& point) override;
  double run(const TunePoint& point) override;
  /// Without messages in between, which wake up processors that candidates want.
  std::optional<std::vector<double>> run_each(const std::vector<TunePoint>& points) override;
  void forget(const TunePoint& point) override;
  Spent spent() override;
  bool overlaps() const override { return !compilers_.empty(); }
  bool isolated() const override { return true; }

 private:
  struct Process;
  class Worker;
  struct Answer {
    std::string line;
    bool ended = false, timed_out = false;
    std::string how;  // it ended
  };
  Answer ask(const std::string& what, const TunePoint& point);
  /// In one of the processes that only compile; nothing where none can be started, or once more than `parts` were
  /// begun.
  std::optional<Answer> compile_beside(const std::string& part, const TunePoint& point, int parts);
  std::optional<KernelResources> resources(const Answer& answer) const;
  /// The answer's line; TuneFailure where there is none or it tells of one.
  std::string require(const Answer& answer) const;

  const double seconds_;
  std::unique_ptr<Worker> measuring_;
  std::shared_mutex alone_;  // held whole by who asks again, after a process ended that several had asked
  std::vector<std::unique_ptr<Worker>> compilers_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable returned_;
  std::vector<Worker*> idle_;  // of the compilers
  bool ending_ = false;
  std::string part_;
  int begun_ = 0;
  std::size_t lost_ = 0;  // compilers that cannot be started
  using Coming = std::map<TunePoint, std::shared_future<std::optional<Answer>>>;
  Coming coming_,
      expected_;  // what is compiled ahead, of this part and the next; last: waited for before the others go
};

/// The other side: makes a subject of the setup it is sent and answers until the socket closes. Returns an exit code.
int serve_candidates(int socket, const std::function<std::unique_ptr<TuneSubject>(const std::string& setup)>& make);

}  // namespace kerf::runtime
