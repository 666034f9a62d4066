// kerf bench --device cuda: forward and backward beside the logits by cuBLAS, in two ways. Back to back, where a board
// that is limited by its power slows down for everyone alike; and each call after a pause, as a lone step meets it.
#include <fmt/format.h>

#include <chrono>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kerf/error.h"
#include "runtime/device_loss.h"
#include "tools/kerf/bench.h"
#include "tools/kerf/loss_call.h"
#include "tools/support/cublas.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int least_rounds = 5, gap_rounds = 10, host_rounds = 30;
constexpr double warm_up_ms = 1000, burst_ms = 400;
constexpr std::chrono::milliseconds gap{100};

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Logits of all rows, in parts of less than 2^31 elements that are written to the same place.
class LogitsByCublas {
 public:
  LogitsByCublas(const Problem& problem, const LossCall& call, const Cublas& blas)
      : spec_(problem.spec), blas_(blas), c_(call.c()) {
    const std::int64_t size = size_of(spec_.dtype);
    rows_ = std::clamp<std::int64_t>(std::numeric_limits<std::int32_t>::max() / spec_.vocabulary, 1, spec_.tokens);
    z_ = cuda::Buffer(call.gpu(), static_cast<std::size_t>(rows_ * spec_.vocabulary * size));
    // Numbers in every row: ignored ones are NaN in the problem's e, and what is multiplied decides the power it takes.
    const Buffer e(static_cast<std::size_t>(spec_.tokens * spec_.hidden * size));
    in_pieces(spec_.tokens, 64, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> row(static_cast<std::size_t>(spec_.hidden));
      for (std::int64_t n = begin; n < end; ++n) {
        Random random(1, static_cast<std::uint64_t>(n));
        for (float& x : row) x = random.bell();
        from_float(row.data(), spec_.hidden, spec_.dtype,
                   element(static_cast<void*>(e.data()), spec_.dtype, n * spec_.hidden));
      }
    });
    e_ = cuda::Buffer(call.gpu(), e.size());
    e_.upload(e.data(), e.size(), call.stream());
    cuda::synchronize(*call.gpu(), call.stream());
  }
  void run() const {
    for (std::int64_t n = 0; n < spec_.tokens; n += rows_)
      blas_.product(spec_.dtype, std::min(rows_, spec_.tokens - n), spec_.vocabulary, spec_.hidden,
                    element(static_cast<const void*>(e_.data()), spec_.dtype, n * spec_.hidden), c_, z_.data());
  }

 private:
  const ProblemSpec& spec_;
  const Cublas& blas_;
  const void* c_;
  std::int64_t rows_ = 1;
  cuda::Buffer e_, z_;
};

/// What is measured.
struct Subject {
  const char* name;
  std::function<void()> call;
  double flop;    // useful work
  int count = 1;  // calls of one burst
  Times back_to_back = {}, with_gaps = {}, host = {};
};

class StreamClock {
 public:
  StreamClock(const std::shared_ptr<const cuda::Device>& gpu, Stream stream)
      : stream_(stream), begin_(gpu), end_(gpu) {}
  /// Milliseconds of each of `count` calls queued one behind the other.
  double ms_each(int count, const std::function<void()>& call) const {
    begin_.record(stream_);
    for (int i = 0; i < count; ++i) call();
    end_.record(stream_);
    end_.synchronize();
    return end_.milliseconds_since(begin_) / count;
  }

 private:
  Stream stream_;
  cuda::Event begin_, end_;
};

/// Runs everything for a while and finds how many calls make a burst.
void warm_up(std::vector<Subject>& subjects, const StreamClock& clock) {
  const auto start = Clock::now();
  for (bool grown = true; grown || ms_since(start) < warm_up_ms;) {
    grown = false;
    for (Subject& s : subjects) {
      const double ms = std::max(clock.ms_each(s.count, s.call), 1e-4);
      const double enough = std::ceil(burst_ms / ms);
      grown = grown || enough > 2 * s.count;
      s.count = static_cast<int>(std::min(enough, 20.0 * s.count));
    }
  }
}

/// The plan's programs compiled apart from it, since a plan does not tell what became of them.
struct Compiled {
  std::vector<std::pair<std::string, KernelResources>> programs;
  double ms = 0;      // on all processors
  double jit_ms = 0;  // in the driver, of one processor
};

Compiled compile_apart(const PlanDesc& desc) {
  const kernels::Shape shape{desc.vocabulary, desc.hidden, desc.dtype};
  const Target target = runtime::target_of(desc);
  const bool boxed = runtime::reads_in_boxes(desc, target);
  runtime::DevicePrograms programs(
      desc, boxed ? runtime::choose_boxed_blocks(shape, target) : runtime::choose_plain_blocks(shape), target,
      runtime::filters(desc));
  const std::vector<runtime::DeviceProgram> all = programs.all();
  Compiled c;
  c.programs.resize(all.size());
  const auto start = Clock::now();
  in_pieces(std::ssize(all), 1, [&](std::int64_t i, std::int64_t) {
    const runtime::DeviceProgram which = all[static_cast<std::size_t>(i)];
    c.programs[static_cast<std::size_t>(i)] = {std::string(programs.name(which)), programs.kernel(which).resources()};
  });
  c.ms = ms_since(start);
  for (const auto& [name, resources] : c.programs) c.jit_ms += resources.jit_ms;
  return c;
}

ordered_json numbers(const Subject& s, const Times& t) {
  return {{"ms", t.median()}, {"ms_spread", t.spread()}, {"tflops", s.flop / t.median() / 1e9}};
}

}  // namespace

int bench_on_gpu(const BenchOptions& options) {
  const InputOptions& input = options.input;
  const ProblemSpec spec = input.spec(0);
  const PlanDesc desc = input.desc(spec);
  if (options.table) throw UsageError("bench --table: the version that forms the logits runs on the cpu only");
  if (spec.tokens < 1) throw UsageError("bench: N = 0 takes no time; give at least one token");
  const std::shared_ptr<const cuda::Device> gpu = cuda::Device::open(desc.device.ordinal);
  check_problem_size(spec, 2);
  const auto [problem, order] = make_case(input, spec, desc);
  const Compiled compiled = compile_apart(desc);
  LossCall call(problem, desc, order.tokens, input.stash_limit());
  call.prepare();
  call.forward();
  call.backward();
  call.fetch();
  if (const auto defects = call.defects(); !defects.empty()) throw InternalError("bench: " + defects[0]);

  const cuda::Current current(*gpu);
  const std::optional<Cublas> blas = Cublas::open(call.stream());
  std::optional<LogitsByCublas> logits;
  if (blas) logits.emplace(problem, call, *blas);
  const auto flop = [&](std::int64_t rows) {
    return 2 * static_cast<double>(rows) * static_cast<double>(spec.hidden) * static_cast<double>(spec.vocabulary);
  };
  std::vector<Subject> subjects;
  if (logits) subjects.push_back({"matmul", [&] { logits->run(); }, flop(spec.tokens)});
  subjects.push_back({"forward", [&] { call.forward(); }, flop(problem.valid)});
  const auto both = [&] {
    call.forward();
    call.backward();
  };
  subjects.push_back({"both", both, 3 * flop(problem.valid)});

  const StreamClock clock(gpu, call.stream());
  warm_up(subjects, clock);
  int rounds = 0;
  {
    Progress progress("measuring", static_cast<std::int64_t>(options.seconds * 1000));
    const auto start = Clock::now();
    for (double before = 0; rounds < least_rounds || before < options.seconds * 1000; ++rounds) {
      for (Subject& s : subjects) s.back_to_back.add(clock.ms_each(s.count, s.call));
      const double now = ms_since(start);
      progress.add(static_cast<std::int64_t>(now) - static_cast<std::int64_t>(before));
      before = now;
    }
  }
  for (int i = 0; i < gap_rounds; ++i)
    for (Subject& s : subjects) {
      std::this_thread::sleep_for(gap);
      s.with_gaps.add(clock.ms_each(1, s.call));
    }
  for (int i = 0; i < host_rounds; ++i)
    for (Subject& s : subjects) {
      const auto start = Clock::now();
      s.call();
      s.host.add(ms_since(start));
      cuda::synchronize(*gpu, call.stream());
    }

  const Subject* const ceiling = logits ? &subjects[0] : nullptr;
  const std::string cublas = blas ? blas->describe() : "";
  if (options.wants_json()) {
    ordered_json out = {{"shape", {spec.tokens, spec.hidden, spec.vocabulary}},
                        {"dtype", name_of(spec.dtype)},
                        {"reduction", name_of(spec.reduction)},
                        {"input", problem.source},
                        {"valid_rows", problem.valid}};
    if (!input.model.empty()) out["model"] = input.model;
    for (const auto& [mode, times] :
         {std::pair("back_to_back", &Subject::back_to_back), std::pair("with_gaps", &Subject::with_gaps)}) {
      for (const Subject& s : subjects) {
        ordered_json& to = out[mode][s.name] = numbers(s, s.*times);
        if (ceiling != nullptr) to["ratio"] = (s.*times).median() / (ceiling->*times).median();
      }
    }
    for (const Subject& s : subjects) out["host_us"][s.name] = 1000 * s.host.median();
    out["matmul"] = blas ? ordered_json(cublas) : ordered_json(nullptr);
    add_report(out, call, desc, order);
    out["device"] = input.device;
    out["device_name"] = gpu->info().name;
    out["driver"] = gpu->driver().version_text();
    out["level"] = level_of(desc);
    out["compile_ms"] = compiled.ms;
    out["jit_ms"] = compiled.jit_ms;
    for (const auto& [name, r] : compiled.programs)
      out["programs"][name] = {{"registers", r.registers},       {"threads", r.threads},         {"blocks", r.blocks},
                               {"shared_bytes", r.shared_bytes}, {"local_bytes", r.local_bytes}, {"jit_ms", r.jit_ms}};
    out["rounds"] = rounds;
    options.put(out);
    if (options.json) return 0;
  }

  fmt::print("bench N={} D={} V={} {} {}: {}, {} rows count, {}, {} rounds\n", spec.tokens, spec.hidden,
             spec.vocabulary, name_of(spec.dtype), name_of(spec.reduction), problem.source, problem.valid,
             device_text(desc, 0), rounds);
  fmt::print("{:<9}|{:>11}{:>9}{:>10}{:>10} |{:>11}{:>9}{:>10}{:>10} |{:>9}\n", "", "median ms", "spread", "TFLOP/s",
             "x matmul", "median ms", "spread", "TFLOP/s", "x matmul", "host us");
  for (const Subject& s : subjects) {
    fmt::print("{:<9}", s.name);
    for (const auto times : {&Subject::back_to_back, &Subject::with_gaps}) {
      const Times& t = s.*times;
      fmt::print("|{:>11.4f}{:>8.1f}%{:>10.1f}{:>10} ", t.median(), 100 * t.spread(), s.flop / t.median() / 1e9,
                 ceiling != nullptr ? fmt::format("{:.3f}", t.median() / (ceiling->*times).median()) : "");
    }
    fmt::print("|{:>9.1f}\n", 1000 * s.host.median());
  }
  fmt::print(
      "left: back to back, {} ms of calls of each in turn; middle: each call after {} ms of nothing; right: time "
      "until\n"
      "the call returns\n",
      burst_ms, gap.count());
  fmt::print("{}\n", blas ? fmt::format("matmul: z = e c^T of all rows in {} by {}", name_of(spec.dtype), cublas)
                          : "no cuBLAS found, so nothing to compare with: name libcublas.so.12 or .13 in KERF_CUBLAS");
  print_report(call, desc, order);
  fmt::print("{} programs compiled in {:.0f} ms on all processors; the driver took {:.0f} ms of one\n",
             compiled.programs.size(), compiled.ms, compiled.jit_ms);
  for (const auto& [name, r] : compiled.programs)
    if (r.local_bytes > 0) fmt::print("{} keeps {} bytes of a thread in memory\n", name, r.local_bytes);
  return 0;
}

}  // namespace kerf::tools
