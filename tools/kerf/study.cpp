// kerf filter-study: what thresholds, orders and the correction of a filtered backward cost and lose, on one page.
#include "tools/kerf/study.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>

#include "kerf/error.h"
#include "tools/kerf/loss_call.h"
#include "tools/kerf/page.h"
#include "tools/kerf/verbs.h"
#include "tools/kerf/vocabulary.h"
#include "tools/support/lm_data.h"
#include "tools/support/progress.h"
#include "tools/support/reference.h"

namespace kerf::tools {
namespace {

using nlohmann::ordered_json;

constexpr int timed_calls = 3;

struct StudyOptions {
  InputOptions input;
  std::string out, svg;
  std::vector<int> thresholds = {8, 9, 10, 11, 12, 13, 14, 15, 16};
  std::vector<std::string> orders = {"auto", "identity", "counts", "meanprob", "norms"};
  bool json = false;
};

/// The gradients in double, made once.
class ExactGradients {
 public:
  explicit ExactGradients(const Problem& p) : problem_(p), dc_(bytes(p.spec.vocabulary, p.spec.hidden)) {
    ReferenceRows rows;
    rows.dc.resize(static_cast<std::size_t>(p.spec.vocabulary));
    std::iota(rows.dc.begin(), rows.dc.end(), std::int64_t{0});
    for (std::int64_t n = 0; n < p.spec.tokens; ++n)
      if (p.target[static_cast<std::size_t>(n)] != Problem::ignore_index) rows.de.push_back(n);
    reference_ = reference_loss(p.view(), rows, [&](std::int64_t v, const double* row) {
      std::copy_n(row, p.spec.hidden, dc_.as<double>() + v * p.spec.hidden);
    });
  }
  GradientError de(const void* ours) const { return compare(ours, reference_.valid, reference_.de.data()); }
  GradientError dc(const void* ours) const {
    std::vector<std::int64_t> all(static_cast<std::size_t>(problem_.spec.vocabulary));
    std::iota(all.begin(), all.end(), std::int64_t{0});
    return compare(ours, all, dc_.as<double>());
  }
  static std::size_t bytes(std::int64_t rows, std::int64_t hidden) {
    return static_cast<std::size_t>(rows * hidden) * sizeof(double);
  }

 private:
  GradientError compare(const void* ours, const std::vector<std::int64_t>& rows, const double* reference) const {
    const std::int64_t D = problem_.spec.hidden;
    const DType dtype = problem_.spec.dtype;
    RowErrors errors(rows.size());
    in_pieces(std::ssize(rows), 512, [&](std::int64_t begin, std::int64_t end) {
      std::vector<double> x(static_cast<std::size_t>(D));
      for (std::int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<std::size_t>(i);
        to_double(element(ours, dtype, rows[at] * D), dtype, D, x.data());
        errors.set(at, x.data(), reference + i * D, D);
      }
    });
    return summarize(errors, 1);
  }

  const Problem& problem_;
  Reference reference_;
  Buffer dc_;
};

/// Milliseconds of a forward and a backward.
double time_both(LossCall& call) {
  const auto start = std::chrono::steady_clock::now();
  call.forward();
  call.backward();
  if (call.gpu()) cuda::synchronize(*call.gpu(), call.stream());
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

/// One plan: what it loses, and the least time of a few calls, in turns with the exact plan, so that what else the
/// machine does meets both.
StudyPoint measure(LossCall& call, const VocabularyOrder& order, const ExactGradients& exact, LossCall& exact_call) {
  time_both(call);
  call.fetch();
  if (const auto defects = call.defects(); !defects.empty()) throw InternalError("filter-study: " + defects[0]);
  const FilterReport report = call.filter_report();
  StudyPoint p;
  p.order = order.name;
  p.kept = report.kept_share;
  p.dropped_mass = report.dropped_mass;
  p.de = exact.de(call.de());
  p.dc = exact.dc(call.dc());
  p.ms = p.exact_ms = std::numeric_limits<double>::infinity();
  for (int i = 0; i < timed_calls; ++i) {
    p.ms = std::min(p.ms, time_both(call));
    p.exact_ms = std::min(p.exact_ms, time_both(exact_call));
  }
  return p;
}

/// The command line of this process.
std::string command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::string text;
  for (std::string word; std::getline(in, word, '\0');) {
    if (text.empty()) word = std::filesystem::path(word).filename().string();
    const bool plain = !word.empty() && word.find_first_of(" \t\n'\"\\$`&|;<>()*?") == std::string::npos;
    text += fmt::format("{}{}", text.empty() ? "" : " ", plain ? word : "'" + word + "'");
  }
  return text;
}

ordered_json fields(const StudyPoint& p) {
  return {{"kept_share", p.kept}, {"dropped_mass", p.dropped_mass},   {"both_ms", p.ms},
          {"de_err", p.de.norm},  {"de_median_row", p.de.median_row}, {"de_worst_row", p.de.worst_row},
          {"dc_err", p.dc.norm},  {"dc_median_row", p.dc.median_row}, {"dc_worst_row", p.dc.worst_row}};
}

void put_json(const Study& study, const ProblemSpec& spec) {
  ordered_json out = {{"shape", {spec.tokens, spec.hidden, spec.vocabulary}},
                      {"dtype", name_of(spec.dtype)},
                      {"subject", study.subject},
                      {"exact", fields(study.exact)},
                      {"points", ordered_json::array()},
                      {"planned", study.planned}};
  for (const StudyPoint& p : study.points) {
    ordered_json point = {{"order", p.order}, {"rule", name_of(p.rule)}, {"threshold", std::ldexp(1.0, -p.exponent)}};
    point.update(fields(p));
    out["points"].push_back(point);
  }
  print_json(out);
}

int study_filters(const StudyOptions& options) {
  InputOptions input = options.input;
  require_writable("--out", options.out);
  require_writable("--svg", options.svg);
  if (input.shape.empty() && !input.data.empty()) {
    const LmData data = read_lm_data(input.data);
    input.shape = fmt::format("512,{},{}", data.hidden, data.vocabulary);
  }
  if (input.shape.empty()) throw UsageError("no input: give --data DIR, --shape N,D,V or both");
  const ProblemSpec spec = input.spec(0);
  check_problem_size(spec, 3);
  require_memory(static_cast<double>(ExactGradients::bytes(spec.tokens + spec.vocabulary, spec.hidden)),
                 "gradients in double");
  if (spec.tokens < 1) throw UsageError("filter-study: N = 0 loses nothing; give at least one token");
  const auto desc_of = [&](const std::string& order, StudyRule rule, int exponent) {
    InputOptions with = input;
    with.filter = fmt::format("{}=2^-{}", rule == StudyRule::largest ? "max" : "mass", exponent);
    with.no_correction = rule == StudyRule::plain;
    with.order = order;
    return with.desc(spec);
  };
  PlanDesc exact_desc = input.desc(spec);
  exact_desc.strategy = Strategy::exact_recompute;

  const Problem problem = input.problem(spec);
  const auto start = std::chrono::steady_clock::now();
  const ExactGradients exact(problem);
  fmt::print(stderr, "gradients in double made in {:.1f} s\n",
             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());

  Study study;
  study.command = command_line();
  study.date = fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)));
  study.planned = options.orders.size() * 3 * options.thresholds.size();
  const CaughtInterrupt interrupt;
  LossCall exact_call(problem, exact_desc);
  study.exact = measure(exact_call, {}, exact, exact_call);
  study.subject = fmt::format(
      "{}, N={} D={} V={} {}, {}",
      input.data.empty() ? problem.source : std::filesystem::path(input.data).filename().string(), spec.tokens,
      spec.hidden, spec.vocabulary, name_of(spec.dtype), device_text(exact_desc, exact_call.report().threads));
  for (const std::string& name : options.orders) {
    if (interrupt.arrived()) break;
    InputOptions with = input;
    with.order = name;
    const VocabularyOrder order = choose_order(with, desc_of(name, StudyRule::plain, 12), problem);
    study.orders.push_back(order.text);
    for (const StudyRule rule : {StudyRule::corrected, StudyRule::plain, StudyRule::largest}) {
      const std::size_t first = study.points.size();
      {
        Progress progress(fmt::format("{}, {}", name, name_of(rule)), std::ssize(options.thresholds));
        for (const int exponent : options.thresholds) {
          if (interrupt.arrived()) break;
          LossCall call(problem, desc_of(name, rule, exponent), order.tokens);
          StudyPoint p = measure(call, order, exact, exact_call);
          p.rule = rule;
          p.exponent = exponent;
          study.points.push_back(std::move(p));
          progress.add();
        }
      }
      if (study.points.size() == first) break;
      const StudyPoint &a = study.points[first], &b = study.points.back();
      fmt::print(stderr, "order {}, {}: kept {:.3f} to {:.3f}, error of de {:.1e} to {:.1e}, of dc {:.1e} to {:.1e}\n",
                 name, name_of(rule), a.kept, b.kept, a.de.norm, b.de.norm, a.dc.norm, b.dc.norm);
    }
  }
  write_file("--out", options.out, study_page(study));
  write_file("--svg", options.svg, study_picture(study));
  if (options.json)
    put_json(study, spec);
  else
    fmt::print("{}: {} points\n", options.out, study.points.size());
  return interrupt.arrived() ? 130 : 0;
}

}  // namespace

void add_filter_study(CLI::App& app, Run& run) {
  CLI::App* verb =
      app.add_subcommand("filter-study", "sweep the filter's threshold, order and correction into a page of plots");
  auto& options = options_of<StudyOptions>(*verb, run, study_filters);
  InputOptions& input = options.input;
  verb->add_option("--data", input.data, "folder of .npy files from a trained model, in place of random input");
  verb->add_option("--out", options.out, "the page: one HTML file")->required();
  verb->add_option("--svg", options.svg, "its first plot, as a file of its own");
  verb->add_option("--shape", input.shape,
                   "tokens, hidden size and vocabulary: N,D,V; 512 tokens of --data if not given");
  verb->add_option("--dtype", input.dtype, "of e and c: f32, bf16 or f16")->capture_default_str();
  verb->add_option("--device", input.device, "cpu, cuda or cuda:N")->capture_default_str();
  verb->add_option("--thresholds", options.thresholds, "each k stands for 2^-k")
      ->delimiter(',')
      ->check(CLI::Range(0, 60))
      ->capture_default_str();
  verb->add_option("--orders", options.orders, "of auto, identity, counts, meanprob, norms")
      ->delimiter(',')
      ->check(CLI::IsMember({"auto", "identity", "counts", "meanprob", "norms"}))
      ->capture_default_str();
  verb->add_option("--seed", input.seed, "of random input")->capture_default_str();
  verb->add_option("--threads", input.threads, "0: KERF_NUM_THREADS, or all processors")->check(CLI::Range(0, 4096));
  verb->add_flag("--json", options.json, "print the points as JSON");
  verb->footer(
      "The gradients in double are made once. Ctrl-C ends the sweep and writes what was measured.\n"
      "Example: kerf filter-study --data DIR --out report.html\n"
      "Example: kerf filter-study --shape 256,64,20000 --thresholds 8,12 --orders auto,norms --out report.html");
}

}  // namespace kerf::tools
