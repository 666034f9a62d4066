#include "tools/kerf/loss_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

namespace kerf::tools {
namespace {

constexpr std::size_t guard_bytes = 256;
constexpr int guard_pattern = 0xa5, nan_pattern = 0xff;  // all ones is a NaN in every float type

Buffer guarded(std::int64_t elements, DType dtype) {
  return Buffer(static_cast<std::size_t>(elements * size_of(dtype)) + guard_bytes);
}

void fill(const Buffer& b) {
  const auto inside = static_cast<std::int64_t>(b.size() - guard_bytes);
  in_pieces(inside, 1 << 24, [&](std::int64_t begin, std::int64_t end) {
    std::memset(b.data() + begin, nan_pattern, static_cast<std::size_t>(end - begin));
  });
  std::memset(b.data() + inside, guard_pattern, guard_bytes);
}

void find_defects(const char* name, const Buffer& b, DType dtype, std::int64_t columns,
                  std::vector<std::string>& found) {
  const auto elements = static_cast<std::int64_t>(b.size() - guard_bytes) / size_of(dtype);
  const std::byte* guard = b.data() + b.size() - guard_bytes;
  if (std::any_of(guard, guard + guard_bytes, [](std::byte x) { return x != std::byte{guard_pattern}; }))
    found.push_back(fmt::format("{}: bytes past its end were written", name));
  std::atomic<std::int64_t> bad = 0, first = elements;
  in_pieces(elements, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> x(static_cast<std::size_t>(end - begin));
    to_double(element(static_cast<const void*>(b.data()), dtype, begin), dtype, end - begin, x.data());
    for (std::int64_t i = begin; i < end; ++i) {
      if (std::isfinite(x[static_cast<std::size_t>(i - begin)])) continue;
      ++bad;
      std::int64_t old = first;
      while (i < old && !first.compare_exchange_weak(old, i)) {
      }
    }
  });
  if (bad > 0)
    found.push_back(fmt::format("{}: {} of {} elements are NaN or infinite, the first in row {}, column {}", name,
                                bad.load(), elements, first / columns, first % columns));
}

}  // namespace

LossCall::LossCall(const Problem& problem, const PlanDesc& desc) : problem_(problem), plan_(desc) {
  const ProblemSpec& s = problem.spec;
  const bool per_row = s.reduction == Reduction::none;
  loss_ = guarded(per_row ? s.tokens : 1, f32);
  lse_ = guarded(s.tokens, f32);
  de_ = guarded(s.tokens * s.hidden, s.dtype);
  dc_ = guarded(s.vocabulary * s.hidden, s.dtype);
  workspace_ = Buffer(workspace_bytes());
  poison();
  const auto like_loss = [&](const void* data) { return TensorRef(data, f32, {per_row ? s.tokens : 1}); };
  forward_.e = TensorRef(problem.e.data(), s.dtype, {s.tokens, s.hidden});
  forward_.c = TensorRef(problem.c.data(), s.dtype, {s.vocabulary, s.hidden});
  forward_.target = TensorRef(problem.target.data(), i64, {s.tokens});
  forward_.loss = like_loss(loss_.data());
  forward_.lse = TensorRef(lse_.data(), f32, {s.tokens});
  forward_.workspace = TensorRef(workspace_.data(), boolean, {static_cast<std::int64_t>(workspace_.size())});
  backward_.e = forward_.e;
  backward_.c = forward_.c;
  backward_.target = forward_.target;
  backward_.lse = forward_.lse;
  backward_.grad_loss = like_loss(problem.grad_loss.data());
  backward_.de = TensorRef(de_.data(), s.dtype, {s.tokens, s.hidden});
  backward_.dc = TensorRef(dc_.data(), s.dtype, {s.vocabulary, s.hidden});
  backward_.workspace = forward_.workspace;
}

void LossCall::poison() {
  for (const Buffer* b : {&loss_, &lse_, &de_, &dc_}) fill(*b);
}

std::vector<std::string> LossCall::defects() const {
  std::vector<std::string> found;
  const ProblemSpec& s = problem_.spec;
  const bool nan_is_right = s.reduction == Reduction::mean && problem_.valid == 0;
  if (!nan_is_right) find_defects("loss", loss_, f32, 1, found);
  find_defects("lse", lse_, f32, 1, found);
  find_defects("de", de_, s.dtype, s.hidden, found);
  find_defects("dc", dc_, s.dtype, s.hidden, found);
  std::vector<double> row(static_cast<std::size_t>(s.hidden));
  for (std::int64_t n = 0; n < s.tokens; ++n) {
    if (problem_.target[static_cast<std::size_t>(n)] != Problem::ignore_index) continue;
    to_double(element(static_cast<const void*>(de_.data()), s.dtype, n * s.hidden), s.dtype, s.hidden, row.data());
    const bool zero = lse()[n] == 0 && (s.reduction != Reduction::none || loss()[n] == 0) &&
                      std::all_of(row.begin(), row.end(), [](double x) { return x == 0; });
    if (zero) continue;
    found.push_back(fmt::format("row {} is ignored, and its loss, lse or de is not 0", n));
    break;
  }
  return found;
}

}  // namespace kerf::tools
