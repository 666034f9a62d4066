// Tests of passes as text: a file holds cases, each a whole program before and after.
//
//   == drop_masks: 256 divides V, so the mask is true
//   program p
//   ...
//   -- after
//   program p
//   ...
//
// `-- unchanged` ends a case whose program the passes must leave alone. Several passes are separated by commas;
// `pipeline` stands for all of them in order. What precedes the first case is a comment. kerf-opt --check runs such
// files and --update rewrites their expected halves; the tests run them too, through the interpreter as well.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lib/ir/ir.h"

namespace kerf::passes {

struct Case {
  std::vector<std::string> passes;
  std::string fact;    // what the case shows
  std::string before;  // text of a program
  std::string after;   // the expected text; empty: unchanged
  bool unchanged = false;
  int line = 0;  // of the "==" in the file, from 1
};
struct CaseFile {
  std::string name;
  std::string opening;  // what precedes the first case
  std::vector<Case> cases;
};

/// Throws UsageError "NAME:LINE: ...".
CaseFile read_cases(std::string_view text, std::string name);
/// Exact for a file whose halves end in one newline and whose cases are separated by one empty line.
std::string write_cases(const CaseFile& file);

/// The passes of a comma-separated list. Throws UsageError that lists the names.
std::vector<std::string> pass_names(std::string_view list);
/// Runs passes by name, verifying after each.
ir::Program run_passes(ir::Program p, const std::vector<std::string>& names,
                       const std::function<void(std::string_view pass, const ir::Program&)>& after = {});

struct Outcome {
  ir::Program before, after;
  std::string expected, got;  // texts
  bool matches() const { return expected == got; }
};
/// Throws what parse and the passes throw; places in errors are lines of the file.
Outcome run_case(const Case& c, std::string_view file);

/// Lines of both texts: "  " in both, "- " only expected, "+ " only got.
std::string difference(std::string_view expected, std::string_view got);

}  // namespace kerf::passes
