// One tile program on a device: its code, how a launch's arguments are laid out for it, how many blocks to start.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "codegen/nvptx/ptx.h"
#include "kerf/kernel.h"
#include "lib/ir/ir.h"
#include "runtime/cuda/module.h"

namespace kerf::cuda {

/// Code of a program, loaded. Keeps no reference to the program, which each call is given anew.
class LoadedCode {
 public:
  LoadedCode(std::shared_ptr<const Device> device, const ir::Program& program, const codegen::nvptx::Code& code);
  /// From what the driver made of its PTX before.
  LoadedCode(std::shared_ptr<const Device> device, const ir::Program& program, const codegen::nvptx::Code& code,
             const Translated& translated);

  /// Which tensor cannot be read as the code wants (through a tensor map, 16 bytes at a time), and why; empty: all can.
  std::string unfit(const ir::Program& program, const ir::Bound& bound) const;
  void launch(const ir::Program& program, const ir::Bound& bound, Stream stream) const;
  KernelResources resources() const;
  const std::string& log() const { return module_.log(); }

 private:
  void adopt(const ir::Program& program, const codegen::nvptx::Code& code);

  Module module_;
  Function function_;
  std::vector<codegen::nvptx::TensorMap> maps_;
  std::vector<int> aligned_;  // what is read through a map or 16 bytes at a time
  std::int64_t argument_words_ = 0;
};

/// Code of a program, from the cache or compiled; `cache` may be null.
std::shared_ptr<const LoadedCode> load_code(const std::shared_ptr<CodeCache>& cache,
                                            const std::shared_ptr<const Device>& device, const ir::Program& program,
                                            const Target& target, const Schedule& schedule, bool any_stride);

/// A program compiled for a device. Code that reads matrices 16 bytes or a box at a time has a second form for tensors
/// that lie otherwise, compiled when first needed.
class CompiledProgram {
 public:
  CompiledProgram(std::shared_ptr<const Device> device, const ir::Program& program, const Target& target,
                  const Schedule& schedule, std::shared_ptr<CodeCache> cache);
  const Device& device() const { return *device_; }
  /// Checks that every pointer is memory of the device, then queues the program.
  void launch(const ir::Program& program, const ir::Bound& bound, Stream stream) const;
  KernelResources resources() const { return code_->resources(); }
  const std::string& log() const { return code_->log(); }

 private:
  std::shared_ptr<const Device> device_;
  Target target_;
  Schedule schedule_;
  std::shared_ptr<CodeCache> cache_;
  std::shared_ptr<const LoadedCode> code_;
  mutable std::once_flag plain_once_;
  mutable std::shared_ptr<const LoadedCode> plain_;
};

}  // namespace kerf::cuda
