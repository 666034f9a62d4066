// Rows that have a label, side by side: compact_rows copies them out of e. Rows that have none: clear_rows writes the
// zeros of their gradient. copy_rows gives rows of c another distance, one that boxes of memory can have.
#include "lib/kernels/kernels.h"

namespace kerf::kernels {

Program compact_rows(Shape s, std::int64_t block_n, std::int64_t block_d) {
  ProgramBuilder p("compact_rows");
  Axis T = p.axis("T"), P = p.axis("P"), D = p.axis("D", s.hidden);
  Tensor e = p.input("e", s.dtype, {T, D}), rows = p.input("rows", i64, {P});
  Tensor compact = p.output("compact", s.dtype, {P, D});
  Block n = p.parallel(P, block_n), d = p.parallel(D, block_d);
  store(compact, n, d, load(e, load(rows, n, fill(-1)), d));
  return p.finish();
}

Program copy_rows(Shape s, std::int64_t block_v, std::int64_t block_d) {
  ProgramBuilder p("copy_rows");
  Axis V = p.axis("V", s.vocabulary), D = p.axis("D", s.hidden);
  Tensor c = p.input("c", s.dtype, {V, D}), copy = p.output("copy", s.dtype, {V, D});
  Block v = p.parallel(V, block_v), d = p.parallel(D, block_d);
  store(copy, v, d, load(c, v, d));
  return p.finish();
}

Program clear_rows(Shape s, std::int64_t block_n, std::int64_t block_d) {
  ProgramBuilder p("clear_rows");
  Axis T = p.axis("T"), D = p.axis("D", s.hidden);
  Tensor label = p.input("label", i32, {T}), de = p.output("de", s.dtype, {T, D});
  Block t = p.parallel(T, block_n), d = p.parallel(D, block_d);
  store(de, where(load(label, t) < 0, t.index(), -1), d, full(t, d, 0, s.dtype));
  return p.finish();
}

}  // namespace kerf::kernels
