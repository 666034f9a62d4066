// Runs the cases of tests/passes: the text after each, and both sides through the interpreter.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "kerf/error.h"
#include "lib/passes/case_file.h"
#include "lib/passes/passes.h"
#include "tests/lib/passes/same_meaning.h"

namespace kerf {

namespace {

std::vector<std::filesystem::path> tile_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(KERF_TESTS_DIR "/passes"))
    if (entry.path().extension() == ".tile") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

passes::CaseFile cases_of(const std::filesystem::path& path) {
  return passes::read_cases(read(path), path.filename().string());
}

}  // namespace

TEST_CASE("passes: each case of tests/passes gives the text it promises, and both sides compute the same") {
  for (const auto& path : tile_files()) {
    const passes::CaseFile file = cases_of(path);
    for (const passes::Case& c : file.cases) {
      CAPTURE(file.name);
      CAPTURE(c.line);
      const passes::Outcome outcome = passes::run_case(c, file.name);
      CHECK_MESSAGE(outcome.matches(), c.fact << "\n" << passes::difference(outcome.expected, outcome.got));
      if (outcome.got == ir::print(outcome.before)) continue;
      test::check_same_meaning(outcome.before, outcome.after);
      if (test::accumulating_dots(outcome.before) != test::accumulating_dots(outcome.after))
        test::check_nearly_same(outcome.before, outcome.after);
    }
  }
}

TEST_CASE("passes: each has cases that change a program and a case it must leave alone") {
  for (const passes::NamedPass& pass : passes::all()) {
    CAPTURE(pass.name);
    int changed = 0, left_alone = 0;
    for (const auto& path : tile_files())
      for (const passes::Case& c : cases_of(path).cases)
        if (c.passes.size() == 1 && c.passes.front() == pass.name) ++(c.unchanged ? left_alone : changed);
    CHECK(changed >= 1);
    CHECK(left_alone >= 1);
  }
}

TEST_CASE("passes: a second run of a pass, or of all of them, changes nothing more") {
  for (const auto& path : tile_files())
    for (const passes::Case& c : cases_of(path).cases) {
      CAPTURE(path.filename().string());
      CAPTURE(c.line);
      const passes::Outcome once = passes::run_case(c, path.filename().string());
      CHECK(ir::print(passes::run_passes(once.after, c.passes)) == ir::print(once.after));
      const ir::Program piped = passes::pipeline(once.before);
      CHECK(ir::print(passes::pipeline(piped)) == ir::print(piped));
    }
}

TEST_CASE("case files: what is read is written back unchanged") {
  for (const auto& path : tile_files()) CHECK(passes::write_cases(cases_of(path)) == read(path));
}

TEST_CASE("case files: a mistake is named with its line") {
  const auto error = [](std::string_view text) {
    try {
      passes::read_cases(text, "x.tile");
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  CHECK(error("words\n") == "x.tile:2: the file holds no case; one begins '== PASS[,PASS]: the fact it shows'");
  CHECK(error("== fold it\n") == "x.tile:1: a case begins '== PASS[,PASS]: the fact it shows'");
  CHECK(error("\n== fold,melt: both\n") ==
        "x.tile:2: 'melt' is no pass; they are pipeline, drop_masks, fold, hoist, stage_loads, drop_dead");
  CHECK(error("== fold: a\nprogram p\n{\n}\n") ==
        "x.tile:5: the case before ends without '-- after' or '-- unchanged'");
  CHECK(error("-- after\n") == "x.tile:1: '-- after' without a program before");
  CHECK(error("== fold: a\nprogram p\n{\n}\n-- unchanged\nx\n") == "x.tile:6: nothing follows '-- unchanged'");
}

TEST_CASE("case files: an error in a program is placed in the file") {
  const passes::CaseFile file =
      passes::read_cases("opening\n\n== fold: a\nprogram p\n{\n  %x = melt\n}\n-- unchanged\n", "x");
  CHECK_THROWS_WITH_AS(passes::run_case(file.cases[0], "x"), doctest::Contains("x:6:8: "), UsageError);
}

TEST_CASE("case files: a difference shows lines taken away and lines added where they stand") {
  CHECK(passes::difference("a\nb\nc\n", "a\nx\nc\nd\n") == "  a\n- b\n+ x\n  c\n+ d\n");
}

}  // namespace kerf
