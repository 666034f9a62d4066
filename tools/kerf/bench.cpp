// kerf bench: how long forward and backward take, beside a matrix product of the same size in the same minute.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>

#include "kerf/error.h"
#include "tools/kerf/baseline.h"
#include "tools/kerf/bench.h"
#include "tools/kerf/loss_call.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int least_rounds = 3;
constexpr double logits_limit = 1 << 30;  // bytes of logits that the matrix product of the comparison writes at a time

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

struct LossTimes {
  Times forward, backward, both;
  /// One forward and one backward, timed apart and together.
  template <class Forward, class Backward>
  void measure(const Forward& forward_call, const Backward& backward_call) {
    const auto start = Clock::now();
    forward_call();
    const auto middle = Clock::now();
    backward_call();
    const auto end = Clock::now();
    forward.add(milliseconds(middle - start));
    backward.add(milliseconds(end - middle));
    both.add(milliseconds(end - start));
  }
};

/// sgemm of the loss's size: logits of all rows. Where they would take more than 1 GiB the product is made in parts
/// that are written to the same place.
class Ceiling {
 public:
  Ceiling(const Problem& problem, const Blas& blas) : problem_(problem), blas_(blas) {
    const ProblemSpec& s = problem.spec;
    const auto row_bytes = 4.0 * static_cast<double>(std::max<std::int64_t>(s.tokens, 1));
    part_ = std::clamp<std::int64_t>(static_cast<std::int64_t>(logits_limit / row_bytes), 1, s.vocabulary);
    out_ = Buffer(static_cast<std::size_t>(4 * s.tokens * part_));
    // Ignored rows of e are NaN, which costs nothing extra, but a matrix without them is the fairer one.
    fill(e_, s.tokens * s.hidden);
    fill(c_, s.vocabulary * s.hidden);
  }
  void run() const {
    const ProblemSpec& s = problem_.spec;
    for (std::int64_t v = 0; v < s.vocabulary; v += part_)
      blas_.sgemm(false, true, s.tokens, std::min(part_, s.vocabulary - v), s.hidden, e_.as<float>(), s.hidden,
                  c_.as<float>() + v * s.hidden, s.hidden, out_.as<float>(), part_);
  }
  static double memory(const ProblemSpec& s) {
    const auto n = static_cast<double>(s.tokens), d = static_cast<double>(s.hidden),
               v = static_cast<double>(s.vocabulary);
    return 4 * (n + v) * d + std::min(4 * n * v, logits_limit);
  }

 private:
  static void fill(Buffer& b, std::int64_t n) {
    b = Buffer(static_cast<std::size_t>(4 * n));
    in_pieces(n, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
      Random random(1, static_cast<std::uint64_t>(begin));
      for (std::int64_t i = begin; i < end; ++i) b.as<float>()[i] = random.bell();
    });
  }
  const Problem& problem_;
  const Blas& blas_;
  std::int64_t part_;
  Buffer e_, c_, out_;
};

double loss_sum(const LossCall& call, const Problem& p) {
  if (p.spec.reduction != Reduction::none) return call.loss()[0];
  double sum = 0;
  for (std::int64_t n = 0; n < p.spec.tokens; ++n) sum += call.loss()[n];
  return sum;
}

int bench(const BenchOptions& options) {
  const InputOptions& input = options.input;
  const ProblemSpec spec = input.spec(0);
  const PlanDesc desc = input.desc(spec);
  if (desc.device.type == DeviceType::cuda) return bench_on_gpu(options);
  if (spec.tokens < 1) throw UsageError("bench: N = 0 takes no time; give at least one token");
  std::optional<Blas> blas = Blas::open(1);
  check_problem_size(spec, 2);
  require_memory((blas ? Ceiling::memory(spec) : 0) + (options.table ? Baseline::memory(spec) : 0) +
                     static_cast<double>(spec.tokens + spec.vocabulary) *
                         static_cast<double>(spec.hidden * size_of(spec.dtype)) * (options.table ? 3 : 2),
                 fmt::format("bench{} at {},{},{} in {}", options.table ? " --table" : "", spec.tokens, spec.hidden,
                             spec.vocabulary, name_of(spec.dtype))
                     .c_str());
  const auto [problem, order] = make_case(input, spec, desc);

  LossCall call(problem, desc, order.tokens, input.stash_limit());
  const auto before_compiling = Clock::now();
  call.prepare();
  const double compile_ms = milliseconds(Clock::now() - before_compiling);
  const PlanReport report = call.report();
  if (blas) blas = Blas::open(report.threads);
  std::optional<Ceiling> ceiling;
  if (blas) ceiling.emplace(problem, *blas);
  std::optional<Baseline> baseline;
  if (options.table) baseline.emplace(problem, blas ? &*blas : nullptr);

  // Warm-up: everything once; outputs were poisoned when they were made.
  call.forward();
  call.backward();
  if (const auto defects = call.defects(); !defects.empty()) throw InternalError("bench: " + defects[0]);
  if (ceiling) ceiling->run();
  if (baseline) {
    const double theirs = baseline->forward(), ours = loss_sum(call, problem);
    baseline->backward();
    if (!(std::abs(theirs - ours) <= 1e-3 * std::abs(theirs) + 1e-3))
      throw InternalError(fmt::format("bench: the loss is {} and that of the baseline {}", ours, theirs));
  }

  // Kerf, the product and the baseline take turns, so that what else the machine does meets them alike.
  LossTimes kerf, plain;
  Times matmul;
  int rounds = 0;
  {
    Progress progress("measuring", static_cast<std::int64_t>(options.seconds * 1000));
    const auto start = Clock::now();
    double elapsed_ms = 0;
    while (rounds < least_rounds || elapsed_ms < options.seconds * 1000) {
      kerf.measure([&] { call.forward(); }, [&] { call.backward(); });
      if (ceiling) {
        const auto t = Clock::now();
        ceiling->run();
        matmul.add(milliseconds(Clock::now() - t));
      }
      if (baseline) plain.measure([&] { baseline->forward(); }, [&] { baseline->backward(); });
      ++rounds;
      const double now_ms = milliseconds(Clock::now() - start);
      progress.add(static_cast<std::int64_t>(now_ms) - static_cast<std::int64_t>(elapsed_ms));
      elapsed_ms = now_ms;
    }
  }

  // Useful work: one product in the forward, two more in the backward; rows that are ignored do not count.
  const double product_flop =
      2 * static_cast<double>(problem.valid) * static_cast<double>(spec.hidden) * static_cast<double>(spec.vocabulary);
  const auto gflops = [](double flop, const Times& t) { return flop / t.median() / 1e6; };
  const auto ratio = [&](const Times& t) -> ordered_json {
    return ceiling ? ordered_json(t.median() / matmul.median()) : ordered_json(nullptr);
  };
  const double matmul_flop =
      2 * static_cast<double>(spec.tokens) * static_cast<double>(spec.hidden) * static_cast<double>(spec.vocabulary);
  struct Row {
    std::string method;
    const LossTimes* times;
    double forward_bytes, backward_bytes;
  };
  std::vector<Row> rows = {{fmt::format("kerf {}", name_of(report.strategy)), &kerf,
                            static_cast<double>(call.workspace_bytes(false)),
                            static_cast<double>(call.workspace_bytes(true))}};
  if (baseline)
    rows.push_back({fmt::format("logits formed ({})", blas ? "OpenBLAS" : "plain code"), &plain, Baseline::memory(spec),
                    Baseline::memory(spec)});

  if (options.wants_json()) {
    ordered_json out = {{"shape", {spec.tokens, spec.hidden, spec.vocabulary}},
                        {"dtype", name_of(spec.dtype)},
                        {"reduction", name_of(spec.reduction)},
                        {"input", problem.source},
                        {"valid_rows", problem.valid}};
    if (!input.model.empty()) out["model"] = input.model;
    for (const auto& [name, times, flop] :
         {std::tuple("forward", &kerf.forward, product_flop), std::tuple("backward", &kerf.backward, 2 * product_flop),
          std::tuple("both", &kerf.both, 3 * product_flop)}) {
      out[fmt::format("{}_ms", name)] = times->median();
      out[fmt::format("{}_ms_spread", name)] = times->spread();
      out[fmt::format("{}_gflops", name)] = gflops(flop, *times);
    }
    out["matmul_ms"] = ceiling ? ordered_json(matmul.median()) : ordered_json(nullptr);
    out["matmul_ms_spread"] = ceiling ? ordered_json(matmul.spread()) : ordered_json(nullptr);
    out["matmul_gflops"] = ceiling ? ordered_json(gflops(matmul_flop, matmul)) : ordered_json(nullptr);
    out["matmul_core"] = blas ? ordered_json(blas->core()) : ordered_json(nullptr);
    out["matmul_warning"] = blas ? ordered_json(blas->warning()) : ordered_json(nullptr);
    out["forward_ratio"] = ratio(kerf.forward);
    out["both_ratio"] = ratio(kerf.both);
    add_report(out, call, desc, order);
    out["device"] = input.device;
    out["level"] = level_of(desc);
    out["threads"] = report.threads;
    out["compile_ms"] = compile_ms;
    out["rounds"] = rounds;
    if (options.table) {
      for (const Row& row : rows)
        out["table"].push_back({{"method", row.method},
                                {"loss_fw_ms", row.times->forward.median()},
                                {"loss_bw_ms", row.times->backward.median()},
                                {"loss_fw_bw_ms", row.times->both.median()},
                                {"loss_fw_mib", row.forward_bytes / (1 << 20)},
                                {"loss_bw_mib", row.backward_bytes / (1 << 20)},
                                {"loss_fw_bw_mib", std::max(row.forward_bytes, row.backward_bytes) / (1 << 20)}});
    }
    options.put(out);
    if (options.json) return 0;
  }

  fmt::print("bench N={} D={} V={} {} {}: {}, {} rows count, {}, {} rounds\n", spec.tokens, spec.hidden,
             spec.vocabulary, name_of(spec.dtype), name_of(spec.reduction), problem.source, problem.valid,
             device_text(desc, report.threads), rounds);
  if (options.table) {
    fmt::print("{:<26}{:>10}{:>10}{:>12}{:>12}{:>12}\n", "ms", "loss-fw", "loss-bw", "loss-fw-bw", "MiB fw", "MiB bw");
    for (const Row& row : rows)
      fmt::print("{:<26}{:>10.2f}{:>10.2f}{:>12.2f}{:>12.1f}{:>12.1f}\n", row.method, row.times->forward.median(),
                 row.times->backward.median(), row.times->both.median(), row.forward_bytes / (1 << 20),
                 row.backward_bytes / (1 << 20));
    fmt::print("MiB beside inputs and gradients\n");
  }
  fmt::print("{:<10}{:>11}{:>9}{:>11}{:>12}\n", "", "median ms", "spread", "GFLOP/s", "x matmul");
  const auto line = [&](const char* name, const Times& t, double flop, bool compared) {
    fmt::print("{:<10}{:>11.3f}{:>8.1f}%{:>11.1f}{:>12}\n", name, t.median(), 100 * t.spread(), gflops(flop, t),
               ceiling && compared ? fmt::format("{:.3f}", t.median() / matmul.median()) : "");
  };
  line("forward", kerf.forward, product_flop, true);
  line("backward", kerf.backward, 2 * product_flop, true);
  line("both", kerf.both, 3 * product_flop, true);
  if (ceiling) line("matmul", matmul, matmul_flop, false);
  fmt::print("{}\n", blas ? fmt::format("matmul: sgemm of 2NDV by {} with kernels for {}",
                                        blas->config().substr(0, blas->config().find(' ', 9)), blas->core())
                          : "no OpenBLAS found, so nothing to compare with: apt-get install libopenblas0-pthread");
  if (blas && !blas->warning().empty()) fmt::print("{}\n", blas->warning());
  print_report(call, desc, order);
  fmt::print("compiled in {:.0f} ms\n", compile_ms);
  return 0;
}

}  // namespace

Case make_case(const InputOptions& input, const ProblemSpec& spec, const PlanDesc& desc) {
  Problem problem = input.problem(spec);
  VocabularyOrder order = choose_order(input, desc, problem);
  if (!input.presorted) return {std::move(problem), std::move(order)};
  problem = sorted_vocabulary(std::move(problem), order.tokens);
  return {std::move(problem), {order.name, order.text + ", presorted", {}}};
}

void add_report(ordered_json& to, const LossCall& call, const PlanDesc& desc, const VocabularyOrder& order) {
  const PlanReport report = call.report();
  to["workspace_bytes"] = call.workspace_bytes();
  to["forward_workspace_bytes"] = call.workspace_bytes(false);
  to["block_lse_bytes"] = call.block_lse_bytes();
  to["stash_bytes"] = call.stash_bytes();
  const FilterReport filter = call.filter_report();
  to["filter"] = name_of(call.filters() ? desc.filter : Filter::off);
  to["filter_threshold"] = desc.filter_threshold;
  to["correction"] = call.filters() && desc.correction;
  to["order"] = order.name;
  to["order_text"] = order.text;
  to["kept_share"] = filter.kept_share;
  to["dropped_mass"] = filter.dropped_mass;
  to["ranges"] = report.ranges;
  to["blocks"] = report.blocks;
  to["strategy"] = name_of(report.strategy);
}

void print_report(const LossCall& call, const PlanDesc& desc, const VocabularyOrder& order) {
  const PlanReport report = call.report();
  if (call.filters()) fmt::print("{}\n", filter_text(desc, order, call.filter_report()));
  std::string kept;
  for (const auto& [name, bytes] :
       {std::pair("block_lse", call.block_lse_bytes()), std::pair("stash", call.stash_bytes())})
    if (bytes > 0) kept += fmt::format(", {} of {} in both", name, mib(static_cast<double>(bytes)));
  fmt::print("{}, {} ranges, {}, workspace {} forward, {} backward{}\n", name_of(report.strategy), report.ranges,
             report.blocks, mib(static_cast<double>(call.workspace_bytes(false))),
             mib(static_cast<double>(call.workspace_bytes(true))), kept);
}

void BenchOptions::put(const ordered_json& results) const {
  if (json) print_json(results);
  if (!json_file.empty() && !(std::ofstream(json_file) << results.dump(2) << '\n'))
    throw UsageError(fmt::format("--json-file {}: cannot be written", json_file));
}

void add_bench(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("bench", "time forward and backward beside a matrix product of the same size");
  auto& options = options_of<BenchOptions>(*verb, run, bench);
  options.input.add_to(*verb);
  options.input.add_filter_to(*verb);
  verb->add_flag("--presorted", options.input.presorted,
                 "put the vocabulary in its order beforehand and measure with identity, as a trainer would that keeps "
                 "it so");
  verb->add_option("--seconds", options.seconds,
                   "time to measure for; three rounds are made in any case, on a GPU five")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
  verb->add_flag("--table", options.table, "methods beside each other, with a baseline that forms the logits");
  verb->add_flag("--json", options.json, "print JSON");
  verb->add_option("--json-file", options.json_file, "write the JSON to a file, beside what is printed");
  verb->footer(
      "Spread is (90th - 10th percentile) / median. GFLOP/s count 2NDV for each of the three products of forward and\n"
      "backward, of rows that are not ignored.\n"
      "Example: kerf bench --model gpt2 --tokens 1024 --table\n"
      "Example: kerf bench --shape 1024,256,50000 --dtype bf16 --filter mass=2^-12 --order counts --presorted");
}

}  // namespace kerf::tools
