// A stand-in for NVIDIA's driver: keeps the books of a driver (contexts, memory, modules, streams, captures) in host
// memory, runs nothing, and fails where it is told to. Loaded through KERF_CUDA_DRIVER like the real one.
//   KERF_FAKE_CUDA="cuMemAlloc_v2=2,cuInit=100"   what these functions return; read by cuInit
//   KERF_FAKE_CUDA_DEVICES="9.0,8.0"               compute capabilities of the devices; default one of 9.0
//   KERF_FAKE_CUDA_VERSION=12010                   default 13000
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/cuda/api.h"

namespace kerf::test {

struct FakeMemory {
  std::size_t bytes = 0;
  cuda::api::MemoryType type = cuda::api::MemoryType::device;
  int ordinal = 0;
  bool managed = false;
};

struct FakeLaunch {
  std::string function;
  unsigned grid = 0, threads = 0, shared = 0, cluster = 1;
  void* stream = nullptr;
  int ordinal = 0;
  std::vector<std::vector<std::byte>> parameters;  // as the PTX declares them
};

struct FakeTensorMap {
  unsigned type = 0, rank = 0;
  void* data = nullptr;
  std::vector<std::uint64_t> sizes, strides;
  std::vector<std::uint32_t> box;
};

struct FakeState {
  // What tests tell.
  std::map<std::string, unsigned> results;  // by function; absent: as its books say
  std::string jit_error_log;
  int registers = 40, local_bytes = 0, most_threads = 1024, blocks_per_multiprocessor = 2;
  // What tests read.
  std::map<std::string, int> calls;
  std::map<cuda::api::DevicePointer, FakeMemory> memory;
  std::map<int, int> retained;  // primary contexts by ordinal
  std::vector<FakeLaunch> launches;
  std::vector<FakeTensorMap> maps;
  std::map<std::string, int> dynamic_shared;             // by function, as set
  int modules = 0, streams = 0, events = 0, graphs = 0, links = 0;  // alive
  int cubins = 0;                                                   // loaded
  cuda::api::Result lost = cuda::api::Result::success;   // what every call returns since the device was lost
};

/// Exported by the library: its state, and the calling thread's stack of contexts.
using FakeStateFunction = FakeState* (*)();
using FakeStackFunction = std::vector<cuda::api::Context>* (*)();
inline constexpr const char* fake_state_symbol = "kerf_fake_cuda_state";
inline constexpr const char* fake_stack_symbol = "kerf_fake_cuda_stack";

}  // namespace kerf::test

struct CUctx_st {
  int ordinal;
};
