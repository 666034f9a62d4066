// Code that was compiled once and is kept: in memory while a CodeCache lives, in a folder for the processes that
// follow.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace [[gnu::visibility("default")]] kerf {

struct CacheOptions {
  std::string folder;                  // absolute; made if absent; empty: none, code is kept in memory alone
  std::vector<std::string> read_only;  // folders like it, looked into after it and left as they are
  std::uint64_t limit_bytes = std::uint64_t{2} << 30;  // of `folder`; what was not used for longest goes

  /// KERF_CACHE_DIR, else XDG_CACHE_HOME/kerf, else HOME/.cache/kerf; read_only from KERF_CACHE_RO, paths between
  /// colons. KERF_CACHE=off: no folder at all.
  static CacheOptions from_environment();
};

/// What a cache does, and why not more.
struct CacheStatus {
  std::string folder;                  // in use; empty: none
  std::vector<std::string> read_only;  // in use
  /// Each once: a folder that cannot be used and why, an entry that was damaged, a disk that is full.
  std::vector<std::string> warnings;
  std::int64_t compiled = 0, from_memory = 0, from_folders = 0;  // requests, by where the code came from
};

/// May be shared by plans, kernels and threads: code that several ask for at once is compiled by one of them while the
/// others wait. A folder is used only if nobody but its owner, who must be this process's user (of read-only ones also
/// root), can change what is in it. Nothing about folders is ever thrown: what cannot be read is compiled, what cannot
/// be written is not kept, and status() says so.
class CodeCache {
 public:
  explicit CodeCache(const CacheOptions& options = CacheOptions::from_environment());
  ~CodeCache();
  CodeCache(const CodeCache&) = delete;
  CodeCache& operator=(const CodeCache&) = delete;
  CacheStatus status() const;

  class Impl;  // Kerf's own
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace kerf
