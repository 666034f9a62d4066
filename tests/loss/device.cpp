// What holds where labels lie on a device: nothing is refused for what they hold, and the sequence of launches is one.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <regex>

#include "kerf/error.h"
#include "tests/loss/routes.h"

using namespace kerf;
using namespace kerf::test;

TEST_CASE_TEMPLATE("device loss: a label outside the vocabulary makes its row NaN and gives it no gradient", On, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    CAPTURE(name_of(reduction));
    Routed<On> x({300, 301, 40}, {.dtype = bf16, .reduction = reduction});
    typename On::Runner plan(x.desc);
    const std::vector<std::int64_t> strays = {0, 41, 255, 256, 299};
    const std::vector<double> values = {301, -1, 4e9, -2e9, 1000};
    for (std::size_t i = 0; i < strays.size(); ++i) {
      x.target.set(strays[i], values[i]);
      x.label[static_cast<std::size_t>(strays[i])] = -1;
    }
    x.poison_forward();
    Workspace forward(plan.workspace_bytes(x.N, false));
    plan.forward(x.forward_args(forward));
    CHECK(forward.guards_intact());
    const Expected want = x.expected();
    const auto* told = static_cast<const std::int64_t*>(forward.ref().data);
    CHECK(told[0] == std::count_if(x.label.begin(), x.label.end(), [](std::int64_t y) { return y >= 0; }));
    CHECK(told[1] == 5);
    for (std::int64_t n = 0; n < x.N; ++n) {
      const bool stray = std::find(strays.begin(), strays.end(), n) != strays.end();
      CHECK((stray ? std::isnan(x.lse[n]) : std::abs(x.lse[n] - want.lse[static_cast<std::size_t>(n)]) < 1e-5));
      if (reduction == Reduction::none)
        CHECK(
            (stray ? std::isnan(x.loss[n]) : std::abs(x.loss[n] - want.row_loss[static_cast<std::size_t>(n)]) < 2e-5));
    }
    if (reduction != Reduction::none) CHECK(std::isnan(x.loss[0]));
    x.run_backward(plan);
    CHECK(error(x.de, want.de).norm < 4e-3);
    CHECK(error(x.dc, want.dc).norm < 4e-3);
    for (std::int64_t n : strays)
      for (std::int64_t d = 0; d < 40; ++d) CHECK(x.de[n * 40 + d] == 0);
  }
}

TEST_CASE_TEMPLATE("device loss: labels may have any strides, also 0", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {i32, i64}) {
    Routed<On> x({300, 50, 12}, {});
    x.run();
    const auto bits = x.bits();
    Array apart(dtype, {300, 3});
    for (std::int64_t n = 0; n < x.N; ++n) apart.set(3 * n + 1, x.target[n]);
    typename On::Runner plan(x.desc);
    const Workspace forward(plan.workspace_bytes(x.N, false)), backward(plan.workspace_bytes(x.N, true));
    ForwardArgs f = x.forward_args(forward);
    BackwardArgs b = x.backward_args(backward);
    TensorRef column(static_cast<std::byte*>(apart.ref().data) + size_of(dtype), dtype, {300});
    f.target = b.target = column.with_strides({3});
    x.poison_forward();
    x.poison_backward();
    plan.forward(f);
    plan.backward(b);
    CHECK(x.bits() == bits);

    for (std::int64_t n = 0; n < x.N; ++n) x.label[static_cast<std::size_t>(n)] = 7;
    apart.set(1, 7);
    f.target = b.target = column.with_strides({0});
    plan.forward(f);
    plan.backward(b);
    x.check();
  }
}

namespace {

/// A loss in every dtype, rows of e and c aligned and not, with the workspace that its backward asks for.
template <class On>
void for_each_layout(const std::function<void(Routed<On>& x, std::size_t wide)>& check) {
  for (auto [dtype, aligned] : {std::pair{f32, false}, {bf16, true}, {bf16, false}, {f16, true}}) {
    CAPTURE(name_of(dtype));
    CAPTURE(aligned);
    Routed<On> x({333, 3000, 72}, {.dtype = dtype});
    if (aligned) x.align();
    const std::size_t wide = x.plan().workspace_bytes(x.N, true);
    check(x, wide);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("device loss: a small workspace_limit and min_memory give the gradients", On, Steps, Gpu) {
  if (!On::here()) return;
  for_each_layout<On>([](Routed<On>& x, std::size_t wide) {
    for (const std::size_t limit : {wide - 1, std::size_t(1)}) {
      CAPTURE(limit);
      x.desc.workspace_limit = limit;
      typename On::Runner plan(x.desc);
      CHECK(plan.workspace_bytes(x.N, true) < wide);
      x.run(plan);
      x.check();
    }
    x.desc.workspace_limit = 0;
    x.desc.strategy = Strategy::min_memory;
    typename On::Runner plan(x.desc);
    x.run(plan);
    x.check();
    x.accumulate_dc = true;
    x.dc = Array(f32, {3000, 72});
    for (std::int64_t i = 0; i < x.dc.size(); ++i) x.dc.set(i, 0);
    x.run(plan);
    x.check();
  });
}

TEST_CASE_TEMPLATE("device loss: repeated calls give the same bits, also with little memory", On, Steps, Gpu) {
  if (!On::here()) return;
  struct Calls {
    std::size_t limit;
    Strategy strategy;
    int more;
  };
  for_each_layout<On>([](Routed<On>& x, std::size_t wide) {
    for (const Calls& k : {Calls{0, Strategy::automatic, 20},
                           {wide - 1, Strategy::automatic, 1},
                           {1, Strategy::automatic, 3},
                           {0, Strategy::min_memory, 1}}) {
      CAPTURE(k.limit);
      CAPTURE(name_of(k.strategy));
      x.desc.workspace_limit = k.limit, x.desc.strategy = k.strategy;
      typename On::Runner plan(x.desc);
      x.run(plan);
      x.check();
      const auto bits = x.bits();
      for (int call = 0; call < k.more; ++call) {
        x.run(plan);
        CHECK(x.bits() == bits);
      }
    }
  });
}

TEST_CASE_TEMPLATE("device loss: many rows, whose parts of the vocabulary have several blocks", On, Steps, Gpu) {
  if (!On::here()) return;
  for (std::int64_t N : {1100, 1010}) {  // the second does not fill tall blocks
    CAPTURE(N);
    Routed<On> x({N, 4100, 8}, {.dtype = bf16});
    x.align();
    x.run();
    x.check();
  }
}

TEST_CASE_TEMPLATE("device loss: min_memory in every reduction, with ignored rows that fill whole chunks", On, Steps,
                   Gpu) {
  if (!On::here()) return;
  for (Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum})
    for (std::int64_t N : {0, 1, 31, 32, 33, 500}) {
      CAPTURE(N);
      Routed<On> x({N, 200, 24}, {.dtype = bf16, .reduction = reduction, .strategy = Strategy::min_memory});
      if (N % 2 == 0) x.align();
      for (std::int64_t n = 0; n < N; ++n)
        if (n >= 10 && n < 400) {
          x.target.set(n, -100);
          x.label[static_cast<std::size_t>(n)] = -1;
        }
      x.run();
      if (N > 0) x.check();
    }
}

TEST_CASE_TEMPLATE("device loss: a c and de that lie as boxes want them", On, Host, Steps, Gpu) {
  if (!On::here()) return;
  for (Strategy strategy : {Strategy::automatic, Strategy::min_memory})
    for (DType dtype : {f32, bf16, f16})
      for (Sizes s : {Sizes{157, 301, 72}, {1, 70, 8}, {129, 1000, 320}, {1100, 70, 136}}) {
        CAPTURE(name_of(strategy));
        CAPTURE(name_of(dtype));
        CAPTURE(s.D);
        Routed<On> x(s, {.dtype = dtype, .strategy = strategy});
        x.align();
        x.run();
        x.check();
      }
}

TEST_CASE_TEMPLATE("device loss: a small vocabulary, whose dc is summed in parts of the rows", On, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16, f16})
    for (bool aligned : {true, false})
      for (DType main_grad : {dtype, f32})
        for (bool accumulate : {false, true}) {
          CAPTURE(name_of(dtype));
          CAPTURE(aligned);
          CAPTURE(name_of(main_grad));
          CAPTURE(accumulate);
          Routed<On> x({1500, 70, 24}, {.dtype = dtype});
          if (aligned) x.align();
          x.run();
          x.check();
          const Array alone = x.dc;
          x.dc = Array(main_grad, {70, 24}, 5);
          for (std::int64_t i = 0; i < x.dc.size(); ++i)
            x.dc.set(i, accumulate ? 0.25 * static_cast<double>(i % 3) : 0);
          x.accumulate_dc = accumulate;
          typename On::Runner plan(x.desc);
          x.run(plan);
          std::vector<double> want = x.expected().dc;
          for (std::size_t i = 0; i < want.size() && accumulate; ++i) want[i] += 0.25 * static_cast<double>(i % 3);
          CHECK(error(x.dc, want).norm < (dtype == f32 ? 1e-5 : dtype == f16 ? 1e-3 : 4e-3));
        }
}

TEST_CASE_TEMPLATE("device loss: parts of the rows without a label, and repeated calls over them", On, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16, f16})
    for (std::int64_t valid : {0, 1, 40, 700}) {
      CAPTURE(name_of(dtype));
      CAPTURE(valid);
      Routed<On> x({1500, 100, 40}, {.dtype = dtype, .reduction = Reduction::sum});
      std::int64_t left = valid;
      for (std::int64_t n = 0; n < x.N; ++n)
        if (x.label[static_cast<std::size_t>(n)] >= 0 && left-- <= 0) {
          x.target.set(n, -100);
          x.label[static_cast<std::size_t>(n)] = -1;
        }
      x.align();
      typename On::Runner plan(x.desc);
      x.run(plan);
      if (valid > 0)
        x.check();
      else
        for (std::int64_t i = 0; i < x.dc.size(); ++i) CHECK(x.dc[i] == 0);
      const auto bits = x.bits();
      for (int call = 0; call < 5; ++call) {
        x.run(plan);
        CHECK(x.bits() == bits);
      }
    }
}

TEST_CASE_TEMPLATE("device loss: parts of the rows in several ranges of the vocabulary", On, Steps, Gpu) {
  if (!On::here()) return;
  for (DType dtype : {f32, bf16}) {
    CAPTURE(name_of(dtype));
    Routed<On> x({1500, 300, 24}, {.dtype = dtype, .workspace_limit = 1});
    x.align();
    x.run();
    x.check();
  }
}

TEST_CASE("device loss: the cases above do have parts of the rows") {
  for (const runtime::DeviceBlocks& blocks : {small_blocks, smaller_blocks})
    for (auto [V, D] : {std::pair<std::int64_t, std::int64_t>{70, 24}, {100, 40}, {300, 24}}) {
      const PlanDesc desc{.hidden = D, .vocabulary = V, .dtype = bf16};
      const runtime::DevicePrograms programs(desc, blocks, Target::host());
      const std::int64_t columns = runtime::blocks_of(V, blocks.backward.v);
      const runtime::Ranges ranges{columns, V == 300 ? 1 : columns};
      CHECK(runtime::lay_out_device_backward(nullptr, desc, 1500, programs, ranges).row_parts > 1);
    }
}

TEST_CASE("device loss: sums in parts of the rows take no more than dz, and no more than 64 MiB") {
  for (auto [rows, V, D] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{25088, 1000, 768},
                            {1 << 20, 150, 512},
                            {8192, 1000, 768},
                            {300, 1000, 768}}) {
    CAPTURE(rows);
    const kernels::Shape shape{V, D, bf16};
    const PlanDesc desc{.hidden = D, .vocabulary = V, .dtype = bf16};
    for (const runtime::DeviceBlocks& blocks :
         {runtime::choose_boxed_blocks(shape, Target::host()), runtime::choose_plain_blocks(shape)}) {
      const runtime::DevicePrograms programs(desc, blocks, Target::host());
      const std::int64_t columns = runtime::blocks_of(V, blocks.backward.v);
      const auto space = runtime::lay_out_device_backward(nullptr, desc, rows, programs, {columns, columns});
      const std::int64_t dz =
          runtime::blocks_of(rows, blocks.backward.n) * blocks.backward.n * columns * blocks.backward.v * 2;
      const std::int64_t sums = space.row_parts * columns * blocks.backward.v * D * 4;
      if (space.row_parts > 1) CHECK(sums <= std::min<std::int64_t>(dz, std::int64_t{64} << 20));
      if (blocks.boxed) CHECK(space.row_parts == (rows == 25088 ? 5 : rows == 8192 ? 5 : rows == 300 ? 1 : 16));
    }
  }
}

TEST_CASE("device loss: a vocabulary is cut in parts for de where that fills the last wave of blocks, or the first") {
  struct {
    std::int64_t rows, V, D, width, parts;
  } cases[] = {{8192, 256000, 2304, 250, 2},  // 576 blocks: 4.4 waves of 132, 8.7 in halves
               {8192, 256000, 2304, 2, 1},    // ranges too narrow for what parts cost
               {8192, 128256, 4096, 200, 1},  // 1024 blocks: 7.8 waves
               {8192, 152064, 3584, 200, 1},  // 896 blocks: 6.8 waves
               {25088, 1000, 768, 4, 1},     {128, 256000, 2304, 1000, 14}};  // 9 blocks, 126 in parts
  for (const auto& x : cases) {
    CAPTURE(x.rows);
    CAPTURE(x.V);
    CAPTURE(x.width);
    const PlanDesc desc{.hidden = x.D, .vocabulary = x.V, .dtype = bf16};
    const auto blocks = runtime::choose_boxed_blocks({x.V, x.D, bf16}, Target::host());
    const runtime::DevicePrograms programs(desc, blocks, Target::host());
    const runtime::Ranges ranges{runtime::blocks_of(x.V, blocks.backward.v), x.width};
    CHECK(runtime::lay_out_device_backward(nullptr, desc, x.rows, programs, ranges).parts == x.parts);
  }
}

TEST_CASE("device loss: min_memory at the size of Gemma 2 stays below what it promises") {
  const PlanDesc desc{.hidden = 2304, .vocabulary = 256000, .dtype = bf16, .strategy = Strategy::min_memory};
  const runtime::DeviceLoss loss(desc, runtime::choose_boxed_blocks({256000, 2304, bf16}, Target::host()),
                                 runtime::choose_plain_blocks({256000, 2304, bf16}), std::make_shared<ThreadPool>(1));
  CHECK(loss.workspace(8192, false) <= (std::size_t{11} << 20) / 10);
  CHECK(loss.workspace(8192, true) <= std::size_t{96} << 20);
}

TEST_CASE("device loss: the backward keeps below workspace_limit, 1 GiB unless told") {
  for (std::size_t limit : {std::size_t{0}, std::size_t{256} << 20}) {
    PlanDesc desc{.hidden = 2304, .vocabulary = 256000, .dtype = bf16, .workspace_limit = limit};
    desc.order = Order::identity;  // with another a GPU's filter keeps a copy of c besides
    const runtime::DeviceLoss loss(desc, runtime::choose_boxed_blocks({256000, 2304, bf16}, Target::host()),
                                   runtime::choose_plain_blocks({256000, 2304, bf16}), std::make_shared<ThreadPool>(1));
    const std::size_t most = limit ? limit : std::size_t{1} << 30;
    CHECK(loss.workspace(8192, true) <= most);
    CHECK(loss.workspace(8192, true) > most / 2);
  }
}

namespace {

/// What a call on a GPU says that refuses it; "" when it does not.
template <class F>
std::string refusal(F&& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return std::regex_replace(std::string(error.what()), std::regex("0x[0-9a-f]+"), "@");
  }
  return "";
}

}  // namespace

TEST_CASE("gpu loss: check_labels refuses what the CPU refuses, in the same words, before anything is written") {
  if (!gpu()) return;
  LossCase x({40, 20, 8}, {.reduction = Reduction::none, .shift = 1});
  x.desc.check_labels = true;
  Gpu::Runner plan(x.desc);
  Array cu(i64, {3});
  const auto call = [&](std::vector<double> ends) {
    for (std::int64_t i = 0; i < 3; ++i) cu.set(i, ends[static_cast<std::size_t>(i)]);
    x.poison_forward();
    const auto bits = x.bits();
    const Workspace forward(plan.workspace_bytes(x.N, false)), backward(plan.workspace_bytes(x.N, true));
    ForwardArgs f = x.forward_args(forward);
    BackwardArgs b = x.backward_args(backward);
    f.cu_seqlens = b.cu_seqlens = cu.ref();
    const std::string said = refusal([&] { plan.forward(f); });
    CHECK(refusal([&] { plan.backward(b); }) == std::regex_replace(said, std::regex("forward"), "backward"));
    if (!said.empty()) CHECK(x.bits() == bits);
    return said;
  };
  CHECK(call({0, 10, 40}) == "");
  CHECK(call({0, 41, 40}) == "Plan::forward: cu_seqlens[1] is 41 after 0; it must rise from 0 to N = 40");
  CHECK(call({0, 10, 39}) == "Plan::forward: cu_seqlens[2] is 39 after 10; it must rise from 0 to N = 40");
  x.target.set(10, 99);  // the first of its sequence: no row's label
  CHECK(call({0, 10, 40}) == "");
  x.target.set(11, -1);
  CHECK(call({0, 10, 40}) ==
        "Plan::forward: target[11] is -1, outside the vocabulary [0, 20), and PlanDesc::ignore_index is -100: set it "
        "to -1 to ignore such rows");
}

TEST_CASE("gpu loss: tensors in host memory are refused") {
  if (!gpu()) return;
  LossCase x({40, 24, 8}, {});
  x.desc.device = {DeviceType::cuda, 0};
  Plan plan(x.desc);
  const Workspace w(plan.workspace_bytes(x.N, false));
  ForwardArgs args = x.forward_args(w);
  CHECK(refusal([&] { plan.forward(args); }) == "Plan::forward: e lies on cpu:0 and the plan computes on cuda:0");
  for (TensorRef* t : {&args.e, &args.c, &args.target, &args.loss, &args.lse, &args.workspace})
    t->device = x.desc.device;
  CHECK(refusal([&] { plan.forward(args); }).find("copy it to memory of that device") != std::string::npos);
}

TEST_CASE("device loss: a plan for a GPU that is not there says so") {
  if (gpu()) return;
  CHECK_THROWS_AS(Plan({.hidden = 8, .vocabulary = 5, .device = {DeviceType::cuda, 0}}), DeviceError);
}

TEST_CASE("plan: on the CPU min_memory takes the smallest ranges") {
  LossCase x({70, 2000, 24}, {.strategy = Strategy::min_memory});
  Plan plan(x.desc);
  CHECK(plan.report(x.N).strategy == Strategy::min_memory);
  CHECK(plan.report(x.N).ranges > 4);
  x.run(plan);
  x.check();
}
