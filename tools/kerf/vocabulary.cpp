#include "tools/kerf/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <utility>

#include "kerf/error.h"
#include "runtime/device_loss.h"
#include "runtime/vocabulary_order.h"
#include "tools/support/gemm.h"
#include "tools/support/lm_data.h"
#include "tools/support/npy.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

constexpr std::int64_t other_rows = 2048;  // that mean probabilities are taken over

using Scores = std::vector<double>;

struct Scored {
  Scores score;
  std::string text;
};

Scored counts(const InputOptions& input, const Problem& p) {
  Scored s{Scores(static_cast<std::size_t>(p.spec.vocabulary), 0), ""};
  std::vector<std::int64_t> targets = p.target;
  if (!input.data.empty()) {
    LmData data = read_lm_data(input.data);
    if (!data.count.empty()) {
      std::copy_n(data.count.begin(), s.score.size(), s.score.begin());
      return {s.score, "token counts of the data"};
    }
    targets = std::move(data.target);
  }
  std::int64_t used = 0;
  for (const std::int64_t t : targets)
    if (t >= 0 && t < p.spec.vocabulary) ++s.score[static_cast<std::size_t>(t)], ++used;
  s.text = fmt::format("counts of {} targets", used);
  return s;
}

Scored mean_probabilities(const InputOptions& input, const Problem& p) {
  ProblemSpec spec = p.spec;
  spec.tokens += other_rows;
  spec.dtype = f32;
  spec.ignored = 0;
  std::string which = "2048 rows after those in use";
  if (input.data.empty()) {
    which = "2048 fresh rows";
  } else {
    const LmData data = read_lm_data(input.data);
    spec.hidden = data.hidden;  // lifting changes no logit
    const auto usable =
        std::count_if(data.target.begin(), data.target.end(), [&](std::int64_t t) { return t < spec.vocabulary; });
    const std::int64_t copies = std::clamp<std::int64_t>(spec.tokens - usable, 0, other_rows);
    if (copies > 0) which += fmt::format(", {} of them copies of rows in use with noise of 2 %", copies);
  }
  check_problem_size(spec, 1);
  const Problem more = input.problem(spec);
  return {mean_probability(more, p.spec.tokens, other_rows), "mean probability in " + which};
}

/// What `score` says of each row of c, in double.
template <class F>
Scores of_rows_of_c(const Problem& p, const F& score) {
  const std::int64_t D = p.spec.hidden;
  Scores out(static_cast<std::size_t>(p.spec.vocabulary));
  in_pieces(p.spec.vocabulary, 1024, [&](std::int64_t begin, std::int64_t end) {
    Scores row(static_cast<std::size_t>(D));
    for (std::int64_t v = begin; v < end; ++v) {
      to_double(element(static_cast<const void*>(p.c.data()), p.spec.dtype, v * D), p.spec.dtype, D, row.data());
      out[static_cast<std::size_t>(v)] = score(row);
    }
  });
  return out;
}

Scored norms(const Problem& p) {
  const auto square = [](const Scores& row) { return std::inner_product(row.begin(), row.end(), row.begin(), 0.0); };
  return {of_rows_of_c(p, square), "norms of the rows of c"};
}

/// c times the sum of the rows of e that count.
Scores mean_logits(const Problem& p) {
  const std::int64_t D = p.spec.hidden;
  const DType dtype = p.spec.dtype;
  Scores sum(static_cast<std::size_t>(D), 0), x(sum.size());
  for (std::int64_t n = 0; n < p.spec.tokens; ++n) {
    if (p.target[static_cast<std::size_t>(n)] == Problem::ignore_index) continue;
    to_double(element(static_cast<const void*>(p.e.data()), dtype, n * D), dtype, D, x.data());
    std::transform(sum.begin(), sum.end(), x.begin(), sum.begin(), std::plus<>());
  }
  return of_rows_of_c(p,
                      [&](const Scores& row) { return std::inner_product(row.begin(), row.end(), sum.begin(), 0.0); });
}

/// One token id a line.
std::vector<std::int64_t> read_lines(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::int64_t> ids;
  for (std::string line; std::getline(in, line);) {
    if (line.ends_with('\r')) line.pop_back();
    std::int64_t id = 0;
    const char* const end = line.data() + line.size();
    const auto [stop, error] = std::from_chars(line.data(), end, id);
    if (error != std::errc{} || stop != end)
      throw UsageError(fmt::format("--order {}:{}: '{}' is no token id; expected one a line", path, ids.size() + 1,
                                   line.substr(0, 40)));
    ids.push_back(id);
  }
  return ids;
}

std::vector<std::int64_t> read_order(const std::string& path, std::int64_t vocabulary) {
  if (std::error_code error; !std::filesystem::is_regular_file(path, error))
    throw UsageError(fmt::format(
        "--order {}: is no order and no file; orders are auto, identity, counts, meanprob, norms, or a file", path));
  const std::vector<std::int64_t> ids =
      path.ends_with(".npy") ? integers(read_npy(path), path, "[V], a token id at each place") : read_lines(path);
  static_cast<void>(runtime::places_in(ids, vocabulary, "--order " + path));
  return ids;
}

}  // namespace

std::vector<double> mean_probability(const Problem& p, std::int64_t first, std::int64_t rows) {
  const std::int64_t D = p.spec.hidden, V = p.spec.vocabulary;
  const float *e = p.e.as<float>() + first * D, *c = p.c.as<float>();
  const auto logits = [&](std::int64_t n, std::int64_t height, std::int64_t v, std::int64_t width) {
    thread_local GemmScratch<float> scratch;
    std::vector<float> z(static_cast<std::size_t>(height * width), 0);
    gemm<float>(height, width, D, {e + n * D, D, 1}, {c + v * D, 1, D}, z.data(), width, scratch);
    return z;
  };
  // Made twice, so that sums over rows have one order whatever the threads do.
  constexpr std::int64_t few = 16, many = 256;
  Progress progress("mean probabilities", rows / few + V / many);
  std::vector<float> lse(static_cast<std::size_t>(rows));
  in_pieces(rows, few, [&](std::int64_t begin, std::int64_t end) {
    const std::vector<float> z = logits(begin, end - begin, 0, V);
    for (std::int64_t n = begin; n < end; ++n) {
      const float* const row = z.data() + (n - begin) * V;
      const float most = *std::max_element(row, row + V);
      double sum = 0;
      for (std::int64_t v = 0; v < V; ++v) sum += std::exp(row[v] - most);
      lse[static_cast<std::size_t>(n)] = most + static_cast<float>(std::log(sum));
    }
    progress.add();
  });
  std::vector<double> mean(static_cast<std::size_t>(V), 0);
  in_pieces(V, many, [&](std::int64_t begin, std::int64_t end) {
    const std::vector<float> z = logits(0, rows, begin, end - begin);
    for (std::int64_t n = 0; n < rows; ++n)
      for (std::int64_t v = begin; v < end; ++v)
        mean[static_cast<std::size_t>(v)] +=
            std::exp(z[static_cast<std::size_t>(n * (end - begin) + v - begin)] - lse[static_cast<std::size_t>(n)]);
    for (std::int64_t v = begin; v < end; ++v) mean[static_cast<std::size_t>(v)] /= static_cast<double>(rows);
    progress.add();
  });
  return mean;
}

VocabularyOrder choose_order(const InputOptions& input, const PlanDesc& desc, const Problem& p) {
  if (!runtime::filters(desc)) return {};
  const std::string name = input.order.empty() ? "auto" : input.order;
  if (name == "identity") return {name, "identity: as the rows of c lie", {}};
  if (name == "auto") {
    VocabularyOrder order{name, "auto: c times the mean of e", {}};
    if (input.presorted) order.tokens = vocabulary_order(mean_logits(p));
    return order;
  }
  if (name != "counts" && name != "meanprob" && name != "norms")
    return {name, "given by " + name, read_order(name, p.spec.vocabulary)};
  const Scored scored = name == "counts"     ? counts(input, p)
                        : name == "meanprob" ? mean_probabilities(input, p)
                                             : norms(p);
  return {name, fmt::format("{}: {}", name, scored.text), vocabulary_order(scored.score)};
}

std::string filter_text(const PlanDesc& desc, const VocabularyOrder& order, const FilterReport& report) {
  const bool largest = desc.filter == Filter::largest;  // the report adds up the largest probabilities then
  return fmt::format("{} >= {}{}, kept {:.3f}, dropped mass {}{:.1e}; order {}", largest ? "largest" : "mass",
                     desc.filter_threshold > 0 ? fmt::format("{:.3g}", desc.filter_threshold) : "auto",
                     desc.correction ? "" : " without correction", report.kept_share, largest ? "at least " : "",
                     report.dropped_mass, order.text);
}

Problem sorted_vocabulary(Problem p, const std::vector<std::int64_t>& order) {
  const std::int64_t bytes = p.spec.hidden * size_of(p.spec.dtype);
  Buffer c(p.c.size());
  std::vector<std::int64_t> place(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    place[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
    std::memcpy(c.data() + static_cast<std::int64_t>(i) * bytes, p.c.data() + order[i] * bytes,
                static_cast<std::size_t>(bytes));
  }
  p.c = std::move(c);
  for (std::int64_t& t : p.target)
    if (t != Problem::ignore_index) t = place[static_cast<std::size_t>(t)];
  return p;
}

}  // namespace kerf::tools
