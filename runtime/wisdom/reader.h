// Text of wisdom, chunk by chunk: only one line of it is held at a time.
#pragma once

#include <string>
#include <string_view>

#include "kerf/wisdom.h"

namespace kerf::runtime {

inline constexpr std::int64_t wisdom_lines_limit = 1'000'000;

class WisdomReader {
 public:
  explicit WisdomReader(std::string source) : source_(std::move(source)) {}
  void feed(std::string_view chunk);
  /// Whether what follows would not be looked at.
  bool done() const { return done_; }
  /// Of the text as a whole.
  void problem(std::string what);
  WisdomRead finish();

 private:
  void end_line(bool terminated);
  void problem_here(std::string what, bool note = false);

  std::string source_, line_;
  std::int64_t number_ = 1, reported_ = 0;
  bool too_long_ = false, begun_ = false, done_ = false;
  WisdomRead read_;
};

}  // namespace kerf::runtime
