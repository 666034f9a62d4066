#include "runtime/cache/folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

namespace kerf::cache {

namespace {

using namespace std::chrono_literals;
using std::chrono::seconds;

constexpr std::string_view extension = ".kfc", temporary = ".tmp-";
constexpr std::size_t kept_bad = 8;
constexpr seconds sweep_every = 10min, stamp_every = 1h, temporary_lives = 1h;
constexpr int folder_flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

std::string reason(int error) { return std::generic_category().message(error); }

bool others_may_write(const struct stat& s) { return (s.st_mode & (S_IWGRP | S_IWOTH)) != 0; }

/// Why others could put something else in the place of what lies in this folder; empty: they cannot.
std::string unsafe_parent(const struct stat& s) {
  if (s.st_uid != 0 && s.st_uid != geteuid()) return fmt::format("belongs to user {}", s.st_uid);
  if (others_may_write(s) && !(s.st_mode & S_ISVTX)) return "can be written by other users";
  return {};
}

struct Stream {
  DIR* handle;
  explicit Stream(DIR* h) : handle(h) {}
  ~Stream() {
    if (handle) closedir(handle);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

/// Names in a folder, without those of the folder itself and the one above.
std::vector<std::string> names_in(int folder) {
  std::vector<std::string> names;
  const int fd = openat(folder, ".", folder_flags);
  if (fd < 0) return names;
  const Stream stream(fdopendir(fd));
  if (!stream.handle) {
    close(fd);
    return names;
  }
  while (const dirent* d = readdir(stream.handle)) {
    const std::string_view name = d->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string random_name() {
  std::uint64_t bits[2] = {};
  if (getrandom(bits, sizeof bits, 0) != sizeof bits) {
    // Names need to differ, no more: O_EXCL finds those that do not.
    bits[0] = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    bits[1] = static_cast<std::uint64_t>(getpid());
  }
  return fmt::format("{}{:016x}{:016x}", temporary, bits[0], bits[1]);
}

/// One byte of a file, by the lock that goes with the file and not with the process.
bool try_lock(int fd, off_t at) {
  struct flock f {};
  f.l_type = F_WRLCK;
  f.l_whence = SEEK_SET;
  f.l_start = at;
  f.l_len = 1;
  return fcntl(fd, F_OFD_SETLK, &f) == 0;
}

std::int64_t seconds_of(Folder::Clock::time_point t) {
  return std::chrono::duration_cast<seconds>(t.time_since_epoch()).count();
}

}  // namespace

Folder::Outside::Outside() : write(::write), now(Clock::now) {}

std::string file_name(const codegen::Digest& key) {
  const std::string hex = codegen::to_hex(key);
  return fmt::format("{}/{}{}", hex.substr(0, 2), hex.substr(2), extension);
}

// ---- opening ----

bool Folder::safe(const struct stat& s, bool file) const {
  if (file ? !S_ISREG(s.st_mode) : !S_ISDIR(s.st_mode)) return false;
  if (s.st_uid != geteuid() && !(access_ == Access::layer && s.st_uid == 0)) return false;
  return !others_may_write(s);
}

File Folder::subfolder(int parent, const std::string& name, bool make) const {
  if (make && mkdirat(parent, name.c_str(), 0700) != 0 && errno != EEXIST) return {};
  File folder(openat(parent, name.c_str(), folder_flags));
  struct stat s {};
  if (!folder) return {};
  if (fstat(folder.get(), &s) != 0 || !safe(s, false)) {
    errno = EPERM;
    return {};
  }
  return folder;
}

std::unique_ptr<Folder> Folder::open(const std::string& path, Access access, std::string& why, Outside outside) {
  const auto refuse = [&](const std::string& text) {
    why = fmt::format("{}: {}", path, text);
    return nullptr;
  };
  if (path.empty() || path[0] != '/') return refuse("is no absolute path");
  // Symbolic links above the folder are taken as they are now; then every step down from the root is checked and held,
  // so that nothing can be changed between a look and a use.
  std::filesystem::path wanted(path);
  wanted = wanted.lexically_normal();
  if (!wanted.has_filename()) wanted = wanted.parent_path();
  if (!wanted.has_filename()) return refuse("is the root of the file system");
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::weakly_canonical(wanted.parent_path(), error);
  if (error) return refuse(error.message());

  File at(::open("/", folder_flags | O_PATH));
  if (!at) return refuse(reason(errno));
  std::filesystem::path so_far = "/";
  const std::filesystem::path steps = resolved.relative_path() / wanted.filename();
  const auto count = std::distance(steps.begin(), steps.end());
  auto number = count - count;
  struct stat s {};
  for (const std::filesystem::path& step : steps) {
    if (fstat(at.get(), &s) != 0) return refuse(reason(errno));
    if (const std::string bad = unsafe_parent(s); !bad.empty())
      return refuse(fmt::format("{} {}", so_far.string(), bad));
    const bool last = ++number == count;
    so_far /= step;
    // Folders above may be such that they can be passed through and not read.
    const int flags = last ? folder_flags : folder_flags | O_PATH;
    File next(openat(at.get(), step.c_str(), flags));
    if (!next && errno == ENOENT && access == Access::own) {
      if (mkdirat(at.get(), step.c_str(), 0700) != 0 && errno != EEXIST)
        return refuse(fmt::format("{} cannot be made: {}", so_far.string(), reason(errno)));
      next = File(openat(at.get(), step.c_str(), flags));
    }
    if (!next)
      return refuse(fmt::format("{} {}", so_far.string(),
                                errno == ELOOP || errno == ENOTDIR ? "is a symbolic link or no folder"
                                                                   : "cannot be opened: " + reason(errno)));
    at = std::move(next);
  }
  std::unique_ptr<Folder> folder(new Folder);
  folder->path_ = so_far.string();
  folder->access_ = access;
  folder->outside_ = std::move(outside);
  if (fstat(at.get(), &s) != 0) return refuse(reason(errno));
  if (s.st_uid != geteuid() && !(access == Access::layer && s.st_uid == 0))
    return refuse(fmt::format("belongs to user {}, this process is of user {}", s.st_uid, geteuid()));
  if (others_may_write(s)) return refuse(fmt::format("can be written by other users (mode {:o})", s.st_mode & 07777));
  folder->entries_ = folder->subfolder(at.get(), "v1", access == Access::own);
  if (!folder->entries_ && errno != ENOENT) return refuse("v1: " + reason(errno));
  folder->root_ = std::move(at);
  return folder;
}

// ---- reading ----

Folder::Read Folder::read(const codegen::Digest& key) const {
  Read r = read(file_name(key));
  if (r.found == Found::entry && r.entry.key != key) {
    condemn(key);
    return {Found::damaged, {}};
  }
  return r;
}

Folder::Read Folder::read(const std::string& name) const {
  const std::size_t slash = name.find('/');
  const std::string file = name.substr(slash + 1);
  const File folder = subfolder(entries_.get(), name.substr(0, slash), false);
  if (!folder) return {};
  // A pipe or a device is opened without waiting, and refused for what it is.
  const File in(openat(folder.get(), file.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!in && errno != ELOOP && errno != ENXIO && errno != EACCES) return {};
  const auto damaged = [&] {
    quarantine(folder.get(), file);
    return Read{Found::damaged, {}};
  };
  struct stat s {};
  if (!in || fstat(in.get(), &s) != 0 || !safe(s, true)) return damaged();
  if (s.st_size < 0 || static_cast<std::uint64_t>(s.st_size) > largest_entry) return damaged();
  std::vector<std::byte> bytes(static_cast<std::size_t>(s.st_size));
  for (std::size_t at = 0; at < bytes.size();) {
    const ssize_t n = ::read(in.get(), bytes.data() + at, bytes.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {};  // the disk's fault, perhaps for a while
    if (n == 0) return damaged();
    at += static_cast<std::size_t>(n);
  }
  std::optional<Entry> entry = parse(bytes);
  if (!entry || file_name(entry->key) != name) return damaged();
  if (access_ == Access::own) {
    const std::int64_t now = seconds_of(outside_.now());
    if (s.st_mtim.tv_sec > now || now - s.st_mtim.tv_sec > stamp_every.count()) touch(in.get());
  }
  return {Found::entry, std::move(*entry)};
}

void Folder::touch(int fd) const {
  const timespec now{static_cast<time_t>(seconds_of(outside_.now())), 0};
  const timespec times[2] = {now, now};
  futimens(fd, times);
}

void Folder::condemn(const codegen::Digest& key) const {
  const std::string name = file_name(key);
  const File folder = subfolder(entries_.get(), name.substr(0, 2), false);
  if (folder) quarantine(folder.get(), name.substr(3));
}

void Folder::quarantine(int folder, const std::string& file) const {
  if (access_ == Access::layer) return;
  const File bad = subfolder(root_.get(), "bad", true);
  if (!bad) {
    unlinkat(folder, file.c_str(), 0);
    return;
  }
  // Named by the time, so that names tell the oldest.
  const auto now = outside_.now().time_since_epoch();
  const std::string name =
      fmt::format("{:020}-{}", std::chrono::duration_cast<std::chrono::microseconds>(now).count(), file.substr(0, 16));
  if (renameat(folder, file.c_str(), bad.get(), name.c_str()) != 0) unlinkat(folder, file.c_str(), 0);
  std::vector<std::string> names = names_in(bad.get());
  for (std::size_t i = 0; i + kept_bad < names.size(); ++i)
    if (unlinkat(bad.get(), names[i].c_str(), 0) != 0) unlinkat(bad.get(), names[i].c_str(), AT_REMOVEDIR);
}

// ---- writing ----

std::string Folder::publish(const codegen::Digest& key, std::span<const std::byte> bytes) const {
  const std::string name = file_name(key), file = name.substr(3), temp = random_name();
  const File folder = subfolder(entries_.get(), name.substr(0, 2), true);
  if (!folder) return reason(errno);
  int failure = 0;
  {
    const File out(openat(folder.get(), temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!out) return reason(errno);
    for (std::size_t at = 0; at < bytes.size() && !failure;) {
      const ssize_t n = outside_.write(out.get(), bytes.data() + at, bytes.size() - at);
      if (n < 0 && errno != EINTR) failure = errno;
      if (n == 0) failure = EIO;
      if (n > 0) at += static_cast<std::size_t>(n);
    }
    if (!failure && (fchmod(out.get(), 0600) != 0 || fsync(out.get()) != 0)) failure = errno;
  }
  // A link leaves alone what another process has put there meanwhile; where there are no links, what it put there is as
  // good.
  if (!failure && linkat(folder.get(), temp.c_str(), folder.get(), file.c_str(), 0) != 0 && errno != EEXIST) {
    if (renameat(folder.get(), temp.c_str(), folder.get(), file.c_str()) != 0) failure = errno;
  }
  unlinkat(folder.get(), temp.c_str(), 0);
  if (failure) return reason(failure);
  fsync(folder.get());
  return {};
}

File Folder::lock_file(const char* name) const {
  const File locks = subfolder(root_.get(), "lock", true);
  if (!locks) return {};
  constexpr int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  File file(openat(locks.get(), name, flags, 0600));
  struct stat s {};
  if (!file || fstat(file.get(), &s) != 0 || !safe(s, true)) return {};
  return file;
}

File Folder::lock(const codegen::Digest& key, std::chrono::milliseconds limit) const {
  File file = lock_file("keys");
  if (!file) return {};
  std::uint64_t at = 0;
  std::memcpy(&at, key.data(), sizeof at);
  at >>= 2;  // an offset in the file, whose byte need not be there
  const auto give_up = std::chrono::steady_clock::now() + limit;
  for (auto pause = 1ms;; pause = std::min(2 * pause, 32ms)) {
    if (try_lock(file.get(), static_cast<off_t>(at))) return file;
    if (errno != EAGAIN && errno != EACCES && errno != EINTR) return {};
    if (std::chrono::steady_clock::now() + pause > give_up) return {};
    std::this_thread::sleep_for(pause);
  }
}

// ---- keeping it small ----

void Folder::for_each_file(const std::function<void(int, const std::string&, const std::string&)>& visit) const {
  for (const std::string& prefix : names_in(entries_.get()))
    if (const File folder = subfolder(entries_.get(), prefix, false))
      for (const std::string& name : names_in(folder.get())) visit(folder.get(), prefix, name);
}

std::vector<EntryFile> Folder::list() const {
  std::vector<EntryFile> all;
  const std::int64_t now = seconds_of(outside_.now());
  for_each_file([&](int folder, const std::string& prefix, const std::string& name) {
    struct stat s {};
    if (!name.ends_with(extension) || fstatat(folder, name.c_str(), &s, AT_SYMLINK_NOFOLLOW) != 0) return;
    all.push_back({fmt::format("{}/{}", prefix, name), static_cast<std::uint64_t>(s.st_size),
                   std::min<std::int64_t>(s.st_mtim.tv_sec, now)});
  });
  return all;
}

Folder::Swept Folder::sweep(std::uint64_t limit) const {
  const File file = lock_file("sweep");
  if (!file || !try_lock(file.get(), 0)) return {.busy = true};
  touch(file.get());
  return sweep_locked(limit);
}

void Folder::sweep_sometimes(std::uint64_t limit) const {
  const File file = lock_file("sweep");
  struct stat s {};
  if (!file || fstat(file.get(), &s) != 0) return;
  const std::int64_t age = seconds_of(outside_.now()) - s.st_mtim.tv_sec;
  if ((age >= 0 && age < sweep_every.count()) || !try_lock(file.get(), 0)) return;
  touch(file.get());
  sweep_locked(limit);
}

Folder::Swept Folder::sweep_locked(std::uint64_t limit) const {
  Swept swept;
  const std::int64_t now = seconds_of(outside_.now());
  for_each_file([&](int folder, const std::string&, const std::string& name) {
    struct stat s {};
    if (!name.starts_with(temporary) || fstatat(folder, name.c_str(), &s, AT_SYMLINK_NOFOLLOW) != 0) return;
    const std::int64_t age = now - s.st_mtim.tv_sec;
    if (age < 0) {  // begins to age now
      const timespec stamp{static_cast<time_t>(now), 0}, times[2] = {stamp, stamp};
      utimensat(folder, name.c_str(), times, AT_SYMLINK_NOFOLLOW);
    } else if (age > temporary_lives.count() && unlinkat(folder, name.c_str(), 0) == 0) {
      ++swept.temporaries;
    }
  });
  std::vector<EntryFile> all = list();
  for (const EntryFile& e : all) swept.left += e.bytes;
  std::stable_sort(all.begin(), all.end(), [](const EntryFile& a, const EntryFile& b) { return a.used < b.used; });
  for (const EntryFile& e : all) {
    if (swept.left <= limit) break;
    if (unlinkat(entries_.get(), e.name.c_str(), 0) != 0) continue;
    ++swept.entries;
    swept.bytes += e.bytes;
    swept.left -= e.bytes;
  }
  return swept;
}

Folder::Swept Folder::clear() const {
  Swept swept = sweep(0);
  if (swept.busy) return swept;
  for_each_file([&](int folder, const std::string&, const std::string& name) {
    if (name.starts_with(temporary) && unlinkat(folder, name.c_str(), 0) == 0) ++swept.temporaries;
  });
  if (const File bad = subfolder(root_.get(), "bad", false))
    for (const std::string& name : names_in(bad.get())) unlinkat(bad.get(), name.c_str(), 0);
  return swept;
}

}  // namespace kerf::cache
