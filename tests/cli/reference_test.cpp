#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tools/support/gemm.h"
#include "tools/support/problem.h"
#include "tools/support/reference.h"

using namespace kerf;
using namespace kerf::tools;

namespace {

template <class T>
double largest_gemm_error(std::int64_t m, std::int64_t n, std::int64_t k, bool a_transposed, bool b_transposed) {
  Random random(1, static_cast<std::uint64_t>(m * 1000 + n));
  std::vector<T> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(k * n));
  std::vector<T> out(static_cast<std::size_t>(m * (n + 3)));
  for (T& x : a) x = random.bell();
  for (T& x : b) x = random.bell();
  for (T& x : out) x = random.bell();
  std::vector<double> expected(out.begin(), out.end());
  const std::int64_t ar = a_transposed ? 1 : k, ac = a_transposed ? m : 1;
  const std::int64_t br = b_transposed ? 1 : n, bc = b_transposed ? k : 1;
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t p = 0; p < k; ++p)
        expected[static_cast<std::size_t>(i * (n + 3) + j)] +=
            static_cast<double>(a[static_cast<std::size_t>(i * ar + p * ac)]) *
            b[static_cast<std::size_t>(p * br + j * bc)];
  GemmScratch<T> scratch;
  gemm<T>(m, n, k, {a.data(), ar, ac}, {b.data(), br, bc}, out.data(), n + 3, scratch);
  double error = 0;
  for (std::size_t i = 0; i < out.size(); ++i) error = std::max(error, std::abs(out[i] - expected[i]));
  return error;
}

struct Naive {
  std::vector<double> lse, loss, de, dc;
  double reduced = 0;
};

/// The formulas, one after the other.
Naive naive(const LossProblem& p) {
  const auto N = static_cast<std::size_t>(p.tokens), D = static_cast<std::size_t>(p.hidden);
  const auto V = static_cast<std::size_t>(p.vocabulary);
  std::vector<double> e(N * D), c(V * D);
  to_double(p.e, p.dtype, p.tokens * p.hidden, e.data());
  to_double(p.c, p.dtype, p.vocabulary * p.hidden, c.data());
  Naive r;
  r.lse.resize(N), r.loss.resize(N), r.de.resize(N * D), r.dc.resize(V * D);
  double valid = 0;
  for (std::size_t n = 0; n < N; ++n) valid += p.target[n] != p.ignore_index;
  for (std::size_t n = 0; n < N; ++n) {
    if (p.target[n] == p.ignore_index) continue;
    std::vector<double> z(V, 0);
    double sum = 0;
    for (std::size_t v = 0; v < V; ++v) {
      for (std::size_t d = 0; d < D; ++d) z[v] += e[n * D + d] * c[v * D + d];
      sum += std::exp(z[v]);
    }
    r.lse[n] = std::log(sum);
    r.loss[n] = r.lse[n] - z[static_cast<std::size_t>(p.target[n])];
    r.reduced += p.reduction == Reduction::mean ? r.loss[n] / valid : r.loss[n];
    double g = p.grad_loss[p.reduction == Reduction::none ? n : 0];
    if (p.reduction == Reduction::mean) g /= valid;
    for (std::size_t v = 0; v < V; ++v) {
      const double dz = g * (std::exp(z[v] - r.lse[n]) - (v == static_cast<std::size_t>(p.target[n]) ? 1 : 0));
      for (std::size_t d = 0; d < D; ++d) {
        r.de[n * D + d] += dz * c[v * D + d];
        r.dc[v * D + d] += dz * e[n * D + d];
      }
    }
  }
  return r;
}

/// Norm of a - b over the norm of b, or itself where b is rounding error around 0 (V = 1).
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
  REQUIRE(std::isfinite(error));
  return norm > 1e-24 ? std::sqrt(error / norm) : std::sqrt(error);
}

std::vector<std::int64_t> all_rows(std::int64_t n) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  return rows;
}

}  // namespace

TEST_CASE("gemm adds the product, whatever the layout, where no block divides") {
  for (const bool at : {false, true}) {
    for (const bool bt : {false, true}) {
      CHECK(largest_gemm_error<double>(131, 77, 259, at, bt) < 1e-11);
      CHECK(largest_gemm_error<float>(131, 101, 259, at, bt) < 1e-3);
      CHECK(largest_gemm_error<double>(1, 1, 1, at, bt) < 1e-14);
      CHECK(largest_gemm_error<double>(8, 24, 512, at, bt) < 1e-11);
    }
  }
}

TEST_CASE("f16 and bf16 bits become doubles exactly, subnormals and infinities too") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    double as_f16 = 0, as_bf16 = 0;
    to_double(&half, f16, 1, &as_f16);
    to_double(&half, bf16, 1, &as_bf16);
    const int exponent = half >> 10 & 31;
    const double mantissa = half & 1023, sign = half & 0x8000 ? -1 : 1;
    if (exponent == 31 && mantissa != 0) {
      CHECK(std::isnan(as_f16));
    } else if (exponent == 31) {
      CHECK(as_f16 == sign * std::numeric_limits<double>::infinity());
    } else {
      CHECK(as_f16 == sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25)));
    }
    const float f = std::bit_cast<float>(bits << 16);
    CHECK((std::isnan(f) ? std::isnan(as_bf16) : as_bf16 == f));
  }
}

TEST_CASE("the reference agrees with naive loops in every dtype and reduction") {
  std::uint64_t seed = 10;
  const std::array<std::int64_t, 3> shapes[] = {{37, 13, 301}, {70, 5, 29}, {1, 1, 1}, {3, 9, 1}, {5, 1, 40}};
  for (const DType dtype : {f32, bf16, f16}) {
    for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
      for (const auto& [n, d, v] : shapes) {
        const Problem problem = random_problem({n, d, v, dtype, reduction, ++seed, 0.2});
        const Naive expected = naive(problem.view());
        std::vector<double> dc(static_cast<std::size_t>(v * d), std::nan(""));
        const auto keep = [&, hidden = d](std::int64_t i, const double* row) {
          std::copy_n(row, hidden, dc.data() + i * hidden);
        };
        const Reference r = reference_loss(problem.view(), {all_rows(n), all_rows(v)}, keep, 3);
        CAPTURE(n);
        CAPTURE(v);
        CHECK(distance(r.lse, expected.lse) < 1e-13);
        for (std::size_t i = 0; i < r.loss.size(); ++i) CHECK(std::abs(r.loss[i] - expected.loss[i]) < 1e-12);
        CHECK(std::abs(r.reduced - expected.reduced) < 1e-10);
        CHECK(distance(r.de, expected.de) < 1e-11);
        CHECK(distance(dc, expected.dc) < 1e-11);
      }
    }
  }
}

TEST_CASE("the reference gives the same rows when only some are asked for") {
  const Problem problem = random_problem({90, 17, 403, f32, Reduction::none, 5, 0.1});
  std::vector<double> all(403 * 17), some(5 * 17);
  const Reference whole =
      reference_loss(problem.view(), {all_rows(90), all_rows(403)},
                     [&](std::int64_t i, const double* row) { std::copy_n(row, 17, all.data() + i * 17); });
  const std::vector<std::int64_t> de_rows = {0, 7, 8, 60, 89}, dc_rows = {1, 30, 31, 200, 402};
  const Reference part = reference_loss(problem.view(), {de_rows, dc_rows}, [&](std::int64_t i, const double* row) {
    std::copy_n(row, 17, some.data() + i * 17);
  });
  std::vector<double> de_expected, dc_expected;
  for (std::size_t i = 0; i < 5; ++i) {
    de_expected.insert(de_expected.end(), whole.de.begin() + de_rows[i] * 17, whole.de.begin() + (de_rows[i] + 1) * 17);
    dc_expected.insert(dc_expected.end(), all.begin() + dc_rows[i] * 17, all.begin() + (dc_rows[i] + 1) * 17);
  }
  CHECK(distance(part.de, de_expected) < 1e-12);
  CHECK(distance(some, dc_expected) < 1e-12);
  CHECK(distance(part.lse, whole.lse) < 1e-14);
}

TEST_CASE("the reference takes the lse of rows that are not sampled from the call, and sums those that are") {
  const Problem problem = random_problem({90, 17, 403, f32, Reduction::sum, 5, 0.1});
  const auto nothing = [](std::int64_t, const double*) {};
  const Reference whole = reference_loss(problem.view(), {all_rows(90), {}}, nothing);
  std::vector<float> lse(whole.lse.begin(), whole.lse.end());
  const std::vector<std::int64_t> de_rows = {0, 7, 8, 60, 89}, dc_rows = {1, 30, 402};
  std::vector<double> dc(3 * 17), expected(3 * 17);
  const auto keep = [](std::vector<double>& to) {
    return [&to](std::int64_t i, const double* row) { std::copy_n(row, 17, to.data() + i * 17); };
  };
  reference_loss(problem.view(), {de_rows, dc_rows}, keep(expected));
  Reference r = reference_loss(problem.view(), {de_rows, dc_rows, lse.data()}, keep(dc));
  CHECK(distance(r.lse, whole.lse) < 1e-6);
  CHECK(r.lse != whole.lse);
  CHECK(distance(dc, expected) < 1e-5);
  CHECK(r.reduced == doctest::Approx(whole.reduced));
  for (float& x : lse) x += 1;  // a call whose lse is wrong everywhere is found out by the sampled rows
  r = reference_loss(problem.view(), {de_rows, dc_rows, lse.data()}, keep(dc));
  for (const std::int64_t n : r.valid) {
    const auto i = static_cast<std::size_t>(n);
    const bool sampled = std::find(de_rows.begin(), de_rows.end(), n) != de_rows.end();
    CHECK(r.lse[i] == doctest::Approx(whole.lse[i] + (sampled ? 0 : 1)).epsilon(1e-5));
  }
}

TEST_CASE("the reference with all rows ignored: the mean is NaN, the sum 0, gradients 0") {
  for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
    const Problem problem = random_problem({6, 4, 9, f32, reduction, 3, 1.0});
    std::vector<double> dc(36, std::nan(""));
    const Reference r =
        reference_loss(problem.view(), {all_rows(6), all_rows(9)},
                       [&](std::int64_t i, const double* row) { std::copy_n(row, 4, dc.data() + i * 4); });
    CHECK((reduction == Reduction::mean ? std::isnan(r.reduced) : r.reduced == 0));
    for (const double x : r.de) CHECK(x == 0);
    for (const double x : dc) CHECK(x == 0);
  }
}
