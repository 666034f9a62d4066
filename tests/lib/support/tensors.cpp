// What the tests lean on must itself notice mistakes.
#include "tests/support/tensors.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kerf/error.h"
#include "tests/support/errors.h"

using namespace kerf;
using namespace kerf::test;

namespace {
constexpr double nan_ = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
}

TEST_CASE("a fresh array is poison in every dtype") {
  for (DType t : {f32, bf16, f16}) CHECK(std::isnan(Array(t, {3})[2]));
  CHECK(Array(i32, {3})[2] == -0x1p31);
  CHECK(Array(i64, {3})[2] == -0x1p63);
  CHECK(Array(boolean, {3})[2] > 1);
}

TEST_CASE("an array gives back what it was given, rounded to its dtype, at the strides of its ref") {
  for (DType t : {f32, bf16, f16, i32, i64}) {
    Array a(t, {2, 3, 4}, /*padding=*/5);
    for (std::int64_t i = 0; i < a.size(); ++i) a.set(i, static_cast<double>(i));
    for (std::int64_t i = 0; i < a.size(); ++i) CHECK(a[i] == static_cast<double>(i));
    CHECK(a.ref().describe().find("[2, 3, 4] with strides [27, 9, 1]") != std::string::npos);
    CHECK(a.surroundings_intact());
  }
  Array a(bf16, {1});
  a.set(0, 1.00390625);  // between two bf16: to even
  CHECK(a[0] == 1);
}

TEST_CASE("writes in front of an array, behind it, and into its padding are noticed") {
  for (std::int64_t at : {-1, 4, 5, 12}) {
    Array a(f32, {2, 4}, /*padding=*/2);
    static_cast<float*>(a.ref().data)[at] = 1;
    CHECK(a.surroundings_intact() == false);
  }
  Array a(f32, {2, 4}, /*padding=*/2);
  for (std::int64_t at : {0, 3, 6, 9}) static_cast<float*>(a.ref().data)[at] = 1;
  CHECK(a.surroundings_intact());
}

TEST_CASE("error: norms over everything and over the worst row") {
  Array a(f32, {2, 2});
  const std::vector<double> ref = {3, 4, 30, 40};
  const auto with = [&](std::vector<double> x) {
    for (std::int64_t i = 0; i < 4; ++i) a.set(i, x[static_cast<std::size_t>(i)]);
    return error(a, ref);
  };
  CHECK(with(ref).norm == 0);
  CHECK(with({3, 4.5, 30, 40}).worst_row == doctest::Approx(0.1));
  CHECK(with({3, 4.5, 30, 40}).norm == doctest::Approx(0.5 / std::sqrt(2525)));
  CHECK(with({nan_, 4, 30, 40}).norm == infinity);
  CHECK(with({infinity, 4, 30, 40}).norm == infinity);
  CHECK(error(a, {1, 2}).norm == infinity);
  a.set(0, nan_);
  CHECK(error(a, {nan_, 4, 30, 40}).norm == 0);
  CHECK(error(a, {3, 4, 30, nan_}).norm == infinity);
}

TEST_CASE("usage_error says what was thrown, with the places of the calling file left out") {
  CHECK(usage_error([] {}) == "no error");
  CHECK(usage_error([] { throw UsageError("tensors.cpp:12: a clash with tensors.cpp:7"); }) ==
        "here: a clash with here");
  CHECK(usage_error([] { throw UsageError("other.cpp:12: a clash"); }) == "other.cpp:12: a clash");
  CHECK_THROWS_AS(usage_error([] { throw InternalError("no UsageError"); }), InternalError);
}
