// Workers sleep between calls. A call hands out ranges; who runs a range never matters to what it computes.
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "kerf/error.h"
#include "kerf/kernel.h"
#include "runtime/processors.h"
#include "runtime/take_range.h"

namespace kerf {

namespace {
constexpr int most_threads = 1024;
}

int runtime::processors() {
  for (int capacity = CPU_SETSIZE; capacity <= (1 << 20); capacity *= 2) {  // the kernel's set may be larger
    cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(capacity));
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(capacity));
    const bool ok = set && sched_getaffinity(0, bytes, set) == 0;
    const int count = ok ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (ok) return std::clamp(count, 1, most_threads);
  }
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, most_threads);
}

namespace {

int default_threads() {
  const char* set = std::getenv("KERF_NUM_THREADS");
  if (!set || !*set) return runtime::processors();
  const std::string_view text = set;
  int n = 0;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), n);
  if (error != std::errc() || end != text.end() || n < 1 || n > most_threads)
    throw UsageError(
        fmt::format("KERF_NUM_THREADS is '{}'; it must be a whole number from 1 to {}", text, most_threads));
  return n;
}

}  // namespace

struct ThreadPool::Impl {
  using Work = std::function<void(std::int64_t, std::int64_t, int)>;

  std::vector<std::thread> workers;  // thread 0 is the caller
  pid_t process = getpid();
  std::mutex turn;  // held by the caller of run
  std::atomic<std::thread::id> caller{};

  std::mutex mutex;  // guards what follows
  std::condition_variable wake, done;
  std::uint64_t generation = 0;  // counts calls of run
  bool stop = false;
  int busy = 0;  // workers that have not finished this generation
  std::exception_ptr failure;

  const Work* work = nullptr;  // constant while workers are busy
  std::int64_t count = 0;
  std::atomic<std::int64_t> next{0};

  struct Scratch {
    struct Free {
      void operator()(std::byte* p) const { ::operator delete[](p, alignment); }
    };
    static constexpr std::align_val_t alignment{64};
    std::unique_ptr<std::byte[], Free> memory;
    std::size_t bytes = 0;
  };
  std::vector<Scratch> scratch;  // each of the thread that it is for

  int threads() const { return static_cast<int>(workers.size()) + 1; }

  /// Takes ranges until none is left.
  void drain(int thread) {
    while (true) {
      const auto [begin, end] = runtime::take_range(next, count, threads());
      if (begin == end) return;
      try {
        (*work)(begin, end, thread);
      } catch (...) {
        next.store(count, std::memory_order_relaxed);
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  }

  void worker(int thread) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      lock.unlock();
      drain(thread);
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }

  void join() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& t : workers) t.join();
    workers.clear();
  }

  /// True on a thread that is inside a call of run.
  bool inside() const {
    const std::thread::id self = std::this_thread::get_id();
    return caller.load(std::memory_order_relaxed) == self ||
           std::any_of(workers.begin(), workers.end(), [&](const std::thread& t) { return t.get_id() == self; });
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  if (threads < 0 || threads > most_threads)
    throw UsageError(
        fmt::format("ThreadPool: {} threads; it must be from 1 to {}, or 0 for all processors", threads, most_threads));
  const int n = threads ? threads : default_threads();
  impl_->scratch.resize(static_cast<std::size_t>(n));
  impl_->workers.reserve(static_cast<std::size_t>(n - 1));
  // Workers read `workers` through threads(): none runs before the first call of run, when it is complete.
  try {
    for (int i = 1; i < n; ++i) impl_->workers.emplace_back([impl = impl_.get(), i] { impl->worker(i); });
  } catch (const std::system_error& e) {
    const std::size_t made = impl_->workers.size();
    impl_->join();
    throw DeviceError(fmt::format("ThreadPool: the system gave {} of {} threads: {}", made + 1, n, e.what()));
  }
}

ThreadPool::~ThreadPool() {
  if (impl_->process == getpid())
    impl_->join();
  else
    static_cast<void>(impl_.release());  // in a forked child there is nobody to join
}

std::byte* ThreadPool::scratch(int thread, std::size_t bytes) {
  Impl::Scratch& s = impl_->scratch[static_cast<std::size_t>(thread)];
  if (s.bytes < bytes) {
    s.bytes = 0;
    s.memory.reset();  // before there is more
    s.memory.reset(new (Impl::Scratch::alignment) std::byte[bytes]);
    s.bytes = bytes;
  }
  return s.memory.get();
}

int ThreadPool::size() const { return impl_->threads(); }

void ThreadPool::run(std::int64_t count, const Impl::Work& work) {
  Impl& p = *impl_;
  if (count <= 0) return;
  if (p.process != getpid() && !p.workers.empty())
    throw DeviceError(
        "ThreadPool::run: this process was forked after the pool was made, and the pool's threads stayed "
        "with the parent; make pools and plans after the fork");
  if (p.inside()) throw UsageError("ThreadPool::run: called from inside its own work; a pool runs one call at a time");
  std::lock_guard turn(p.turn);
  p.caller.store(std::this_thread::get_id(), std::memory_order_relaxed);
  const bool alone = count == 1 || p.workers.empty();
  {
    std::lock_guard lock(p.mutex);
    p.work = &work;
    p.count = count;
    p.next.store(0, std::memory_order_relaxed);
    p.failure = nullptr;
    if (!alone) {
      p.busy = static_cast<int>(p.workers.size());
      ++p.generation;
    }
  }
  if (!alone) p.wake.notify_all();
  p.drain(0);
  std::unique_lock lock(p.mutex);
  p.done.wait(lock, [&] { return p.busy == 0; });
  p.caller.store({}, std::memory_order_relaxed);
  if (p.failure) std::rethrow_exception(std::exchange(p.failure, nullptr));
}

}  // namespace kerf
