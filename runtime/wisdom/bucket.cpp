#include <fmt/format.h>

#include <limits>

#include "kerf/error.h"
#include "kerf/wisdom.h"

namespace kerf {

std::int64_t token_bucket(std::int64_t tokens) {
  if (tokens < 1) throw UsageError(fmt::format("token_bucket: {} tokens; there is a bucket from 1 on", tokens));
  constexpr std::int64_t last_power = std::int64_t{1} << 62;
  if (tokens == 1) return 1;
  if (tokens > last_power) return std::numeric_limits<std::int64_t>::max();
  if (tokens > 256 && tokens <= 4096) {
    const std::int64_t step = tokens <= 2048 ? 256 : 512;
    return (tokens + step - 1) / step * step;
  }
  std::int64_t bound = 16;
  while (bound < tokens) bound *= 2;
  return bound;
}

}  // namespace kerf
