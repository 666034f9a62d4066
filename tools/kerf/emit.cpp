// kerf emit: one program of the loss at one of the stages it goes through, as text.
#include <fmt/format.h>

#include "kerf/error.h"
#include "tools/kerf/verbs.h"

namespace kerf::tools {
namespace {

struct EmitOptions {
  InputOptions input;
  std::string program, stage = "tile", target;
  bool json = false;
};

Stage stage_from_name(const std::string& name) {
  if (name == "dsl") return Stage::dsl;
  if (name == "tile") return Stage::tile;
  if (name == "llvm") return Stage::llvm;
  if (name == "asm") return Stage::assembly;
  throw UsageError(fmt::format("'{}' is no stage; they are dsl, tile, llvm, asm", name));
}

Target target_from_name(const std::string& name) {
  if (name.empty()) return Target::host();
  if (name == "aarch64") return Target::aarch64();
  for (const char* level : {"sse2", "avx2", "avx512", "avx512bf16"})
    if (name == level) return Target::x86(name);
  throw UsageError(fmt::format("'{}' is no target; they are sse2, avx2, avx512, avx512bf16, aarch64", name));
}

int emit_program(const EmitOptions& options) {
  const Stage stage = stage_from_name(options.stage);
  const Target target = target_from_name(options.target);
  const ProblemSpec spec = options.input.spec(0);
  const Plan plan(options.input.desc(spec));
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
  verb->add_option("--program", options.program, "lse_forward, combine, grad_tiles, grad_e, grad_c, ...")->required();
  verb->add_option("--stage", options.stage, "dsl (as recorded), tile (after the passes), llvm or asm")
      ->capture_default_str();
  verb->add_option("--target", options.target, "sse2, avx2, avx512, avx512bf16 or aarch64; this machine if not given");
  options.input.add_to(*verb);
  verb->add_flag("--json", options.json, "print JSON");
  verb->footer(
      "Example: kerf emit --program lse_forward --stage asm --shape 1024,768,50257 --dtype bf16 --target avx2");
}

}  // namespace kerf::tools
