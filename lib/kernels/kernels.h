// The tile programs of the loss. Each file holds one program with its plain-loop reference above it.
//
// Rows have been compacted before: N here counts valid rows, `rows[n]` is where row n lies in the caller's e, de, lse
// and loss (axis T), `target[n]` is its label. The backward's `g[n]` is the upstream gradient with the reduction's
// factor (and for f16 the scale S) in it. V and D are known when a program is built, N at launch.
//
// e is the caller's, gathered through `rows`, or with Shape::compact a copy of the valid rows, one behind the other:
// [N, D], and zeros from there to the end of the last block. A copy costs N D elements once; a GPU reads it in boxes.
#pragma once

#include <cstdint>

#include "kerf/dsl.h"

namespace kerf::kernels {

struct Blocks {
  std::int64_t n, v, d;  // rows, vocabulary, hidden
  std::int64_t split;    // forward: blocks of v in one part of the vocabulary
};
struct Shape {
  std::int64_t vocabulary, hidden;
  DType dtype;
  bool compact = false;  // e holds the valid rows alone
};

/// Partial maximum, sum and target logit of one part of the vocabulary for one block of rows.
/// e [T, D], c [V, D], rows [N] i64 (unless compact), target [N] i32 -> part_max, part_sum, part_target [S, N] f32.
Program lse_forward(Shape s, Blocks b);
/// Parts in order: lse [T] and loss [T] of the valid rows, at rows[n].
Program combine(std::int64_t block_n);
/// dz of the tiles in the list `kept` (N x V), packed [V, N] inside a tile: g (exp(z - lse) - [v = target]).
Program grad_tiles(Shape s, Blocks b);
/// de[rows[n]] = scale * sum over kept tiles of dz c. With `from_sum` starts from sum [N, D] f32; with `to_sum` writes
/// there instead of de.
Program grad_e(Shape s, Blocks b, bool from_sum, bool to_sum);
/// dc[v] = scale * sum over kept tiles of dz^T e [+ dc], for the blocks of dc in the list `written` (D x V); out is the
/// dtype of dc. `scale` is an input for f16 alone, here and in grad_e.
Program grad_c(Shape s, Blocks b, DType out, bool accumulate);

}  // namespace kerf::kernels
