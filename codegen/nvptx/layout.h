// Which thread and register holds which element of a tile. A layout is a value: it prints, composes, inverts.
//
// Extents are padded to powers of two, so an element is a few bits per axis, and a layout says of every bit of a
// register number, a lane number and a warp number which bit of which axis it stands for, or that it stands for none:
// then the elements are held by several registers, lanes or warps alike. This covers blocked layouts, the fragments of
// mma and wgmma, and what a reduction leaves behind; it is the permutation case of the linear layouts of Triton (Zhou
// et al., Linear Layouts: Robust Code Generation of Efficient Tensor Computation Using F2, 2025).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/ir/ir.h"

namespace kerf::codegen::nvptx {

/// One bit of an axis' index inside the tile; axis -1: none.
struct Bit {
  int axis = -1;
  int bit = 0;
  bool none() const { return axis < 0; }
  friend bool operator==(const Bit&, const Bit&) = default;
};

/// Smallest b with 2^b >= extent.
int bits_of(std::int64_t extent);

struct Layout {
  std::vector<Bit> registers, lanes, warps;  // lanes: 5; warps: log2 of the warps of a block

  int register_count() const { return 1 << registers.size(); }
  friend bool operator==(const Layout&, const Layout&) = default;

  /// Index along `axis` of the element in a register, as far as the register number tells.
  std::int64_t register_index(int axis, int reg) const;
  /// The whole index of one element.
  std::int64_t index(int axis, int reg, int lane, int warp) const;
  /// True where lanes or warps hold a part of the axis.
  bool in_lanes(int axis) const;
  bool in_warps(int axis) const;
  bool has(int axis) const;
  /// Bits of the axis that the layout has; a tile fits when it has all of them.
  int axis_bits(int axis) const;

  /// Without an axis: register bits of it go, lane and warp bits of it become copies. What a reduction over it, or an
  /// operand that lacks it, has.
  Layout without(int axis) const;
  /// Only the axes of a type.
  Layout only(const std::vector<ir::AxisExtent>& axes) const;
  /// "V0 V1 | N0 N1 N2 N3 N4 | V2 -": registers, lanes, warps, lowest bit first.
  std::string to_text(const ir::Program& p) const;
};

/// The register of `part` that holds what register `reg` of `whole` holds, as far as `part` has its bits: how an
/// operand over fewer axes, or in another order of registers, is found.
int matching_register(const Layout& part, const Layout& whole, int reg);

/// Where an element is: the inverse of a layout. Copies: the first.
struct Place {
  int reg = 0, lane = 0, warp = 0;
};
Place place_of(const Layout& l, const std::vector<std::pair<int, std::int64_t>>& index);

/// Consecutive elements of `fast` first over `vector` registers, then lanes, warps, the remaining registers. Axes in
/// the order given, `fast` first.
Layout blocked(const std::vector<ir::AxisExtent>& axes, int fast, int vector, int warp_bits);

/// The accumulator of mma.m16n8: a warp's 16 x 8 fragment, repeated over the tile, warps `row_warps` x the rest.
/// Element: row = lane / 4 + 8 * reg bit 1, column = 2 * (lane % 4) + reg bit 0.
Layout mma_accumulator(ir::AxisExtent row, ir::AxisExtent column, int row_warp_bits, int column_warp_bits);

/// The accumulator of wgmma.m64nN: each warpgroup of four warps holds all columns of its rows, 64 of them or several
/// times 64, the fragment of mma in each warp. Warpgroups take the highest bits of the row.
Layout wgmma_accumulator(ir::AxisExtent row, ir::AxisExtent column, int slices, int warp_bits);

/// How elements get from one layout to another.
enum class Move : std::uint8_t {
  none,       // the same register holds the same element
  registers,  // other registers of the same thread
  shuffle,    // other lanes of the same warp
  shared,     // through shared memory
};
Move how(const Layout& from, const Layout& to);

}  // namespace kerf::codegen::nvptx
