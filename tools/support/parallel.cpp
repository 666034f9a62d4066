#include "tools/support/parallel.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kerf/error.h"

namespace kerf::tools {

int processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void on_threads(int threads, const std::function<void(int)>& work) {
  std::exception_ptr failure;
  std::mutex guard;
  const auto run = [&](int t) {
    try {
      work(t);
    } catch (...) {
      const std::lock_guard lock(guard);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
}

void in_pieces(std::int64_t count, std::int64_t piece, const std::function<void(std::int64_t, std::int64_t)>& work) {
  const std::int64_t pieces = (count + piece - 1) / piece;
  std::atomic<std::int64_t> next = 0;
  on_threads(static_cast<int>(std::clamp<std::int64_t>(pieces, 1, processors())), [&](int) {
    for (std::int64_t i; (i = next.fetch_add(1)) < pieces;) work(i * piece, std::min(count, (i + 1) * piece));
  });
}

Buffer::Buffer(std::size_t bytes) : size_(bytes) {
  const std::size_t room = (std::max<std::size_t>(bytes, 1) + 63) / 64 * 64;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, room)));
  if (!data_) throw DeviceError(fmt::format("out of memory: {} MiB asked for", bytes >> 20));
}

void require_memory(double bytes, const char* what) {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  double kib = 0;
  while (meminfo >> key >> kib && std::getline(meminfo, unit)) {
    if (key != "MemAvailable:") continue;
    if (bytes > kib * 1024)
      throw DeviceError(fmt::format("{} needs {:.1f} GiB of memory, {:.1f} GiB are available; ask for a smaller shape",
                                    what, bytes / (1 << 30), kib / (1 << 20)));
    return;
  }
}

namespace {
/// The exponent of f16 is moved by multiplication, which is exact for subnormals too; all ones stay all ones.
double f16_to_double(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const float special = std::bit_cast<float>(0x7f800000u | (magnitude << 13));
  const float x = magnitude >= 0x7c00u ? special : scaled;
  return bits & 0x8000u ? -x : x;
}
}  // namespace

void to_double(const void* from, DType dtype, std::int64_t n, double* to) {
  const auto* half = static_cast<const std::uint16_t*>(from);
  switch (dtype) {
    case DType::f32: std::copy_n(static_cast<const float*>(from), n, to); return;
    case DType::bf16:
      for (std::int64_t i = 0; i < n; ++i) to[i] = std::bit_cast<float>(static_cast<std::uint32_t>(half[i]) << 16);
      return;
    case DType::f16:
      for (std::int64_t i = 0; i < n; ++i) to[i] = f16_to_double(half[i]);
      return;
    default: throw InternalError(fmt::format("to_double: {} is no float dtype", name_of(dtype)));
  }
}

void from_float(const float* from, std::int64_t n, DType dtype, void* to) {
  auto* half = static_cast<std::uint16_t*>(to);
  switch (dtype) {
    case DType::f32: std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float)); return;
    case DType::bf16:
      for (std::int64_t i = 0; i < n; ++i) half[i] = to_bf16(from[i]);
      return;
    case DType::f16:
      for (std::int64_t i = 0; i < n; ++i) half[i] = to_f16(from[i]);
      return;
    default: throw InternalError(fmt::format("from_float: {} is no float dtype", name_of(dtype)));
  }
}

}  // namespace kerf::tools
