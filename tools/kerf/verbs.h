// The verbs of the command line, one file each. A verb adds its options to a subcommand and, when that is chosen,
// leaves in `run` what is to be done; `run` returns the exit code (0 fine, 1 a check failed) or throws one of Kerf's
// errors.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "kerf/loss.h"
#include "tools/support/problem.h"

namespace kerf::tools {

using Run = std::function<int()>;
void add_check(CLI::App& app, Run& run);
void add_bench(CLI::App& app, Run& run);
void add_filter_study(CLI::App& app, Run& run);
void add_emit(CLI::App& app, Run& run);
void add_doctor(CLI::App& app, Run& run);
void add_cache(CLI::App& app, Run& run);
void add_wisdom(CLI::App& app, Run& run);
void add_tune(CLI::App& app, Run& run);
void add_report(CLI::App& app, Run& run);
void add_tune_worker(CLI::App& app, Run& run);

/// Options of a verb, alive as long as its subcommand; `action` is what the verb does with them.
template <class Options>
Options& options_of(CLI::App& verb, Run& run, int (*action)(const Options&)) {
  auto options = std::make_shared<Options>();
  verb.callback([&run, options, action] { run = [options, action] { return action(*options); }; });
  return *options;
}

/// What check and bench compute the loss of.
struct InputOptions {
  std::string shape, model, dtype = "f32", device = "cpu", arch, reduction = "mean", strategy = "automatic", data;
  std::string filter = "auto", order;  // order empty: not given, which means auto
  bool no_correction = false, presorted = false;
  std::int64_t tokens = 1024;
  std::uint64_t seed = 0;
  double ignored = -1;        // negative: not given
  double workspace_mib = -1;  // negative: not given
  double stash_mib = -1;      // negative: not given
  int threads = 0;

  void add_to(CLI::App& verb);
  /// --filter, which decides what programs there are.
  void add_filter_rule_to(CLI::App& verb);
  /// --filter, --no-correction, --order.
  void add_filter_to(CLI::App& verb);
  /// `ignored_default`: the share of ignored rows in random input where none was asked for.
  ProblemSpec spec(double ignored_default) const;
  Problem problem(const ProblemSpec& spec) const;
  PlanDesc desc(const ProblemSpec& spec) const;
  /// Bytes of stash at most.
  std::size_t stash_limit() const;
};

/// "auto", "off", "mass", "mass=2^-12", "max=0.0002": the filter and its threshold. max= is the rule of
/// cut-cross-entropy, which has no correction.
void parse_filter(const std::string& text, PlanDesc& desc);
/// "cpu", "cuda" (the first GPU) or "cuda:1".
Device device_from_name(const std::string& name);
/// What kernels of the plan are generated for: "avx512bf16", "sm_90a".
std::string level_of(const PlanDesc& desc);
/// "cpu (avx512bf16), 2 threads", "cuda:0 (NVIDIA H200), sm_90a"
std::string device_text(const PlanDesc& desc, int threads);

void print_json(const nlohmann::ordered_json& json);
/// "12.3 MiB"
std::string mib(double bytes);

}  // namespace kerf::tools
