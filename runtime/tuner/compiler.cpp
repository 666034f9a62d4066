#include "runtime/tuner/compiler.h"

#include <chrono>
#include <system_error>

namespace kerf::runtime {

CandidateCompiler::CandidateCompiler(TuneSubject& subject, const std::vector<const TunePoint*>& points)
    : results_(points.size()) {
  threads_.reserve(points.size());
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (points[i] == nullptr) continue;
    const auto work = [&subject, point = points[i], result = &results_[i]] {
      const auto start = std::chrono::steady_clock::now();
      try {
        result->resources = subject.compile(*point);
      } catch (...) {
        result->error = std::current_exception();
      }
      result->ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    };
    try {
      threads_.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had
      work();
    }
  }
}

}  // namespace kerf::runtime
