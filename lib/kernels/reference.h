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

struct Parts {
  Doubles max, sum, target;  // [S, N]
};
Parts reference_lse_forward(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                            const Labels& target);
/// Writes lse and loss at rows[n]; leaves the rest as it is.
void reference_combine(const Parts& parts, const Rows& rows, Doubles& lse, Doubles& loss);
/// [kept, b.v, b.n]
Doubles reference_grad_tiles(Shape s, Blocks b, const Doubles& e, const Doubles& c, const Rows& rows,
                             const Labels& target, const Doubles& lse, const Doubles& g,
                             const std::vector<TileAt>& kept);
/// Adds to de at rows[n].
void reference_grad_e(Shape s, Blocks b, const Doubles& c, const Rows& rows, const std::vector<TileAt>& kept,
                      const Doubles& dz, double scale, Doubles& de);
/// Adds to dc.
void reference_grad_c(Shape s, Blocks b, const Doubles& e, const Rows& rows, const std::vector<TileAt>& kept,
                      const Doubles& dz, double scale, Doubles& dc);

}  // namespace kerf::kernels
