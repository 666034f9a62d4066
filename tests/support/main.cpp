// The tests' main: doctest's options; `--device cuda`, with which tests that need a GPU fail where there is none; and
// `--arch sm_80`, the one architecture that they then generate code for.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace kerf::test {

namespace {
bool required = false;
std::string arch;
}  // namespace
bool device_required() { return required; }
const std::string& forced_arch() { return arch; }

}  // namespace kerf::test

int main(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; ++i) {
    const std::string_view option = argv[i], value = argv[i + 1];
    if (option == "--device" && value == "cuda") kerf::test::required = true;
    if (option == "--arch") kerf::test::arch = value;
  }
  setenv("KERF_CACHE", "off", 1);  // tests of the cache say where it lies
  return doctest::Context(argc, argv).run();
}
