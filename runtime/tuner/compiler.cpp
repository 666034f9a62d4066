#include "runtime/tuner/compiler.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

namespace kerf::runtime {

CandidateCompiler::CandidateCompiler(TuneSubject& subject, std::vector<const TunePoint*> points, std::size_t threads)
    : subject_(subject), points_(std::move(points)), results_(points_.size()) {
  try {
    while (threads_.size() < std::min(threads, points_.size())) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {  // no more threads to be had
    if (threads_.empty()) work();
  }
}

CandidateCompiler::~CandidateCompiler() { stop(); }

void CandidateCompiler::stop() {
  const std::lock_guard lock(mutex_);
  next_ = points_.size();
}

void CandidateCompiler::work() {
  while (true) {
    std::size_t i = 0;
    {
      const std::lock_guard lock(mutex_);
      if (next_ >= points_.size()) return;
      i = next_++;
    }
    const auto start = std::chrono::steady_clock::now();
    Result made;
    try {
      if (points_[i] != nullptr) made.resources = subject_.compile(*points_[i]);
    } catch (...) {
      made.error = std::current_exception();
    }
    made.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    made.done = true;
    const std::lock_guard lock(mutex_);
    results_[i] = std::move(made);
    done_.notify_all();
  }
}

bool CandidateCompiler::wait(std::size_t i, const std::function<bool()>& give_up) {
  constexpr std::chrono::milliseconds now_and_then(20);
  std::unique_lock lock(mutex_);
  while (!done_.wait_for(lock, now_and_then, [&] { return results_[i].done; })) {
    lock.unlock();
    if (give_up()) return false;
    lock.lock();
  }
  return true;
}

}  // namespace kerf::runtime
