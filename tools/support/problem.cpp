#include "tools/support/problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "kerf/error.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

/// Streams of random numbers: one for each use, and rows far enough apart.
enum Stream : std::uint64_t { of_e, of_c, of_targets, of_order, of_ignored, of_grad, of_peaks };
std::uint64_t stream(Stream use, std::int64_t row = 0) {
  return static_cast<std::uint64_t>(use) << 56 | static_cast<std::uint64_t>(row);
}

constexpr double logit_deviation = 2.5;
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Labels whose frequencies fall as 1 / rank.
std::vector<std::int64_t> zipf_targets(const ProblemSpec& s) {
  std::vector<double> cumulative(static_cast<std::size_t>(s.vocabulary));
  double sum = 0;
  for (std::size_t k = 0; k < cumulative.size(); ++k) cumulative[k] = sum += 1 / static_cast<double>(k + 1);
  std::vector<std::int64_t> label(cumulative.size());
  std::iota(label.begin(), label.end(), std::int64_t{0});
  Random order(s.seed, stream(of_order));
  for (std::int64_t i = s.vocabulary - 1; i > 0; --i)
    std::swap(label[static_cast<std::size_t>(i)], label[static_cast<std::size_t>(order.below(i + 1))]);
  std::vector<std::int64_t> target(static_cast<std::size_t>(s.tokens));
  Random random(s.seed, stream(of_targets));
  for (auto& t : target) {
    const auto rank =
        std::lower_bound(cumulative.begin(), cumulative.end() - 1, random.uniform() * sum) - cumulative.begin();
    t = label[static_cast<std::size_t>(rank)];
  }
  return target;
}

}  // namespace

double Random::normal() {
  const double r = std::sqrt(-2 * std::log(1 - uniform()));
  return r * std::cos(2 * std::numbers::pi * uniform());
}

LossProblem Problem::view() const {
  return {spec.tokens, spec.hidden,   spec.vocabulary, spec.dtype,     e.data(),
          c.data(),    target.data(), ignore_index,    spec.reduction, grad_loss.data()};
}

void check_problem_size(const ProblemSpec& s, double copies) {
  if (s.tokens < 0 || s.hidden < 1 || s.vocabulary < 1)
    throw UsageError(
        fmt::format("shape {},{},{}: N must be at least 0, D and V at least 1", s.tokens, s.hidden, s.vocabulary));
  if (!(s.ignored >= 0 && s.ignored <= 1))
    throw UsageError(fmt::format("ignored share {}: must be between 0 and 1", s.ignored));
  const double n = static_cast<double>(s.tokens), d = static_cast<double>(s.hidden),
               v = static_cast<double>(s.vocabulary);
  if (n * d > 0x1p60 || v * d > 0x1p60 || n * v > 0x1p62)
    throw UsageError(fmt::format("shape {},{},{}: a product of two sizes passes what 63 bits count", s.tokens, s.hidden,
                                 s.vocabulary));
  require_memory((n + v) * d * static_cast<double>(size_of(s.dtype)) * copies + n * d * 8 + 64e6,
                 fmt::format("shape {},{},{} in {}", s.tokens, s.hidden, s.vocabulary, name_of(s.dtype)).c_str());
}

Problem random_problem(const ProblemSpec& s) {
  Problem p;
  p.spec = s;
  p.source = fmt::format("random, seed {}", s.seed);
  const auto bytes = [&](std::int64_t rows) { return static_cast<std::size_t>(rows * s.hidden * size_of(s.dtype)); };
  p.e = Buffer(bytes(s.tokens));
  p.c = Buffer(bytes(s.vocabulary));
  p.target = zipf_targets(s);
  const auto width = static_cast<std::size_t>(s.hidden);
  const float c_scale = static_cast<float>(logit_deviation / std::sqrt(static_cast<double>(s.hidden)));
  const auto row_of_c = [&](std::int64_t v, std::vector<float>& row) {
    Random random(s.seed, stream(of_c, v));
    for (float& x : row) x = c_scale * random.bell();
  };
  const std::int64_t piece = std::max<std::int64_t>(1, 65536 / s.hidden);
  Progress progress("making input", s.vocabulary);
  in_pieces(s.vocabulary, piece, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(width);
    for (std::int64_t v = begin; v < end; ++v) {
      row_of_c(v, row);
      from_float(row.data(), s.hidden, s.dtype, element(p.c.data(), s.dtype, v * s.hidden));
    }
    progress.add(end - begin);
  });
  in_pieces(s.tokens, piece, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(width), of_target(width);
    for (std::int64_t n = begin; n < end; ++n) {
      Random random(s.seed, stream(of_e, n)), peak(s.seed, stream(of_peaks, n));
      for (float& x : row) x = random.bell();
      if (peak.uniform() < 0.1) {
        // e = a c[target] + noise, the target's logit somewhat above log V: from even odds to near certainty.
        row_of_c(p.target[static_cast<std::size_t>(n)], of_target);
        const double norm2 = std::inner_product(of_target.begin(), of_target.end(), of_target.begin(), 1e-3);
        const double logit = std::log(static_cast<double>(s.vocabulary)) + 8 * peak.uniform();
        const auto a = static_cast<float>(logit / norm2),
                   noise = static_cast<float>(0.1 * logit / std::sqrt(norm2 * static_cast<double>(s.hidden)));
        for (std::size_t d = 0; d < width; ++d) row[d] = a * of_target[d] + noise * row[d];
      }
      from_float(row.data(), s.hidden, s.dtype, element(p.e.data(), s.dtype, n * s.hidden));
    }
  });
  finish_problem(p);
  return p;
}

void finish_problem(Problem& p) {
  const ProblemSpec& s = p.spec;
  // Exactly the share asked for, rounded; never all rows unless all were asked for.
  std::vector<std::int64_t> rows(static_cast<std::size_t>(s.tokens));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  auto count = static_cast<std::int64_t>(std::llround(s.ignored * static_cast<double>(s.tokens)));
  if (s.ignored < 1) count = std::min(count, std::max<std::int64_t>(s.tokens - 1, 0));
  Random choose(s.seed, stream(of_ignored));
  const std::vector<float> nans(static_cast<std::size_t>(s.hidden), nan);
  for (std::int64_t i = 0; i < count; ++i) {
    std::swap(rows[static_cast<std::size_t>(i)], rows[static_cast<std::size_t>(i + choose.below(s.tokens - i))]);
    const std::int64_t n = rows[static_cast<std::size_t>(i)];
    p.target[static_cast<std::size_t>(n)] = Problem::ignore_index;
    from_float(nans.data(), s.hidden, s.dtype, element(p.e.data(), s.dtype, n * s.hidden));
  }
  p.valid = s.tokens - count;

  Random g(s.seed, stream(of_grad));
  if (s.reduction == Reduction::none) {
    p.grad_loss.resize(static_cast<std::size_t>(s.tokens));
    for (float& x : p.grad_loss) x = static_cast<float>(g.normal());
  } else {
    float scale = 1;
    if (s.reduction == Reduction::mean && s.dtype == DType::f16)
      while (scale * 2 <= static_cast<float>(p.valid)) scale *= 2;
    p.grad_loss = {scale};
  }
}

void parse_shape(const std::string& text, ProblemSpec& spec) {
  std::int64_t* const sizes[] = {&spec.tokens, &spec.hidden, &spec.vocabulary};
  const char* at = text.data();
  const char* const end = at + text.size();
  for (int i = 0; i < 3; ++i) {
    const auto [stop, error] = std::from_chars(at, end, *sizes[i]);
    const bool last = i == 2;
    if (error != std::errc{} || (last ? stop != end : stop == end || *stop != ','))
      throw UsageError(
          fmt::format("shape '{}': expected N,D,V (tokens, hidden size, vocabulary), as in 1000,333,50257", text));
    if (!last) at = stop + 1;
  }
}

Reduction reduction_from_name(std::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  throw UsageError(fmt::format("'{}' is no reduction; they are none, mean, sum", name));
}

}  // namespace kerf::tools
