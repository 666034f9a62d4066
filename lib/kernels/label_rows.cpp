// Which rows have a label, for labels that lie on a device: two programs in a row. label_rows finds each row's label
// and counts them by blocks; compact_labels adds up the counts of the blocks before, each block for itself, and so
// knows where its rows go. No atomics: rows stay in order.
//
//   target  5 -100 7 99   V = 10   ->   label 5 -1 7 -2   ->   rows 0 2 -1 -1   target 5 7 -1 -1   valid 2, strays 1
#include <algorithm>
#include <limits>

#include "lib/kernels/kernels.h"
#include "lib/kernels/reference.h"

namespace kerf::kernels {

Labels reference_label_rows(const LabelRule& rule, std::int64_t B, std::int64_t T,
                            const std::vector<std::int64_t>& target, const std::vector<std::int64_t>& cu_seqlens) {
  Labels label;
  for (std::int64_t row = 0; row < B * T; ++row) {
    bool same = row % T + rule.shift < T;
    if (rule.packed)
      for (std::int64_t end : cu_seqlens) same = same && !(row < end && end <= row + rule.shift);
    const std::int64_t y = same ? target[static_cast<std::size_t>(row + rule.shift)] : rule.ignore_index;
    const bool inside = y >= 0 && y < rule.vocabulary;
    label.push_back(y == rule.ignore_index ? no_label : inside ? static_cast<std::int32_t>(y) : label_outside);
  }
  return label;
}

void reference_compact_labels(const Labels& label, Rows& rows, Labels& target) {
  rows.clear();
  target.clear();
  for (std::size_t n = 0; n < label.size(); ++n)
    if (label[n] >= 0) {
      rows.push_back(static_cast<std::int64_t>(n));
      target.push_back(label[n]);
    }
  rows.resize(label.size(), -1);
  target.resize(label.size(), -1);
}

namespace {

/// Integers of a block of rows, as i64.
Tile same(Block r, Block l, double value) { return full(r, l, value, DType::i64); }

/// Any i64, also one that no double holds.
Tile exactly(Block r, Block l, std::int64_t value) {
  const std::int64_t high = value >> 32, low = value & 0xffffffff;
  return same(r, l, static_cast<double>(high)) * 4294967296.0 + static_cast<double>(low);
}

}  // namespace

Program label_rows(const LabelRule& rule) {
  ProgramBuilder p("label_rows");
  Axis B = p.axis("B"), T = p.axis("T"), C, one = p.axis("one", 1), R = p.axis("R"), L = p.axis("L", label_block);
  Tensor target = p.input("target", rule.target, {B, T, one}), cu_seqlens;
  if (rule.packed) {
    C = p.axis("C");
    cu_seqlens = p.input("cu_seqlens", rule.cu_seqlens, {C, one});
  }
  Tensor label = p.output("label", i32, {R, L}), count = p.output("count", i64, {R});
  Tensor outside = p.output("outside", i64, {R});

  Block r = p.parallel(R, 1), l = p.whole(L);
  Tile row = r.index() * label_block + l.index();
  Tile sequence = row / p.size(T), at = row - sequence * p.size(T) + rule.shift;
  Tile counts = row < p.size(B) * p.size(T) && at < p.size(T);
  if (rule.packed) {
    Tile ends = p.loop(C, 8, full(r, l, 0, boolean), [&](Block c, Tile before) {
      Tile end = cast(load(cu_seqlens, c.index(), full(c, 0, i64), fill(-1)), i64);
      return before || reduce_any(row < end && end <= row + rule.shift, C);
    });
    counts = counts && !ends;
  }
  Tile y = cast(load(target, sequence, at, same(r, l, 0)), i64);
  counts = counts && y != exactly(r, l, rule.ignore_index);
  Tile inside = y >= 0 && y < rule.vocabulary, zero = same(r, l, 0), stray = counts && !inside;
  store(label, r, l, cast(where(counts, where(inside, y, label_outside), same(r, l, no_label)), i32));
  store(count, r, reduce_sum(where(counts && inside, 1, zero), L));
  store(outside, r, reduce_sum(where(stray, 1, zero), L));
  return p.finish();
}

Program compact_labels(bool losses) {
  ProgramBuilder p(losses ? "compact_labels_begin_losses" : "compact_labels");
  Axis R = p.axis("R"), Q = p.axis("Q"), L = p.axis("L", label_block), P = p.axis("P"), one = p.axis("one", 1), T;
  Tensor label = p.input("label", i32, {R, L}), count = p.input("count", i64, {Q}),
         outside = p.input("outside", i64, {Q});
  Tensor rows = p.output("rows", i64, {P}), target = p.output("target", i32, {P});
  Tensor valid = p.output("valid", i64, {one}), strays = p.output("strays", i64, {one}), loss, lse;
  if (losses) {
    T = p.axis("T");
    loss = p.output("loss", f32, {T});
    lse = p.output("lse", f32, {T});
  }

  Block r = p.parallel(R, 1), l = p.whole(L);
  Tile zero = full(r, 0, i64);
  auto [before, all, lost] = p.loop(Q, 256, carry(zero, zero, zero), [&](Block q, Tile before, Tile all, Tile lost) {
    Tile here = load(count, q);
    return carry(before + reduce_sum(where(q.index() < r.index(), here, 0), Q), all + reduce_sum(here, Q),
                 lost + reduce_sum(load(outside, q), Q));
  });
  store(valid, r.index(), all);  // by the first instance: the others' index lies outside
  store(strays, r.index(), lost);

  Tile y = load(label, r, l), row = r.index() * label_block + l.index();
  Tile counts = y >= 0;
  Tile up_to = before + running_sum(where(counts, 1, same(r, l, 0)), L);
  // Every place is written once: rows without a label fill the end with -1.
  Tile place = where(counts, up_to - 1, all + row - up_to);
  store(rows, place, where(counts, row, -1));
  store(target, place, where(counts, y, -1));
  if (losses) {
    Tile x = where(y == label_outside, std::numeric_limits<double>::quiet_NaN(), full(r, l, 0));
    store(loss, row, x);
    store(lse, row, x);
  }
  return p.finish();
}

Program chunk_rows(std::int64_t chunk) {
  ProgramBuilder p("chunk_rows");
  Axis Q = p.axis("Q");
  Tensor valid = p.input("valid", i64, {}), count = p.output("count", i64, {Q});
  Block q = p.parallel(Q, 256);
  store(count, q, max(min(load(valid) - q.index() * chunk, chunk), 0));
  return p.finish();
}

}  // namespace kerf::kernels
