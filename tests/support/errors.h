// Errors checked by their text.
#pragma once

#include <doctest/doctest.h>

#include <source_location>
#include <string>

#include "kerf/error.h"

namespace kerf::test {

/// What the UsageError thrown by f says, with "here" for every place in the calling file.
template <class F>
std::string usage_error(F&& f, std::source_location caller = std::source_location::current()) {
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

}  // namespace kerf::test
