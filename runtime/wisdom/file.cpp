// Wisdom in files. Readers take no lock: a file is replaced at once by rename, or grows by whole lines. Writers hold an
// advisory lock on FILE.lock, which the kernel takes back when a process dies.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "kerf/error.h"
#include "kerf/wisdom.h"
#include "runtime/file_descriptor.h"
#include "runtime/file_lock.h"
#include "runtime/wisdom/line.h"
#include "runtime/wisdom/reader.h"

namespace kerf {
namespace {

using runtime::FileDescriptor;

constexpr std::int64_t size_limit = std::int64_t{1} << 30;
constexpr std::chrono::seconds lock_wait{30};

std::string error_text(int error) { return std::generic_category().message(error); }

/// An errno of the file: the caller can do something about it where another file would do.
[[noreturn]] void fail(const std::string& file, const char* what, int error) {
  if (error == EIO || error == ENOSPC || error == EDQUOT || error == EMFILE || error == ENFILE || error == ENOLCK)
    throw DeviceError(fmt::format("wisdom: {} {}: {}; nothing was changed", file, what, error_text(error)));
  throw UsageError(fmt::format("wisdom: {} {}: {}; name a file that can be written, in KERF_WISDOM for example", file,
                               what, error_text(error)));
}

const char* kind_of(mode_t mode) {
  return S_ISFIFO(mode)   ? "a pipe"
         : S_ISDIR(mode)  ? "a folder"
         : S_ISCHR(mode)  ? "a character device"
         : S_ISBLK(mode)  ? "a block device"
         : S_ISSOCK(mode) ? "a socket"
         : S_ISLNK(mode)  ? "a symbolic link"
                          : "a regular file";
}

/// Reads what is open from its beginning, a piece at a time.
void read_into(runtime::WisdomReader& reader, int fd) {
  std::string piece(1 << 20, '\0');
  for (off_t at = 0; !reader.done();) {
    const ssize_t n = pread(fd, piece.data(), piece.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return reader.problem(fmt::format("cannot be read to its end: {}", error_text(errno)));
    if (n == 0) return;
    reader.feed({piece.data(), static_cast<std::size_t>(n)});
    at += n;
    if (at > size_limit) return reader.problem(fmt::format("grows while it is read, past {} bytes", size_limit));
  }
}

WisdomRead read_file(const std::string& file) {
  runtime::WisdomReader reader(file);
  // Not blocking: a pipe without a writer would not open.
  const FileDescriptor fd(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat s {};
  if (!fd) {
    if (errno != ENOENT) reader.problem(fmt::format("cannot be opened: {}", error_text(errno)));
  } else if (fstat(fd.get(), &s) != 0) {
    reader.problem(fmt::format("cannot be looked at: {}", error_text(errno)));
  } else if (!S_ISREG(s.st_mode)) {
    reader.problem(fmt::format("is {}; wisdom is read from regular files alone", kind_of(s.st_mode)));
  } else if (s.st_size > size_limit) {
    reader.problem(fmt::format("has {} bytes, at most {} are read; prune it or take it apart", s.st_size, size_limit));
  } else {
    read_into(reader, fd.get());
  }
  return reader.finish();
}

void write_all(int fd, std::string_view text, const std::string& file) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(file, "cannot be written", errno);
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

std::string folder_of(const std::string& file) {
  const std::string folder = std::filesystem::path(file).parent_path();
  return folder.empty() ? "." : folder;
}

/// What lies at the file's name, links not followed; mode 0 where there is nothing.
struct stat look_at(const std::string& file) {
  struct stat s {};
  if (lstat(file.c_str(), &s) != 0) {
    if (errno != ENOENT) fail(file, "cannot be looked at", errno);
    return {};
  }
  if (!S_ISREG(s.st_mode))
    throw UsageError(fmt::format("wisdom: {} is {}; wisdom is written to regular files alone: name {}", file,
                                 kind_of(s.st_mode), S_ISLNK(s.st_mode) ? "what it points to" : "another"));
  return s;
}

/// Holds FILE.lock. The folder is made where it is missing.
class Lock {
 public:
  explicit Lock(const std::string& file) {
    if (file.empty())
      throw UsageError("wisdom: no file: none of KERF_WISDOM, XDG_DATA_HOME and HOME is set; set KERF_WISDOM");
    std::error_code error;
    std::filesystem::create_directories(folder_of(file), error);
    if (error) fail(folder_of(file), "cannot be made", error.value());
    look_at(file);
    const std::string name = file + ".lock";
    look_at(name);
    fd_ = FileDescriptor(open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666));
    if (!fd_) fail(name, "cannot be opened", errno);
    const int error_of_lock = runtime::lock_file(fd_.get(), lock_wait);
    if (error_of_lock == ETIMEDOUT)
      throw DeviceError(fmt::format("wisdom: another process has held {} for {} s; see who with fuser {}", name,
                                    lock_wait.count(), name));
    if (error_of_lock != 0) fail(name, "cannot be locked", error_of_lock);
  }

 private:
  FileDescriptor fd_;
};

/// A second name for the file, one that was free.
std::string keep_aside(const std::string& file) {
  for (int n = 1;; ++n) {
    const std::string name = fmt::format("{}.bad-{}", file, n);
    if (link(file.c_str(), name.c_str()) == 0) return name;
    if (errno == EEXIST) continue;
    std::error_code error;  // a file system without links
    if (std::filesystem::copy_file(file, name, error)) return name;
    if (error != std::errc::file_exists) fail(name, "cannot be written", error.value());
  }
}

void replace(const std::string& file, const std::string& text, mode_t mode) {
  const std::string name = file + ".tmp";  // one at a time, as the lock is held; one that is there, its writer died
  unlink(name.c_str());
  const FileDescriptor fd(open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666));
  if (!fd) fail(name, "cannot be made", errno);
  try {
    if (mode != 0 && fchmod(fd.get(), mode & 07777) != 0) fail(name, "cannot be given the rights of the old", errno);
    write_all(fd.get(), text, name);
    if (fsync(fd.get()) != 0) fail(name, "cannot be written", errno);
    if (rename(name.c_str(), file.c_str()) != 0) fail(file, "cannot be replaced", errno);
  } catch (...) {
    unlink(name.c_str());
    throw;
  }
  const FileDescriptor folder(open(folder_of(file).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder) fsync(folder.get());
}

void check_limits(const std::string& file, std::int64_t bytes, std::int64_t records) {
  if (bytes > size_limit || records >= runtime::wisdom_lines_limit)
    throw UsageError(
        fmt::format("wisdom: {} would have {} records in {} bytes, and at most {} in {} are read; prune it", file,
                    records, bytes, runtime::wisdom_lines_limit - 1, size_limit));
}

}  // namespace

WisdomRead Wisdom::load(const std::string& file) {
  try {
    return read_file(file);
  } catch (const std::exception& e) {
    WisdomRead nothing;
    nothing.problems.push_back({file, 0, fmt::format("cannot be held in memory: {}", e.what()), false});
    return nothing;
  }
}

std::vector<WisdomProblem> update_wisdom(const std::string& file, const std::function<void(Wisdom&)>& change) {
  const Lock lock(file);
  const struct stat old = look_at(file);
  WisdomRead read = read_file(file);
  if (read.newer) throw UsageError(fmt::format("wisdom: {}; it was left as it is", read.problems.back().text()));
  change(read.wisdom);
  const std::string text = read.wisdom.text();
  check_limits(file, static_cast<std::int64_t>(text.size()), static_cast<std::int64_t>(read.wisdom.records().size()));
  if (read.damaged())
    read.problems.push_back({file, 0, fmt::format("the file as it was is kept as {}", keep_aside(file)), true});
  replace(file, text, old.st_mode);
  return std::move(read.problems);
}

std::vector<WisdomProblem> Wisdom::save(const std::string& file) const {
  return update_wisdom(file, [this](Wisdom& there) { there.merge(*this); });
}

struct WisdomAppender::Impl {
  std::string file;
  FileDescriptor fd;
  dev_t device = 0;
  ino_t inode = 0;

  /// Opens what lies at the file's name, unless that is open; a torn last line goes.
  void open_file() {
    const struct stat there = look_at(file);
    if (fd && there.st_mode != 0 && there.st_dev == device && there.st_ino == inode) return;
    fd = FileDescriptor(open(file.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666));
    struct stat s {};
    if (!fd || fstat(fd.get(), &s) != 0) fail(file, "cannot be opened", errno);
    device = s.st_dev;
    inode = s.st_ino;
  }

  /// Bytes of the file up to its last whole line; a last line without an end is whole if it can be read.
  std::int64_t end_of_lines(std::int64_t size) const {
    constexpr auto most = static_cast<std::int64_t>(runtime::wisdom_line_limit) + 1;
    std::string tail(static_cast<std::size_t>(std::min(size, most)), '\0');
    if (pread(fd.get(), tail.data(), tail.size(), size - static_cast<std::int64_t>(tail.size())) !=
        static_cast<ssize_t>(tail.size()))
      fail(file, "cannot be read", errno);
    const std::size_t end = tail.rfind('\n');
    if (end == std::string::npos && size > most) return size;
    const std::string line = tail.substr(end + 1);  // npos + 1 is 0
    const auto parsed = runtime::parse_wisdom_line(line);
    const auto* bad = std::get_if<runtime::BadLine>(&parsed);
    return bad != nullptr && bad->syntax ? size - static_cast<std::int64_t>(line.size()) : size;
  }
};

WisdomAppender::WisdomAppender(const std::string& file) : impl_(std::make_unique<Impl>()) {
  const Lock lock(file);
  impl_->file = file;
  impl_->open_file();
  const WisdomRead read = read_file(file);
  if (read.newer) throw UsageError(fmt::format("wisdom: {}; it was left as it is", read.problems.back().text()));
}

WisdomAppender::~WisdomAppender() = default;
WisdomAppender::WisdomAppender(WisdomAppender&&) noexcept = default;
WisdomAppender& WisdomAppender::operator=(WisdomAppender&&) noexcept = default;

void WisdomAppender::append(const WisdomRecord& record) {
  const std::string line = runtime::to_line(runtime::checked(record));
  const std::string& file = impl_->file;
  const Lock lock(file);
  impl_->open_file();
  const int fd = impl_->fd.get();
  struct stat s {};
  if (fstat(fd, &s) != 0) fail(file, "cannot be looked at", errno);
  std::int64_t size = s.st_size;
  std::string before;
  char last = '\n';
  if (size > 0 && pread(fd, &last, 1, size - 1) != 1) fail(file, "cannot be read", errno);
  if (last != '\n') {
    const std::int64_t whole = impl_->end_of_lines(size);
    if (whole == size) before.push_back('\n');
    if (whole < size && ftruncate(fd, whole) != 0) fail(file, "cannot be cut", errno);
    size = whole;
  }
  if (size == 0) before = fmt::format("{}\n", runtime::to_line(runtime::WisdomHeader{}));
  const std::string text = fmt::format("{}{}\n", before, line);
  check_limits(file, size + static_cast<std::int64_t>(text.size()), 0);
  const ssize_t n = write(fd, text.data(), text.size());
  if (n == static_cast<ssize_t>(text.size())) return;
  const int error = n < 0 ? errno : ENOSPC;
  if (n > 0 && ftruncate(fd, size) != 0) fail(file, "cannot be cut", errno);
  fail(file, "cannot be written", error);
}

std::string user_wisdom_file() {
  const auto variable = [](const char* name) {
    const char* const value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  if (const std::string file = variable("KERF_WISDOM"); !file.empty()) return file;
  if (const std::string data = variable("XDG_DATA_HOME"); data.starts_with('/')) return data + "/kerf/wisdom.jsonl";
  if (const std::string home = variable("HOME"); home.starts_with('/')) return home + "/.local/share/kerf/wisdom.jsonl";
  return {};
}

}  // namespace kerf
