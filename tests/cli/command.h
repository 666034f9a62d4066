// The kerf command, run under a shell.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

namespace cli {

using nlohmann::json;

struct Result {
  int code = -1;
  std::string out;
};

/// Runs `kerf ARGUMENTS` under the shell, with standard error in place of standard output where asked for.
inline Result kerf(const std::string& arguments, bool want_stderr = false, const std::string& environment = "") {
  const std::string line = fmt::format("{} '{}' {} {}", environment, KERF_COMMAND, arguments,
                                       want_stderr ? "2>&1 >/dev/null" : "2>/dev/null");
  Result r;
  FILE* const pipe = popen(line.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  for (std::size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) r.out.append(buffer.data(), n);
  const int status = pclose(pipe);
  r.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return r;
}

inline json kerf_json(const std::string& arguments) {
  const Result r = kerf(arguments + " --json");
  CAPTURE(arguments);
  CAPTURE(r.out);
  REQUIRE(r.code == 0);
  return json::parse(r.out);
}

inline void refused(const std::string& arguments, int code, const std::string& text) {
  const Result r = kerf(arguments, true);
  CAPTURE(arguments);
  CAPTURE(r.out);
  CHECK(r.code == code);
  CHECK(r.out.find(text) != std::string::npos);
  CHECK(r.out.starts_with("kerf"));
}

}  // namespace cli
