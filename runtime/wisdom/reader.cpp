#include "runtime/wisdom/reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/wisdom/line.h"

namespace kerf {
namespace runtime {
namespace {

constexpr std::int64_t most_reported = 1000;

}  // namespace

void WisdomReader::feed(std::string_view chunk) {
  while (!chunk.empty() && !done_) {
    const std::size_t end = chunk.find('\n');
    const std::string_view part = chunk.substr(0, end);
    if (line_.size() + part.size() > wisdom_line_limit) too_long_ = true;
    if (!too_long_) line_ += part;
    if (end == std::string_view::npos) return;
    end_line(true);
    chunk.remove_prefix(end + 1);
  }
}

WisdomRead WisdomReader::finish() {
  if (!done_ && (too_long_ || !line_.empty())) end_line(false);
  read_.wisdom.crown_all();
  return std::move(read_);
}

void WisdomReader::problem(std::string what) {
  number_ = 0;
  problem_here(std::move(what));
  done_ = true;
}

void WisdomReader::problem_here(std::string what, bool note) {
  if (++reported_ > most_reported) return;
  if (reported_ == most_reported) what = "there are more lines like these before; they are not listed one by one";
  read_.problems.push_back({source_, number_, std::move(what), note});
}

void WisdomReader::end_line(bool terminated) {
  const std::string line = std::move(line_);
  const bool too_long = too_long_;
  line_.clear();
  too_long_ = false;
  if (number_ > wisdom_lines_limit) {
    problem_here(fmt::format("the file has more than {} lines; from here on it was not read: prune it or take it apart",
                             wisdom_lines_limit));
    done_ = true;
    return;
  }
  const bool first = !std::exchange(begun_, true);
  if (too_long) {
    problem_here(fmt::format("the line has more than {} bytes; nothing that Kerf writes has", wisdom_line_limit));
  } else if (line.find_first_not_of(" \t\r") == std::string::npos) {
    begun_ = !first;
  } else {
    auto parsed = parse_wisdom_line(line);
    if (auto* header = std::get_if<WisdomHeader>(&parsed)) {
      if (header->schema > wisdom_schema) {
        problem_here(fmt::format("the file is of schema {}, this Kerf reads schema {}; use a newer Kerf",
                                 header->schema, wisdom_schema));
        read_.wisdom = {};
        read_.newer = done_ = true;
        return;
      }
      read_.wisdom.merge_header(header->other);
    } else if (auto* record = std::get_if<WisdomRecord>(&parsed)) {
      if (first)
        problem_here(
            fmt::format("the first line is a record and must be the header: put {} above it", to_line(WisdomHeader{})),
            true);
      read_.wisdom.put(std::move(*record));
    } else {
      BadLine& bad = std::get<BadLine>(parsed);
      const bool torn = bad.syntax && !terminated;
      if (torn) bad.what = "the last line was not written to its end; it is skipped";
      problem_here(std::move(bad.what), torn);
    }
  }
  ++number_;
}

}  // namespace runtime

std::string WisdomProblem::text() const {
  return line > 0 ? fmt::format("{}:{}: {}", source, line, what) : fmt::format("{}: {}", source, what);
}

bool WisdomRead::damaged() const {
  return std::any_of(problems.begin(), problems.end(), [](const WisdomProblem& p) { return !p.note; });
}

WisdomRead Wisdom::parse(std::string_view text, const std::string& source) {
  runtime::WisdomReader reader(source);
  reader.feed(text);
  return reader.finish();
}

}  // namespace kerf
