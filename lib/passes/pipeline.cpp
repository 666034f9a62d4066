#include <fmt/format.h>

#include "kerf/error.h"
#include "lib/passes/passes.h"

namespace kerf::passes {

const std::vector<NamedPass>& all() {
  static const std::vector<NamedPass> passes = {
      {"drop_masks", drop_masks},    // first, so that fold takes away what the masks guarded
      {"fold", fold},                // before hoist: a value may no longer depend on the loop once it is folded
      {"hoist", hoist},              // before stage_loads: a load is then in the one loop whose block it needs
      {"stage_loads", stage_loads},  // loads that hoist had to leave where they are, since an inner loop needs them
      {"drop_dead", drop_dead},      // last: the others leave behind what they made useless
  };
  return passes;
}

void run_pass(ir::Program& p, const NamedPass& pass) {
  pass.run(p);
  try {
    ir::verify(p);
  } catch (const Error& e) {
    throw InternalError(fmt::format("{}: pass {} broke the program: {}", p.name, pass.name, e.what()));
  }
}

ir::Program pipeline(ir::Program p, bool stage,
                     const std::function<void(std::string_view pass, const ir::Program&)>& after) {
  for (const NamedPass& pass : all()) {
    if (pass.run == stage_loads && !stage) continue;
    run_pass(p, pass);
    if (after) after(pass.name, p);
  }
  return p;
}

}  // namespace kerf::passes
