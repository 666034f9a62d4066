// How work is handed out to threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace kerf::runtime {

struct WorkRange {
  std::int64_t begin = 0, end = 0;  // alike: none is left
};

/// The next range of [0, count) for one of `threads`. Ranges shrink towards the end, so that early ones cost little
/// bookkeeping and late ones leave no thread waiting.
inline WorkRange take_range(std::atomic<std::int64_t>& next, std::int64_t count, int threads) {
  std::int64_t begin = next.load(std::memory_order_relaxed);
  while (begin < count) {
    const std::int64_t size = std::max<std::int64_t>(1, (count - begin) / (8 * threads));
    if (next.compare_exchange_weak(begin, begin + size, std::memory_order_relaxed)) return {begin, begin + size};
  }
  return {count, count};
}

}  // namespace kerf::runtime
