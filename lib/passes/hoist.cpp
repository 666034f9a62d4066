// hoist: what every turn of a loop would compute alike is computed once, in front of it.
//
//   before:  %s = loop V by 256 carry %a = %zero {      after:  %y = load target[%n]
//              ^(%v, %a):                                       %s = loop V by 256 carry %a = %zero {
//              %y = load target[%n]                               ...
//              ...                                              }
//            }
//
// Pure operations may run any number of times, also when the loop has no turns. Loads move too if the tensor is an
// `input`, which nothing in the program writes; they are safe wherever they stand, since outside the tensor they give
// the fill. Constants, splats, indices and masks cost nothing and stay beside their use, unless something that moves
// needs them. Nothing leaves a `when`: in front of it the work would no longer be skipped. Inner loops go first, so
// that a value moves out of as many loops as it can.
#include <utility>

#include "lib/passes/passes.h"
#include "lib/passes/rewrite.h"

namespace kerf::passes {

using namespace ir;

namespace {

/// Takes out of the loop's body what may stand in front of it and appends that to `front`.
void pull(const ir::Program& p, Region& body, std::vector<Op>& front) {
  const std::vector<bool> bound = bound_to_turn(p, body);
  const auto movable = [&](const Op& op) {
    return !op.results.empty() && op.regions.empty() && !bound[static_cast<std::size_t>(op.results.front())];
  };
  // From the end, so that a free operation is seen after everything that might need it.
  std::vector<bool> needed(p.values.size(), false), moves(body.ops.size(), false);
  for (std::size_t i = body.ops.size(); i-- > 0;) {
    const Op& op = body.ops[i];
    if (!movable(op) || (is_free(op.kind) && !needed[static_cast<std::size_t>(op.results.front())])) continue;
    moves[i] = true;
    for (ValueId v : op.operands) needed[static_cast<std::size_t>(v)] = true;
  }
  std::vector<Op> stay;
  for (std::size_t i = 0; i < body.ops.size(); ++i) (moves[i] ? front : stay).push_back(std::move(body.ops[i]));
  body.ops = std::move(stay);
}

void hoist_in(const ir::Program& p, Region& region) {
  std::vector<Op> ops;
  for (Op& op : region.ops) {
    for (Region& inner : op.regions) hoist_in(p, inner);
    if (op.kind == OpKind::loop) pull(p, op.regions.front(), ops);
    ops.push_back(std::move(op));
  }
  region.ops = std::move(ops);
}

}  // namespace

void hoist(ir::Program& p) { hoist_in(p, p.body); }

}  // namespace kerf::passes
