// Block sizes of the loss, from the shape alone.
#pragma once

#include "kerf/kernel.h"
#include "lib/kernels/kernels.h"

namespace kerf::runtime {

struct PlanBlocks {
  kernels::Blocks forward, backward;
  Schedule forward_schedule;
};
/// Never depends on the number of rows: one set of programs serves them all.
PlanBlocks choose_blocks(const kernels::Shape& shape);

}  // namespace kerf::runtime
