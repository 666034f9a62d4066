#include "tools/support/ptxas.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace kerf::tools {
namespace {

namespace fs = std::filesystem;

/// A folder that goes when this does.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string name = (fs::temp_directory_path() / "kerf-ptxas-XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path = name;
  }
  ~Scratch() {
    std::error_code error;
    if (!path.empty()) fs::remove_all(path, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

/// For the shell.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

/// The number in front of `what`; 0 where it is not there.
std::int64_t number_before(const std::string& text, const std::string& what) {
  const std::size_t end = text.find(" " + what);
  if (end == std::string::npos) return 0;
  std::size_t begin = end;
  while (begin > 0 && text[begin - 1] >= '0' && text[begin - 1] <= '9') --begin;
  std::int64_t value = 0;
  std::from_chars(text.data() + begin, text.data() + end, value);
  return value;
}

}  // namespace

std::string find_ptxas() {
  if (const char* named = std::getenv("KERF_PTXAS"); named != nullptr && *named != '\0') return named;
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "");
  std::error_code error;
  for (std::string folder; std::getline(folders, folder, ':');)
    if (!folder.empty() && fs::is_regular_file(fs::path(folder) / "ptxas", error))
      return (fs::path(folder) / "ptxas").string();
  const char* const usual = "/usr/local/cuda/bin/ptxas";
  return fs::is_regular_file(usual, error) ? usual : "";
}

Assembled assemble(const std::string& ptxas, const std::string& ptx, const std::string& arch) {
  Assembled result;
  const Scratch scratch;
  const fs::path source = scratch.path / "program.ptx", cubin = scratch.path / "program.cubin";
  if (scratch.path.empty() || !(std::ofstream(source) << ptx)) {
    result.said = "the folder for temporary files cannot be written";
    return result;
  }
  const std::string line = quoted(ptxas) + " -v -arch=" + quoted(arch) + " -o " + quoted(cubin.string()) + " " +
                           quoted(source.string()) + " 2>&1";
  FILE* const pipe = popen(line.c_str(), "r");
  if (pipe == nullptr) return result;
  char buffer[512];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) result.said += buffer;
  result.ok = pclose(pipe) == 0;
  result.registers = static_cast<int>(number_before(result.said, "registers"));
  result.stack = number_before(result.said, "bytes stack frame");
  result.spilled = number_before(result.said, "bytes spill stores") + number_before(result.said, "bytes spill loads");
  result.shared = number_before(result.said, "bytes smem");
  std::error_code error;
  if (result.ok) result.code_bytes = static_cast<std::int64_t>(fs::file_size(cubin, error));
  return result;
}

}  // namespace kerf::tools
