#include "runtime/tuner/misses.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kerf/error.h"
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

}  // namespace

bool note_miss(const std::string& file, const PlanDesc& desc, std::int64_t tokens) {
  const std::string line = line_of(desc, tokens);
  const std::vector<std::string> known = lines_of(file);
  if (std::find(known.begin(), known.end(), line) != known.end()) return true;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(file).parent_path(), ignored);
  // One write, so that lines of several processes do not mix.
  const int to = open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (to < 0) return false;
  const std::string text = line + '\n';
  const bool written = write(to, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(to);
  return written;
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
  std::vector<std::string> lines = lines_of(file);
  std::erase(lines, line_of(miss.desc, miss.tokens));
  const std::string beside = fmt::format("{}.tmp-{}", file, getpid());
  std::ofstream out(beside, std::ios::trunc);
  for (const std::string& line : lines) out << line << '\n';
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(beside, file, error);
  if (!out || error)
    throw DeviceError(fmt::format("tune: {} cannot be written: {}; its line of what was tuned stays", file,
                                  error ? error.message() : "the disk may be full"));
}

}  // namespace runtime
}  // namespace kerf
