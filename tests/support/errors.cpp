#include "tests/support/errors.h"

#include <doctest/doctest.h>

#include "kerf/error.h"

namespace kerf::test {

std::string usage_error(const std::function<void()>& f, std::source_location caller) {
  try {
    f();
  } catch (const UsageError& e) {
    std::string text = e.what(), file = caller.file_name();
    file = file.substr(file.find_last_of('/') + 1) + ":";
    for (std::size_t at = 0; (at = text.find(file, at)) != std::string::npos;) {
      const std::size_t end = text.find_first_not_of("0123456789", at + file.size());
      text.replace(at, end == std::string::npos ? end : end - at, "here");
    }
    return text;
  }
  return "no error";
}

void check_error(const std::function<void()>& f, std::string_view text, std::source_location caller) {
  const std::string got = usage_error(f, caller);
  INFO(caller.file_name() << ":" << caller.line());
  CHECK(got == text);
}

}  // namespace kerf::test
