// kerf-opt: runs passes on tile programs as text and checks the files that test them.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "kerf/error.h"
#include "lib/passes/case_file.h"
#include "lib/passes/passes.h"

namespace {

using namespace kerf;

struct Options {
  std::vector<std::string> files;
  std::vector<std::string> passes;  // names
  bool pipeline = false, print_after_all = false, places = false, verify_only = false, check = false, update = false;
};

std::string read(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) throw UsageError(fmt::format("{}: cannot be read", path));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

void write(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text << std::flush;
  if (!out) throw UsageError(fmt::format("{}: cannot be written", path));
}

void run_on(const std::string& path, const Options& o) {
  ir::Program p = ir::parse(read(path), path == "-" ? "stdin" : path);
  if (o.verify_only) return;
  const auto show = [&](std::string_view pass, const ir::Program& now) {
    fmt::print("// after {}\n{}\n", pass, ir::print(now, o.places));
  };
  if (o.print_after_all)
    passes::run_passes(std::move(p), o.passes, show);
  else
    fmt::print("{}", ir::print(passes::run_passes(std::move(p), o.passes), o.places));
}

/// Returns the number of cases that fail.
int check(const std::string& path, bool update) {
  passes::CaseFile file = passes::read_cases(read(path), path);
  int failed = 0;
  for (passes::Case& c : file.cases) {
    const passes::Outcome outcome = passes::run_case(c, path);
    if (outcome.matches()) continue;
    ++failed;
    fmt::print("{}:{}: {}: {}\n{}", path, c.line, fmt::join(c.passes, ","), c.fact,
               passes::difference(outcome.expected, outcome.got));
    c.unchanged = outcome.got == ir::print(outcome.before);
    c.after = c.unchanged ? "" : outcome.got;
  }
  if (update && failed > 0) write(path, passes::write_cases(file));
  fmt::print("{}: {} cases, {} {}\n", path, file.cases.size(), failed, update ? "rewritten" : "failed");
  return update ? 0 : failed;
}

int run(int argc, char** argv) {
  Options o;
  std::string names;
  CLI::App app("Runs passes on tile programs as text, or checks the files that test passes.", "kerf-opt");
  app.footer(
      "Examples:\n"
      "  kerf emit --program lse_forward --stage dsl --shape 1024,768,50257 | kerf-opt --pipeline -\n"
      "  kerf-opt --pass fold,hoist program.tile\n"
      "  kerf-opt --check tests/passes/*.tile --update\n"
      "Exit codes: 0 done, 1 a check failed, 2 the call or the program is wrong, 4 a pass is broken.");
  std::string known;
  for (const passes::NamedPass& pass : passes::all())
    known += fmt::format("{}{}", known.empty() ? "" : ", ", pass.name);
  app.add_option("FILE", o.files, "Programs, or with --check files of cases; - reads stdin")->required();
  auto* pass = app.add_option("--pass", names, "Passes to run, separated by commas: " + known);
  auto* pipeline = app.add_flag("--pipeline", o.pipeline, "Run all passes in order")->excludes(pass);
  auto* print = app.add_flag("--print-after-all", o.print_after_all, "Print the program after each pass");
  auto* places = app.add_flag("--places", o.places, "Print where each operation was written");
  auto* verify = app.add_flag("--verify-only", o.verify_only, "Print nothing; exit 2 if a program is not well-formed")
                     ->excludes(pass)
                     ->excludes(pipeline)
                     ->excludes(print)
                     ->excludes(places);
  auto* check_flag = app.add_flag("--check", o.check, "Run each case of the files and compare the text after")
                         ->excludes(pass)
                         ->excludes(pipeline)
                         ->excludes(print)
                         ->excludes(places)
                         ->excludes(verify);
  app.add_flag("--update", o.update, "With --check: rewrite the expected halves that differ")->needs(check_flag);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (o.pipeline) names = "pipeline";
  if (!names.empty()) o.passes = passes::pass_names(names);
  if (o.print_after_all && o.passes.empty())
    throw UsageError("--print-after-all prints after passes and none is given; add --pass or --pipeline");
  int failed = 0;
  for (const std::string& path : o.files) {
    if (o.check)
      failed += check(path, o.update);
    else
      run_on(path, o);
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const kerf::UsageError& e) {
    fmt::print(stderr, "kerf-opt: {}\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "kerf-opt: {}\n", e.what());
    return 4;
  }
}
