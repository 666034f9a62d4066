#include "tools/support/progress.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

namespace kerf::tools {

Progress::Progress(std::string what, std::int64_t total)
    : what_(std::move(what)), total_(std::max<std::int64_t>(total, 1)), watched_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void Progress::add(std::int64_t steps) {
  const std::int64_t done = done_.fetch_add(steps) + steps;
  if (!watched_) return;
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start_).count();
  std::int64_t due = next_draw_ms_;
  if (ms < due || !next_draw_ms_.compare_exchange_strong(due, ms + 100))
    return;  // one thread draws, ten times a second
  drawn_ = true;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
  const int filled = static_cast<int>(share * 30);
  const double left = share > 0 ? static_cast<double>(ms) / 1000 * (1 - share) / share : 0;
  fmt::print(stderr, "\r{} [{:=<{}}{: <{}}] {:3.0f} %  {:.0f} s left\033[K", what_, "", filled, "", 30 - filled,
             share * 100, left);
}

namespace {

volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(void (*handler)(int)) {
  struct sigaction old = {};
  if (sigaction(SIGINT, nullptr, &old) != 0 || old.sa_handler == SIG_IGN) return;  // started in the background
  struct sigaction action = {};
  action.sa_handler = handler;
  sigaction(SIGINT, &action, nullptr);
}

void clear_and_exit(int) {
  if (isatty(STDERR_FILENO) == 1) {
    constexpr char clear[] = "\r\033[K\033[?25h";
    [[maybe_unused]] const auto written = write(STDERR_FILENO, clear, sizeof(clear) - 1);
  }
  _exit(130);
}

}  // namespace

void exit_on_interrupt() { on_interrupt(clear_and_exit); }

CaughtInterrupt::CaughtInterrupt() {
  interrupted = 0;
  on_interrupt([](int) {
    if (interrupted) clear_and_exit(SIGINT);
    interrupted = 1;
  });
}

bool CaughtInterrupt::arrived() const { return interrupted != 0; }

}  // namespace kerf::tools
