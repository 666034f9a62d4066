// One of the checks for libFuzzer, which calls this with bytes that reach ever more of the code.
#include "tests/fuzz/checks.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kerf::fuzz::KERF_FUZZ_CHECK({data, size});
  return 0;
}
