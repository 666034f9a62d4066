// A bar on standard error for what takes longer than two seconds, where somebody is watching.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace kerf::tools {

/// Counts up to `total` steps. Draws nothing unless standard error is a terminal and two seconds have passed; clears
/// its line when it goes out of scope.
class Progress {
 public:
  Progress(std::string what, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// From any thread.
  void add(std::int64_t steps = 1);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  std::int64_t total_;
  Clock::time_point start_ = Clock::now();
  std::atomic<std::int64_t> done_ = 0;
  std::atomic<std::int64_t> next_draw_ms_ = 2000;
  std::atomic<bool> drawn_ = false;
  bool watched_;
};

/// On Ctrl-C: clears the line, shows the cursor, exits with 130.
void exit_on_interrupt();

/// While it lives, the first Ctrl-C is only remembered; a second one ends the process as above.
class CaughtInterrupt {
 public:
  CaughtInterrupt();
  ~CaughtInterrupt() { exit_on_interrupt(); }
  CaughtInterrupt(const CaughtInterrupt&) = delete;
  CaughtInterrupt& operator=(const CaughtInterrupt&) = delete;
  bool arrived() const;
};

}  // namespace kerf::tools
