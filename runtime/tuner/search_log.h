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
  /// `file` empty: nothing is known and nothing kept.
  SearchLog(const TuneTask& task, const std::string& file);
  /// Gives candidates what is known of them, unless all is to be measured anew.
  void adopt(std::vector<TuneCandidate>& candidates, bool again) const;
  /// Adds a line, which outlives the process.
  void keep(const TuneCandidate& candidate);
  /// What was measured takes the place of what the file held of it before.
  void end();
  /// What could not be kept, and why: a search goes on without.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  /// Does a step that writes; false: the file cannot be, and no more is tried.
  template <class Step>
  bool attempt(const Step& step);

  const std::string name_;
  const TuneTask& task_;
  Wisdom known_;
  std::optional<WisdomAppender> file_;
  std::vector<WisdomRecord> kept_;
  std::vector<std::string> notes_;
};

}  // namespace kerf::runtime
