// What the CPU backend decides before it emits anything: which axis of a tile runs over vector lanes, which values get
// memory and which are computed where they are used, how the operands of a dot are packed. Knows nothing of LLVM.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::codegen::cpu {

/// Register block of the dot micro-kernel: `rows` of the broadcast operand x `vectors` x `lanes` of the other one, over
/// `pair` products at a time (2: bf16 pairs, AVX512-BF16).
struct MicroShape {
  int lanes = 4, vectors = 2, rows = 6;
  int panel() const { return lanes * vectors; }
};

/// Where an element of a tile lies in its buffer: row-major over `axes`, the lane axis last and padded to full vectors.
struct Layout {
  std::vector<int> axes;                // last: the lane axis, if the tile has one
  std::vector<std::int64_t> extents;    // as in the type
  std::vector<std::int64_t> strides;    // in elements
  std::int64_t elements = 1;            // padding included
  std::int64_t stride(int axis) const;  // 0 without it
};

/// How a value exists while the program runs.
enum class Form : std::uint8_t {
  in_place,  // computed at each point where it is used
  scalar,    // one register
  memory,    // a buffer, filled where the operation stands
  view,      // a load, read from the tensor where it is used
  other,     // blocks, entries, staged values
};

/// What the takes of a staged load are for.
enum class StageForm : std::uint8_t { lanes, rows, plain };

/// One dot: `wide` is the operand (0 or 1) whose own axis runs over the lanes.
struct DotPlan {
  int wide = 0;
  int k = -1, lane = -1, row = -1;  // axes: contracted, over lanes, broadcast
  bool pairs = false;               // bf16 products two at a time
};

class Plan {
 public:
  Plan(const ir::Program& p, const MicroShape& micro, bool bf16_dot);

  const MicroShape micro;
  Form form(ir::ValueId v) const { return forms_[static_cast<std::size_t>(v)]; }
  const ir::Op* def(ir::ValueId v) const { return defs_[static_cast<std::size_t>(v)]; }
  /// The axis that runs over lanes in a computation over these axes; -1: none is longer than 1.
  int lane_axis(const std::vector<ir::AxisExtent>& axes) const;
  Layout layout(const ir::Type& t, bool dot_result = false) const;
  DotPlan dot(const ir::Op& op) const;
  StageForm stage_form(ir::ValueId staged) const;
  /// The dot that uses a take of this staged value.
  const ir::Op* stage_dot(ir::ValueId staged) const;
  /// True for a carried value that only an accumulating dot uses and replaces: it is summed where it lies.
  bool accumulates(const ir::Op& loop, std::size_t carried) const;
  std::size_t uses(ir::ValueId v) const { return users_[static_cast<std::size_t>(v)].size(); }
  const std::vector<const ir::Op*>& users(ir::ValueId v) const { return users_[static_cast<std::size_t>(v)]; }
  bool needs_dot_layout(ir::ValueId v) const;

 private:
  void collect(const ir::Region& r, int depth);
  void rank_axes();
  void choose_forms();
  int cost(ir::ValueId v) const;
  /// The tensor axis that is contiguous in a loaded operand; -1 when it was not loaded.
  int contiguous_axis(ir::ValueId v) const;

  const ir::Program& p_;
  bool bf16_dot_;
  std::vector<const ir::Op*> defs_;
  std::vector<std::vector<const ir::Op*>> users_;
  std::vector<int> value_depth_;                     // loops around the definition
  std::unordered_map<const ir::Op*, int> op_depth_;  // loops around the operation
  std::vector<Form> forms_;
  std::vector<long> rank_;  // by axis: higher runs over lanes
};

}  // namespace kerf::codegen::cpu
