#include "tools/kerf/baseline.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "tools/support/gemm.h"

namespace kerf::tools {
namespace {

/// exp for x <= 0 in arithmetic that the compiler turns into vectors; relative error below 3e-7. Source: Cephes, expf.
inline float exp_of_negative(float x) {
  x = std::max(x, -87.0f);
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const float n = shifted - 12582912.0f;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  for (const float a : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = y * r + a;
  y = y * r * r + r + 1;
  return y * std::bit_cast<float>((std::bit_cast<std::int32_t>(shifted) - 0x4b400000 + 127) << 23);
}

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define KERF_FOR_EACH_VECTOR_WIDTH [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#else
#define KERF_FOR_EACH_VECTOR_WIDTH
#endif

constexpr std::int64_t lanes = 16;  // partial results, so that the loops below need no reordering of sums

KERF_FOR_EACH_VECTOR_WIDTH float largest(const float* z, std::int64_t n) {
  float part[lanes];
  std::fill_n(part, lanes, z[0]);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::int64_t j = 0; j < lanes; ++j) part[j] = part[j] < z[i + j] ? z[i + j] : part[j];
  float m = *std::max_element(part, part + lanes);
  for (; i < n; ++i) m = std::max(m, z[i]);
  return m;
}

KERF_FOR_EACH_VECTOR_WIDTH float sum_of_exp(const float* z, std::int64_t n, float m) {
  float part[lanes] = {}, sum = 0;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::int64_t j = 0; j < lanes; ++j) part[j] += exp_of_negative(z[i + j] - m);
  for (const float p : part) sum += p;
  for (; i < n; ++i) sum += exp_of_negative(z[i] - m);
  return sum;
}

KERF_FOR_EACH_VECTOR_WIDTH void scaled_softmax(float* z, std::int64_t n, float lse, float g) {
  for (std::int64_t i = 0; i < n; ++i) z[i] = g * exp_of_negative(std::min(z[i] - lse, 0.0f));
}

void to_float(const void* from, DType dtype, std::int64_t n, float* to) {
  in_pieces(n, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    const auto* half = static_cast<const std::uint16_t*>(from);
    if (dtype == f32)
      std::memcpy(to + begin, static_cast<const float*>(from) + begin, static_cast<std::size_t>(end - begin) * 4);
    for (std::int64_t i = begin; dtype == bf16 && i < end; ++i) to[i] = from_bf16(half[i]);
    for (std::int64_t i = begin; dtype == f16 && i < end; ++i) to[i] = from_f16(half[i]);
  });
}

void narrow(const float* from, DType dtype, std::int64_t n, void* to) {
  in_pieces(n, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    from_float(from + begin, end - begin, dtype, element(to, dtype, begin));
  });
}

}  // namespace

void product(const Blas* blas, bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
             const float* a, std::int64_t a_row, const float* b, std::int64_t b_row, float* out, std::int64_t out_row) {
  if (blas != nullptr) {
    blas->sgemm(transpose_a, transpose_b, m, n, k, a, a_row, b, b_row, out, out_row);
    return;
  }
  const std::int64_t ar = transpose_a ? 1 : a_row, ac = transpose_a ? a_row : 1;
  const std::int64_t br = transpose_b ? 1 : b_row, bc = transpose_b ? b_row : 1;
  // Threads share the longer side, in pieces that keep the packed panels in the cache.
  const auto run = [&](std::int64_t i, std::int64_t rows, std::int64_t j, std::int64_t columns) {
    thread_local GemmScratch<float> scratch;
    for (std::int64_t r = i; r < i + rows; ++r) std::fill_n(out + r * out_row + j, columns, 0.0f);
    gemm<float>(rows, columns, k, {a + i * ar, ar, ac}, {b + j * bc, br, bc}, out + i * out_row + j, out_row, scratch);
  };
  if (m >= n)
    in_pieces(m, 384, [&](std::int64_t begin, std::int64_t end) { run(begin, end - begin, 0, n); });
  else
    in_pieces(n, 384, [&](std::int64_t begin, std::int64_t end) { run(0, m, begin, end - begin); });
}

Baseline::Baseline(const Problem& problem, const Blas* blas) : problem_(problem), blas_(blas) {
  const ProblemSpec& s = problem.spec;
  const auto bytes = [](std::int64_t rows, std::int64_t columns, std::int64_t size) {
    return static_cast<std::size_t>(rows * columns * size);
  };
  logits_ = Buffer(bytes(s.tokens, s.vocabulary, 4));
  e_ = Buffer(bytes(s.tokens, s.hidden, 4));
  de_ = Buffer(bytes(s.tokens, s.hidden, size_of(s.dtype)));
  dc_ = Buffer(bytes(s.vocabulary, s.hidden, size_of(s.dtype)));
  lse_.resize(static_cast<std::size_t>(s.tokens));
  if (s.dtype == f32) return;
  c_ = Buffer(bytes(s.vocabulary, s.hidden, 4));
  gradient_ = Buffer(bytes(std::max(s.vocabulary, s.tokens), s.hidden, 4));
}

double Baseline::memory(const ProblemSpec& s) {
  const auto n = static_cast<double>(s.tokens), d = static_cast<double>(s.hidden),
             v = static_cast<double>(s.vocabulary);
  return 4 * (n * v + n * d + n) + (s.dtype == f32 ? 0 : 4 * (v * d + std::max(v, n) * d));
}

double Baseline::forward() {
  const ProblemSpec& s = problem_.spec;
  to_float(problem_.e.data(), s.dtype, s.tokens * s.hidden, e_.as<float>());
  if (s.dtype != f32) to_float(problem_.c.data(), s.dtype, s.vocabulary * s.hidden, c_.as<float>());
  for (std::int64_t n = 0; n < s.tokens; ++n)  // ignored rows of the input are NaN
    if (problem_.target[static_cast<std::size_t>(n)] == Problem::ignore_index)
      std::fill_n(e_.as<float>() + n * s.hidden, s.hidden, 0.0f);
  const float* c = s.dtype == f32 ? problem_.c.as<float>() : c_.as<float>();
  product(blas_, false, true, s.tokens, s.vocabulary, s.hidden, e_.as<float>(), s.hidden, c, s.hidden,
          logits_.as<float>(), s.vocabulary);
  std::vector<double> loss(static_cast<std::size_t>(s.tokens), 0);
  in_pieces(s.tokens, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t target = problem_.target[static_cast<std::size_t>(n)];
      if (target == Problem::ignore_index) continue;
      const float* z = logits_.as<float>() + n * s.vocabulary;
      const float m = largest(z, s.vocabulary);
      const float lse = m + std::log(sum_of_exp(z, s.vocabulary, m));
      lse_[static_cast<std::size_t>(n)] = lse;
      loss[static_cast<std::size_t>(n)] = lse - z[target];
    }
  });
  double sum = 0;
  for (const double x : loss) sum += x;
  return s.reduction == Reduction::mean ? sum / static_cast<double>(problem_.valid) : sum;
}

void Baseline::backward() {
  const ProblemSpec& s = problem_.spec;
  float* const z = logits_.as<float>();
  in_pieces(s.tokens, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      float* row = z + n * s.vocabulary;
      const std::int64_t target = problem_.target[static_cast<std::size_t>(n)];
      if (target == Problem::ignore_index) {
        std::fill_n(row, s.vocabulary, 0.0f);
        continue;
      }
      float g = problem_.grad_loss[s.reduction == Reduction::none ? static_cast<std::size_t>(n) : 0];
      if (s.reduction == Reduction::mean) g /= static_cast<float>(problem_.valid);
      scaled_softmax(row, s.vocabulary, lse_[static_cast<std::size_t>(n)], g);
      row[target] -= g;
    }
  });
  const bool plain = s.dtype == f32;
  const float* c = plain ? problem_.c.as<float>() : c_.as<float>();
  float* const de = plain ? de_.as<float>() : gradient_.as<float>();
  product(blas_, false, false, s.tokens, s.hidden, s.vocabulary, z, s.vocabulary, c, s.hidden, de, s.hidden);
  if (!plain) narrow(de, s.dtype, s.tokens * s.hidden, de_.data());
  float* const dc = plain ? dc_.as<float>() : gradient_.as<float>();
  product(blas_, true, false, s.vocabulary, s.hidden, s.tokens, z, s.vocabulary, e_.as<float>(), s.hidden, dc,
          s.hidden);
  if (!plain) narrow(dc, s.dtype, s.vocabulary * s.hidden, dc_.data());
}

}  // namespace kerf::tools
