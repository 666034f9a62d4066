#include <doctest/doctest.h>

#include <new>

#include "tests/runtime/allocations.h"
#include "tests/tuner/scripted.h"

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
