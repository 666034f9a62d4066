// Code on a device: PTX translated by the driver, a function ready to launch, the tensor maps it reads through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/cuda/device.h"

namespace kerf::cuda {

/// A kernel of a module, with what the driver tells about it. Valid while the module is.
struct Function {
  api::Function handle = nullptr;
  std::string name;
  int threads = 0;  // of a block
  std::int64_t dynamic_shared_bytes = 0;
  int registers = 0;                     // of a thread
  std::int64_t static_shared_bytes = 0;  // of a block
  std::int64_t local_bytes = 0;          // of a thread
  int blocks_per_multiprocessor = 0;     // at least 1
};

/// PTX as the driver translated it for one device.
struct Translated {
  std::vector<std::byte> cubin;
  std::string log;  // as Module's
  double ms = 0;    // that it took; 0: it was kept
};
/// Nothing where the driver has no linker or it refuses, whatever the reason: loading the PTX then tells it. Nor for
/// code with warpgroup products: the linker translates it as a part of something larger, ignores setmaxnreg (C7504) and
/// runs the products one by one (C7509), which took 15 times as long.
std::optional<Translated> translate(const Device& device, const std::string& ptx, const std::string& name);

class Module {
 public:
  /// `name` is for messages. Throws DeviceError: the driver is older than the PTX, the PTX is for another GPU, no
  /// memory; InternalError with the translator's words where the PTX is wrong.
  Module(std::shared_ptr<const Device> device, const std::string& ptx, std::string name);
  /// What translate made. Throws InternalError where the driver does not take it, DeviceError where it cannot now.
  Module(std::shared_ptr<const Device> device, const Translated& code, std::string name);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const Device& device() const { return *device_; }
  /// What the translator said: ptxas -v's lines of registers, spills and warnings.
  const std::string& log() const { return log_; }
  /// That translating and loading took; of kept code 0.
  double jit_ms() const { return jit_ms_; }
  /// Ready for blocks of `threads` with `shared` bytes of dynamic shared memory. Throws DeviceError where not even one
  /// block fits a multiprocessor.
  Function function(const std::string& entry, int threads, std::int64_t shared) const;

 private:
  std::shared_ptr<const Device> device_;
  std::string name_;
  std::string log_;
  double jit_ms_ = 0;
  api::Module handle_ = nullptr;
};

/// Queues `grid` blocks in clusters of `cluster`; 0 blocks: nothing. `parameters` as cuLaunchKernelEx takes them.
void launch(const Device& device, const Function& function, std::int64_t grid, std::span<void*> parameters,
            Stream stream, int cluster = 1);

/// What TMA copies at a time: 128 bytes of a row, in the 128-byte swizzle, by `rows` rows.
struct TensorMap {
  std::int64_t rows = 0;
};
/// Why `matrix` (rank 2) cannot be read through a map: "its rows are 1002 bytes apart; ..."; empty: it can.
std::string unfit_for_map(const TensorRef& matrix);
api::TensorMapBits encode_tensor_map(const Driver& driver, const TensorMap& map, const TensorRef& matrix);

}  // namespace kerf::cuda
