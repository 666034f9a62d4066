// Behind CodeCache: memory, then the folders, then the compiler.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "codegen/cpu/jit.h"
#include "kerf/cache.h"
#include "runtime/cache/entry.h"
#include "runtime/cache/folder.h"
#include "runtime/cache/key.h"

namespace kerf {

class CodeCache::Impl {
 public:
  explicit Impl(CacheOptions options) : options_(std::move(options)) {}

  /// Loads what an entry holds; null where it holds something else. Throws InternalError where it cannot be loaded.
  template <class T>
  using Use = std::function<std::shared_ptr<const T>(const cache::Entry&)>;
  /// Compiles and loads; `entry` is what is kept of it, left empty where it cannot be kept.
  template <class T>
  using Make = std::function<std::shared_ptr<const T>(std::optional<cache::Entry>& entry)>;

  /// `where` tells things apart that are loaded from one entry: "", " cuda:1". What is on a device is not held: it
  /// would keep the device's context, and be of no use when that was reset. Without `make`: null where nothing is kept.
  template <class T>
  std::shared_ptr<const T> get(const cache::Key& key, const std::string& where, const Use<T>& use,
                               const Make<T>& make) {
    return std::static_pointer_cast<const T>(get_any(key, where, use, make ? Make<void>(make) : Make<void>()));
  }

  CacheStatus status();
  bool has_folders();
  /// Before the first use: how long to wait for another process that compiles the same, and may hang.
  void wait_at_most(std::chrono::milliseconds patience) { patience_ = patience; }

 private:
  /// One piece of code in memory; whoever holds the mutex loads it.
  struct Slot {
    std::mutex mutex;
    std::shared_ptr<const void> value;
    std::weak_ptr<const void> loose;  // in place of `value`
  };
  std::shared_ptr<const void> get_any(const cache::Key& key, const std::string& where, const Use<void>& use,
                                      const Make<void>& make);
  std::shared_ptr<const void> from_folders(const codegen::Digest& key, const std::string& about, const Use<void>& use);
  void publish(const codegen::Digest& key, const cache::Entry& entry);
  void open_folders();
  void warn(const std::string& text);

  const CacheOptions options_;
  std::chrono::milliseconds patience_{30'000};
  std::once_flag opened_;
  std::unique_ptr<cache::Folder> folder_;  // null: none
  std::vector<std::unique_ptr<cache::Folder>> layers_;
  std::atomic<bool> writes_ = true;  // until a write fails
  std::atomic<std::int64_t> compiled_ = 0, from_memory_ = 0, from_folders_ = 0;
  std::mutex mutex_;  // of what follows
  std::map<std::string, std::shared_ptr<Slot>> slots_;
  std::vector<std::string> warnings_;
};

namespace cache {

/// Code for the CPU, from the cache or compiled; `program` has been through the passes. Without a cache it is compiled.
std::shared_ptr<const codegen::cpu::Code> cpu_code(CodeCache* cache, const ir::Program& program, const Target& target,
                                                   const Schedule& schedule);
/// The same where the cache has it; else null.
std::shared_ptr<const codegen::cpu::Code> kept_cpu_code(CodeCache* cache, const ir::Program& program,
                                                        const Target& target, const Schedule& schedule);

}  // namespace cache
}  // namespace kerf
