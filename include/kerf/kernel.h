// From a program to machine code: compile(program, target) -> Kernel, Kernel::launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kerf/cache.h"
#include "kerf/dsl.h"
#include "kerf/tensor.h"

namespace [[gnu::visibility("default")]] kerf {

/// What code is generated for.
struct Target {
  std::string triple;  // "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "nvptx64-nvidia-cuda"
  std::string cpu;     // CPU: the LLVM processor to tune for, "" for any, and no more; GPU: the architecture, "sm_90a"
  std::string features;  // LLVM features that may be used, "+avx2,+fma"; GPU: the version of PTX, "+ptx83"

  /// The machine at hand; features are found at run time. The variable KERF_CPU_FEATURES=sse2|avx2|avx512|avx512bf16
  /// takes away what is above the named level.
  static Target host();
  /// x86-64 at one of those levels, whatever the machine at hand; code for a level above the machine's can be
  /// generated but not run.
  static Target x86(const std::string& level);
  static Target aarch64();
  /// A GPU: "sm_80", "sm_86", "sm_87", "sm_89", "sm_90" or "sm_90a". Code for sm_90a runs on compute capability 9.0 and
  /// on nothing else; code for the others runs on every later GPU too.
  static Target cuda(const std::string& arch);
  /// The target for a device at hand. GPUs: sm_90a for 9.0; for others sm_80, or sm_86 where a block may have less
  /// than 163 KiB of shared memory, which the driver translates for GPUs newer than the code generator knows. Throws
  /// DeviceError where there is no such device or it is older than 8.0.
  static Target of(Device device);
  /// The level of an x86 target ("avx512bf16"), or the architecture's name ("neon", "sm_90a").
  std::string level() const;
  bool is_cuda() const;
};

/// What changes the speed of a kernel and not its meaning. 0: chosen by the compiler.
struct Schedule {
  int dot_rows = 0;     // CPU: micro-kernel: rows of the broadcast operand held in registers
  int dot_vectors = 0;  // CPU: micro-kernel: vectors of the other operand held in registers
  bool stage = true;    // CPU: keep loads that a loop repeats in a packed copy
  int stages = 0;       // GPU: steps of a product that are read ahead of the multiplication
  /// GPU: of a program over two axes, this many blocks of the last one are swept together with all of the other before
  /// the next, so that what they read stays in the L2 cache; 0: all.
  int band = 0;
};

/// Threads that run the instances of a kernel. Results never depend on their number.
class ThreadPool {
 public:
  /// 0: KERF_NUM_THREADS if set, else the number of processors this process may run on.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int size() const;
  /// Calls work(begin, end, thread) over disjoint ranges that cover [0, count); thread is in [0, size()). Returns when
  /// all is done; the first exception thrown by `work` is rethrown. One caller at a time; others wait.
  void run(std::int64_t count, const std::function<void(std::int64_t, std::int64_t, int)>& work);

 private:
  friend class Kernel;
  /// Bytes for the work on a thread, aligned to 64 and kept for the next; for that work alone to ask.
  std::byte* scratch(int thread, std::size_t bytes);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Where work is queued: a CUstream or cudaStream_t of the device, null for its default stream. On the CPU calls return
/// when done and the handle is not looked at.
struct Stream {
  void* handle = nullptr;
};

/// Kept tiles at launch. Tile k covers block (row[k], column[k]). row_items[row_begin[r] .. row_begin[r+1]) are the
/// tiles of row block r in order, those that a walk along it is to see; column_items likewise. All arrays belong to the
/// caller and lie where the kernel runs: on a GPU their contents are not checked.
struct TileListRef {
  std::int64_t count = 0;                      // kept tiles
  const std::int32_t* row = nullptr;           // [count]
  const std::int32_t* column = nullptr;        // [count]
  const std::int32_t* row_begin = nullptr;     // [row blocks + 1]
  const std::int32_t* row_items = nullptr;     // [count]
  const std::int32_t* column_begin = nullptr;  // [column blocks + 1]
  const std::int32_t* column_items = nullptr;  // [count]
  /// Where the kernel finds how many of the tiles there are when it runs, an i32 in its device's memory, at most
  /// `count`; null: all.
  const std::int32_t* device_count = nullptr;
};

/// Arguments by the names the program gave them.
struct LaunchArgs {
  std::vector<std::pair<std::string, TensorRef>> tensors = {};
  std::vector<std::pair<std::string, TileListRef>> lists = {};
  /// Sizes of axes that no tensor tells.
  std::vector<std::pair<std::string, std::int64_t>> axes = {};
  /// CPU: Kernel::scratch_bytes(pool.size()) bytes, aligned to 64; null: memory that the pool keeps.
  void* scratch = nullptr;
  /// Where the kernel finds the size of an axis when it runs, an i64 in its device's memory, at least 0 and at most the
  /// size that the other arguments tell. On a GPU, what tensors hold along that axis from there to the end of a block
  /// must be zeros where a dot reads it.
  std::vector<std::pair<std::string, const std::int64_t*>> device_sizes = {};
};

/// What a GPU kernel takes of the device.
struct KernelResources {
  int registers = 0;              // of a thread
  int threads = 0;                // of a block
  int blocks = 0;                 // of a multiprocessor at once
  std::int64_t shared_bytes = 0;  // of a block
  std::int64_t local_bytes = 0;   // of a thread; 0: nothing was spilled
  double jit_ms = 0;              // that the driver took to translate and load
};

/// The stages a program goes through, each readable.
enum class Stage { dsl, tile, llvm, assembly };

struct KernelLaunch;

/// Machine code of one program. Cheap to copy; launches from several threads may overlap.
class Kernel {
 public:
  Kernel() = default;
  /// Runs all instances on the pool and returns when they are done. Throws UsageError when an argument is missing,
  /// has another dtype or rank, or disagrees with another about the size of an axis; tensors must have the layout the
  /// program was built for: any row strides, innermost axis contiguous.
  void launch(const LaunchArgs& args, ThreadPool& pool) const;
  /// Queues all instances on a stream of the kernel's GPU and returns. Allocates nothing, waits for nothing, may be
  /// captured in a graph; the caller's current context is left as it was. Tensors, lists and device_sizes are memory of
  /// that GPU. Throws as above, and DeviceError with the driver's reason where it refuses.
  void launch(const LaunchArgs& args, Stream stream) const;
  /// Runs CPU kernels that do not depend on each other as one: threads that the few instances of one leave over run
  /// those of the next. Those with long instances go first. The bits are those of launches one after the other.
  /// `scratch`, where it is given, is the same for all and as large as the largest asks for. Throws as launch, before
  /// anything runs.
  static void launch_together(const std::vector<KernelLaunch>& launches, ThreadPool& pool);
  /// Bytes of scratch a launch needs on a pool of `threads`.
  std::size_t scratch_bytes(int threads) const;
  /// Zeros for a CPU kernel.
  KernelResources resources() const;
  Device device() const;
  const std::string& name() const;
  bool valid() const { return impl_ != nullptr; }

 private:
  friend Kernel compile(const Program&, const Target&, const Schedule&, Device, std::shared_ptr<CodeCache>);
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

struct KernelLaunch {
  Kernel kernel;
  LaunchArgs args = {};
};

/// Lowers and loads a program. Throws DeviceError when the target is not the machine at hand. A GPU target is loaded on
/// `device`, GPU 0 where none is named. With a cache only what is not in it is lowered.
Kernel compile(const Program& program, const Target& target = Target::host(), const Schedule& schedule = {},
               Device device = {}, std::shared_ptr<CodeCache> cache = nullptr);

/// The text of one stage; needs no machine of the target's kind.
std::string emit(const Program& program, Stage stage, const Target& target = Target::host(),
                 const Schedule& schedule = {});

/// Runs the program by the interpreter: plain loops, one element at a time, the definition of every operation. Slow.
void interpret(const Program& program, const LaunchArgs& args);

}  // namespace kerf
