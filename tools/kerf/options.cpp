#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "kerf/error.h"
#include "runtime/cuda/device.h"
#include "runtime/device_loss.h"
#include "tools/kerf/verbs.h"
#include "tools/support/models.h"

namespace kerf::tools {

void InputOptions::add_to(CLI::App& verb) {
  auto* by_shape = verb.add_option("--shape", shape, "tokens, hidden size and vocabulary: N,D,V");
  auto* by_model =
      verb.add_option("--model", model, "shape of a model: " + model_names() + ", or a transformers config.json");
  by_model->excludes(by_shape);
  verb.add_option("--tokens", tokens, "tokens, with --model")->capture_default_str()->needs(by_model);
  verb.add_option("--dtype", dtype, "of e and c: f32, bf16 or f16")->capture_default_str();
  verb.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  verb.add_option("--arch", arch, "GPU: architecture to generate code for, as sm_80; the device's own if not given");
  verb.add_option("--reduction", reduction, "none, mean or sum")->capture_default_str();
  verb.add_option("--strategy", strategy, "automatic, exact_recompute, min_memory, filtered, exact_stash or dense")
      ->capture_default_str();
  verb.add_option("--seed", seed, "of the random input")->capture_default_str();
  verb.add_option("--data", data, "folder of .npy files from a trained model, in place of random input");
  verb.add_option("--ignored", ignored, "share of the rows labelled ignore_index, 0 to 1")->check(CLI::Range(0.0, 1.0));
  verb.add_option("--workspace", workspace_mib, "MiB that the backward may ask for; the library chooses if not given")
      ->check(CLI::Range(0.0, 1e6));
  verb.add_option("--stash", stash_mib, "MiB of stash, with --strategy exact_stash; as much as it can use if not given")
      ->check(CLI::Range(0.0, 1e6));
  verb.add_option("--threads", threads, "0: KERF_NUM_THREADS, or all processors")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
}

ProblemSpec InputOptions::spec(double ignored_default) const {
  ProblemSpec s;
  if (!model.empty()) {
    const ModelShape m = model_shape(model);
    s.tokens = tokens, s.hidden = m.hidden, s.vocabulary = m.vocabulary;
  } else if (!shape.empty()) {
    parse_shape(shape, s);
  } else {
    throw UsageError("no shape: give --shape N,D,V or --model NAME");
  }
  s.dtype = dtype_from_name(dtype);
  if (!is_float(s.dtype)) throw UsageError(fmt::format("--dtype {}: must be f32, bf16 or f16", dtype));
  s.reduction = reduction_from_name(reduction);
  s.seed = seed;
  s.ignored = ignored >= 0 ? ignored : data.empty() ? ignored_default : 0;
  return s;
}

Problem InputOptions::problem(const ProblemSpec& spec) const {
  return data.empty() ? random_problem(spec) : problem_from_data(spec, data);
}

void InputOptions::add_filter_rule_to(CLI::App& verb) {
  verb.add_option(
          "--filter", filter,
          "auto, off, mass, mass=X or max=X: what a tile of dz needs to be kept, X as in 2^-12 or 0.000244; max "
          "is the rule of cut-cross-entropy, without a correction")
      ->capture_default_str();
}
void InputOptions::add_filter_to(CLI::App& verb) {
  add_filter_rule_to(verb);
  verb.add_flag("--no-correction", no_correction, "leave out what the correction would put in place of dropped tiles");
  verb.add_option("--order", order,
                  "order of the vocabulary: auto (by c times the mean of e), identity, counts (of targets), meanprob "
                  "(mean probability in other rows), norms (of rows of c), or a file of token ids (.npy or text)");
}

namespace {

/// exact-stash as exact_stash.
std::string with_underscores(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

Strategy strategy_from_name(const std::string& name) {
  for (const Strategy s : {Strategy::automatic, Strategy::exact_recompute, Strategy::min_memory, Strategy::filtered,
                           Strategy::exact_stash, Strategy::dense})
    if (with_underscores(name) == name_of(s)) return s;
  throw UsageError(
      fmt::format("--strategy {}: is no strategy; they are automatic, exact_recompute, min_memory, filtered, "
                  "exact_stash, dense",
                  name));
}

/// "0.000244", "2.44e-4" or "2^-12"; nothing where it is none of them.
std::optional<double> parse_threshold(std::string_view text) {
  const char* const end = text.data() + text.size();
  if (text.starts_with("2^")) {
    int exponent = 0;
    const auto [stop, error] = std::from_chars(text.data() + 2, end, exponent);
    if (error != std::errc{} || stop != end) return {};
    return std::ldexp(1.0, exponent);
  }
  double x = 0;
  const auto [stop, error] = std::from_chars(text.data(), end, x);
  if (error != std::errc{} || stop != end) return {};
  return x;
}

/// Refuses what contradicts itself before any work is done.
void check_filter(const InputOptions& o, const PlanDesc& d) {
  const bool exact = d.strategy != Strategy::automatic && d.strategy != Strategy::filtered;
  if (exact && d.filter != Filter::automatic && d.filter != Filter::off)
    throw UsageError(
        fmt::format("--filter {}: --strategy {} filters nothing; leave one of the two out", o.filter, o.strategy));
  if (d.strategy == Strategy::filtered && d.filter == Filter::off)
    throw UsageError("--strategy filtered: --filter off leaves nothing to filter; leave one of the two out");
  if (runtime::filters(d)) {
    if (o.presorted && o.order == "identity")
      throw UsageError("--presorted: --order identity leaves nothing to sort by; name another order");
    return;
  }
  const std::string option = o.no_correction    ? "--no-correction"
                             : !o.order.empty() ? "--order " + o.order
                             : o.presorted      ? "--presorted"
                                                : "";
  if (option.empty()) return;
  if (exact || d.filter == Filter::off)
    throw UsageError(fmt::format("{}: nothing is filtered with {}; leave it out", option,
                                 exact ? "--strategy " + o.strategy : "--filter off"));
  throw UsageError(fmt::format(
      "{}: nothing is filtered: --filter auto leaves {} with V = {} alone (it filters bf16 and f16 from V = "
      "16384 on); add --filter mass",
      option, name_of(d.dtype), d.vocabulary));
}

/// Refuses a size where there is none to choose.
void check_stash(const InputOptions& o, const PlanDesc& d) {
  if (o.stash_mib < 0 || d.strategy == Strategy::exact_stash) return;
  throw UsageError(fmt::format("--stash {}: --strategy {} {}; take --strategy exact_stash or leave --stash out",
                               o.stash_mib, o.strategy,
                               d.strategy == Strategy::dense       ? "holds everything"
                               : d.strategy == Strategy::automatic ? "shares --workspace out itself"
                                                                   : "keeps no stash"));
}

}  // namespace

void parse_filter(const std::string& text, PlanDesc& d) {
  const std::size_t sign = text.find('=');
  const std::string rule = text.substr(0, sign);
  const bool mass = rule == "mass", max = rule == "max";
  if (text == "auto" || text == "off") {
    d.filter = text == "off" ? Filter::off : Filter::automatic;
    return;
  }
  if (!mass && !max)
    throw UsageError(
        fmt::format("--filter {}: is no filter; they are auto, off, mass, mass=X and max=X, X as in 2^-12", text));
  d.filter = mass ? Filter::mass : Filter::largest;
  if (max) d.correction = false;
  if (sign == std::string::npos) {
    if (max) throw UsageError("--filter max: needs the least probability that matters, as in --filter max=2^-12");
    return;
  }
  const std::string number = text.substr(sign + 1);
  const std::optional<double> x = parse_threshold(number);
  if (!x)
    throw UsageError(fmt::format("--filter {}: '{}' is no number; write 2^-12, 0.000244 or 2.44e-4", text, number));
  if (!(*x > 0 && *x <= 1))
    throw UsageError(
        fmt::format("--filter {}: a threshold is above 0 and at most 1; --filter off keeps every tile", text));
  d.filter_threshold = *x;
}

PlanDesc InputOptions::desc(const ProblemSpec& spec) const {
  PlanDesc d;
  d.hidden = spec.hidden;
  d.vocabulary = spec.vocabulary;
  d.dtype = spec.dtype;
  d.reduction = spec.reduction;
  d.ignore_index = Problem::ignore_index;
  d.strategy = strategy_from_name(strategy);
  parse_filter(filter, d);
  if (no_correction) d.correction = false;
  d.order = presorted || order == "identity"   ? Order::identity
            : order.empty() || order == "auto" ? Order::automatic
                                               : Order::given;
  d.threads = threads;
  d.device = device_from_name(device);
  const bool gpu = d.device.type == DeviceType::cuda;
  if (workspace_mib >= 0)  // 0 bytes would leave the choice to the library
    d.workspace_limit = std::max<std::size_t>(1, static_cast<std::size_t>(workspace_mib * (1 << 20)));
  if (!arch.empty() && !gpu) throw UsageError(fmt::format("--arch {}: is of a GPU; add --device cuda", arch));
  if (!arch.empty()) d.arch = Target::cuda(arch).cpu;
  check_filter(*this, d);
  check_stash(*this, d);
  return d;
}

std::size_t InputOptions::stash_limit() const {
  if (stash_mib < 0) return std::numeric_limits<std::size_t>::max();
  return static_cast<std::size_t>(stash_mib * (1 << 20));
}

Device device_from_name(const std::string& name) {
  if (name == "cpu") return {};
  if (name == "cuda") return {DeviceType::cuda, 0};
  int ordinal = -1;
  if (name.starts_with("cuda:")) {
    const char* const end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + 5, end, ordinal);
    if (error != std::errc{} || stop != end) ordinal = -1;
  }
  if (ordinal < 0) throw UsageError(fmt::format("--device {}: must be cpu, cuda or cuda:N", name));
  return {DeviceType::cuda, ordinal};
}

std::string level_of(const PlanDesc& desc) { return desc.arch.empty() ? Target::of(desc.device).level() : desc.arch; }

std::string device_text(const PlanDesc& desc, int threads) {
  if (desc.device.type == DeviceType::cpu) return fmt::format("cpu ({}), {} threads", level_of(desc), threads);
  const std::string gpu = cuda::device_info(*cuda::Driver::open(), desc.device.ordinal).describe();
  return fmt::format("{}, {}", gpu, level_of(desc));
}

void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

std::string mib(double bytes) { return fmt::format("{:.{}f} MiB", bytes / (1 << 20), bytes < (10 << 20) ? 2 : 1); }

}  // namespace kerf::tools
