// What the benchmarks of the CPU and of a GPU share.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tools/kerf/loss_call.h"
#include "tools/kerf/verbs.h"
#include "tools/kerf/vocabulary.h"

namespace kerf::tools {

struct BenchOptions {
  InputOptions input;
  double seconds = 10;
  bool table = false, json = false;
  std::string json_file;

  bool wants_json() const { return json || !json_file.empty(); }
  /// Prints it, writes it to the file, or both. Throws UsageError where the file cannot be written.
  void put(const nlohmann::ordered_json& results) const;
};

/// Times of one thing, in milliseconds.
class Times {
 public:
  void add(double ms) { ms_.push_back(ms); }
  double median() const { return quantile(0.5); }
  /// (90th - 10th percentile) / median.
  double spread() const { return (quantile(0.9) - quantile(0.1)) / median(); }

 private:
  double quantile(double q) const {
    std::vector<double> sorted = ms_;
    std::sort(sorted.begin(), sorted.end());
    const double at = q * static_cast<double>(sorted.size() - 1);
    const auto low = static_cast<std::size_t>(at), high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (at - std::floor(at)) * (sorted[high] - sorted[low]);
  }
  std::vector<double> ms_;
};

/// The problem and the order of its vocabulary; with --presorted the problem lies in it and the plan is told none.
struct Case {
  Problem problem;
  VocabularyOrder order;
};
Case make_case(const InputOptions& input, const ProblemSpec& spec, const PlanDesc& desc);

/// What both tell of a call beside its times.
void add_report(nlohmann::ordered_json& to, const LossCall& call, const PlanDesc& desc, const VocabularyOrder& order);
void print_report(const LossCall& call, const PlanDesc& desc, const VocabularyOrder& order);

int bench_on_gpu(const BenchOptions& options);

}  // namespace kerf::tools
