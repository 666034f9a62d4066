// A program's way to a launch: the passes, the code generator, then instances handed out over the pool.
#include "kerf/kernel.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "codegen/cpu/jit.h"
#include "codegen/nvptx/ptx.h"
#include "kerf/error.h"
#include "lib/ir/ir.h"
#include "lib/passes/passes.h"
#include "runtime/cache/cache.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/program.h"
#include "runtime/take_range.h"

namespace kerf {

namespace {
constexpr std::size_t alignment = 64;
}

struct Kernel::Impl {
  ir::Program program;  // after the passes
  std::shared_ptr<const codegen::cpu::Code> code;
  std::unique_ptr<const cuda::CompiledProgram> gpu;  // in place of `code`

  /// UsageError where there is none.
  const codegen::cpu::Code& host_code(Device device) const {
    if (gpu)
      throw UsageError(fmt::format("{} was compiled for cuda:{}; launch it on a Stream instead of a thread pool",
                                   program.name, device.ordinal));
    return *code;
  }
};

namespace {

/// Arguments of one launch on the CPU, looked at and packed.
struct HostLaunch {
  HostLaunch(const Kernel& kernel, const codegen::cpu::Code& code, const ir::Program& program, const LaunchArgs& args)
      : code(&code), given(static_cast<std::byte*>(args.scratch)) {
    const ir::Bound bound = ir::bind(program, args);
    if (reinterpret_cast<std::uintptr_t>(given) % alignment)
      throw UsageError(
          fmt::format("{}: scratch at {} is not aligned to {} bytes", kernel.name(), args.scratch, alignment));
    instances = bound.instances;
    packed = codegen::cpu::pack_args(program, bound);
  }
  void run(std::int64_t begin, std::int64_t end, std::byte* scratch) const {
    code->entry(packed.data(), begin, end, scratch);
  }
  /// The caller's memory for a thread where every launch of it takes so much of each; null: the pool has some.
  std::byte* scratch(int thread, std::size_t bytes) const {
    return given ? given + static_cast<std::size_t>(thread) * bytes : nullptr;
  }

  const codegen::cpu::Code* code;
  std::byte* given;
  std::int64_t instances = 0;
  std::vector<std::int64_t> packed;
};

}  // namespace

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
  const HostLaunch launch(*this, impl_->host_code(device()), impl_->program, args);
  pool.run(launch.instances, [&](std::int64_t begin, std::int64_t end, int thread) {
    std::byte* const scratch = launch.scratch(thread, launch.code->scratch_bytes);
    launch.run(begin, end, scratch ? scratch : pool.scratch(thread, launch.code->scratch_bytes));
  });
}

void Kernel::launch_together(const std::vector<KernelLaunch>& launches, ThreadPool& pool) {
  std::vector<HostLaunch> all;
  std::size_t scratch = 0;
  for (const KernelLaunch& l : launches) {
    if (!l.kernel.impl_) throw UsageError("launch_together: an empty kernel; make one with compile");
    all.emplace_back(l.kernel, l.kernel.impl_->host_code(l.kernel.device()), l.kernel.impl_->program, l.args);
    scratch = std::max(scratch, all.back().code->scratch_bytes);
  }
  if (std::all_of(all.begin(), all.end(), [](const HostLaunch& l) { return l.instances == 0; })) return;
  // No range spans two kernels: one thread would have all of the few long instances.
  std::vector<std::atomic<std::int64_t>> next(all.size());
  pool.run(pool.size(), [&](std::int64_t, std::int64_t, int thread) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      while (true) {
        const auto [begin, end] = runtime::take_range(next[i], all[i].instances, pool.size());
        if (begin == end) break;
        std::byte* const own = all[i].scratch(thread, scratch);
        all[i].run(begin, end, own ? own : pool.scratch(thread, scratch));
      }
    }
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
