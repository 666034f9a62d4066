// Second walk: two axes, reductions along one of them, and a fill that makes what lies outside weigh nothing. Once with
// a row held whole, once in blocks with a running maximum and sum, for rows of any length.
#include <cmath>

#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

namespace {

std::vector<double> reference(const Array& x) {
  const std::int64_t N = x.shape()[0], V = x.shape()[1];
  std::vector<double> y;
  for (std::int64_t n = 0; n < N; ++n) {
    double largest = -inf, sum = 0;
    for (std::int64_t v = 0; v < V; ++v) largest = std::max(largest, x[n * V + v]);
    for (std::int64_t v = 0; v < V; ++v) sum += std::exp(x[n * V + v] - largest);
    for (std::int64_t v = 0; v < V; ++v) y.push_back(std::exp(x[n * V + v] - largest) / sum);
  }
  return y;
}

Program row_softmax(std::int64_t vocabulary) {
  ProgramBuilder p("row_softmax");
  Axis N = p.axis("N"), V = p.axis("V", vocabulary);
  Tensor x = p.input("x", f32, {N, V}), y = p.output("y", f32, {N, V});
  Block n = p.parallel(N, 8), v = p.whole(V);
  Tile t = load(x, n, v);
  Tile u = exp(t - reduce_max(t, V));
  store(y, n, v, u / reduce_sum(u, V));
  return p.finish();
}

Program long_row_softmax() {
  ProgramBuilder p("long_row_softmax");
  Axis N = p.axis("N"), V = p.axis("V");
  Tensor x = p.input("x", f32, {N, V}), y = p.output("y", f32, {N, V});
  Block n = p.parallel(N, 8);
  auto [largest, sum] = p.loop(V, 64, carry(full(n, -inf), zeros(n)), [&](Block v, Tile m, Tile s) {
    Tile t = load(x, n, v, fill(-inf)), m1 = max(m, reduce_max(t, V));
    return carry(m1, s * exp(m - m1) + reduce_sum(exp(t - m1), V));
  });
  p.loop(V, 64, [&, m = largest, s = sum](Block v) { store(y, n, v, exp(load(x, n, v) - m) / s); });
  return p.finish();
}

void compare(const Program& program, std::int64_t N, std::int64_t V) {
  CAPTURE(N);
  CAPTURE(V);
  Random random(2);
  Array x = normal(random, f32, {N, V}, 3, /*padding=*/5), y(f32, {N, V}, /*padding=*/2);
  on_each_backend(program, {{{"x", &x}, {"y", &y}}}, [&] {
    const auto e = error(y, reference(x));
    CHECK(e.norm < 1e-6);
    CHECK(e.worst_row < 1e-6);
  });
}

}  // namespace

TEST_CASE("row_softmax: rows held whole, of any number and stride") {
  for (std::int64_t V : {1, 17, 100, 1000})
    for (std::int64_t N : {1, 8, 13}) compare(row_softmax(V), N, V);
}

TEST_CASE("long_row_softmax: rows in blocks, whose size is told at launch") {
  for (std::int64_t V : {1, 63, 64, 1000})
    for (std::int64_t N : {1, 13}) compare(long_row_softmax(), N, V);
}
