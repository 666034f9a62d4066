// Processors.
#pragma once

namespace kerf::runtime {

/// Those that this process may run on, at least 1.
int processors();

}  // namespace kerf::runtime
