// The sum of the losses of all rows, in a fixed order: blocks of rows, then the blocks' sums.
#include "lib/kernels/kernels.h"

namespace kerf::kernels {

Program sum_losses() {
  ProgramBuilder p("sum_losses");
  Axis T = p.axis("T"), Q = p.axis("Q"), L = p.axis("L", loss_block);
  Tensor loss = p.input("loss", f32, {T}), partial = p.output("partial", f32, {Q});
  Block q = p.parallel(Q, 1), l = p.whole(L);
  store(partial, q, reduce_sum(load(loss, q.index() * loss_block + l.index()), L));
  return p.finish();
}

Program finish_loss(bool mean) {
  ProgramBuilder p("finish_loss");
  Axis Q = p.axis("Q"), one = p.axis("one", 1);
  Tensor partial = p.input("partial", f32, {Q}), valid, loss = p.output("loss", f32, {});
  if (mean) valid = p.input("valid", i64, {});
  Tile sum = p.loop(Q, 256, reduce_sum(zeros(p.whole(one)), one),
                    [&](Block q, Tile before) { return before + reduce_sum(load(partial, q), Q); });
  store(loss, mean ? sum / cast(load(valid), f32) : sum);
  return p.finish();
}

}  // namespace kerf::kernels
