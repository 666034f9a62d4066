// What this program allocates, counted and made to fail.
#pragma once

#include <atomic>
#include <cstddef>

namespace kerf::test {

/// Of this thread; negative: any number.
extern thread_local long allocations_left;
/// Bytes of all allocations so far that asked for an alignment, as those of buffers do.
extern std::atomic<std::size_t> aligned_bytes;

}  // namespace kerf::test
