// The backward's g: the upstream gradient of each valid row with the reduction's factor in it, and for f16 a scale.
#include "lib/kernels/kernels.h"

namespace kerf::kernels {

Program upstream(Upstream how, bool given, bool find_largest) {
  ProgramBuilder p("upstream");
  Axis N = p.axis("N"), B, T, Q, one;
  Tensor grad, rows, valid, largest, g = p.output("g", f32, {N});
  if (how == Upstream::each || find_largest) one = p.axis("one", 1);
  if (how == Upstream::each) {
    B = p.axis("B");
    T = p.axis("T");
    grad = p.input("grad", f32, {B, T, one});
    rows = p.input("rows", i64, {N});
  } else {
    if (given) grad = p.input("grad", f32, {});
    if (how == Upstream::mean) valid = p.input("valid", i64, {});
  }
  if (find_largest) {
    Q = p.axis("Q");
    largest = p.output("largest", f32, {Q});
  }
  Block n = p.parallel(N, upstream_block);
  Tile x = full(n, 1);
  if (how == Upstream::each) {
    Tile row = load(rows, n, fill(-1)), sequence = row / p.size(T);
    x = load(grad, sequence, row - sequence * p.size(T), full(n, 0, i64));
  } else {
    if (given) x = x * load(grad);
    if (how == Upstream::mean) x = x / cast(load(valid), f32);
  }
  store(g, n, x);
  if (find_largest) {
    Tile size = max(x, -x), number = full(p.whole(one), 0, i64) + reduce_max(n.index(), N) / upstream_block;
    store(largest, number, reduce_max(where(size < inf, size, 0), N));
  }
  return p.finish();
}

Program scale_upstream() {
  ProgramBuilder p("scale_upstream");
  Axis N = p.axis("N"), Q = p.axis("Q"), L = p.axis("L", upstream_block), one = p.axis("one", 1);
  Tensor largest = p.input("largest", f32, {Q}), g = p.inout("g", f32, {N}), scale = p.output("scale", f32, {one});
  Block at = p.parallel(Q, 1), l = p.whole(L);
  Tile most = p.loop(Q, 256, reduce_sum(zeros(p.whole(one)), one), [&](Block q, Tile before) {
    // What is said of blocks past N means nothing.
    return max(before, reduce_max(where(q.index() * upstream_block < p.size(N), load(largest, q), 0), Q));
  });
  Tile s = where(most == 0, 1, min(0x1p14 / most, 0x1p126));  // and its inverse is no subnormal
  Tile n = at.index() * upstream_block + l.index();
  store(g, n, load(g, n) * s);
  store(scale, at.index(), 1 / s);  // by the first instance: the others' index lies outside
  return p.finish();
}

}  // namespace kerf::kernels
