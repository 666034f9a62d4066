// The programs of this folder as plain loops in double: what each one means, in its own layout, for a reader and for
// tests. One function per program, above the program in its file. Matrices are dense and row-major.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/kernels/kernels.h"

namespace kerf::kernels {

using Doubles = std::vector<double>;
using Rows = std::vector<std::int64_t>;    // [N]: where row n lies in e
using Labels = std::vector<std::int32_t>;  // [N]

/// Where row n lies in e.
inline std::int64_t row_of_e(const Shape& s, const Rows& rows, std::int64_t n) {
  return s.compact ? n : rows[static_cast<std::size_t>(n)];
}

/// Row block and column block of a tile.
struct TileAt {
  std::int64_t row, column;
};

/// The label of each of B * T rows, or no_label, or label_outside. target [B, T]; cu_seqlens where rule.packed.
Labels reference_label_rows(const LabelRule& rule, std::int64_t B, std::int64_t T,
                            const std::vector<std::int64_t>& target, const std::vector<std::int64_t>& cu_seqlens);
/// Rows that have a label, and their labels; then -1 up to the size of `label`.
void reference_compact_labels(const Labels& label, Rows& rows, Labels& target);
/// Tiles of R row blocks and columns [first, last), in the order of list_tiles.
std::vector<TileAt> reference_list_tiles(std::int64_t R, std::int64_t first, std::int64_t last, std::int64_t band);

struct Parts {
  Doubles max, sum, target;  // [S, N]
};
Parts reference_lse_forward(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                            const Labels& target);
/// Writes lse and loss at rows[n]; leaves the rest as it is.
void reference_combine(const Parts& parts, const Rows& rows, Doubles& lse, Doubles& loss);
/// [kept, b.v, b.n]; each block of V is a part.
Doubles reference_stash(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows, const Parts& parts,
                        const std::vector<TileAt>& kept);
/// [kept, b.v, b.n]
Doubles reference_grad_tiles(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                             const Labels& target, const Doubles& lse, const Doubles& g,
                             const std::vector<TileAt>& kept, const Doubles& outside = {});
/// Adds to de at rows[n].
void reference_grad_e(Shape s, Blocks b, const Doubles& c, const Rows& rows, const std::vector<TileAt>& kept,
                      const Doubles& dz, double scale, Doubles& de);
/// Adds to dc.
void reference_grad_c(Shape s, Blocks b, const Doubles& e, const Rows& rows, const std::vector<TileAt>& kept,
                      const Doubles& dz, double scale, Doubles& dc);

struct KeptTiles {
  std::vector<bool> keep;  // [B, R]
  Doubles m, left_out;     // [B, P], [B, R]
};
KeptTiles reference_keep_tiles(Shape s, Blocks b, KeepRule rule, const Doubles& block_lse, const Doubles& lse,
                               const Rows& rows, const Labels& target, const Doubles& g, const Doubles& outside,
                               const Rows& from);
/// [P], 0 where there is no row.
Doubles reference_mass_outside(Shape s, Blocks b, const Doubles& block_lse, const Doubles& lse, const Rows& rows,
                               const Labels& target);
struct GroupedRows {
  Rows askers;    // [B]
  Labels rating;  // [P]
  Rows from;      // [P]
};
GroupedRows reference_group_rows(Shape s, Blocks b, KeepRule rule, const Doubles& block_lse, const Doubles& lse,
                                 const Rows& rows, const Labels& target, const Doubles& g, const Doubles& outside,
                                 std::int64_t group);

}  // namespace kerf::kernels
