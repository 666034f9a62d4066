// Pages that the command writes, looked at.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace cli {

/// A file that is gone afterwards.
struct Scratch {
  explicit Scratch(const char* ending)
      : path((std::filesystem::temp_directory_path() / fmt::format("kerf-page-{}{}", getpid(), ending)).string()) {}
  ~Scratch() { std::filesystem::remove(path); }
  std::string read() const {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  void write(const std::string& text) const { std::ofstream(path) << text; }
  std::string path;
};

inline int count(std::string_view text, std::string_view word) {
  int n = 0;
  for (std::size_t at = 0; (at = text.find(word, at)) != std::string_view::npos; at += word.size()) ++n;
  return n;
}

/// What is wrong with the nesting of a document's tags; empty if nothing.
inline std::string tag_error(std::string_view text) {
  std::vector<std::string> open;
  for (std::size_t at = 0; (at = text.find('<', at)) != std::string_view::npos;) {
    const std::size_t end = text.find('>', at);
    if (end == std::string_view::npos) return "a tag does not end";
    const std::string_view tag = text.substr(at + 1, end - at - 1);
    at = end;
    if (tag.starts_with('!') || tag.ends_with('/')) continue;
    if (count(tag, "\"") % 2 != 0) return fmt::format("<{}>: a quote does not end", tag);
    const std::string name(tag.substr(0, tag.find(' ')));
    if (!tag.starts_with('/')) {
      open.push_back(name);
    } else {
      if (open.empty() || "/" + open.back() != name) return fmt::format("<{}> closes what is not open", tag);
      open.pop_back();
    }
  }
  return open.empty() ? "" : fmt::format("<{}> is not closed", open.back());
}

}  // namespace cli
