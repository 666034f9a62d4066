// What a plan refuses, in which words, and that nothing has been written by then.
#include <doctest/doctest.h>

#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <limits>
#include <regex>

#include "kerf/error.h"
#include "tests/loss/loss_case.h"

using namespace kerf;
using namespace kerf::test;

namespace {

constexpr std::int64_t N = 30, V = 20, D = 8;

/// The message of the UsageError that f throws, with addresses as @; "" when it throws none.
std::string refused(const std::function<void()>& f) {
  try {
    f();
  } catch (const UsageError& error) {
    return std::regex_replace(std::string(error.what()), std::regex("0x[0-9a-f]+"), "@");
  }
  return "";
}

struct Fixture {
  LossCase x;
  Plan plan;
  Workspace fw, bw;

  explicit Fixture(PlanDesc desc = {})
      : x({N, V, D}, desc), plan(x.desc), fw(plan.workspace_bytes(N, false)), bw(plan.workspace_bytes(N, true)) {
    for (std::int64_t n = 0; n < N; ++n) x.lse.set(n, 1);
  }

  /// The message of a call whose arguments `change` has spoiled; outputs must hold what they held.
  std::string forward(const std::function<void(ForwardArgs&)>& change) {
    ForwardArgs args = x.forward_args(fw);
    change(args);
    return untouched([&] { plan.forward(args); });
  }
  std::string backward(const std::function<void(BackwardArgs&)>& change) {
    BackwardArgs args = x.backward_args(bw);
    change(args);
    return untouched([&] { plan.backward(args); });
  }

 private:
  std::string untouched(const std::function<void()>& call) {
    const auto bits = x.bits();
    const std::string message = refused(call);
    CHECK(x.bits() == bits);
    return message;
  }
};

std::string plan_refused(const PlanDesc& desc) {
  return refused([&] { Plan plan(desc); });
}

TensorRef resized(TensorRef t, std::initializer_list<std::int64_t> shape) {
  return TensorRef(t.data, t.dtype, shape, t.device);
}

}  // namespace

TEST_CASE("plan: sizes, dtypes and options that make no sense are refused") {
  CHECK(plan_refused({.hidden = 0, .vocabulary = 5}) == "PlanDesc: hidden is 0; it must be at least 1");
  CHECK(plan_refused({.hidden = 5, .vocabulary = -2}) == "PlanDesc: vocabulary is -2; it must be at least 1");
  CHECK(plan_refused({.hidden = 1, .vocabulary = std::int64_t{1} << 31}) ==
        "PlanDesc: vocabulary is 2147483648; it must be below 2^31");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .dtype = i32}) ==
        "PlanDesc: dtype is i32; it must be f32, bf16 or f16");
  CHECK(plan_refused({.hidden = std::int64_t{1} << 32, .vocabulary = 1 << 30}) ==
        "PlanDesc: c of [1073741824, 4294967296] f32: its size in bytes passes 2^63");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .shift = -1}) == "PlanDesc: shift is -1; it must not be negative");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .threads = -1}) ==
        "ThreadPool: -1 threads; it must be from 1 to 1024, or 0 for all processors");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .arch = "sm_80"}) ==
        "PlanDesc: arch is sm_80 and the plan computes on the cpu; name a GPU in device");
  for (double threshold : {-0.5, 1.5, std::numeric_limits<double>::infinity()})
    CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .filter_threshold = threshold}) ==
          "PlanDesc: filter_threshold is " + fmt::format("{}", threshold) +
              "; it must be between 0 (found from the sizes) and 1");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .filter_threshold = std::nan("")}) ==
        "PlanDesc: filter_threshold is nan; it must be between 0 (found from the sizes) and 1");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .filter = Filter::largest}) ==
        "PlanDesc: filter is largest and filter_threshold is 0; give the least probability that matters");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .strategy = Strategy::filtered, .filter = Filter::off}) ==
        "PlanDesc: strategy is filtered, and nothing is to be filtered (filter off, filter_e true, filter_c true)");
  CHECK(plan_refused({.hidden = 8,
                      .vocabulary = 5,
                      .strategy = Strategy::filtered,
                      .filter = Filter::mass,
                      .filter_e = false,
                      .filter_c = false}) ==
        "PlanDesc: strategy is filtered, and nothing is to be filtered (filter mass, filter_e false, filter_c false)");
  CHECK(plan_refused({.hidden = 8, .vocabulary = 5, .check_labels = true}) ==
        "PlanDesc: check_labels is set and the plan computes on the cpu, which always checks labels");
}

TEST_CASE("plan: workspace for an impossible number of rows is refused") {
  Plan plan({.hidden = D, .vocabulary = V});
  CHECK(refused([&] { plan.workspace_bytes(-1, false); }) == "Plan: -1 rows; their number must not be negative");
  for (bool backward : {false, true})
    for (std::int64_t rows : {std::int64_t{1} << 62, std::int64_t{1} << 58})
      CHECK(refused([&] { plan.workspace_bytes(rows, backward); }) ==
            "Plan: the workspace for " + std::to_string(rows) + " rows passes 2^63 bytes");
}

TEST_CASE("loss: e and c that do not fit each other or the plan are refused") {
  Fixture f;
  CHECK(f.forward([&](auto& a) {
    a.c = resized(a.c, {V, 4});
  }) == "Plan::forward: e is f32 [30, 8] with strides [11, 1], c is f32 [20, 4]; both end in D and D differs");
  CHECK(
      f.forward([&](auto& a) {
        a.c = resized(a.c, {10, D});
      }) ==
      "Plan::forward: e is f32 [30, 8] with strides [11, 1], c is f32 [10, 8] and the plan was made for D = 8, V = 20");
  CHECK(f.backward([&](auto& a) { a.e = resized(a.e, {N}); }) ==
        "Plan::backward: e is f32 [30]; it must be [N, D] or [B, T, D]");
  CHECK(f.backward([&](auto& a) {
    a.c = resized(a.c, {1, V, D});
  }) == "Plan::backward: c is f32 [1, 20, 8]; it must be [V, D]");
  CHECK(f.forward([&](auto& a) { a.e.dtype = bf16; }) ==
        "Plan::forward: e is bf16 [30, 8] with strides [11, 1] and the plan was made for f32");
  CHECK(f.forward([&](auto& a) { a.c.dtype = f16; }) ==
        "Plan::forward: c is f16 [20, 8] with strides [13, 1] and the plan was made for f32");
  CHECK(f.forward([&](auto& a) { a.e = {}; }) == "Plan::forward: e is not given");
  CHECK(f.forward([&](auto& a) { a.c = {}; }) == "Plan::forward: c is not given");
  CHECK(f.forward([&](auto& a) { a.target = {}; }) == "Plan::forward: target is not given");
  CHECK(f.backward([&](auto& a) { a.lse = {}; }) == "Plan::backward: lse is not given");
}

TEST_CASE("loss: negative sizes, null and misaligned pointers are refused") {
  Fixture f;
  CHECK(f.forward([&](auto& a) { a.e.shape[0] = -3; }) ==
        "Plan::forward: e is f32 [-3, 8] with strides [11, 1]; sizes must not be negative");
  CHECK(f.forward([&](auto& a) { a.e.data = nullptr; }) ==
        "Plan::forward: e is f32 [30, 8] with strides [11, 1] at a null pointer");
  CHECK(f.forward([&](auto& a) { a.target.data = nullptr; }) == "Plan::forward: target is i64 [30] at a null pointer");
  CHECK(f.forward([&](auto& a) { a.loss.data = nullptr; }) == "Plan::forward: loss is f32 [1] at a null pointer");
  CHECK(f.backward([&](auto& a) { a.de.data = nullptr; }) ==
        "Plan::backward: de is f32 [30, 8] with strides [9, 1] at a null pointer");
  CHECK(f.forward([&](auto& a) { a.e.data = static_cast<std::byte*>(a.e.data) + 2; }) ==
        "Plan::forward: e is f32 [30, 8] with strides [11, 1] at @, which is not aligned to the 4 bytes of an element");
  CHECK(
      f.backward([&](auto& a) { a.dc.data = static_cast<std::byte*>(a.dc.data) + 1; }) ==
      "Plan::backward: dc is f32 [20, 8] with strides [15, 1] at @, which is not aligned to the 4 bytes of an element");
  CHECK(f.forward([&](auto& a) { a.workspace.data = static_cast<std::byte*>(a.workspace.data) + 32; }) ==
        "Plan::forward: workspace at @ is not aligned to 64 bytes");
}

TEST_CASE("loss: strides that overlap, run backwards or break rows apart are refused") {
  Fixture f;
  CHECK(f.forward([&](auto& a) { a.e.strides[0] = 7; }) ==
        "Plan::forward: e is f32 [30, 8] with strides [7, 1]; rows overlap: the step from one to the next must be at "
        "least 8");
  CHECK(f.forward([&](auto& a) { a.c.strides[0] = 0; }) ==
        "Plan::forward: c is f32 [20, 8] with strides [0, 1]; rows overlap: the step from one to the next must be at "
        "least 8");
  CHECK(f.backward([&](auto& a) { a.de.strides[0] = 4; }) ==
        "Plan::backward: de is f32 [30, 8] with strides [4, 1]; rows overlap: the step from one to the next must be at "
        "least 8");
  CHECK(f.forward([&](auto& a) { a.e.strides[0] = -11; }) ==
        "Plan::forward: e is f32 [30, 8] with strides [-11, 1]; strides must not be negative");
  CHECK(f.forward([&](auto& a) {
    a.e = a.e.with_strides({1, 30});
  }) == "Plan::forward: e is f32 [30, 8] with strides [1, 30]; its rows must be contiguous (last stride 1)");
  CHECK(f.forward([&](auto& a) { a.lse = a.lse.with_strides({2}); }) ==
        "Plan::forward: lse is f32 [30] with strides [2]; it must be dense");
  CHECK(f.forward([&](auto& a) {
    a.e = resized(a.e, {5, 6, D}).with_strides({7 * D, D, 1});
    a.target = resized(a.target, {5, 6});
  }) == "Plan::forward: e is f32 [5, 6, 8] with strides [56, 8, 1]; rows must be evenly spaced across sequences "
        "(first stride 48): to leave out the last rows of each, pass all of them and set PlanDesc::shift");
}

TEST_CASE("loss: sizes whose products pass 2^63 are refused") {
  Fixture f;
  const std::int64_t huge = std::int64_t{1} << 61;
  CHECK(f.forward([&](auto& a) { a.e.shape[0] = huge; }) ==
        "Plan::forward: e is f32 [2305843009213693952, 8] with strides [11, 1]; its size in bytes passes 2^63");
  CHECK(f.forward([&](auto& a) { a.c.strides[0] = huge; }) ==
        "Plan::forward: c is f32 [20, 8] with strides [2305843009213693952, 1]; its size in bytes passes 2^63");
  CHECK(f.forward([&](auto& a) { a.target.strides[0] = std::numeric_limits<std::int64_t>::max(); }) ==
        "Plan::forward: target is i64 [30] with strides [9223372036854775807]; its size in bytes passes 2^63");
  CHECK(refused([] {
          float x = 0;
          TensorRef(&x, {std::int64_t{1} << 40, std::int64_t{1} << 40});
        }) == "TensorRef: the product of the sizes passes 2^63");
}

TEST_CASE("loss: arguments of the wrong shape or dtype are refused") {
  Fixture f;
  CHECK(f.forward([&](auto& a) { a.target = resized(a.target, {29}); }) ==
        "Plan::forward: target is i64 [29] and e is f32 [30, 8] with strides [11, 1]; target must be [30], one element "
        "per row of e");
  CHECK(f.forward([&](auto& a) { a.target.dtype = f32; }) ==
        "Plan::forward: target is f32 [30]; it must be i32 or i64");
  CHECK(f.forward([&](auto& a) { a.loss = resized(a.loss, {2}); }) ==
        "Plan::forward: loss is f32 [2]; with reduction mean it is one element");
  CHECK(f.forward([&](auto& a) { a.lse.dtype = bf16; }) == "Plan::forward: lse is bf16 [30]; it must be f32");
  CHECK(
      f.backward([&](auto& a) {
        a.de = resized(a.de, {29, D});
      }) ==
      "Plan::backward: de is f32 [29, 8] and e is f32 [30, 8] with strides [11, 1]; shape and dtype must be the same");
  CHECK(f.backward([&](auto& a) {
    a.dc = resized(a.dc, {19, D});
  }) == "Plan::backward: dc is f32 [19, 8]; it must be [20, 8] like c");
  CHECK(f.backward([&](auto& a) { a.dc.dtype = f16; }) ==
        "Plan::backward: dc is f16 [20, 8] with strides [15, 1]; it must be f32 like c, or f32");
  CHECK(f.backward([&](auto& a) { a.grad_loss.dtype = i32; }) ==
        "Plan::backward: grad_loss is i32 [1]; it must be f32");

  Fixture each({.reduction = Reduction::none});
  CHECK(each.forward([&](auto& a) { a.loss = resized(a.loss, {1}); }) ==
        "Plan::forward: loss is f32 [1] and e is f32 [30, 8] with strides [11, 1]; loss must be [30], one element per "
        "row of e");
  CHECK(each.backward([&](auto& a) { a.grad_loss = {}; }) ==
        "Plan::backward: grad_loss is not given; with reduction none it has one element per row");
}

TEST_CASE("loss: tensors of another device are refused") {
  Fixture f;
  CHECK(f.forward([&](auto& a) {
    a.e.device = {DeviceType::cuda, 0};
  }) == "Plan::forward: e lies on cuda:0 and the plan computes on cpu:0");
  CHECK(f.backward([&](auto& a) {
    a.workspace.device = {DeviceType::cuda, 1};
  }) == "Plan::backward: workspace lies on cuda:1 and the plan computes on cpu:0");
}

TEST_CASE(
    "loss: a label outside the vocabulary is named with its row, with a hint where it looks like an ignore label") {
  Fixture f;
  const auto with_label = [&](std::int64_t row, std::int64_t label) {
    const double before = f.x.target[row];
    f.x.target.set(row, static_cast<double>(label));
    const std::string forward = f.forward([](auto&) {}), backward = f.backward([](auto&) {});
    f.x.target.set(row, before);
    CHECK(backward == std::regex_replace(forward, std::regex("forward"), "backward"));
    return forward;
  };
  CHECK(with_label(17, 20) == "Plan::forward: target[17] is 20, outside the vocabulary [0, 20)");
  CHECK(with_label(29, -7) == "Plan::forward: target[29] is -7, outside the vocabulary [0, 20)");
  CHECK(with_label(0, std::int64_t{1} << 32) ==
        "Plan::forward: target[0] is 4294967296, outside the vocabulary [0, 20)");
  CHECK(with_label(3, -1) ==
        "Plan::forward: target[3] is -1, outside the vocabulary [0, 20), and PlanDesc::ignore_index is -100: set it to "
        "-1 to ignore such rows");
  Fixture other({.ignore_index = 7});
  other.x.target.set(5, -100);
  CHECK(other.forward([](auto&) {}) ==
        "Plan::forward: target[5] is -100, outside the vocabulary [0, 20), and PlanDesc::ignore_index is 7: set it to "
        "-100 to ignore such rows");
  f.x.target.set(8, 99);
  CHECK(f.forward([&](auto& a) {
    a.e = TensorRef(a.e.data, f32, {5, 6, D}).with_strides({6 * 11, 11, 1});
    a.target = resized(a.target, {5, 6});
    a.lse = resized(a.lse, {5, 6});
  }) == "Plan::forward: target[1, 2] is 99, outside the vocabulary [0, 20)");
}

TEST_CASE("loss: outputs that share memory with another tensor are refused") {
  Fixture f({.reduction = Reduction::none});
  const std::string bytes = ": bytes [@, @) and [@, @); ", own = " is written, so give it memory of its own";
  CHECK(f.forward([&](auto& a) { a.loss = a.lse; }) ==
        "Plan::forward: loss and lse share memory" + bytes + "loss" + own);
  CHECK(f.forward([&](auto& a) { a.lse.data = a.e.data; }) ==
        "Plan::forward: e and lse share memory" + bytes + "lse" + own);
  CHECK(f.forward([&](auto& a) { a.loss.data = static_cast<float*>(a.c.data) + 3; }) ==
        "Plan::forward: c and loss share memory" + bytes + "loss" + own);
  CHECK(f.backward([&](auto& a) { a.de = a.e; }) == "Plan::backward: e and de share memory" + bytes + "de" + own);
  CHECK(f.backward([&](auto& a) { a.dc.data = static_cast<float*>(a.c.data) + 5; }) ==
        "Plan::backward: c and dc share memory" + bytes + "dc" + own);
  CHECK(f.backward([&](auto& a) {
    a.dc = resized(a.workspace, {V, D}), a.dc.dtype = f32;
  }) == "Plan::backward: dc and workspace share memory" + bytes + "dc" + own);
  BackwardArgs args = f.x.backward_args(f.bw);
  args.grad_loss = args.lse;
  CHECK(refused([&] { f.plan.backward(args); }) == "");  // both are only read
}

TEST_CASE("loss: columns of one matrix that touch are refused") {
  Fixture f;
  std::vector<float> both(N * 2 * D);
  CHECK(f.backward([&](auto& a) {
    a.e = TensorRef(both.data(), {N, D}).with_strides({2 * D, 1});
    a.de = TensorRef(both.data() + D - 1, {N, D}).with_strides({2 * D, 1});
  }) == "Plan::backward: e and de share memory: bytes [@, @) and [@, @); de is written, so give it memory of its own");
}

TEST_CASE("loss: too small a workspace is told the least that works, and that works") {
  Fixture f;
  for (bool backward : {false, true}) {
    const auto least = static_cast<std::int64_t>(f.plan.workspace_bytes(N, backward));
    const auto call = [&](std::int64_t bytes) {
      const auto shrink = [&](auto& a) { a.workspace.shape[0] = bytes; };
      return backward ? f.backward(shrink) : f.forward(shrink);
    };
    for (std::int64_t bytes : {std::int64_t{0}, least - 1})
      CHECK(call(bytes) == std::string("Plan::") + (backward ? "backward" : "forward") + ": workspace has " +
                               std::to_string(bytes) + " bytes; the least that works for 30 rows is " +
                               std::to_string(least) + " (Plan::workspace_bytes)");
  }
  CHECK(f.forward([&](auto& a) { a.workspace = {}; }) ==
        "Plan::forward: workspace has 0 bytes; the least that works for 30 rows is " +
            std::to_string(f.plan.workspace_bytes(N, false)) + " (Plan::workspace_bytes)");
  f.x.run(f.plan);  // with exactly that many
  f.x.check();
}

TEST_CASE("loss: a shift that cannot tell where sequences end is refused") {
  Fixture f({.shift = 1});
  CHECK(f.forward([](auto&) {}) ==
        "Plan::forward: e is f32 [30, 8] with strides [11, 1] and the plan shifts labels by 1: give e as [B, T, D], or "
        "cu_seqlens, to tell where sequences end");
  const auto with = [&](std::vector<std::int64_t> cu) {
    return f.forward([&](auto& a) { a.cu_seqlens = TensorRef(cu.data(), i64, {std::ssize(cu)}); });
  };
  CHECK(with({0, 31}) == "Plan::forward: cu_seqlens[1] is 31 after 0; it must rise from 0 to N = 30");
  CHECK(with({1, 30}) == "Plan::forward: cu_seqlens[0] is 1 after 0; it must rise from 0 to N = 30");
  CHECK(with({0, 20, 10, 30}) == "Plan::forward: cu_seqlens[2] is 10 after 20; it must rise from 0 to N = 30");
  CHECK(with({0, 20}) == "Plan::forward: cu_seqlens[1] is 20 after 0; it must rise from 0 to N = 30");
  CHECK(with({0, 90, 30}) == "Plan::forward: cu_seqlens[1] is 90 after 0; it must rise from 0 to N = 30");
  CHECK(with({30}) == "Plan::forward: cu_seqlens is i64 [1]; it must be [sequences + 1], at least 2 elements");
  CHECK(f.forward([&](auto& a) {
    a.e = TensorRef(a.e.data, f32, {5, 6, D}).with_strides({6 * 11, 11, 1});
    a.target = resized(a.target, {5, 6});
    a.cu_seqlens = a.target;
  }) == "Plan::forward: e is f32 [5, 6, 8] with strides [66, 11, 1] and cu_seqlens is given; it goes with e as [N, D]");
}

TEST_CASE("linear_cross_entropy: shapes it cannot take a plan from are refused") {
  float x = 0;
  std::int64_t y = 0;
  const TensorRef target(&y, i64, {1});
  CHECK(refused([&] {
          linear_cross_entropy(TensorRef(&x, {1}), TensorRef(&x, {1, 1}), target);
        }) == "linear_cross_entropy: e is f32 [1], c is f32 [1, 1]; they must be [N, D] or [B, T, D], and [V, D]");
  CHECK(refused([&] {
          linear_cross_entropy(TensorRef(&x, {4096, 2304}), TensorRef(&x, {256000, 2048}), target);
        }) == "linear_cross_entropy: e is f32 [4096, 2304], c is f32 [256000, 2048]; both end in D and D differs");
}

TEST_CASE("filter: a block_lse that is not what the plan asks for is refused") {
  Fixture f({.strategy = Strategy::filtered, .order = Order::identity});
  f.x.filter(f.plan);
  const auto both = [&](const std::function<void(TensorRef&)>& change) {
    const std::string forward = f.forward([&](auto& a) { change(a.block_lse); });
    const std::string backward = f.backward([&](auto& a) { change(a.block_lse); });
    CHECK(backward == std::regex_replace(forward, std::regex("Plan::forward"), "Plan::backward"));
    return forward;
  };
  CHECK(f.plan.block_lse_shape(N) == std::array<std::int64_t, 2>{1, 256});
  CHECK(both([](TensorRef& t) {
          t = resized(t, {1, 255});
        }) == "Plan::forward: block_lse is f32 [1, 255]; for 30 rows it must be [1, 256] (Plan::block_lse_shape)");
  CHECK(both([](TensorRef& t) {
          t = resized(t, {256, 1});
        }) == "Plan::forward: block_lse is f32 [256, 1]; for 30 rows it must be [1, 256] (Plan::block_lse_shape)");
  CHECK(both([](TensorRef& t) { t = resized(t, {256}); }) ==
        "Plan::forward: block_lse is f32 [256]; for 30 rows it must be [1, 256] (Plan::block_lse_shape)");
  CHECK(both([](TensorRef& t) { t.dtype = bf16; }) == "Plan::forward: block_lse is bf16 [1, 256]; it must be f32");
  CHECK(both([](TensorRef& t) { t.strides[1] = 2; }) ==
        "Plan::forward: block_lse is f32 [1, 256] with strides [256, 2]; it must be dense");
  CHECK(both([](TensorRef& t) { t.data = nullptr; }) == "Plan::forward: block_lse is f32 [1, 256] at a null pointer");
  CHECK(both([](TensorRef& t) { t.data = static_cast<std::byte*>(t.data) + 2; }) ==
        "Plan::forward: block_lse is f32 [1, 256] at @, which is not aligned to the 4 bytes of an element");
  CHECK(both([](TensorRef& t) {
          t.device = {DeviceType::cuda, 0};
        }) == "Plan::forward: block_lse lies on cuda:0 and the plan computes on cpu:0");
  const std::string bytes = ": bytes [@, @) and [@, @); ", own = " is written, so give it memory of its own";
  CHECK(f.forward([&](auto& a) { a.block_lse.data = a.e.data; }) ==
        "Plan::forward: e and block_lse share memory" + bytes + "block_lse" + own);
  CHECK(f.backward([&](auto& a) { a.de.data = a.block_lse.data; }) ==
        "Plan::backward: de and block_lse share memory" + bytes + "de" + own);

  Fixture exact;
  exact.x.filter(f.plan);
  CHECK(exact.forward([](auto&) {}) ==
        "Plan::forward: block_lse is given and the plan does not filter (PlanDesc::filter)");
  CHECK(exact.backward([](auto&) {}) ==
        "Plan::backward: block_lse is given and the plan does not filter (PlanDesc::filter)");
}

TEST_CASE("filter: labels are looked at before a filtered call writes, and too small a workspace is told the least") {
  Fixture f({.strategy = Strategy::filtered, .order = Order::identity});
  f.x.filter(f.plan);
  f.x.target.set(17, 20);
  CHECK(f.forward([](auto&) {}) == "Plan::forward: target[17] is 20, outside the vocabulary [0, 20)");
  CHECK(f.backward([](auto&) {}) == "Plan::backward: target[17] is 20, outside the vocabulary [0, 20)");
  f.x.target.set(17, 3);
  CHECK(f.backward([](auto& a) { a.workspace.shape[0] = 100; }).find("workspace has 100 bytes; the least that works") !=
        std::string::npos);
}

TEST_CASE("filter: an order that is no permutation, or that the plan does not take, is refused") {
  Fixture given({.strategy = Strategy::filtered, .order = Order::given});
  given.x.filter(given.plan);
  CHECK(given.forward([](auto&) {}) ==
        "Plan::forward: block_lse is given and the plan has no order of the vocabulary; call Plan::set_order");
  CHECK(given.backward([](auto&) {}) ==
        "Plan::backward: block_lse is given and the plan has no order of the vocabulary; call Plan::set_order");
  const auto set = [&](std::vector<std::int64_t> order) { return refused([&] { given.plan.set_order(order); }); };
  std::vector<std::int64_t> order;
  for (std::int64_t v = 0; v < V; ++v) order.push_back((v + 3) % V);
  CHECK(set({}) == "Plan::set_order: the order has 0 tokens and the vocabulary 20; each token comes once");
  CHECK(set({0, 1, 2}) == "Plan::set_order: the order has 3 tokens and the vocabulary 20; each token comes once");
  const auto with = [&](std::size_t i, std::int64_t v) {
    auto wrong = order;
    wrong[i] = v;
    return set(wrong);
  };
  CHECK(with(4, 20) == "Plan::set_order: order[4] is 20; it must be in [0, 20)");
  CHECK(with(19, -1) == "Plan::set_order: order[19] is -1; it must be in [0, 20)");
  CHECK(with(7, 3) == "Plan::set_order: order[0] and order[7] are both 3; each token comes once");
  CHECK(set(order) == "");
  CHECK(with(4, 20) != "");  // and the one before stays
  Workspace w(given.plan.workspace_bytes(N, false));
  given.plan.forward(given.x.forward_args(w));

  CHECK(refused([&] { given.plan.refresh_order(given.x.e.ref(), given.x.c.ref()); }) ==
        "Plan::refresh_order: PlanDesc::order is given; it must be automatic");
  Fixture identity({.strategy = Strategy::filtered, .order = Order::identity});
  CHECK(refused([&] { identity.plan.refresh_order(identity.x.e.ref(), identity.x.c.ref()); }) ==
        "Plan::refresh_order: PlanDesc::order is identity; it must be automatic");
  CHECK(refused([&] { identity.plan.set_order(order); }) ==
        "Plan::set_order: PlanDesc::order is identity; it must be given");
  Fixture automatic({.strategy = Strategy::filtered});
  CHECK(refused([&] { automatic.plan.set_order(order); }) ==
        "Plan::set_order: PlanDesc::order is automatic; it must be given");
  CHECK(refused([&] {
          automatic.plan.refresh_order(automatic.x.e.ref(), resized(automatic.x.c.ref(), {V, 4}));
        }) ==
        "Plan::refresh_order: e is f32 [30, 8] with strides [11, 1], c is f32 [20, 4]; both end in D and D differs");
  automatic.x.filter(automatic.plan);
  CHECK(automatic.backward([](auto&) {}) ==
        "Plan::backward: block_lse is given and the plan has no order of the vocabulary yet; the forward finds it");
}

TEST_CASE("filter: a plan that does not filter has no order, no shape of block_lse and nothing to report") {
  Fixture f;
  const std::string not_filtered = ": the plan does not filter (PlanDesc::filter)";
  CHECK(refused([&] { f.plan.set_order({}); }) == "Plan::set_order" + not_filtered);
  CHECK(refused([&] { f.plan.refresh_order(f.x.e.ref(), f.x.c.ref()); }) == "Plan::refresh_order" + not_filtered);
  CHECK(refused([&] { f.plan.filter_report(f.bw.ref()); }) == "Plan::filter_report" + not_filtered);
  CHECK(refused([&] { f.plan.block_lse_shape(N); }) == "Plan::block_lse_shape" + not_filtered);
  Fixture filtered({.strategy = Strategy::filtered});
  CHECK(refused([&] { filtered.plan.block_lse_shape(-1); }) == "Plan: -1 rows; their number must not be negative");
  CHECK(refused([&] {
          filtered.plan.filter_report(resized(filtered.bw.ref(), {8}));
        }).starts_with("Plan::filter_report: workspace has 8 bytes; the least that works for"));
}
