// Which Kerf this is.
#pragma once

#include <string_view>

namespace [[gnu::visibility("default")]] kerf {

/// "0.1.0": the version of the library in use.
std::string_view version();

}  // namespace kerf
