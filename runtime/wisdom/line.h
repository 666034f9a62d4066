// A line of a wisdom file: a record or the header, to text and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "kerf/wisdom.h"

namespace kerf::runtime {

inline constexpr std::int64_t wisdom_schema = 1;
inline constexpr std::size_t wisdom_line_limit = 64 << 10;  // bytes, without the end of line
inline constexpr int wisdom_depth_limit = 8;

struct WisdomHeader {
  std::int64_t schema = wisdom_schema;
  WisdomFields other = {};
};
/// What is wrong with a line.
struct BadLine {
  std::string what;
  bool syntax = false;  // no JSON at all, as a line is that was not written to its end
};

/// The line is within its limit.
std::variant<WisdomHeader, WisdomRecord, BadLine> parse_wisdom_line(std::string_view line);
/// Without an end of line.
std::string to_line(const WisdomHeader& header);
std::string to_line(const WisdomRecord& record);
/// "2026-11-21" or "2026-11-21T10:20:30Z".
bool is_date(std::string_view text);
/// The record as a file would give it back; UsageError where none could hold it.
WisdomRecord checked(const WisdomRecord& record);

}  // namespace kerf::runtime
