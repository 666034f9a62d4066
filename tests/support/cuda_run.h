// Runs a program on a GPU with arguments that lie in host memory: everything is copied there, and what it may write
// back.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <string>

#include "kerf/error.h"
#include "kerf/kernel.h"
#include "lib/ir/ir.h"
#include "runtime/cuda/device.h"

namespace kerf::test {

/// True after `--device cuda` on the command line: then a test that needs a GPU fails without one.
bool device_required();
/// What `--arch` on the command line names; empty: each test chooses.
const std::string& forced_arch();

/// GPU 0; none: said loudly, and the test has nothing to do.
inline std::shared_ptr<const cuda::Device> gpu() {
  try {
    return cuda::Device::open(0);
  } catch (const kerf::Error& e) {
    if (device_required()) FAIL("--device cuda: " << std::string(e.what()));
    MESSAGE("SKIPPED, no GPU: " << std::string(e.what()));
    return nullptr;
  }
}

/// The targets that programs are compiled for on this GPU.
inline std::vector<Target> gpu_targets() {
  if (!forced_arch().empty()) return {Target::cuda(forced_arch())};
  std::vector<Target> all{Target::cuda("sm_80")};
  const Target own = Target::of({DeviceType::cuda, 0});
  if (own.cpu != "sm_80") all.push_back(own);
  return all;
}

inline void launch_on_gpu(const std::shared_ptr<const cuda::Device>& gpu, const Kernel& kernel,
                          const ir::Program& program, const LaunchArgs& host) {
  struct Copy {
    void* from;
    std::size_t bytes;
    cuda::Buffer on_gpu;
    bool written;
  };
  std::deque<Copy> copies;
  const auto place = [&](const void* from, std::int64_t bytes, bool written) {
    copies.push_back({const_cast<void*>(from), static_cast<std::size_t>(bytes),
                      cuda::Buffer(gpu, static_cast<std::size_t>(std::max<std::int64_t>(bytes, 16))), written});
    if (bytes > 0) copies.back().on_gpu.upload(from, static_cast<std::size_t>(bytes));
    return copies.back().on_gpu.data();
  };
  LaunchArgs args;
  args.axes = host.axes;
  for (auto [name, t] : host.tensors) {
    std::int64_t elements = 1;  // from the first to the last, strides included
    for (int i = 0; i < t.rank; ++i) elements += (t.shape[i] - 1) * t.strides[i];
    if (t.elements() == 0) elements = 0;
    const int which = program.find_tensor(name);
    const bool written = which >= 0 && program.tensors[static_cast<std::size_t>(which)].access != ir::Access::input;
    t.data = place(t.data, elements * size_of(t.dtype), written);
    t.device = gpu->tag();
    args.tensors.emplace_back(name, t);
  }
  for (auto [name, l] : host.lists) {
    const ir::ListInfo& info = program.lists[static_cast<std::size_t>(program.find_list(name))];
    const ir::Bound bound = ir::bind(program, host);
    const auto blocks = [&](int axis, std::int64_t extent) {
      return (bound.axis_size[static_cast<std::size_t>(axis)] + extent - 1) / extent;
    };
    const auto array = [&](const std::int32_t*& a, std::int64_t n) {
      if (a) a = static_cast<const std::int32_t*>(place(a, n * 4, false));
    };
    array(l.row, l.count);
    array(l.column, l.count);
    array(l.row_begin, blocks(info.row_axis, info.row_extent) + 1);
    array(l.row_items, l.count);
    array(l.column_begin, blocks(info.column_axis, info.column_extent) + 1);
    array(l.column_items, l.count);
    args.lists.emplace_back(name, l);
  }
  kernel.launch(args, Stream{});
  gpu->synchronize();
  for (Copy& c : copies)
    if (c.written && c.bytes) c.on_gpu.download(c.from, c.bytes);
  gpu->synchronize();
}

}  // namespace kerf::test
