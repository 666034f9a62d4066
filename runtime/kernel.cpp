// A program's way to a launch: the passes, the code generator, then instances handed out over the pool.
#include "kerf/kernel.h"

#include <fmt/format.h>

#include <cstdlib>
#include <memory>

#include "codegen/cpu/jit.h"
#include "codegen/nvptx/ptx.h"
#include "kerf/error.h"
#include "lib/ir/ir.h"
#include "lib/passes/passes.h"
#include "runtime/cache/cache.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/program.h"

namespace kerf {

namespace {
constexpr std::size_t alignment = 64;
}

struct Kernel::Impl {
  ir::Program program;  // after the passes
  std::shared_ptr<const codegen::cpu::Code> code;
  std::unique_ptr<const cuda::CompiledProgram> gpu;  // in place of `code`
};

Target Target::of(Device device) {
  if (device.type == DeviceType::cpu) return host();
  return cuda(cuda::architecture(cuda::device_info(*cuda::Driver::open(), device.ordinal)));
}

Kernel compile(const Program& program, const Target& target, const Schedule& schedule, Device device,
               std::shared_ptr<CodeCache> cache) {
  if (device.type == DeviceType::cuda && !target.is_cuda())
    throw UsageError(fmt::format("compile: {} for cuda:{} with a target of the CPU ({}); use Target::of(device)",
                                 program.ir().name, device.ordinal, target.level()));
  auto impl = std::make_shared<Kernel::Impl>();
  impl->program = passes::pipeline(program.ir(), schedule.stage && !target.is_cuda());
  if (target.is_cuda())
    impl->gpu = std::make_unique<const cuda::CompiledProgram>(cuda::Device::open(device.ordinal), impl->program, target,
                                                              schedule, std::move(cache));
  else
    impl->code = cache::cpu_code(cache.get(), impl->program, target, schedule);
  Kernel kernel;
  kernel.impl_ = std::move(impl);
  return kernel;
}

const std::string& Kernel::name() const {
  if (!impl_) throw UsageError("Kernel::name: an empty kernel; make one with compile");
  return impl_->program.name;
}

std::size_t Kernel::scratch_bytes(int threads) const {
  if (!impl_) throw UsageError("Kernel::scratch_bytes: an empty kernel; make one with compile");
  return impl_->code ? impl_->code->scratch_bytes * static_cast<std::size_t>(threads) : 0;
}

void Kernel::launch(const LaunchArgs& args, ThreadPool& pool) const {
  if (!impl_) throw UsageError("Kernel::launch: an empty kernel; make one with compile");
  if (impl_->gpu)
    throw UsageError(fmt::format("{} was compiled for cuda:{}; launch it on a Stream instead of a thread pool", name(),
                                 device().ordinal));
  const ir::Bound bound = ir::bind(impl_->program, args);
  if (reinterpret_cast<std::uintptr_t>(args.scratch) % alignment)
    throw UsageError(fmt::format("{}: scratch at {} is not aligned to {} bytes", name(), args.scratch, alignment));
  const std::vector<std::int64_t> packed = codegen::cpu::pack_args(impl_->program, bound);
  const codegen::cpu::Code& code = *impl_->code;

  auto* const given = static_cast<std::byte*>(args.scratch);
  pool.run(bound.instances, [&](std::int64_t begin, std::int64_t end, int thread) {
    std::byte* const scratch = given ? given + static_cast<std::size_t>(thread) * code.scratch_bytes
                                     : pool.scratch(thread, code.scratch_bytes);
    code.entry(packed.data(), begin, end, scratch);
  });
}

void Kernel::launch(const LaunchArgs& args, Stream stream) const {
  if (!impl_) throw UsageError("Kernel::launch: an empty kernel; make one with compile");
  if (!impl_->gpu)
    throw UsageError(
        fmt::format("{} was compiled for the CPU; launch it on a thread pool, or compile it for a GPU", name()));
  impl_->gpu->launch(impl_->program, ir::bind(impl_->program, args, device()), stream);
}

KernelResources Kernel::resources() const {
  if (!impl_) throw UsageError("Kernel::resources: an empty kernel; make one with compile");
  return impl_->gpu ? impl_->gpu->resources() : KernelResources{};
}

Device Kernel::device() const {
  if (!impl_) throw UsageError("Kernel::device: an empty kernel; make one with compile");
  return impl_->gpu ? impl_->gpu->device().tag() : Device{};
}

std::string emit(const Program& program, Stage stage, const Target& target, const Schedule& schedule) {
  if (stage == Stage::dsl) return program.text(true);
  const ir::Program lowered = passes::pipeline(program.ir(), schedule.stage && !target.is_cuda());
  if (stage == Stage::tile) return ir::print(lowered, true);
  if (target.is_cuda()) return codegen::nvptx::emit_text(lowered, stage, target, schedule);
  return codegen::cpu::emit_text(lowered, stage, target, schedule);
}

}  // namespace kerf
