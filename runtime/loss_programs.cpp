#include "runtime/loss_programs.h"

#include "codegen/cpu/jit.h"
#include "kerf/error.h"
#include "lib/passes/passes.h"
#include "runtime/cache/cache.h"

namespace kerf::runtime {

namespace {
constexpr std::string_view names[loss_programs] = {
    "lse_forward", "combine", "grad_tiles", "grad_e",     "grad_e_begin",
    "grad_e_end",  "grad_c",  "grad_c_add", "grad_c_f32", "grad_c_f32_add",
};
}

std::string_view LossPrograms::name(LossProgram which) { return names[static_cast<std::size_t>(which)]; }

std::vector<LossProgram> LossPrograms::all() const {
  std::vector<LossProgram> list;
  for (std::size_t i = 0; i < loss_programs; ++i) {
    const auto which = static_cast<LossProgram>(i);
    const bool mixed = which == LossProgram::grad_c_f32 || which == LossProgram::grad_c_f32_add;
    if (!mixed || shape_.dtype != f32) list.push_back(which);
  }
  return list;
}

Program LossPrograms::record(LossProgram which) const {
  const kernels::Blocks &forward = blocks_.forward, &backward = blocks_.backward;
  // Logits are summed over d as in the forward: what rounding does to them cancels in exp(z - lse).
  kernels::Blocks again = backward;
  again.d = forward.d;
  switch (which) {
    case LossProgram::lse_forward: return kernels::lse_forward(shape_, forward);
    case LossProgram::combine: return kernels::combine(forward.n, 1);
    case LossProgram::grad_tiles: return kernels::grad_tiles(shape_, again);
    case LossProgram::grad_e: return kernels::grad_e(shape_, backward, false, false);
    case LossProgram::grad_e_begin: return kernels::grad_e(shape_, backward, true, true);
    case LossProgram::grad_e_end: return kernels::grad_e(shape_, backward, true, false);
    case LossProgram::grad_c: return kernels::grad_c(shape_, backward, shape_.dtype, false);
    case LossProgram::grad_c_add: return kernels::grad_c(shape_, backward, shape_.dtype, true);
    case LossProgram::grad_c_f32: return kernels::grad_c(shape_, backward, f32, false);
    case LossProgram::grad_c_f32_add: return kernels::grad_c(shape_, backward, f32, true);
  }
  throw InternalError("LossPrograms::record: no such program");
}

Schedule LossPrograms::schedule(LossProgram which) const {
  if (which == LossProgram::lse_forward) return blocks_.forward_schedule;
  return which == LossProgram::combine ? Schedule{} : blocks_.backward_schedule;
}

const Kernel& LossPrograms::kernel(LossProgram which) {
  const auto i = static_cast<std::size_t>(which);
  std::call_once(compiled_[i],
                 [&] { kernels_[i] = compile(record(which), Target::host(), schedule(which), {}, cache_); });
  return kernels_[i];
}

std::size_t LossPrograms::scratch_bytes(LossProgram which) {
  const auto i = static_cast<std::size_t>(which);
  std::call_once(measured_[i], [&] {
    const Schedule how = schedule(which);
    const ir::Program program = passes::pipeline(record(which).ir(), how.stage);
    const auto kept = cache::kept_cpu_code(cache_.get(), program, Target::host(), how);
    scratch_[i] = kept ? kept->scratch_bytes : codegen::cpu::scratch_bytes(program, Target::host(), how);
  });
  return scratch_[i];
}

}  // namespace kerf::runtime
