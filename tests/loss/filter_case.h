// A filtered loss to test: logits of which most hardly matter, calls with block_lse, and what a filtered backward is to
// give, as plain loops.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "tests/loss/routes.h"

namespace kerf::test {

inline PlanDesc filtered(DType dtype, Order order = Order::identity) {
  return {.dtype = dtype, .strategy = Strategy::filtered, .order = order};
}

/// The backward of a case whose forward has run, and what it left out.
template <class On>
FilterReport run_filtered_backward(Routed<On>& x, typename On::Runner& plan) {
  x.poison_backward();
  const Workspace w(plan.workspace_bytes(x.N, true));
  plan.backward(x.backward_args(w));
  CHECK(w.guards_intact());
  x.check_surroundings();
  return plan.filter_report(w.ref());
}

/// Runs both calls, and tells what was left out.
template <class On>
FilterReport run_filtered(Routed<On>& x, typename On::Runner& plan) {
  x.filter(plan);
  x.run_forward(plan);
  return run_filtered_backward(x, plan);
}

/// Row n has this label; -1: the one that is ignored.
inline void set_label(LossCase& x, std::int64_t n, std::int64_t y) {
  x.label[static_cast<std::size_t>(n)] = y;
  x.target.set(n, static_cast<double>(y < 0 ? x.desc.ignore_index : y));
}

/// Logits that fall with the number of the token, so that most blocks hardly matter. Rows lie as boxes want them.
template <class On>
Routed<On> falling(Sizes s, const PlanDesc& desc) {
  Routed<On> x(s, desc);
  Random random(9);
  for (std::int64_t v = 0; v < s.V; ++v) x.c.set(v * s.D, 1 - 30.0 * static_cast<double>(v) / static_cast<double>(s.V));
  for (std::int64_t n = 0; n < s.N; ++n) x.e.set(n * s.D, 1);
  for (std::int64_t n = 0; n < s.N; ++n)
    if (x.label[static_cast<std::size_t>(n)] >= 0) set_label(x, n, random.integer(0, s.V / 4));
  x.align();
  return x;
}

/// Tokens of a block of the vocabulary, of which block_lse has `blocks`: a power of two on every route.
inline std::int64_t block_of_vocabulary(std::int64_t vocabulary, std::int64_t blocks) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>((vocabulary + blocks - 1) / blocks)));
}

/// The gradients of rows that fit one block of them, where a side that is filtered takes the probabilities of a token
/// in a dropped block to be the mean of the block, or without the correction 0.
inline Expected filtered_loops(const LossCase& x, std::int64_t block, double eps,
                               const std::vector<std::int64_t>& order = {}) {
  if (x.desc.filter != Filter::largest) eps *= std::min(1.0, static_cast<double>(block) / 128);
  const std::int64_t N = x.N, V = x.desc.vocabulary, D = x.desc.hidden, B = (V + block - 1) / block;
  Expected want = x.expected();
  std::fill(want.de.begin(), want.de.end(), 0);
  std::fill(want.dc.begin(), want.dc.end(), 0);
  const auto valid = static_cast<double>(std::count_if(x.label.begin(), x.label.end(), [](auto y) { return y >= 0; }));
  std::vector<std::int64_t> block_of(static_cast<std::size_t>(V));
  for (std::int64_t i = 0; i < V; ++i) block_of[static_cast<std::size_t>(order.empty() ? i : order[i])] = i / block;
  Doubles p(static_cast<std::size_t>(N * V), 0), mass(static_cast<std::size_t>(N * B), 0), size(p.size()),
      largest(mass);
  std::vector<bool> keep(static_cast<std::size_t>(B));
  Doubles together(static_cast<std::size_t>(B), 0);
  const auto upstream = [&](std::int64_t n) {
    const bool none = x.desc.reduction == Reduction::none;
    return none ? x.grad[n] : x.desc.reduction == Reduction::mean ? x.grad[0] / valid : x.grad[0];
  };
  for (std::int64_t b : block_of) size[b] += 1;
  for (std::int64_t n = 0; n < N; ++n) {
    if (x.label[n] < 0) continue;
    for (std::int64_t v = 0; v < V; ++v) {
      double z = 0;
      for (std::int64_t d = 0; d < D; ++d) z += x.e[n * D + d] * x.c[v * D + d];
      p[n * V + v] = std::exp(z - want.lse[n]);
      mass[n * B + block_of[v]] += p[n * V + v];
      largest[n * B + block_of[v]] = std::max(largest[n * B + block_of[v]], p[n * V + v]);
    }
    if (upstream(n) == 0) continue;
    const bool by_mass = x.desc.filter != Filter::largest;
    double outside = 0;  // the block of its label; a row with little there asks for shares of it
    for (std::int64_t b = 0; b < B; ++b) outside += b == block_of[x.label[n]] ? 0 : mass[n * B + b];
    const double least = by_mass ? eps * std::clamp(outside / 0.125, 0x1p-20, 1.0) : eps;
    for (std::int64_t b = 0; b < B; ++b) {
      if ((by_mass ? mass : largest)[n * B + b] >= least || block_of[x.label[n]] == b) keep[b] = true;
      together[b] += mass[n * B + b];
    }
  }
  for (std::int64_t b = 0; b < B; ++b)
    if (x.desc.filter != Filter::largest && together[b] >= 16 * eps) keep[b] = true;
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t y = x.label[n];
    if (y < 0) continue;
    for (std::int64_t v = 0; v < V; ++v) {
      const std::int64_t b = block_of[v];
      const double exact = upstream(n) * (p[n * V + v] - (v == y ? 1 : 0));
      const double mean = x.desc.correction ? upstream(n) * mass[n * B + b] / size[b] : 0;
      for (std::int64_t d = 0; d < D; ++d) {
        want.de[n * D + d] += (keep[b] || !x.desc.filter_e ? exact : mean) * x.c[v * D + d];
        want.dc[v * D + d] += (keep[b] || !x.desc.filter_c ? exact : mean) * x.e[n * D + d];
      }
    }
  }
  return want;
}

}  // namespace kerf::test
