// The tile programs of the loss. Each file holds a program, or a few that go together, with plain-loop references
// above.
//
// Rows are compacted first, by loops on the host or by programs where labels lie on a device: N here counts valid rows,
// `rows[n]` is where row n lies in the caller's e, de, lse and loss (axis T), `target[n]` is its label. The backward's
// `g[n]` is the upstream gradient with the reduction's factor (and for f16 the scale S) in it. V and D are known when a
// program is built, N at launch.
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
  bool gather = false;   // token v of the programs is row order[v] of c and dc, an input of them
};

/// What a block of the forward leaves for the choice of tiles: nothing, its log-sum-exp, or its largest logit.
enum class BlockStatistic : std::uint8_t { none, lse, largest };
/// A tile is kept if a row's mass in the block is at least eps, or what stands for it.
struct KeepRule {
  double eps = 0;
  bool correct = true;  // say what dropped tiles leave out
  double together = 0;  // a tile is kept as well if the masses of its rows add up to this; 0: not looked at
  bool group = true;    // rows that ask for the same blocks are to lie together
  /// What is small goes by what a row has: where less than this lies outside the block of its target, eps is as much
  /// smaller, down to least_share of it. 0: eps for all rows alike, and no tensor outside.
  double sure = 0;
};
inline constexpr double least_share = 0x1p-20;
/// Which gradients leave out tiles that are not kept.
struct Sides {
  bool e = true, c = true;
};
inline std::int64_t vocabulary_blocks(const Shape& s, const Blocks& b) { return (s.vocabulary + b.v - 1) / b.v; }

/// Labels are looked at in blocks of this many rows; arrays over rows have a multiple of it.
inline constexpr std::int64_t label_block = 256;
/// What label_rows says of a row that has no label that counts.
inline constexpr std::int32_t no_label = -1, label_outside = -2;

/// How a row finds its label: row t of a sequence is scored against label t + shift of the same one.
struct LabelRule {
  DType target = DType::i64;      // i32 or i64
  bool packed = false;            // sequences end where cu_seqlens says, else all have the length of target's rows
  DType cu_seqlens = DType::i64;  // i32 or i64
  std::int64_t shift = 0, ignore_index = -100, vocabulary = 0;
};

/// The label of each row, no_label or label_outside, and how many of each block have one, or one outside [0, V).
/// target [B, T, 1], cu_seqlens [C, 1] (if packed) -> label [R, label_block] i32, count [R], outside [R] i64.
Program label_rows(const LabelRule& rule);
/// label, count, outside -> rows, target [P]: the rows that have a label, in order, and their labels; then -1. valid,
/// strays [1] i64: how many rows have one, or one outside the vocabulary. With `losses` also loss, lse [T]: 0, and NaN
/// where the label lies outside the vocabulary; `combine` writes over the rest.
Program compact_labels(bool losses);
/// valid [] -> count [Q] i64: how many rows with a label each run of `chunk` of them has.
Program chunk_rows(std::int64_t chunk);
/// Rows may be of any dtype here and in clear_rows, also of integers that stand for several elements.
/// e [T, D], rows [P] -> compact [P, D]: e[rows[p]], zeros where rows[p] is -1.
Program compact_rows(Shape s, std::int64_t block_n, std::int64_t block_d);
/// copy [V, D] = c [V, D].
Program copy_rows(Shape s, std::int64_t block_v, std::int64_t block_d);
/// Zeros in the rows of de [T, D] that have no label; the others are not written. label [T].
Program clear_rows(Shape s, std::int64_t block_n, std::int64_t block_d);

/// loss [T] -> partial [Q], sums of loss_block rows each.
inline constexpr std::int64_t loss_block = 1024;
Program sum_losses();
/// partial [Q], valid [] -> loss []: their sum, or with `mean` divided by valid.
Program finish_loss(bool mean);

/// g [N] of the backward. none: grad [B, T, 1] gathered at rows [N]; mean: grad [] over valid []; sum: grad []. Without
/// `given` grad is 1 and no input.
enum class Upstream : std::uint8_t { each, mean, sum };
/// find_largest: also largest [Q], the magnitude of the largest finite element of each upstream_block rows.
inline constexpr std::int64_t upstream_block = label_block;
Program upstream(Upstream how, bool given, bool find_largest);
/// Multiplies g [N] by what brings its largest finite element to 2^14, so that small elements of an f16 dz do not
/// underflow; scale [1] takes it out again.
Program scale_upstream();

/// A list of all tiles of a rectangle: row blocks 0 .. ceil(N / block_n), column blocks first .. last. Bands of `band`
/// row blocks, in a band column by column, so that tiles which follow each other share a block of columns and the row
/// blocks of a band stay in a cache. Axis I has as many indices as the longest of the arrays, all i32: row, column,
/// row_items, column_items [K], row_begin [R], column_begin [C], count [1]. first and last are the sizes of axes.
Program list_tiles(std::int64_t block_n, std::int64_t band);

/// The same tiles as rows of `parts` matrices: column c belongs to part c % parts, block row r of part s is row s down
/// + r of the list, `down` row blocks to a part. Few rows so become many. item_row, items [K], begin [parts down + 1].
Program list_parts(std::int64_t block_n, std::int64_t band);
/// The same tiles, `width` columns of them, as columns of `parts` matrices: row block r belongs to part r % parts, the
/// i-th column of part s is column s width + i of the list. item_column, items [K], begin [parts width + 1].
Program list_row_parts(std::int64_t block_n, std::int64_t band);
/// de[rows[n]] = scale * sum over parts of sum [S, M, D], in order; scale for f16 alone.
Program sum_parts(Shape s, std::int64_t block_n, std::int64_t block_d);

/// Partial maximum, sum and target logit of one part of the vocabulary for one block of rows.
/// e [T, D], c [V, D], rows [N] i64 (unless compact), target [N] i32 -> part_max, part_sum, part_target [S, N] f32, and
/// with a statistic block_lse [B, N] f32, one for each block of V.
Program lse_forward(Shape s, Blocks b, BlockStatistic statistic = BlockStatistic::none);
/// Parts in order, block_s at a time: lse [T] and loss [T] of the valid rows, at rows[n].
Program combine(std::int64_t block_n, std::int64_t block_s);
/// The same for the tiles in the list `kept` (N x V): every block of V is a part. Without `stash` nothing else; with it
/// also exp(z - largest of the row in the block), packed [V, N] inside a tile.
Program lse_tiles(Shape s, Blocks b, bool stash);
/// What lse_tiles packed becomes dz, in place: g (stash exp(part_max - lse) - [v = target]), part_max [B, N].
Program dz_of_stash(Shape s, Blocks b);
/// dz of the tiles in the list `kept` (N x V), packed [V, N] inside a tile: g (exp(z - lse) - [v = target]). With
/// `outside` a target gets -g times what all other tokens of its row have: those of its block, added up, and
/// outside [N], which mass_outside makes, unless that is NaN.
Program grad_tiles(Shape s, Blocks b, bool outside = false);
/// de[rows[n]] = scale * sum over kept tiles of dz c. With `from_sum` starts from sum [N, D] f32, or with `apart` adds
/// it at the end; with `to_sum` writes there instead of de.
Program grad_e(Shape s, Blocks b, bool from_sum, bool to_sum, bool apart = false);
/// dc[v] = scale * sum over kept tiles of dz^T e [+ dc], for the blocks of dc in the list `written` (D x V); out is the
/// dtype of dc. `scale` is an input for f16 alone, here and in grad_e.
/// `corrected`: also adds added [B, D] f32, one row for each block of V, before the scale.
Program grad_c(Shape s, Blocks b, DType out, bool accumulate, bool corrected = false);
/// The sums of grad_c over columns of parts: `kept` is what list_row_parts made, sum [M, D] f32, b.v rows to a column.
/// e is compact.
Program grad_c_parts(Shape s, Blocks b);
/// dc[v] = scale * sum over parts of sum [S, V, D], in order, block_s at a time [+ dc].
Program sum_dc(Shape s, DType out, bool accumulate, std::int64_t block_s, std::int64_t block_v, std::int64_t block_d);

// ---- the choice of tiles (keep_tiles.cpp), B blocks of V and R of rows; arrays over P go on past the rows with a
// label

/// block_lse [B, P], lse [T], rows, target [P] -> outside [P] f32: the mass outside the block of the target.
Program mass_outside(Shape s, Blocks b);
/// block_lse [B, P], lse [T], rows, target, g, outside, from [P] -> keep [B, R] i32; left_out [B, R] f32, mass of the
/// dropped; with `correct` m [B, P]: g mass where the tile is dropped, else 0. Row n is row from[n] of block_lse, or n
/// without `group`, which needs no `from`.
Program keep_tiles(Shape s, Blocks b, KeepRule rule);
/// cmean [B, D]: the mean row of c in each block, b.d of D at a time.
Program block_means(Shape s, Blocks b);
/// sum [N, D] f32 = m^T cmean.
Program correct_e(Shape s, Blocks b);
/// added [B, D] f32 = m e over the number of tokens in the block. e is compact.
Program correct_c(Shape s, Blocks b);

// ---- rows in an order in which those of a block ask for the same (group_rows.cpp); every row of P has a place

/// block_lse, lse, rows, target, g, outside as above, row n being row n of block_lse -> askers [B] i32.
Program count_askers(Shape s, Blocks b, KeepRule rule);
/// The same and askers -> rating [P] i32: P + 1 less the rows that ask for the rarest block that the row asks for; 0 if
/// it asks for none, -1 if there is no row.
Program rate_rows(Shape s, Blocks b, KeepRule rule);
/// rating [P], of_all [P] the same -> place [P] i64: of each `rows` rows, a multiple of 256, those with the highest
/// first, equal ones as they are. G is the size of an axis: how many times `rows` there are, rounded up.
inline constexpr std::int64_t grouped_rows = 8192;
Program place_rows(std::int64_t rows);
/// place, rows, target, g, outside [P] -> moved_rows, moved_target, moved_g, moved_outside, from [P].
Program move_rows();

// ---- lists of the kept (select_tiles.cpp): tiles are items, numbered through the whole vocabulary; Q = B + 1

/// keep, left_out [B, R], the number N of rows -> item_rank, column_rank [B, R] i32, item_count, column_count,
/// kept_count [B] i64, lost [B] f32.
Program rank_columns(Sides sides, std::int64_t block_n);
/// row_rank [Q, R] i32: tiles of the row before each column.
Program rank_rows(Sides sides, std::int64_t block_n);
/// count [B] -> begin [Q] i64.
Program begin_columns();
/// The rows of a list, row_begin [R + 1], cut into pieces of equal length, about `most`, and what is left of each row;
/// the longest come first: start [most, R] i32, where the items of a row's pieces begin; begin [S] i32, the same by
/// pieces; piece_row [S] i32, the row of each; piece_begin [R + 1], piece_items [S] i32, the pieces of each row; count
/// [1] i32, rows [1] i64, their number and block_n times that. most is the size of an axis, R2 has that of R.
Program cut_rows(std::int64_t block_n);
/// row_items [K] of the list, by pieces: items [K] i32; item_piece [K] i32, the piece of each item.
Program place_items();
/// items [S] i32: 0, 1, 2, ...
Program count_up();
/// sum [N, D] f32 (+)= the pieces of each row of blocks in the list `pieces`, in order; part [M, D] f32, b.n rows each.
Program sum_pieces(Shape s, Blocks b, bool from_sum);
/// begin [Q] of the items, valid [] -> first [I] i64, the first column of each range and the end of the last;
/// range_rows [I - 1] i64: valid, or 0 where the range is empty. quota is the size of an axis.
Program cut_ranges();
/// For columns first .. last, sizes of axes: row_begin [R + 1] i32.
Program begin_rows();
/// item_begin, begin [Q] -> column_begin [Q] i32, count [1] i32.
Program begin_list();
/// row, column, row_items, column_items [K] i32; item_piece [K] i32 = 0.
Program list_selected(Sides sides, std::int64_t block_n);
/// kept_count, lost [B], valid [] -> kept, tiles [1] i64: tiles that are kept, and all; left_out [1] f32: mass dropped
/// in a row, mean.
Program count_kept(std::int64_t block_n);
/// kept [1] i64 = every_tile, left_out [1] f32 = 0: of a backward that could not filter.
inline constexpr std::int64_t every_tile = -1;
Program keep_all();
/// block_lse [B, P] = NaN, which keeps every tile.
Program forget_masses();

// ---- the order of the vocabulary

/// target [P] = place [V] of it.
Program place_targets(std::int64_t vocabulary);
/// shifted [P] = target - first where that is in [0, tokens), else -1; first is the size of an axis.
Program shift_targets(std::int64_t tokens);
/// sum [S, D] f32 of block_n rows of e each.
Program sum_rows(Shape s, std::int64_t block_n, std::int64_t block_d);
/// score [V] f32: c times the sum over S of sum [S, D].
Program score_rows(Shape s, std::int64_t block_v, std::int64_t block_d);

}  // namespace kerf::kernels
