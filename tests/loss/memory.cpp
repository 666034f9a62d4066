// What a call costs in memory, seen from outside: the process' resident pages.
#include <doctest/doctest.h>

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "kerf/loss.h"

using namespace kerf;

namespace {

std::int64_t resident_bytes() {
  std::int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace

TEST_CASE("loss: a forward of 1024 tokens over 50257 words takes under 2 MiB, a second one no more memory") {
  const std::int64_t N = 1024, D = 768, V = 50257;
  PlanDesc desc{.hidden = D, .vocabulary = V};
  desc.threads = 2;
  Plan plan(desc);
  const std::size_t bytes = plan.workspace_bytes(N, false);
  CHECK(bytes < std::size_t{2} << 20);

  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 0.1F);
  std::vector<float> e(static_cast<std::size_t>(N * D)), c(static_cast<std::size_t>(V * D));
  for (float& x : e) x = normal(random);
  for (std::size_t i = 0; i < c.size(); ++i) c[i] = i < 100003 ? normal(random) : c[i - 100003];
  std::vector<std::int32_t> target(static_cast<std::size_t>(N));
  for (auto& t : target) t = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(V));
  float loss = std::numeric_limits<float>::quiet_NaN();
  const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                              &std::free);
  ForwardArgs args;
  args.e = {e.data(), {N, D}};
  args.c = {c.data(), {V, D}};
  args.target = {target.data(), i32, {N}};
  args.loss = {&loss, {1}};
  args.workspace = {workspace.get(), boolean, {static_cast<std::int64_t>(bytes)}};
  plan.forward(args);
  const float first = loss;
  CHECK(std::isfinite(first));

  const std::int64_t before = resident_bytes();
  loss = std::numeric_limits<float>::quiet_NaN();
  plan.forward(args);
  CHECK(loss == first);
  CHECK(resident_bytes() - before <= std::int64_t{3} << 20);
}
