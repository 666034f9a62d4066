// Block sizes of the loss, from the shape alone.
#pragma once

#include "lib/kernels/kernels.h"

namespace kerf::runtime {

struct PlanBlocks {
  kernels::Blocks forward, backward;
};
/// Never depends on the number of rows: one set of programs serves them all.
PlanBlocks choose_blocks(const kernels::Shape& shape);

}  // namespace kerf::runtime
