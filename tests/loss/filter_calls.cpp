// Which calls filter, and what a plan that filters asks for, leaves and promises.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kerf/error.h"
#include "tests/loss/filter_case.h"
#include "tests/runtime/allocations.h"

using namespace kerf;
using namespace kerf::test;

TEST_CASE_TEMPLATE("filter: rows too few to pay for copies of c are not filtered, unless that was asked for", On, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (Filter filter : {Filter::automatic, Filter::mass})
    for (std::int64_t rows : {511, 512}) {
      CAPTURE(name_of(filter));
      CAPTURE(rows);
      PlanDesc desc = filtered(bf16, Order::automatic);
      desc.filter = filter, desc.strategy = Strategy::automatic;
      auto x = falling<On>({rows, 16384, 24}, desc);
      typename On::Runner plan(x.desc);
      const FilterReport report = run_filtered(x, plan);
      CHECK((report.kept == report.tiles) == (filter == Filter::automatic && rows == 511));
      x.check();
    }
}

TEST_CASE("filter: what a plan reports and reserves is of the calls of so many rows") {
  const auto reported = [](std::int64_t rows, Filter filter, Order order) {
    const runtime::DeviceLoss loss(
        {.hidden = 64, .vocabulary = 100000, .dtype = bf16, .filter = filter, .order = order},
        runtime::choose_boxed_blocks({100000, 64, bf16}, Target::host()),
        runtime::choose_plain_blocks({100000, 64, bf16}), std::make_shared<ThreadPool>(1));
    return std::pair(loss.filters(rows), loss.workspace(rows, false) > 100000 * 64 * sizeof(std::uint16_t));
  };
  CHECK(reported(511, Filter::automatic, Order::automatic) == std::pair(false, false));
  CHECK(reported(512, Filter::automatic, Order::automatic) == std::pair(true, true));
  CHECK(reported(1, Filter::mass, Order::automatic) == std::pair(true, true));
  CHECK(reported(1, Filter::automatic, Order::identity) == std::pair(true, false));
}

TEST_CASE("filter: block_lse and what a backward asks for, filtered or exact, keep to workspace_limit together") {
  PlanDesc desc{.hidden = 2304, .vocabulary = 256000, .dtype = bf16, .order = Order::identity};
  for (const std::size_t limit : {std::size_t{256} << 20, std::size_t{512} << 20}) {
    desc.workspace_limit = limit;
    const runtime::DeviceLoss loss(desc, runtime::choose_boxed_blocks({256000, 2304, bf16}, Target::host()),
                                   runtime::choose_plain_blocks({256000, 2304, bf16}), std::make_shared<ThreadPool>(1));
    const auto [blocks, tokens] = loss.block_lse_shape(8192);
    const std::size_t all = loss.workspace(8192, true) + static_cast<std::size_t>(blocks * tokens) * sizeof(float);
    CHECK(all <= limit);
    CHECK(all > limit - (std::size_t{16} << 20));
  }
  const Plan plan({.hidden = 64,
                   .vocabulary = 256000,
                   .dtype = bf16,
                   .workspace_limit = std::size_t{96} << 20,
                   .order = Order::identity,
                   .threads = 2});
  const auto [blocks, tokens] = plan.block_lse_shape(1024);
  CHECK(plan.workspace_bytes(1024, true) + static_cast<std::size_t>(blocks * tokens) * sizeof(float) <= 96U << 20);
}

TEST_CASE("filter: results do not depend on the number of threads") {
  for (Order order : {Order::identity, Order::automatic}) {
    std::vector<std::vector<std::byte>> bits;
    for (int threads : {1, 2, 3}) {
      CAPTURE(threads);
      PlanDesc desc = filtered(bf16, order);
      desc.threads = threads;
      desc.workspace_limit = 2'000'000;
      auto x = falling<Host>({300, 2000, 24}, desc);
      Plan plan(x.desc);
      run_filtered(x, plan);
      auto here = x.bits();
      here.push_back(x.block_lse.bytes());
      if (threads == 1) bits = here;
      CHECK(here == bits);
    }
  }
}

TEST_CASE_TEMPLATE("filter: calls without block_lse are exact, and lse and loss are the same with it", On, Host, Steps,
                   Gpu) {
  if (!On::here()) return;
  auto x = falling<On>({150, 1000, 24}, filtered(f32));
  typename On::Runner plan(x.desc);
  x.run(plan);
  x.check();
  run_filtered(x, plan);
  CHECK(error(x.lse, x.expected().lse).norm < 1e-6);
  CHECK(x.loss[0] == doctest::Approx(x.expected().loss).epsilon(1e-5));
  // block_lse alone.
  const auto block_lse = x.block_lse.bytes();
  x.poison_forward();
  const Workspace w(plan.workspace_bytes(x.N, false));
  ForwardArgs args = x.forward_args(w);
  args.loss = args.lse = {};
  plan.forward(args);
  CHECK(x.block_lse.bytes() == block_lse);
  // An exact backward after a filtered forward.
  run_filtered(x, plan);
  x.block_lse = Array(f32, {0});
  x.run_backward(plan);
  x.check();
}

TEST_CASE_TEMPLATE("filter: block_lse is the log-sum-exp of each block, or its largest logit", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Filter filter : {Filter::mass, Filter::largest}) {
    PlanDesc desc = filtered(f32);
    desc.filter = filter, desc.filter_threshold = 1e-3;
    Routed<On> x({45, 1000, 24}, desc);
    x.align();
    typename On::Runner plan(x.desc);
    run_filtered(x, plan);
    const auto [B, P] = plan.block_lse_shape(x.N);
    const std::int64_t block = block_of_vocabulary(1000, B);
    std::int64_t row = 0;  // of those with a label
    for (std::int64_t n = 0; n < x.N; ++n) {
      if (x.label[static_cast<std::size_t>(n)] < 0) continue;
      for (std::int64_t b = 0; b < B; ++b) {
        double sum = 0, most = -inf;
        for (std::int64_t v = b * block; v < std::min<std::int64_t>(1000, (b + 1) * block); ++v) {
          double z = 0;
          for (std::int64_t d = 0; d < 24; ++d) z += x.e[n * 24 + d] * x.c[v * 24 + d];
          sum += std::exp(z);
          most = std::max(most, z);
        }
        const double want = filter == Filter::mass ? std::log(sum) : most;
        CHECK(std::abs(x.block_lse[b * P + row] - want) < 1e-5 * std::max(1.0, std::abs(want)));
      }
      ++row;
    }
  }
}

TEST_CASE("filter: a plan filters when asked to, or with two bytes an element and a large vocabulary") {
  const auto filters = [](const PlanDesc& desc) { return Plan(desc).filters(); };
  CHECK(filters({.hidden = 8, .vocabulary = 16384, .dtype = bf16}));
  CHECK(filters({.hidden = 8, .vocabulary = 16384, .dtype = f16}));
  CHECK_FALSE(filters({.hidden = 8, .vocabulary = 16383, .dtype = bf16}));
  CHECK_FALSE(filters({.hidden = 8, .vocabulary = 16384, .dtype = f32}));
  CHECK(filters({.hidden = 8, .vocabulary = 5, .dtype = f32, .filter = Filter::mass}));
  CHECK(filters({.hidden = 8, .vocabulary = 5, .dtype = f32, .filter = Filter::largest, .filter_threshold = 0.1}));
  CHECK(filters({.hidden = 8, .vocabulary = 5, .dtype = f32, .strategy = Strategy::filtered}));
  CHECK_FALSE(filters({.hidden = 8, .vocabulary = 16384, .dtype = bf16, .filter = Filter::off}));
  CHECK_FALSE(filters({.hidden = 8, .vocabulary = 16384, .dtype = bf16, .strategy = Strategy::exact_recompute}));
  CHECK_FALSE(filters({.hidden = 8, .vocabulary = 16384, .dtype = bf16, .strategy = Strategy::min_memory}));
  CHECK_FALSE(filters({.hidden = 8, .vocabulary = 16384, .dtype = bf16, .filter_e = false, .filter_c = false}));
  CHECK(Plan({.hidden = 8, .vocabulary = 16384, .dtype = bf16}).report(10).strategy == Strategy::filtered);
}

TEST_CASE("filter: the rule of the largest probability takes rows as they lie, and has no programs to move them") {
  PlanDesc desc{.hidden = 8, .vocabulary = 300, .dtype = f32, .filter_threshold = 0.1};
  for (const Filter filter : {Filter::mass, Filter::largest}) {
    desc.filter = filter;
    const std::vector<std::string> names = Plan(desc).program_names();
    for (const char* name : {"mass_outside", "count_askers", "rate_rows", "place_rows", "move_rows"})
      CHECK(std::count(names.begin(), names.end(), name) == (filter == Filter::mass));
  }
}

TEST_CASE("filter: a second call on a CPU allocates no buffers, nor does one with a stash") {
  for (const Strategy strategy : {Strategy::filtered, Strategy::exact_stash}) {
    PlanDesc desc = filtered(bf16);
    desc.strategy = strategy;
    desc.threads = 1;  // of several, one may take no part in the first call
    auto x = falling<Host>({100, 1000, 24}, desc);
    Plan plan(x.desc);
    if (strategy == Strategy::filtered)
      x.filter(plan);
    else
      x.stash_in(plan.stash_bytes(x.N));
    const Workspace w(std::max(plan.workspace_bytes(x.N, false), plan.workspace_bytes(x.N, true)));
    const auto call = [&] {
      plan.forward(x.forward_args(w));
      plan.backward(x.backward_args(w));
    };
    call();
    const std::size_t before = aligned_bytes;
    call();
    CHECK(aligned_bytes == before);
  }
}

TEST_CASE("filter: linear_cross_entropy filters where the plan does, also without rows") {
  for (std::int64_t N : {100, 0}) {
    CAPTURE(N);
    auto x = falling<Host>({N, 1000, 24}, filtered(f32, Order::automatic));
    Plan plan(x.desc);
    x.grad.set(0, 1);
    const LossResult r = linear_cross_entropy(plan, x.e.ref(), x.c.ref(), x.target.ref());
    const Expected want = x.expected();
    Array de(f32, {N, 24}), dc(f32, {1000, 24});
    for (std::int64_t i = 0; i < de.size(); ++i) de.set(i, reinterpret_cast<const float*>(r.de.data())[i]);
    for (std::int64_t i = 0; i < dc.size(); ++i) dc.set(i, reinterpret_cast<const float*>(r.dc.data())[i]);
    CHECK(error(de, want.de).norm < 4e-3);
    CHECK(error(dc, want.dc).norm < 4e-3);
  }
}
