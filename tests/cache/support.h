// Folders and processes for tests of the cache.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cache/entry.h"
#include "runtime/cache/folder.h"
#include "tests/cache/scale.h"

namespace kerf::test {

namespace fs = std::filesystem;

/// A new folder, gone with this object.
class NewFolder {
 public:
  NewFolder() {
    std::string pattern = (fs::temp_directory_path() / "kerf-cache-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = fs::canonical(pattern);
  }
  ~NewFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  fs::path operator/(const std::string& name) const { return path_ / name; }
  std::string string() const { return path_.string(); }

 private:
  fs::path path_;
};

inline std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> all;
  std::error_code error;
  for (const auto& e : fs::recursive_directory_iterator(folder, error))
    if (!e.is_directory()) all.push_back(e.path());
  return all;
}

inline std::vector<std::byte> bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::string s((std::istreambuf_iterator<char>(in)), {});
  const auto bytes = std::as_bytes(std::span(s));
  return {bytes.begin(), bytes.end()};
}
inline void write_bytes(const fs::path& file, std::span<const std::byte> bytes) {
  std::ofstream(file, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  fs::permissions(file, fs::perms::owner_read | fs::perms::owner_write);
}

/// The helper program, started; its output is read from a pipe.
class Helper {
 public:
  explicit Helper(std::vector<std::string> arguments) {
    const std::string program = (fs::read_symlink("/proc/self/exe").parent_path() / "kerf_cache_helper").string();
    arguments.insert(arguments.begin(), program);
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    const int failure = posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    out_ = cache::File(ends[0]);
    REQUIRE(failure == 0);
  }
  ~Helper() {
    if (pid_ > 0) kill(), wait();
  }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  std::string read_line() {
    std::string line;
    for (char c; read(out_.get(), &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }
  void kill() const { ::kill(pid_, SIGKILL); }
  /// What is left of its output, and its exit code, -1 if it was killed.
  struct End {
    int code = -1;
    std::string out;
  };
  End wait() {
    End end;
    char buffer[4096];
    for (ssize_t n; (n = read(out_.get(), buffer, sizeof buffer)) > 0;)
      end.out.append(buffer, static_cast<std::size_t>(n));
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    if (WIFEXITED(status)) end.code = WEXITSTATUS(status);
    return end;
  }

 private:
  pid_t pid_ = -1;
  cache::File out_;
};

inline Helper::End run_helper(const std::string& verb, std::vector<std::string> arguments = {}) {
  arguments.insert(arguments.begin(), verb);
  return Helper(std::move(arguments)).wait();
}

}  // namespace kerf::test
