#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kerf/error.h"
#include "tools/support/lm_data.h"
#include "tools/support/problem.h"

using namespace kerf;
using namespace kerf::tools;

namespace {
std::vector<double> doubles(const Buffer& b, DType dtype, std::int64_t n) {
  std::vector<double> x(static_cast<std::size_t>(n));
  to_double(b.data(), dtype, n, x.data());
  return x;
}
double product(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
}  // namespace

TEST_CASE("random logits have deviation 2.5, and a tenth of the rows is peaky") {
  const std::int64_t N = 400, D = 96, V = 1500;
  const Problem p = random_problem({N, D, V, f32, Reduction::mean, 1, 0});
  const auto e = doubles(p.e, f32, N * D), c = doubles(p.c, f32, V * D);
  double square = 0;
  int count = 0, peaky = 0;
  for (std::int64_t n = 0; n < N; ++n) {
    const double *row = e.data() + n * D, *hit = c.data() + p.target[static_cast<std::size_t>(n)] * D;
    if (product(row, hit, D) > 0.9 * std::sqrt(product(row, row, D) * product(hit, hit, D))) {
      ++peaky;
      continue;
    }
    for (std::int64_t v = 0; v < V; v += 7, ++count) {
      const double z = product(row, c.data() + v * D, D);
      square += z * z;
    }
  }
  CHECK(std::abs(std::sqrt(square / count) - 2.5) < 0.1);
  CHECK(peaky >= 25);
  CHECK(peaky <= 60);
}

TEST_CASE("targets follow Zipf's law, ignored rows are as many as asked for and hold NaN") {
  const Problem p = random_problem({20000, 2, 1000, bf16, Reduction::none, 2, 0.05});
  std::vector<int> seen(1000);
  int ignored = 0;
  const auto e = doubles(p.e, bf16, 40000);
  for (std::size_t n = 0; n < 20000; ++n) {
    const bool is_ignored = p.target[n] == Problem::ignore_index;
    CHECK(std::isnan(e[2 * n]) == is_ignored);
    ignored += is_ignored;
    if (!is_ignored) ++seen[static_cast<std::size_t>(p.target[n])];
  }
  CHECK(ignored == 1000);
  CHECK(p.valid == 19000);
  std::sort(seen.rbegin(), seen.rend());
  CHECK(std::abs(seen[0] / 19000.0 - 0.1336) < 0.01);  // 1 / (1 + 1/2 + ... + 1/1000)
  CHECK(std::abs(seen[1] / 19000.0 - 0.0668) < 0.01);
  double square = 0;
  for (const float g : p.grad_loss) square += static_cast<double>(g) * g;
  CHECK(std::abs(square / 20000 - 1) < 0.05);
}

TEST_CASE("the same seed gives the same problem, another seed another") {
  const auto make = [](std::uint64_t seed) { return random_problem({50, 20, 70, f16, Reduction::none, seed, 0.1}); };
  const Problem a = make(7), b = make(7), other = make(8);
  CHECK(std::memcmp(a.e.data(), b.e.data(), a.e.size()) == 0);
  CHECK(std::memcmp(a.c.data(), b.c.data(), a.c.size()) == 0);
  CHECK(a.target == b.target);
  CHECK(a.grad_loss == b.grad_loss);
  CHECK(std::memcmp(a.c.data(), other.c.data(), a.c.size()) != 0);
  CHECK(std::memcmp(a.e.data(), other.e.data(), a.e.size()) != 0);
  CHECK(a.target != other.target);
}

TEST_CASE("a shape is three sizes and nothing else") {
  ProblemSpec s;
  parse_shape("1000,333,50257", s);
  CHECK(s.tokens == 1000);
  CHECK(s.hidden == 333);
  CHECK(s.vocabulary == 50257);
  for (const char* bad :
       {"", "1", "1,2", "1,2,", "1,2,3,", "1,2,3,4", "1 ,2,3", "a,b,c", "1,2,3x", "99999999999999999999,1,1", ",,"})
    CHECK_THROWS_AS(parse_shape(bad, s), UsageError);
  CHECK_THROWS_WITH(parse_shape("1x2", s),
                    "shape '1x2': expected N,D,V (tokens, hidden size, vocabulary), as in 1000,333,50257");
}

TEST_CASE("sizes that make no sense or that no memory holds are refused") {
  ProblemSpec s;
  const auto check = [&](std::int64_t n, std::int64_t d, std::int64_t v) {
    s.tokens = n, s.hidden = d, s.vocabulary = v;
    check_problem_size(s, 1);
  };
  CHECK_THROWS_AS(check(-1, 2, 3), UsageError);
  CHECK_THROWS_AS(check(1, 0, 3), UsageError);
  CHECK_THROWS_AS(check(1, 1, 0), UsageError);
  CHECK_THROWS_AS(check(std::int64_t{1} << 40, std::int64_t{1} << 40, 3), UsageError);
  CHECK_THROWS_AS(check(1, 1 << 20, 1 << 30), DeviceError);
  CHECK_NOTHROW(check(0, 1, 1));
  s.ignored = 1.5;
  CHECK_THROWS_AS(check(1, 1, 1), UsageError);
}

TEST_CASE("the lift has orthonormal columns") {
  const std::int64_t rows = 50, columns = 20;
  const std::vector<float> q = orthonormal(rows, columns);
  for (std::int64_t i = 0; i < columns; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (std::int64_t d = 0; d < rows; ++d)
        sum += static_cast<double>(q[static_cast<std::size_t>(d * columns + i)]) *
               q[static_cast<std::size_t>(d * columns + j)];
      CHECK(std::abs(sum - (i == j ? 1 : 0)) < 1e-5);
    }
  }
}
