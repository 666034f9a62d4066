// kerf tune: finds the blocks that make a loss fast on this machine, and keeps them as wisdom.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stop_token>
#include <thread>

#include "kerf/error.h"
#include "runtime/tuner/loss_setup.h"
#include "runtime/tuner/misses.h"
#include "runtime/tuner/worker.h"
#include "tools/kerf/tune_repeat.h"
#include "tools/kerf/tune_study.h"
#include "tools/kerf/verbs.h"
#include "tools/support/models.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

struct TuneVerb {
  InputOptions input;
  std::vector<std::int64_t> tokens;
  double budget = 20;
  std::int64_t candidates = 0, repeat = 0;
  double memory_mib = 0;
  std::string wisdom, out;
  double candidate_seconds = 20;
  bool dry_run = false, again = false, json = false, in_process = false, missing = false;
};

struct WorkerVerb {};

/// Asks the search to end once Ctrl-C has come.
class StopOnInterrupt {
 public:
  StopOnInterrupt()
      : watch_([this](const std::stop_token& done) {
          while (!done.stop_requested() && !interrupt_.arrived())
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
          if (interrupt_.arrived()) stop_.request_stop();
        }) {}
  std::stop_token token() const { return stop_.get_token(); }
  bool arrived() const { return interrupt_.arrived(); }

 private:
  CaughtInterrupt interrupt_;
  std::stop_source stop_;
  std::jthread watch_;  // last: it looks at the others
};

/// One line on standard error, where somebody is watching.
class StatusLine {
 public:
  ~StatusLine() { clear(); }
  std::string prefix = {};
  void show(const TuneProgress& p) {
    if (!watched_) return;
    std::string text = prefix + fmt::format("{} {} {}/{}, {:.1f} s", p.part, p.step, p.done, p.candidates, p.seconds);
    if (p.best) text += fmt::format(", best {:.4g} ms: {}", p.best_ms, describe(*p.best));
    if (p.standard_ms > 0) text += fmt::format(" (default {:.4g} ms)", p.standard_ms);
    fmt::print(stderr, "\r\033[K{}", text.substr(0, 118));
    std::fflush(stderr);
    drawn_ = true;
  }
  void clear() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
    drawn_ = false;
  }

 private:
  bool watched_ = isatty(STDERR_FILENO) == 1, drawn_ = false;
};

void print_part(const TuneReport& r) {
  const auto count = [&](WisdomStatus s) {
    return std::count_if(r.candidates.begin(), r.candidates.end(),
                         [&](const TuneCandidate& c) { return c.status == s; });
  };
  fmt::print("{:<9}", r.key.part);
  if (r.winner) {
    const TuneCandidate& best = r.candidates[*r.winner];
    fmt::print("{:.4g} ms  {}\n", best.median_ms, describe(best.point));
    if (r.standard == r.winner)
      fmt::print("{:<9}the default{}\n", "", best.noisy ? "; something else ran meanwhile" : "");
    else if (r.standard && r.candidates[*r.standard].median_ms > 0)
      fmt::print("{:<9}default {:.4g} ms, {:.1f} % more{}\n", "", r.candidates[*r.standard].median_ms,
                 100 * (r.candidates[*r.standard].median_ms / best.median_ms - 1),
                 best.noisy ? "; something else ran meanwhile" : "");
  } else {
    fmt::print("nothing was measured that runs rightly\n");
  }
  fmt::print("{:<9}{} of {} candidates taken up, {} out by rules, {} given up, {} failed; {:.1f} s{}\n", "",
             r.candidates.size(), r.space_size, r.pruned_count, count(WisdomStatus::slow),
             std::ssize(r.candidates) - count(WisdomStatus::ok) - count(WisdomStatus::slow), r.seconds,
             r.stopped.empty() ? "" : ", ended by " + r.stopped);
  for (const std::string& note : r.notes) fmt::print("{:<9}not kept: {}\n", "", note);
  for (const TuneCandidate& c : r.candidates)
    if (c.status == WisdomStatus::wrong || c.status == WisdomStatus::fault || c.status == WisdomStatus::timeout)
      fmt::print("{:<9}{} {}: {}\n", "", name_of(c.status), describe(c.point), c.reason);
}

/// One loss to tune.
struct Job {
  PlanDesc desc;
  std::int64_t tokens = 0;
};

std::vector<Job> jobs_of(const TuneVerb& o) {
  std::vector<Job> jobs;
  if (o.missing) {
    if (!o.input.shape.empty() || !o.input.model.empty())
      throw UsageError("--missing: tunes what calls asked for; leave --shape and --model out");
    for (const runtime::TuneMiss& m : runtime::read_misses(user_misses_file())) jobs.push_back({m.desc, m.tokens});
    return jobs;
  }
  if (!o.input.shape.empty() && !o.tokens.empty())
    throw UsageError("--tokens: --shape names the tokens already; leave one of the two out");
  InputOptions input = o.input;
  for (const std::int64_t tokens : o.tokens.empty() ? std::vector{input.tokens} : o.tokens) {
    input.tokens = tokens;
    const ProblemSpec spec = input.spec(0);
    jobs.push_back({input.desc(spec), spec.tokens});
  }
  return jobs;
}

/// Where records go; empty: nowhere.
std::string wisdom_of(const TuneVerb& o) {
  if (o.dry_run) return "";
  const std::string file = !o.wisdom.empty() ? o.wisdom : user_wisdom_file();
  if (file.empty())
    throw UsageError(
        "there is no place for wisdom: HOME, XDG_DATA_HOME and KERF_WISDOM are not set; name a file with --wisdom, or "
        "keep nothing with --dry-run");
  return file;
}

/// "study.json", or of several jobs "study.1.json", "study.2.json", ...
std::string file_for(const std::string& out, std::size_t job, std::size_t jobs) {
  if (out.empty() || jobs < 2) return out;
  const std::filesystem::path path = out;
  return (path.parent_path() / fmt::format("{}.{}{}", path.stem().string(), job + 1, path.extension().string()))
      .string();
}

TuneOptions options_of(const TuneVerb& o, const std::string& wisdom, const std::stop_token& stop, StatusLine& line) {
  TuneOptions options;
  options.seconds = o.budget, options.candidates = o.candidates;
  options.memory = static_cast<std::size_t>(o.memory_mib * (1 << 20));
  options.stop = stop;
  options.wisdom = wisdom, options.again = o.again;
  if (!o.in_process) options.worker = std::filesystem::read_symlink("/proc/self/exe").string();
  options.candidate_seconds = o.candidate_seconds;
  options.progress = [&](const TuneProgress& p) { line.show(p); };
  return options;
}

TuneStudy measure(const TuneVerb& o, const Job& job, const std::string& wisdom, const std::stop_token& stop) {
  const auto start = std::chrono::steady_clock::now();
  TuneStudy study{.desc = job.desc, .tokens = job.tokens, .level = level_of(job.desc), .tuning = {}};
  study.budget_seconds = o.budget, study.budget_candidates = o.candidates;
  StatusLine line;
  study.tuning = tune_loss(job.desc, job.tokens, options_of(o, wisdom, stop, line));
  study.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return study;
}

void print_job(const Job& job) {
  fmt::print("tune N={} D={} V={} {} on {}\n", token_bucket(std::max<std::int64_t>(1, job.tokens)), job.desc.hidden,
             job.desc.vocabulary, name_of(job.desc.dtype), device_text(job.desc, ThreadPool(job.desc.threads).size()));
  std::fflush(stdout);
}

int repeat(const TuneVerb& o) {
  const StopOnInterrupt interrupt;
  bool all_alike = true;
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Job& job : jobs_of(o)) {
    if (!o.json) print_job(job);
    StatusLine line;
    const auto begun = [&](std::int64_t i) {
      line.prefix = i < o.repeat ? fmt::format("{}/{} ", i + 1, o.repeat) : "choices: ";
    };
    const std::vector<RepeatedPart> parts =
        repeat_searches(job.desc, job.tokens, o.repeat, options_of(o, "", interrupt.token(), line), begun);
    line.clear();
    if (interrupt.arrived()) return 130;
    all_alike = all_alike && !parts.empty() && std::all_of(parts.begin(), parts.end(), alike);
    if (!o.json)
      for (const RepeatedPart& part : parts) print(part);
    all.push_back({{"shape", {token_bucket(job.tokens), job.desc.hidden, job.desc.vocabulary}},
                   {"dtype", name_of(job.desc.dtype)},
                   {"seconds_each", o.budget},
                   {"parts", to_json(parts)}});
  }
  if (o.json) print_json(all.size() == 1 ? all[0] : all);
  return all_alike ? 0 : 1;
}

int tune(const TuneVerb& o) {
  if (o.repeat > 0) return repeat(o);
  const std::vector<Job> jobs = jobs_of(o);
  const std::string wisdom = wisdom_of(o);
  if (!wisdom.empty())
    static_cast<void>(WisdomAppender(wisdom));  // refuses what cannot be written while that costs nothing
  const StopOnInterrupt interrupt;
  bool failed = false;
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < jobs.size() && !interrupt.arrived(); ++i) {
    const Job& job = jobs[i];
    if (!o.json) print_job(job);
    TuneStudy study;
    try {
      study = measure(o, job, wisdom, interrupt.token());
    } catch (const Error& e) {
      if (!o.missing) throw;
      // The others are tuned all the same; what can never be is not asked for again.
      const bool never = dynamic_cast<const UsageError*>(&e) != nullptr;
      fmt::print(stderr, "kerf: {}: {}{}\n", user_misses_file(), e.what(), never ? "; its line is dropped" : "");
      if (never && !o.dry_run) runtime::forget_miss(user_misses_file(), {job.desc, job.tokens});
      failed = true;
      continue;
    }
    bool whole = !study.tuning.parts.empty();
    for (const TuneReport& r : study.tuning.parts) {
      whole = whole && r.winner && r.stopped != "interrupt";
      failed = failed || !r.winner || !r.notes.empty();
      if (!o.json) print_part(r);
    }
    if (o.missing && whole && !o.dry_run) runtime::forget_miss(user_misses_file(), {job.desc, job.tokens});
    const nlohmann::ordered_json json = to_json(study);
    all.push_back(json);
    if (const std::string file = file_for(o.out, i, jobs.size());
        !file.empty() && !(std::ofstream(file) << json.dump(1) << '\n'))
      throw UsageError(fmt::format("--out {}: cannot be written", file));
  }
  if (o.json)
    print_json(all.size() == 1 ? all[0] : all);
  else if (jobs.empty())
    fmt::print("nothing is missing in {}\n", user_misses_file());
  else if (!wisdom.empty())
    fmt::print("kept in {}\n", wisdom);
  return interrupt.arrived() ? 130 : failed ? 1 : 0;
}

int serve(const WorkerVerb&) { return runtime::serve_candidates(STDIN_FILENO, runtime::subject_of); }

}  // namespace

void add_tune_worker(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("tune-worker", "measures what kerf tune asks for on its standard input");
  verb->group("");  // not for people
  options_of<WorkerVerb>(*verb, run, serve);
}

void add_tune(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("tune", "measure which blocks make a loss fast here, and keep them as wisdom");
  auto& o = options_of<TuneVerb>(*verb, run, tune);
  InputOptions& in = o.input;
  auto* by_shape = verb->add_option("--shape", in.shape, "tokens, hidden size and vocabulary: N,D,V");
  auto* by_model =
      verb->add_option("--model", in.model, "shape of a model: " + model_names() + ", or a transformers config.json");
  by_model->excludes(by_shape);
  verb->add_option("--tokens", o.tokens, "numbers of tokens, with --model: 512,1024,8192; each is rounded up")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  verb->add_option("--dtype", in.dtype, "of e and c: f32, bf16 or f16")->capture_default_str();
  verb->add_option("--device", in.device, "cpu, cuda or cuda:N")->capture_default_str();
  verb->add_option("--arch", in.arch,
                   "GPU: architecture to generate code for, as sm_80; the device's own if not given");
  verb->add_option("--strategy", in.strategy,
                   "automatic, exact_recompute, min_memory, filtered or exact_stash; on a GPU also dense")
      ->capture_default_str();
  in.add_filter_to(*verb);
  verb->add_option("--workspace", in.workspace_mib, "MiB that the backward may ask for, as the plan will have it")
      ->check(CLI::Range(0.0, 1e6));
  verb->add_option("--threads", in.threads, "0: KERF_NUM_THREADS, or all processors")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  verb->add_option("--budget", o.budget, "seconds for all, making the problem among them; the parts share what is left")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
  verb->add_option("--candidates", o.candidates, "most that are tried of a part; 0: 32, on a GPU 96")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{100000}));
  verb->add_option("--memory", o.memory_mib, "MiB that tuning may take; 0: 2048, on a GPU half of what is free")
      ->check(CLI::Range(0.0, 1e7));
  verb->add_option("--wisdom", o.wisdom, "file that records go to; the user's if not given");
  verb->add_flag("--missing", o.missing, "tune what calls with KERF_TUNE=record found missing, in place of a shape");
  verb->add_flag("--dry-run", o.dry_run, "keep nothing, and measure all anew");
  verb->add_flag("--again", o.again, "measure again what is known");
  verb->add_option("--timeout", o.candidate_seconds, "seconds after which a candidate that does not end is given up")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 1e6));
  verb->add_flag("--in-process", o.in_process,
                 "measure in this process, where a candidate that hangs or faults ends everything");
  verb->add_option("--out", o.out, "write all that was done to a file, for kerf report");
  verb->add_flag("--json", o.json, "print the same");
  auto* repeat = verb->add_option("--repeat", o.repeat,
                                  "search so many times anew, keep nothing, and measure what they chose beside "
                                  "each other: exit code 1 where less than 19 of 20 are within 2 % of the fastest")
                     ->check(CLI::Range(std::int64_t{1}, std::int64_t{10000}));
  for (const char* other : {"--missing", "--wisdom", "--out", "--again", "--dry-run"})
    repeat->excludes(verb->get_option(other));
  verb->footer(
      "Each record is kept as soon as it is known: Ctrl-C, or a machine that goes down, costs one candidate at most, "
      "and\n"
      "what is known is not measured again. Plans find the choice by themselves.\n"
      "Of those surely within 2 % of the best the one wins that was predicted to take the least. Every candidate there "
      "is:\n"
      "--budget 300 --candidates 1000\n"
      "Example: kerf tune --model gpt2 --tokens 256,1024 --dtype bf16\n"
      "Example: kerf tune --device cuda --model gemma2-2b --tokens 8192 --dtype bf16 --out study.json");
}

}  // namespace kerf::tools
