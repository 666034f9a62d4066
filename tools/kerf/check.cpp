// kerf check: loss, lse, de and dc of the library against the reference in double.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "tools/kerf/loss_call.h"
#include "tools/kerf/verbs.h"
#include "tools/kerf/vocabulary.h"
#include "tools/support/compare.h"
#include "tools/support/reference.h"
#include "tools/support/sample.h"

namespace kerf::tools {
namespace {

struct CheckOptions {
  InputOptions input;
  bool json = false;
};

constexpr double loss_tolerance = 1e-5;

/// A filtered backward promises to lose no more than rounding to bf16 does, whatever the dtype.
double gradient_tolerance(DType dtype, bool filtered) {
  return filtered || dtype == bf16 ? 4e-3 : dtype == f32 ? 1e-5 : 1e-3;
}
/// Tensor cores add 16 products at a time to a sum in f32 and cut off what does not fit it, where a CPU rounds. What
/// that takes away from a sum for each 16 of D, in ulp: cuBLAS with f32 sums on an H200 lost up to 0.55 with bf16
/// and 1.25 with f16 (products of more bits), always in the same direction; twice that, since an ulp doubles at powers
/// of two.
double ulp_per_step(DType dtype) { return dtype == bf16 ? 1.1 : dtype == f16 ? 2.5 : 0; }
/// Absolute: 1e-5, or 2 ulp of f32 where that is more, and what tensor cores cut off.
double lse_tolerance(double lse, const ProblemSpec& spec, bool tensor_cores) {
  const auto x = static_cast<float>(std::abs(lse));
  const double ulp = static_cast<double>(std::nextafter(x, std::numeric_limits<float>::infinity()) - x);
  const double steps = tensor_cores ? static_cast<double>((spec.hidden + 15) / 16) : 0;
  return std::max(1e-5, ulp * (2 + ulp_per_step(spec.dtype) * steps));
}

struct LossErrors {
  double loss = 0;                     // relative, where the reference counts as at least one nat a row
  double loss_limit = loss_tolerance;  // of tensor cores: what all rows' lse may be off by, since loss = lse - z
  double lse = 0;                      // absolute
  bool lse_ok = true;
};

LossErrors loss_errors(const Problem& p, const LossCall& call, const Reference& r, bool tensor_cores) {
  LossErrors errors;
  double error2 = 0, norm2 = 0, off = 0, off2 = 0;
  for (const std::int64_t row : r.valid) {
    const auto n = static_cast<std::size_t>(row);
    const double lse_error = std::abs(static_cast<double>(call.lse()[n]) - r.lse[n]);
    const double allowed = lse_tolerance(r.lse[n], p.spec, tensor_cores);
    if (!(lse_error <= allowed)) errors.lse_ok = false;
    off += allowed;
    off2 += allowed * allowed;
    if (!(lse_error <= errors.lse)) errors.lse = lse_error;
    if (p.spec.reduction != Reduction::none) continue;
    const double loss_error = static_cast<double>(call.loss()[n]) - r.loss[n];
    error2 += loss_error * loss_error;
    norm2 += r.loss[n] * r.loss[n];
  }
  const auto valid = static_cast<double>(r.valid.size());
  if (p.spec.reduction == Reduction::none) {
    if (valid > 0) errors.loss = std::sqrt(error2 / std::max(norm2, valid));
    off = std::sqrt(off2 / std::max(norm2, valid));
  } else if (p.spec.reduction == Reduction::mean && valid == 0) {  // the mean of nothing is NaN
    errors.loss = std::isnan(call.loss()[0]) ? 0 : std::numeric_limits<double>::infinity();
  } else {
    const bool mean = p.spec.reduction == Reduction::mean;
    const double size = std::max(std::abs(r.reduced), mean ? 1 : std::max(valid, 1.0));
    errors.loss = std::abs(call.loss()[0] - r.reduced) / size;
    off /= mean ? valid * size : size;
  }
  if (tensor_cores) errors.loss_limit = std::max(loss_tolerance, off);
  return errors;
}

/// Norm of what the targets alone add to de (rows of c) or dc (rows of e): the scale of a gradient that is exactly 0.
double target_scale(const Problem& p, const Reference& r, bool of_de) {
  const std::int64_t width = p.spec.hidden;
  std::vector<double> x(static_cast<std::size_t>(width));
  const void* const matrix = of_de ? p.c.data() : p.e.data();
  double sum = 0;
  for (const std::int64_t n : r.valid) {
    const std::int64_t row = of_de ? p.target[static_cast<std::size_t>(n)] : n;
    to_double(element(matrix, p.spec.dtype, row * width), p.spec.dtype, width, x.data());
    const double g = r.g[static_cast<std::size_t>(n)];
    sum += g * g * std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  }
  return std::sqrt(sum);
}

int check(const CheckOptions& options) {
  const InputOptions& input = options.input;
  const ProblemSpec spec = input.spec(0.05);
  check_problem_size(spec, 2);
  const PlanDesc desc = input.desc(spec);
  const Problem problem = input.problem(spec);
  const VocabularyOrder order = choose_order(input, desc, problem);
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };

  LossCall call(problem, desc, order.tokens, input.stash_limit());
  const auto start = Clock::now();
  call.forward();
  call.backward();
  call.fetch();
  const double library_s = seconds_since(start);
  std::vector<std::string> failures = call.defects();

  Sample sample = choose_rows(problem.view(), spec.seed);
  if (!sample.whole_lse) sample.rows.lse = call.lse();
  RowErrors de(sample.rows.de.size()), dc(sample.rows.dc.size());
  dc.weight = sample.dc_weight;
  const auto compare = [&](RowErrors& errors, std::size_t i, const void* ours, std::int64_t row,
                           const double* reference) {
    std::vector<double> x(static_cast<std::size_t>(spec.hidden));
    to_double(element(ours, spec.dtype, row * spec.hidden), spec.dtype, spec.hidden, x.data());
    errors.set(i, x.data(), reference, spec.hidden);
  };
  const auto reference_start = Clock::now();
  const Reference reference = reference_loss(problem.view(), sample.rows, [&](std::int64_t i, const double* row) {
    compare(dc, static_cast<std::size_t>(i), call.dc(), sample.rows.dc[static_cast<std::size_t>(i)], row);
  });
  const double reference_s = seconds_since(reference_start);
  for (std::size_t i = 0; i < sample.rows.de.size(); ++i)
    compare(de, i, call.de(), sample.rows.de[i], reference.de.data() + static_cast<std::int64_t>(i) * spec.hidden);

  const bool tensor_cores = desc.device.type == DeviceType::cuda && spec.dtype != f32;
  const std::string lse_allowed =
      tensor_cores ? fmt::format("max(1e-5, 2 ulp and {} for each 16 of D)", ulp_per_step(spec.dtype))
                   : "max(1e-5, 2 ulp)";
  const LossErrors loss = loss_errors(problem, call, reference, tensor_cores);
  const GradientError de_error = summarize(de, target_scale(problem, reference, true));
  const GradientError dc_error = summarize(dc, target_scale(problem, reference, false));
  const double tolerance = gradient_tolerance(spec.dtype, call.filters());
  const auto require = [&](const char* name, double error, double limit) {
    if (!(error <= limit))
      failures.push_back(fmt::format("{}: relative error {:.2e}, allowed are {:.0e}", name, error, limit));
  };
  require("loss", loss.loss, loss.loss_limit);
  if (!loss.lse_ok) failures.push_back(fmt::format("lse: error {:.2e}, allowed are {}", loss.lse, lse_allowed));
  require("de", de_error.norm, tolerance);
  require("dc", dc_error.norm, tolerance);
  const bool pass = failures.empty();
  const PlanReport report = call.report();
  const FilterReport filter = call.filter_report();
  const float upstream = spec.reduction == Reduction::none ? 1 : problem.grad_loss[0];

  if (options.json) {
    print_json({{"shape", {spec.tokens, spec.hidden, spec.vocabulary}},
                {"dtype", name_of(spec.dtype)},
                {"reduction", name_of(spec.reduction)},
                {"input", problem.source},
                {"valid_rows", problem.valid},
                {"grad_scale", upstream},
                {"loss_err", loss.loss},
                {"lse_err", loss.lse},
                {"de_err", de_error.norm},
                {"dc_err", dc_error.norm},
                {"de_worst_row", de_error.worst_row},
                {"dc_worst_row", dc_error.worst_row},
                {"de_median_row", de_error.median_row},
                {"dc_median_row", dc_error.median_row},
                {"tolerance", tolerance},
                {"sampled", sample.text},
                {"filter", name_of(call.filters() ? desc.filter : Filter::off)},
                {"filter_threshold", desc.filter_threshold},
                {"correction", call.filters() && desc.correction},
                {"order", order.name},
                {"order_text", order.text},
                {"kept_share", filter.kept_share},
                {"dropped_mass", filter.dropped_mass},
                {"workspace_bytes", call.workspace_bytes()},
                {"block_lse_bytes", call.block_lse_bytes()},
                {"stash_bytes", call.stash_bytes()},
                {"strategy", name_of(report.strategy)},
                {"device", input.device},
                {"level", level_of(desc)},
                {"threads", report.threads},
                {"library_seconds", library_s},
                {"reference_seconds", reference_s},
                {"failures", failures},
                {"pass", pass}});
    return pass ? 0 : 1;
  }
  fmt::print("check N={} D={} V={} {} {}: {}, {} rows count, {}\n", spec.tokens, spec.hidden, spec.vocabulary,
             name_of(spec.dtype), name_of(spec.reduction), problem.source, problem.valid,
             device_text(desc, report.threads));
  fmt::print("{:<6}{:>11}{:>11}{:>12}{:>12}\n", "", "error", "allowed", "worst row", "median row");
  fmt::print("{:<6}{:>11.2e}{:>11.0e}\n", "loss", loss.loss, loss.loss_limit);
  fmt::print("{:<6}{:>11.2e}{:>11}  absolute; allowed are {}\n", "lse", loss.lse, loss.lse_ok ? "yes" : "no",
             lse_allowed);
  for (const auto& [name, error] : {std::pair("de", de_error), std::pair("dc", dc_error)})
    fmt::print("{:<6}{:>11.2e}{:>11.0e}{:>12.2e}{:>12.2e}\n", name, error.norm, tolerance, error.worst_row,
               error.median_row);
  if (!sample.text.empty()) fmt::print("sampled  {}\n", sample.text);
  if (upstream != 1) fmt::print("upstream gradient {}, so that few elements are subnormal halves\n", upstream);
  if (call.filters()) fmt::print("{}\n", filter_text(desc, order, filter));
  fmt::print("{}, workspace {}, {:.2f} s with compiling; reference {:.2f} s\n", name_of(report.strategy),
             mib(static_cast<double>(call.workspace_bytes())), library_s, reference_s);
  for (const std::string& failure : failures) fmt::print("FAILED {}\n", failure);
  if (pass) fmt::print("passed\n");
  return pass ? 0 : 1;
}

}  // namespace

void add_check(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("check", "compare loss, lse, de and dc with a reference in double");
  auto& options = options_of<CheckOptions>(*verb, run, check);
  options.input.add_to(*verb);
  options.input.add_filter_to(*verb);
  verb->add_flag("--json", options.json, "print JSON");
  verb->footer(
      "Random input has logits of deviation 2.5, a tenth of the rows nearly certain, Zipf targets, 5 % ignored rows.\n"
      "Up to N*D*V = 1.1e11 all rows are compared, above that a sample, which the result states.\n"
      "With a filter, de and dc may lose 4e-3, as rounding to bf16 does, in any dtype.\n"
      "Example: kerf check --shape 257,129,1031 --dtype bf16 --reduction none --seed 3\n"
      "Example: kerf check --shape 300,64,20000 --filter mass=2^-12 --order meanprob");
}

}  // namespace kerf::tools
