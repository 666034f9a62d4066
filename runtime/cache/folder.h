// Entries in a folder, shared by any number of processes at once:
//
//   v1/ab/cdef....kfc   entries, by the digest of their key
//   bad/                the last few that were damaged
//   lock/               files to hold locks on
//
// Entries appear whole and are never changed. A reader takes what is there into memory and checks it there. Locks only
// save work: whoever does not get one goes on without.
#pragma once

#include <sys/stat.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codegen/digest.h"
#include "runtime/cache/entry.h"
#include "runtime/file_descriptor.h"

namespace kerf::cache {

using File = runtime::FileDescriptor;

enum class Access : std::uint8_t {
  own,    // made if absent, written
  look,   // not made; what is read does not count as used
  layer,  // may be root's, only read
};

/// What can be told of an entry without trusting it.
struct EntryFile {
  std::string name;  // "ab/cdef....kfc"
  std::uint64_t bytes = 0;
  std::int64_t used = 0;  // seconds since 1970, now where that lies ahead
};

class Folder {
 public:
  using Clock = std::chrono::system_clock;
  /// write(2) and the time of day; tests put others in their place.
  struct Outside {
    std::function<ssize_t(int, const void*, std::size_t)> write;
    std::function<Clock::time_point()> now;
    Outside();
  };

  /// Null, and the reason in `why`, where the folder is not there, or is not safe: it or a folder above it can be
  /// changed by other users, or it is a symbolic link.
  static std::unique_ptr<Folder> open(const std::string& path, Access access, std::string& why, Outside outside = {});
  const std::string& path() const { return path_; }

  enum class Found : std::uint8_t { nothing, entry, damaged };
  struct Read {
    Found found = Found::nothing;
    Entry entry;
  };
  /// What does not verify is moved to bad/, but in a layer.
  Read read(const codegen::Digest& key) const;
  Read read(const std::string& name) const;
  /// For an entry that verifies and still cannot be used.
  void condemn(const codegen::Digest& key) const;
  /// What happened to an entry: empty where it is there now, by whomever, else why it could not be written.
  std::string publish(const codegen::Digest& key, std::span<const std::byte> bytes) const;

  /// Held by one process, and one File in it, at a time; the kernel lets go of it when the file is closed, however that
  /// happens. Empty where it was not to be had within `limit`.
  File lock(const codegen::Digest& key, std::chrono::milliseconds limit) const;

  std::vector<EntryFile> list() const;
  struct Swept {
    std::int64_t entries = 0, temporaries = 0;  // removed
    std::uint64_t bytes = 0, left = 0;          // of entries
    bool busy = false;                          // another process was at it, so nothing was done
  };
  /// Removes what was not used for longest until the rest is at most `limit` bytes, and what writers that died left
  /// behind more than an hour ago.
  Swept sweep(std::uint64_t limit) const;
  /// The same, unless it was done in the last ten minutes.
  void sweep_sometimes(std::uint64_t limit) const;
  /// Removes every entry and all that was damaged.
  Swept clear() const;

 private:
  Folder() = default;
  File subfolder(int parent, const std::string& name, bool make) const;
  /// visit(its folder, that folder's name, its name), of all in entries_.
  void for_each_file(const std::function<void(int, const std::string&, const std::string&)>& visit) const;
  bool safe(const struct stat& s, bool file) const;
  File lock_file(const char* name) const;
  void quarantine(int folder, const std::string& file) const;
  Swept sweep_locked(std::uint64_t limit) const;
  void touch(int fd) const;

  std::string path_;
  Access access_ = Access::layer;
  Outside outside_;
  File root_, entries_;  // entries_: v1, empty where a layer has none
};

/// "ab/cdef....kfc"
std::string file_name(const codegen::Digest& key);

}  // namespace kerf::cache
