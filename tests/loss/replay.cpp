// A call of a plan captured in a graph and replayed: the same bits as the call, every time.
#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "kerf/loss.h"
#include "tests/loss/loss_case.h"
#include "tests/support/cuda_run.h"

namespace kerf::test {

TEST_CASE("gpu loss: forward and backward replayed a thousand times from a graph give the bits of the call") {
  const auto device = gpu();
  if (!device) return;
  constexpr std::int64_t N = 333, V = 3000, D = 72;
  LossCase x({N, V, D}, {.dtype = bf16});
  PlanDesc desc = x.desc;
  desc.device = device->tag();
  Plan plan(desc);
  plan.prepare();

  const cuda::OwnStream stream(device);
  const auto copied = [&](const Array& a) {
    Array dense(a.dtype(), a.shape());
    for (std::int64_t i = 0; i < a.size(); ++i) dense.set(i, a[i]);
    cuda::Buffer b(device, static_cast<std::size_t>(dense.size() * size_of(dense.dtype())));
    b.upload(dense.ref().data, b.bytes());
    device->synchronize();
    return b;
  };
  const cuda::Buffer e = copied(x.e), c = copied(x.c), target = copied(x.target);
  const cuda::Buffer loss(device, 4), lse(device, N * 4), de(device, N * D * 2), dc(device, V * D * 2);
  const cuda::Buffer space(device, std::max(plan.workspace_bytes(N, false), plan.workspace_bytes(N, true)));
  const TensorRef workspace = space.tensor(boolean, {static_cast<std::int64_t>(space.bytes())});
  const ForwardArgs forward{.e = e.tensor(bf16, {N, D}),
                            .c = c.tensor(bf16, {V, D}),
                            .target = target.tensor(x.target.dtype(), {N}),
                            .loss = loss.tensor(f32, {1}),
                            .lse = lse.tensor(f32, {N}),
                            .workspace = workspace};
  const BackwardArgs backward{.e = forward.e,
                              .c = forward.c,
                              .target = forward.target,
                              .lse = forward.lse,
                              .de = de.tensor(bf16, {N, D}),
                              .dc = dc.tensor(bf16, {V, D}),
                              .workspace = workspace};
  const auto poison = [&] {
    for (const cuda::Buffer* b : {&loss, &lse, &de, &dc, &space}) b->fill(0xff, stream);
  };
  const auto results = [&] {
    std::vector<std::byte> all;
    for (const cuda::Buffer* b : {&loss, &lse, &de, &dc}) {
      const std::size_t at = all.size();
      all.resize(at + b->bytes());
      b->download(all.data() + at, b->bytes(), stream);
      stream.synchronize();
    }
    return all;
  };
  poison();
  plan.forward(forward, stream);
  plan.backward(backward, stream);
  const std::vector<std::byte> called = results();

  const cuda::Driver& d = device->driver();
  const auto raw = static_cast<cuda::api::StreamHandle>(static_cast<Stream>(stream).handle);
  d.check(d->cuStreamBeginCapture_v2(raw, cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
  plan.forward(forward, stream);
  plan.backward(backward, stream);
  cuda::api::Graph graph = nullptr;
  d.check(d->cuStreamEndCapture(raw, &graph), "cuStreamEndCapture", "a test");
  cuda::api::GraphExec exec = nullptr;
  {
    const cuda::Current current(*device);
    d.check(d->cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiateWithFlags", "a test");
  }
  for (int round = 0; round < 10; ++round) {
    poison();
    {
      const cuda::Current current(*device);
      for (int i = 0; i < 100; ++i) d.check(d->cuGraphLaunch(exec, raw), "cuGraphLaunch", "a test");
    }
    CHECK(results() == called);
  }
  d->cuGraphExecDestroy(exec);
  d->cuGraphDestroy(graph);
}

TEST_CASE("gpu filter: calls replayed from a graph give the bits of the call, once the order is known") {
  const auto device = gpu();
  if (!device) return;
  constexpr std::int64_t N = 333, V = 3000, D = 72;
  for (Order order : {Order::identity, Order::automatic}) {
    CAPTURE(name_of(order));
    LossCase x({N, V, D}, {.dtype = bf16, .strategy = Strategy::filtered, .order = order});
    for (std::int64_t v = 0; v < V; ++v) x.c.set(v * D, 1 - 0.01 * static_cast<double>(v));  // most tiles hardly matter
    for (std::int64_t n = 0; n < N; ++n) x.e.set(n * D, 1);
    for (std::int64_t n = 0; n < N; ++n)
      if (x.label[static_cast<std::size_t>(n)] >= 0) x.target.set(n, static_cast<double>(n));
    PlanDesc desc = x.desc;
    desc.device = device->tag();
    Plan plan(desc);
    plan.prepare();

    const cuda::OwnStream stream(device);
    const auto copied = [&](const Array& a) {
      Array dense(a.dtype(), a.shape());
      for (std::int64_t i = 0; i < a.size(); ++i) dense.set(i, a[i]);
      cuda::Buffer b(device, static_cast<std::size_t>(dense.size() * size_of(dense.dtype())));
      b.upload(dense.ref().data, b.bytes());
      device->synchronize();
      return b;
    };
    const cuda::Buffer e = copied(x.e), c = copied(x.c), target = copied(x.target);
    const auto [blocks, tokens] = plan.block_lse_shape(N);
    const cuda::Buffer loss(device, 4), lse(device, N * 4), de(device, N * D * 2), dc(device, V * D * 2);
    const cuda::Buffer block_lse(device, static_cast<std::size_t>(blocks * tokens * 4));
    const cuda::Buffer space(device, std::max(plan.workspace_bytes(N, false), plan.workspace_bytes(N, true)));
    const TensorRef workspace = space.tensor(boolean, {static_cast<std::int64_t>(space.bytes())});
    const ForwardArgs forward{.e = e.tensor(bf16, {N, D}),
                              .c = c.tensor(bf16, {V, D}),
                              .target = target.tensor(x.target.dtype(), {N}),
                              .loss = loss.tensor(f32, {1}),
                              .lse = lse.tensor(f32, {N}),
                              .block_lse = block_lse.tensor(f32, {blocks, tokens}),
                              .workspace = workspace};
    const BackwardArgs backward{.e = forward.e,
                                .c = forward.c,
                                .target = forward.target,
                                .lse = forward.lse,
                                .de = de.tensor(bf16, {N, D}),
                                .dc = dc.tensor(bf16, {V, D}),
                                .block_lse = forward.block_lse,
                                .workspace = workspace};
    const auto poison = [&] {
      for (const cuda::Buffer* b : {&loss, &lse, &de, &dc, &block_lse, &space}) b->fill(0xff, stream);
    };
    const auto results = [&] {
      std::vector<std::byte> all;
      for (const cuda::Buffer* b : {&loss, &lse, &de, &dc}) {
        const std::size_t at = all.size();
        all.resize(at + b->bytes());
        b->download(all.data() + at, b->bytes(), stream);
        stream.synchronize();
      }
      return all;
    };
    poison();
    plan.forward(forward, stream);
    plan.backward(backward, stream);
    const std::vector<std::byte> called = results();
    const FilterReport report = plan.filter_report(workspace, stream);
    CHECK(report.kept < report.tiles);
    CHECK(report.kept > 0);

    const cuda::Driver& d = device->driver();
    const auto raw = static_cast<cuda::api::StreamHandle>(static_cast<Stream>(stream).handle);
    d.check(d->cuStreamBeginCapture_v2(raw, cuda::api::CaptureMode::global), "cuStreamBeginCapture_v2", "a test");
    plan.forward(forward, stream);
    plan.backward(backward, stream);
    cuda::api::Graph graph = nullptr;
    d.check(d->cuStreamEndCapture(raw, &graph), "cuStreamEndCapture", "a test");
    cuda::api::GraphExec exec = nullptr;
    {
      const cuda::Current current(*device);
      d.check(d->cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiateWithFlags", "a test");
    }
    for (int round = 0; round < 20; ++round) {
      poison();
      {
        const cuda::Current current(*device);
        d.check(d->cuGraphLaunch(exec, raw), "cuGraphLaunch", "a test");
      }
      CHECK(results() == called);
      CHECK(plan.filter_report(workspace, stream).kept == report.kept);
    }
    d->cuGraphExecDestroy(exec);
    d->cuGraphDestroy(graph);
  }
}

}  // namespace kerf::test
