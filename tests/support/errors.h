// Errors checked by their text.
#pragma once

#include <functional>
#include <source_location>
#include <string>
#include <string_view>

namespace kerf::test {

/// What the UsageError thrown by f says, with "here" for every place in the calling file.
std::string usage_error(const std::function<void()>& f, std::source_location caller = std::source_location::current());
/// Checks that it is this text. A plain function: a CHECK per error makes test files slow to compile.
void check_error(const std::function<void()>& f, std::string_view text,
                 std::source_location caller = std::source_location::current());

}  // namespace kerf::test
