#pragma once

#include <string_view>

namespace kerf::runtime {

/// The text of builtin.jsonl, compiled in.
std::string_view builtin_wisdom();

}  // namespace kerf::runtime
