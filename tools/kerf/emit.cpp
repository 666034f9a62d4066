// kerf emit: one program of the loss at one of the stages it goes through, as text.
#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "codegen/nvptx/ptx.h"
#include "kerf/error.h"
#include "lib/ir/ir.h"
#include "tools/kerf/verbs.h"
#include "tools/support/ptxas.h"

namespace kerf::tools {
namespace {

struct EmitOptions {
  InputOptions input;
  std::string program, stage = "tile", target;
  bool json = false;
};

constexpr const char* ptx = "ptx";
constexpr const char* sass_stats = "sass-stats";

Stage stage_from_name(const std::string& name) {
  if (name == "dsl") return Stage::dsl;
  if (name == "tile") return Stage::tile;
  if (name == "llvm") return Stage::llvm;
  if (name == "asm" || name == ptx) return Stage::assembly;
  throw UsageError(fmt::format("'{}' is no stage; they are dsl, tile, llvm, asm, ptx, sass-stats", name));
}

Target target_from_name(const std::string& name) {
  if (name.empty()) return Target::host();
  if (name == "aarch64") return Target::aarch64();
  for (const char* level : {"sse2", "avx2", "avx512", "avx512bf16"})
    if (name == level) return Target::x86(name);
  throw UsageError(fmt::format("'{}' is no target; they are sse2, avx2, avx512, avx512bf16, aarch64", name));
}

/// What a GPU program takes of a multiprocessor.
struct Stats {
  std::string program;
  int threads = 0;
  std::int64_t shared_bytes = 0;  // that a launch asks for, and what the code declares
  Assembled code;
};

Stats stats_of(const Plan& plan, const std::string& program, const Target& target, const std::string& ptxas) {
  const ir::Program tiles = ir::parse(plan.emit(program, Stage::tile, target), program);
  const codegen::nvptx::Code code = codegen::nvptx::compile(tiles, target, {});
  Stats s{program, code.threads, code.shared_bytes,
          assemble(ptxas, plan.emit(program, Stage::assembly, target), target.cpu)};
  if (!s.code.ok)
    throw InternalError(fmt::format("{} refuses the code of {} for {}: {}", ptxas, program, target.cpu, s.code.said));
  s.shared_bytes += s.code.shared;
  return s;
}

int emit_stats(const EmitOptions& options, const ProblemSpec& spec, const Plan& plan, const Target& target) {
  const std::string ptxas = find_ptxas();
  if (std::error_code error; !std::filesystem::exists(ptxas, error))
    throw DeviceError(fmt::format(
        "--stage sass-stats: {}; ptxas is part of NVIDIA's CUDA toolkit, also of the Python package nvidia-cuda-nvcc: "
        "install one, or name the file in KERF_PTXAS",
        ptxas.empty() ? "no ptxas on PATH or in /usr/local/cuda/bin" : ptxas + " is not there"));
  std::vector<Stats> all;
  for (const std::string& program : options.program.empty() ? plan.program_names() : std::vector{options.program})
    all.push_back(stats_of(plan, program, target, ptxas));
  if (options.json) {
    nlohmann::ordered_json programs;
    for (const Stats& s : all)
      programs.push_back({{"program", s.program},
                          {"registers", s.code.registers},
                          {"threads", s.threads},
                          {"shared_bytes", s.shared_bytes},
                          {"spill_bytes", s.code.spilled},
                          {"local_bytes", s.code.stack},
                          {"cubin_bytes", s.code.code_bytes}});
    print_json({{"stage", options.stage},
                {"target", target.level()},
                {"shape", {spec.tokens, spec.hidden, spec.vocabulary}},
                {"dtype", name_of(spec.dtype)},
                {"ptxas", ptxas},
                {"programs", programs}});
    return 0;
  }
  fmt::print("{:<20}{:>10}{:>9}{:>11}{:>9}{:>9}{:>12}\n", target.level(), "registers", "threads", "shared KiB",
             "spilled", "local", "cubin bytes");
  for (const Stats& s : all)
    fmt::print("{:<20}{:>10}{:>9}{:>11.1f}{:>9}{:>9}{:>12}\n", s.program, s.code.registers, s.threads,
               static_cast<double>(s.shared_bytes) / 1024, s.code.spilled, s.code.stack, s.code.code_bytes);
  fmt::print("shared of a block; spilled and local in bytes of a thread, spilled counts stores and loads\n");
  return 0;
}

int emit_program(const EmitOptions& options) {
  const bool stats = options.stage == sass_stats;
  const Stage stage = stats ? Stage::assembly : stage_from_name(options.stage);
  InputOptions input = options.input;
  const bool gpu = stats || options.stage == ptx || !input.arch.empty();
  if (gpu && !options.target.empty())
    throw UsageError(fmt::format("emit --target {}: is of a CPU; a GPU is named by --arch", options.target));
  if (gpu && input.arch.empty())
    throw UsageError(fmt::format("--stage {}: needs --arch, as in --arch sm_90a or sm_80", options.stage));
  if (options.program.empty() && !stats) throw UsageError("emit: --program is required");
  if (gpu && input.device == "cpu") input.device = "cuda";
  const Target target = gpu ? Target::cuda(input.arch) : target_from_name(options.target);
  const ProblemSpec spec = input.spec(0);
  const Plan plan(input.desc(spec));
  if (stats) return emit_stats(options, spec, plan, target);
  const std::string text = plan.emit(options.program, stage, target);
  if (options.json) {
    print_json({{"program", options.program},
                {"stage", options.stage},
                {"target", target.level()},
                {"shape", {spec.tokens, spec.hidden, spec.vocabulary}},
                {"dtype", name_of(spec.dtype)},
                {"programs", plan.program_names()},
                {"text", text}});
  } else {
    fmt::print("{}{}", text, text.ends_with('\n') ? "" : "\n");
  }
  return 0;
}

}  // namespace

void add_emit(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("emit", "print one program of the loss at one of its stages");
  auto& options = options_of<EmitOptions>(*verb, run, emit_program);
  verb->add_option("--program", options.program,
                   "lse_forward, combine, grad_tiles, grad_e, grad_c, ...; sass-stats: all if not given");
  verb->add_option("--stage", options.stage,
                   "dsl (as recorded), tile (after the passes), llvm or asm; with --arch ptx, or sass-stats: what "
                   "ptxas makes of it")
      ->capture_default_str();
  verb->add_option("--target", options.target, "sse2, avx2, avx512, avx512bf16 or aarch64; this machine if not given");
  options.input.add_to(*verb);
  options.input.add_filter_rule_to(*verb);
  verb->add_flag("--json", options.json, "print JSON");
  verb->footer(
      "Needs no machine of the kind that the code is for.\n"
      "Example: kerf emit --program lse_forward --stage asm --shape 1024,768,50257 --dtype bf16 --target avx2\n"
      "Example: kerf emit --program keep_tiles --filter mass --shape 1024,768,50257\n"
      "Example: kerf emit --stage sass-stats --arch sm_90a --model gemma2-2b --dtype bf16");
}

}  // namespace kerf::tools
