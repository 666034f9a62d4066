// The backward's g: the upstream gradient of each valid row with the reduction's factor in it, and for f16 a scale.
#include "lib/kernels/kernels.h"

namespace kerf::kernels {

Program upstream(Upstream how, bool given) {
  ProgramBuilder p("upstream");
  Axis N = p.axis("N"), B, T, one;
  Tensor grad, rows, valid, g = p.output("g", f32, {N});
  if (how == Upstream::each) {
    B = p.axis("B");
    T = p.axis("T");
    one = p.axis("one", 1);
    grad = p.input("grad", f32, {B, T, one});
    rows = p.input("rows", i64, {N});
  } else {
    if (given) grad = p.input("grad", f32, {});
    if (how == Upstream::mean) valid = p.input("valid", i64, {});
  }
  Block n = p.parallel(N, 256);
  if (how == Upstream::each) {
    Tile row = load(rows, n, fill(-1)), sequence = row / p.size(T);
    store(g, n, load(grad, sequence, row - sequence * p.size(T), full(n, 0, i64)));
    return p.finish();
  }
  Tile x = full(n, 1);
  if (given) x = x * load(grad);
  if (how == Upstream::mean) x = x / cast(load(valid), f32);
  store(g, n, x);
  return p.finish();
}

Program scale_upstream() {
  ProgramBuilder p("scale_upstream");
  Axis N = p.axis("N"), one = p.axis("one", 1);
  Tensor g = p.inout("g", f32, {N}), scale = p.output("scale", f32, {});
  Tile largest = p.loop(N, 1024, reduce_sum(zeros(p.whole(one)), one), [&](Block n, Tile before) {
    Tile x = load(g, n), size = max(x, -x);
    return max(before, reduce_max(where(size < inf, size, 0), N));
  });
  Tile s = where(largest == 0, 1, min(0x1p14 / largest, 0x1p126));  // and its inverse is no subnormal
  p.loop(N, 1024, [&](Block n) { store(g, n, load(g, n) * s); });
  store(scale, 1 / s);
  return p.finish();
}

}  // namespace kerf::kernels
