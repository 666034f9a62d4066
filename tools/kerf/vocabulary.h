// Orders of the vocabulary: what a filtered backward forms its blocks by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kerf/loss.h"
#include "tools/kerf/verbs.h"
#include "tools/support/problem.h"

namespace kerf::tools {

struct VocabularyOrder {
  std::string name;                  // "meanprob"; empty where nothing is filtered
  std::string text;                  // "meanprob: mean probability in 2048 rows after those in use"
  std::vector<std::int64_t> tokens;  // empty: the plan's own, or none
};

/// The order that --order asks for; for --presorted also that of the plan. Throws UsageError that names the file and
/// place of what is no order.
VocabularyOrder choose_order(const InputOptions& input, const PlanDesc& desc, const Problem& problem);

/// "mass >= 2.44e-04, kept 0.204, dropped mass 5.1e-03; order auto: c times the mean of e"
std::string filter_text(const PlanDesc& desc, const VocabularyOrder& order, const FilterReport& report);

/// The same problem with its vocabulary in this order: rows of c moved, targets renamed.
Problem sorted_vocabulary(Problem problem, const std::vector<std::int64_t>& order);

/// Mean probability of each token over `rows` rows from `first` on, of a problem in f32 without ignored rows.
std::vector<double> mean_probability(const Problem& problem, std::int64_t first, std::int64_t rows);

}  // namespace kerf::tools
