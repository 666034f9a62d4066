// The file of wisdom beside a search: what it knows already, and where records go.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "runtime/tuner/search.h"

namespace kerf::runtime {

class SearchLog {
 public:
  /// `file` empty: nothing is known and nothing kept. Throws as WisdomAppender does.
  SearchLog(const TuneTask& task, const std::string& file);
  /// Gives candidates what is known of them, unless all is to be measured anew.
  void adopt(std::vector<TuneCandidate>& candidates, bool again) const;
  /// Adds a line, which outlives the process.
  void keep(const TuneCandidate& candidate);
  /// What was measured takes the place of what the file held of it before.
  void end();

 private:
  const std::string name_;
  const TuneTask& task_;
  Wisdom known_;
  std::optional<WisdomAppender> file_;
  std::vector<WisdomRecord> kept_;
};

}  // namespace kerf::runtime
