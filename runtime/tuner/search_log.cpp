#include "runtime/tuner/search_log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kerf/error.h"

namespace kerf::runtime {

SearchLog::SearchLog(const TuneTask& task, const std::string& file) : name_(file), task_(task) {
  if (file.empty()) return;
  known_ = Wisdom::load(file).wisdom;
  attempt([&] { file_.emplace(file); });
}

template <class Step>
bool SearchLog::attempt(const Step& step) {
  try {
    step();
    return true;
  } catch (const Error& e) {
    notes_.push_back(e.what());
    return false;
  }
}

void SearchLog::adopt(std::vector<TuneCandidate>& candidates, bool again) const {
  if (again) return;
  for (const WisdomRecord& r : known_.records()) {
    if (r.key != task_.key || r.validators != task_.validators) continue;
    const auto point = from_wisdom(r.parameters);
    const auto at = std::find_if(candidates.begin(), candidates.end(),
                                 [&](const TuneCandidate& c) { return point && c.point == *point; });
    if (at == candidates.end()) continue;
    at->known = true;
    at->median_ms = r.median_ms, at->spread = r.spread, at->samples = r.samples;
    at->status = r.status, at->reason = r.reason, at->noisy = r.noisy;
    at->predicted_ms = r.predicted_ms;    // ties go by it, and whoever reads the file has no other
    constexpr std::int64_t measured = 2;  // and passed over: not given up after its first run
    if (r.status == WisdomStatus::slow && r.samples >= measured) at->status = WisdomStatus::ok;  // with its reason
  }
}

void SearchLog::keep(const TuneCandidate& c) {
  if (name_.empty()) return;
  WisdomRecord r;
  r.key = task_.key, r.validators = task_.validators, r.parameters = to_wisdom(c.point);
  r.median_ms = c.median_ms, r.spread = c.spread, r.samples = c.samples, r.predicted_ms = c.predicted_ms;
  // Not noisy: records that are go behind all others, so finalists would behind those that they have beaten.
  r.status = c.status, r.reason = c.reason;
  r.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::chrono::system_clock::now()));
  kept_.push_back(r);
  // What it lacks then is written at the end, if it can be.
  if (file_ && !attempt([&] { file_->append(r); })) file_.reset();
}

void SearchLog::end() {
  file_.reset();
  if (kept_.empty()) return;
  const auto replace = [&](Wisdom& all) {
    for (const WisdomRecord& r : kept_) all.replace(r);
  };
  if (attempt([&] { update_wisdom(name_, replace); })) notes_.clear();
}

}  // namespace kerf::runtime
