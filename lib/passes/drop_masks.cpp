// drop_masks: a mask that cannot be false goes.
//
//   axes V=1024
//   before:  %m = in_bounds %v : tile<V:256, bool>
//   after:   %0 = const true : bool
//            %m = splat %0 : tile<V:256, bool>
//
// A block stands at a multiple of its extent and begins inside its axis: `parallel`, `whole` and `loop` walk no others,
// and the blocks of a tile list are checked at launch. So where the extent divides the size of the axis, the block also
// ends inside it. `fold` then takes away what the mask guarded: `where %m, %z, %fill` is %z.
#include "lib/passes/passes.h"
#include "lib/passes/rewrite.h"

namespace kerf::passes {

using namespace ir;

namespace {

bool always_inside(const ir::Program& p, const Type& block) {
  const AxisExtent& along = block.axes.front();
  const std::int64_t size = p.axes[static_cast<std::size_t>(along.axis)].size;
  return size != unknown && size % along.extent == 0;
}

void drop_masks_in(ir::Program& p, Region& region) {
  std::vector<Op> ops;
  for (Op& op : region.ops) {
    for (Region& inner : op.regions) drop_masks_in(p, inner);
    if (op.kind == OpKind::in_bounds && always_inside(p, p.type(op.operands.front())))
      append_constant(p, ops, op.results.front(), {.dtype = DType::boolean, .number = 1}, op.place);
    else
      ops.push_back(std::move(op));
  }
  region.ops = std::move(ops);
}

}  // namespace

void drop_masks(ir::Program& p) { drop_masks_in(p, p.body); }

}  // namespace kerf::passes
