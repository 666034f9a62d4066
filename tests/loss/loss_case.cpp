#include "tests/loss/loss_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kerf::test {

Expected plain_loops(std::int64_t V, std::int64_t D, const Doubles& e, const Doubles& c,
                     const std::vector<std::int64_t>& label, Reduction reduction, const Doubles& grad) {
  const std::int64_t N = std::ssize(label);
  Expected x{.row_loss = Doubles(label.size(), 0.0),
             .lse = Doubles(label.size(), 0.0),
             .de = Doubles(e.size(), 0.0),
             .dc = Doubles(c.size(), 0.0)};
  const auto valid = static_cast<double>(std::count_if(label.begin(), label.end(), [](auto y) { return y >= 0; }));
  Doubles z(static_cast<std::size_t>(V));
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t y = label[n];
    if (y < 0) continue;
    for (std::int64_t v = 0; v < V; ++v) {
      z[v] = 0;
      for (std::int64_t d = 0; d < D; ++d) z[v] += e[n * D + d] * c[v * D + d];
    }
    const double largest = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (double a : z) sum += std::exp(a - largest);
    x.lse[n] = largest + std::log(sum);
    x.row_loss[n] = std::log(sum) + (largest - z[y]);
    x.loss += x.row_loss[n];
    const double g = reduction == Reduction::none ? grad[n] : reduction == Reduction::mean ? grad[0] / valid : grad[0];
    for (std::int64_t v = 0; v < V; ++v) {
      const double dz = g * (std::exp(z[v] - x.lse[n]) - (v == y ? 1 : 0));
      for (std::int64_t d = 0; d < D; ++d) {
        x.de[n * D + d] += dz * c[v * D + d];
        x.dc[v * D + d] += dz * e[n * D + d];
      }
    }
  }
  if (reduction == Reduction::mean) x.loss /= valid;
  return x;
}

namespace {
constexpr std::size_t guard = 256;
constexpr std::byte untouched{0x5a};
}  // namespace

Workspace::Workspace(std::size_t bytes) : bytes_(bytes), memory_(bytes + 2 * guard + 64, untouched) {
  const auto at = reinterpret_cast<std::uintptr_t>(memory_.data()) + guard;
  data_ = memory_.data() + guard + (64 - at % 64) % 64;
  std::fill_n(data_, bytes, std::byte{0xff});  // NaN in every float format
}

bool Workspace::guards_intact() const {
  const auto is_guard = [](std::byte b) { return b == untouched; };
  return std::all_of(memory_.data(), static_cast<const std::byte*>(data_), is_guard) &&
         std::all_of(static_cast<const std::byte*>(data_ + bytes_), memory_.data() + memory_.size(), is_guard);
}

LossCase::LossCase(Sizes s, PlanDesc d, std::uint64_t seed)
    : desc(d),
      N(s.N),
      e(d.dtype, {s.N, s.D}, 3),
      c(d.dtype, {s.V, s.D}, 5),
      target(i64, {s.N}),
      grad(f32, {d.reduction == Reduction::none ? s.N : 1}),
      loss(f32, {d.reduction == Reduction::none ? s.N : 1}),
      lse(f32, {s.N}),
      de(d.dtype, {s.N, s.D}, 1),
      dc(d.dtype, {s.V, s.D}, 7),
      block_lse(f32, {0}) {
  desc.hidden = s.D;
  desc.vocabulary = s.V;
  Random random(seed);
  const double deviation = std::sqrt(2.5 / std::sqrt(static_cast<double>(s.D)));  // of e and of c
  const double peaky = 12 / (2.5 * std::sqrt(static_cast<double>(s.D)));          // makes the target's logit about 12
  for (std::int64_t i = 0; i < c.size(); ++i) c.set(i, deviation * random.normal());
  for (std::int64_t n = 0; n < N; ++n) {
    std::int64_t y = random.integer(0, s.V - 1);
    for (std::int64_t d = 0; d < s.D; ++d) {
      const double close = n % 10 == 3 ? peaky * c[y * s.D + d] : 0;
      e.set(n * s.D + d, close + deviation * random.normal());
    }
    if (n % 20 == 7) y = desc.ignore_index;
    target.set(n, static_cast<double>(y));
    label.push_back(y == desc.ignore_index ? -1 : y);
  }
  for (std::int64_t i = 0; i < grad.size(); ++i) grad.set(i, random.normal());
}

ForwardArgs LossCase::forward_args(const Workspace& w) {
  return {.e = e.ref(),
          .c = c.ref(),
          .target = target.ref(),
          .loss = loss.ref(),
          .lse = lse.ref(),
          .block_lse = block_lse.size() > 0 ? block_lse.ref() : TensorRef(),
          .stash = stash ? stash->ref() : TensorRef(),
          .workspace = w.ref()};
}

BackwardArgs LossCase::backward_args(const Workspace& w) {
  return {.e = e.ref(),
          .c = c.ref(),
          .target = target.ref(),
          .lse = lse.ref(),
          .grad_loss = grad.ref(),
          .de = de.ref(),
          .dc = dc.ref(),
          .accumulate_dc = accumulate_dc,
          .block_lse = block_lse.size() > 0 ? block_lse.ref() : TensorRef(),
          .stash = stash ? stash->ref() : TensorRef(),
          .workspace = w.ref()};
}

void LossCase::poison_forward() {
  loss.poison();
  lse.poison();
  block_lse.poison();
}

void LossCase::poison_backward() {
  de.poison();
  if (!accumulate_dc) dc.poison();
}

std::vector<std::vector<std::byte>> LossCase::inputs() const {
  return {e.bytes(), c.bytes(), target.bytes(), grad.bytes()};
}

void LossCase::check_surroundings() const {
  for (const Array* a : {&e, &c, &target, &grad, &loss, &lse, &de, &dc, &block_lse}) CHECK(a->surroundings_intact());
  if (stash) CHECK(stash->guards_intact());
}

Expected LossCase::expected() const {
  return plain_loops(desc.vocabulary, desc.hidden, e.values(), c.values(), label, desc.reduction, grad.values());
}

void LossCase::check() const {
  const Expected x = expected();
  const double tolerance = desc.dtype == f32 ? 1e-5 : desc.dtype == f16 ? 1e-3 : 4e-3;
  // cuBLAS with f32 sums on an H200 loses up to 0.55 ulp (bf16) or 1.25 ulp (f16) for each 16 products; ulp / 2 at a
  // number just below a power of two is ulp above it.
  const double lost = !tensor_cores || desc.dtype == f32 ? 0 : desc.dtype == bf16 ? 1.1 : 2.5;
  const double ulp = 0x1p-23, allowed = ulp * (2 + lost * static_cast<double>((desc.hidden + 15) / 16));
  for (std::int64_t n = 0; n < N; ++n) {
    CAPTURE(n);
    const double want = x.lse[static_cast<std::size_t>(n)];
    CHECK(std::abs(lse[n] - want) <= std::max(1e-5, allowed * std::abs(want)));
    if (desc.reduction == Reduction::none) CHECK(std::abs(loss[n] - x.row_loss[static_cast<std::size_t>(n)]) <= 2e-5);
    if (label[static_cast<std::size_t>(n)] >= 0) continue;
    CHECK(lse[n] == 0);
    for (std::int64_t d = 0; d < desc.hidden; ++d) CHECK(de[n * desc.hidden + d] == 0);
  }
  if (desc.reduction != Reduction::none) CHECK(loss[0] == doctest::Approx(x.loss).epsilon(1e-5));
  CHECK(error(de, x.de).norm < tolerance);
  CHECK(error(dc, x.dc).norm < tolerance);
}

}  // namespace kerf::test
