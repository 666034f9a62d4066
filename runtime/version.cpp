#include "kerf/version.h"

namespace kerf {

std::string_view version() { return KERF_VERSION; }

}  // namespace kerf
