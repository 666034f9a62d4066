#include "runtime/tuner/misses.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kerf/error.h"
#include "runtime/file_descriptor.h"
#include "runtime/file_lock.h"
#include "runtime/tuner/loss_setup.h"

namespace kerf {

std::string user_misses_file() {
  if (const char* const named = std::getenv("KERF_TUNE_MISSES"); named != nullptr && *named != '\0') return named;
  const std::string wisdom = user_wisdom_file();
  return wisdom.empty() ? "" : (std::filesystem::path(wisdom).parent_path() / "missing.jsonl").string();
}

namespace runtime {

namespace {

std::string line_of(const PlanDesc& desc, std::int64_t tokens) {
  return to_text(LossSetup{.desc = bench_desc(desc), .tokens = token_bucket(std::max<std::int64_t>(1, tokens))});
}

std::vector<std::string> lines_of(const std::string& file) {
  std::vector<std::string> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(std::move(line));
  return lines;
}

/// Held by whoever changes the file; no descriptor: cannot be had.
FileDescriptor lock_of(const std::string& file) {
  constexpr std::chrono::seconds wait{5};
  FileDescriptor fd(open((file + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666));
  if (fd && lock_file(fd.get(), wait) == 0) return fd;
  return {};
}

}  // namespace

bool note_miss(const std::string& file, const PlanDesc& desc, std::int64_t tokens) {
  const std::string line = line_of(desc, tokens);
  const auto known = [&] {
    const std::vector<std::string> lines = lines_of(file);
    return std::find(lines.begin(), lines.end(), line) != lines.end();
  };
  if (known()) return true;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(file).parent_path(), ignored);
  const FileDescriptor lock = lock_of(file);
  if (!lock) return false;
  if (known()) return true;
  const FileDescriptor to(open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0666));
  const std::string text = line + '\n';
  return to && write(to.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

std::vector<TuneMiss> read_misses(const std::string& file) {
  std::vector<TuneMiss> misses;
  for (const std::string& line : lines_of(file)) {
    try {
      const LossSetup s = parse_setup(line);
      misses.push_back({s.desc, s.tokens});
    } catch (const UsageError&) {
    }
  }
  return misses;
}

void forget_miss(const std::string& file, const TuneMiss& miss) {
  const auto fail = [&](const std::string& why) {
    throw DeviceError(fmt::format("tune: {} cannot be written: {}; its line of what was tuned stays", file, why));
  };
  const FileDescriptor lock = lock_of(file);
  if (!lock) fail(fmt::format("{}.lock cannot be locked", file));
  std::vector<std::string> lines = lines_of(file);
  if (std::erase(lines, line_of(miss.desc, miss.tokens)) == 0) return;
  const std::string beside = file + ".tmp";
  std::ofstream out(beside, std::ios::trunc);
  for (const std::string& line : lines) out << line << '\n';
  out.close();
  if (!out) fail("the disk may be full");
  std::error_code error;
  std::filesystem::rename(beside, file, error);
  if (error) fail(error.message());
}

}  // namespace runtime
}  // namespace kerf
