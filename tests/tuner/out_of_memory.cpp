#include <doctest/doctest.h>

#include <cstdlib>
#include <new>

#include "tests/tuner/scripted.h"

namespace {
thread_local long allocations_left = -1;  // of this thread; negative: any number

void* allocate(std::size_t bytes) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* p = std::malloc(bytes > 0 ? bytes : 1)) return p;
  throw std::bad_alloc();
}
}  // namespace

// For the whole test program; they fail in the test below alone.
void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

using namespace kerf;
using namespace kerf::test;

TEST_SUITE("tuner") {
  TEST_CASE("search: memory that ends at any allocation ends in an error or in a report") {
    int thrown = 0, reported = 0;
    for (long n = 0; n < 100000; ++n) {
      Scripted s;
      s.wrong[1] = "de: relative error 0.5, allowed are 0.001";
      const runtime::TuneTask task = s.task(6);
      const TuneOptions options = s.options();
      TuneReport r;
      bool enough = false;
      allocations_left = n;
      try {
        r = runtime::search(task, s, options);
        enough = allocations_left > 0;
        ++reported;
      } catch (const std::bad_alloc&) {
        ++thrown;
      }
      allocations_left = -1;
      if (!enough) continue;
      CHECK(winner(r) == 0);
      break;
    }
    CHECK(thrown > 10);
    CHECK(reported > 0);
  }
}
