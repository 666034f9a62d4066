// The tests' main: doctest's options, and `--device cuda`, with which tests that need a GPU fail where there is none.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <string_view>

namespace kerf::test {

namespace {
bool required = false;
}
bool device_required() { return required; }

}  // namespace kerf::test

int main(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; ++i)
    if (std::string_view(argv[i]) == "--device" && std::string_view(argv[i + 1]) == "cuda") kerf::test::required = true;
  return doctest::Context(argc, argv).run();
}
