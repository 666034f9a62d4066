// Passes over tile IR: each one a function that leaves the program meaning what it meant. One pass, one file.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/ir/ir.h"

namespace kerf::passes {

using Pass = void (*)(ir::Program&);
struct NamedPass {
  std::string_view name;
  Pass run;
};

void fold(ir::Program& p);        // constants, identities, a sum with a dot becomes the dot's accumulator
void drop_masks(ir::Program& p);  // in_bounds of a block that divides its axis is true
void hoist(ir::Program& p);       // pure operations and loads of inputs that a loop repeats move in front of it
void stage_loads(
    ir::Program& p);  // a load that an outer loop repeats over an inner loop's axis is kept for all its blocks
void drop_dead(ir::Program& p);  // what nobody uses goes

/// All of them, in the order of the pipeline.
const std::vector<NamedPass>& all();
/// Runs one and verifies the result; throws InternalError naming the pass that broke the program.
void run_pass(ir::Program& p, const NamedPass& pass);
/// The program as the backends get it; `stage` false leaves stage_loads out. `after` sees the program after each pass.
ir::Program pipeline(ir::Program p, bool stage = true,
                     const std::function<void(std::string_view pass, const ir::Program&)>& after = {});

}  // namespace kerf::passes
