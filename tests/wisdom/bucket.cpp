// Which numbers of tokens share a choice.
#include <doctest/doctest.h>

#include <limits>
#include <vector>

#include "kerf/wisdom.h"
#include "tests/support/errors.h"

using kerf::token_bucket;

TEST_CASE("wisdom: every bucket ends with its bound, and the next begins behind it") {
  std::vector<std::int64_t> bounds{1, 16, 32, 64, 128, 256};
  for (std::int64_t b = 512; b <= 2048; b += 256) bounds.push_back(b);
  for (std::int64_t b = 2560; b <= 4096; b += 512) bounds.push_back(b);
  for (int power = 13; power <= 62; ++power) bounds.push_back(std::int64_t{1} << power);
  bounds.push_back(std::numeric_limits<std::int64_t>::max());
  CHECK(token_bucket(1) == 1);
  for (std::size_t i = 1; i < bounds.size(); ++i) {
    CAPTURE(bounds[i]);
    CHECK(token_bucket(bounds[i - 1] + 1) == bounds[i]);
    CHECK(token_bucket(bounds[i] - 1) == bounds[i]);
    CHECK(token_bucket(bounds[i]) == bounds[i]);
  }
  CHECK(token_bucket((std::int64_t{1} << 31) + 1) == std::int64_t{1} << 32);
}

TEST_CASE("wisdom: there is no bucket for no tokens") {
  kerf::test::check_error([] { token_bucket(0); }, "token_bucket: 0 tokens; there is a bucket from 1 on");
  kerf::test::check_error([] { token_bucket(-7); }, "token_bucket: -7 tokens; there is a bucket from 1 on");
}
