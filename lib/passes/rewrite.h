// What the passes share: who uses a value, what a turn of a loop cannot do without, operations made from nothing.
#pragma once

#include <map>
#include <vector>

#include "lib/ir/ir.h"

namespace kerf::passes {

/// How often each value is used as an operand, by value.
std::vector<int> count_uses(const ir::Program& p);

/// True where the operation or one inside it writes memory.
bool writes(const ir::Op& op);

/// Costs nothing at run time: constants, splats, indices, masks, sizes, whole blocks.
bool is_free(ir::OpKind kind);

/// The values of a loop's body that may differ from turn to turn or must be made anew in each: its arguments and
/// whatever follows from them, what a nested region gives, what is read from memory that the program writes. All
/// others, made by operations that stand in the body itself, may as well be made in front of the loop.
std::vector<bool> bound_to_turn(const ir::Program& p, const ir::Region& body);

/// Values that stand for others from now on.
class Substitution {
 public:
  void add(ir::ValueId from, ir::ValueId to) { to_[from] = (*this)(to); }
  ir::ValueId operator()(ir::ValueId v) const;

 private:
  std::map<ir::ValueId, ir::ValueId> to_;
};

/// A constant of any dtype; integers in `integer`, the others in `number`.
struct Scalar {
  DType dtype = DType::f32;
  double number = 0;
  std::int64_t integer = 0;
};
/// Appends operations that define `result`, a tile of any axes, as `value` everywhere.
void append_constant(ir::Program& p, std::vector<ir::Op>& ops, ir::ValueId result, const Scalar& value,
                     const ir::Place& place);

}  // namespace kerf::passes
