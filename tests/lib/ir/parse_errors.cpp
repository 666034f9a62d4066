// What the parser says about text that is no program, by its exact text; and that no text crashes it.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "kerf/error.h"
#include "lib/ir/ir.h"
#include "tests/support/random_program.h"

using namespace kerf;

namespace {

std::string error_of(std::string_view text) {
  try {
    ir::parse(text, "f.tile");
  } catch (const UsageError& e) {
    return e.what();
  }
  return "no error";
}

/// The error of a small program with `line` as line 8 of the text.
std::string error_of_line(std::string_view line) {
  return error_of(
      fmt::format("program p\naxis N\naxis D = 7\nlist kept : [N by 4, D by 2]\ninput x : f32 [N, D]\n"
                  "output y : f32 [N]\n{{ %n = parallel N by 4 : block<N:4> %d = whole D : block<D:7>\n"
                  "{}\nstore y [%n] %r }}",
                  line));
}

}  // namespace

TEST_CASE("parse: the header of a program") {
  CHECK(error_of("") == "f.tile:1:1: expected 'program', found the end of the text");
  CHECK(error_of("// a comment is nothing\n") == "f.tile:2:1: expected 'program', found the end of the text");
  CHECK(error_of("programm p") == "f.tile:1:1: expected 'program', found 'programm'");
  CHECK(error_of("program 3") == "f.tile:1:9: expected a name for the program, found '3'");
  CHECK(error_of("program p\naxis N") ==
        "f.tile:2:7: expected 'axis', 'list', 'input', 'output', 'inout' or '{', found the end of the text");
  CHECK(error_of("program p axis N axis N {}") == "f.tile:1:23: expected a new name for the axis, found 'N' again");
  CHECK(error_of("program p\naxis N = 0") == "f.tile:2:10: expected the size of the axis, at least 1, found '0'");
  CHECK(error_of("program p axis N = 99999999999999999999") ==
        "f.tile:1:20: expected the size of the axis, at least 1, found '99999999999999999999'");
  CHECK(error_of("program p input x : f33 []") ==
        "f.tile:1:21: expected a dtype (f32, bf16, f16, i32, i64, bool), found 'f33'");
  CHECK(error_of("program p axis N\ninput x : f32 [N, M]") == "f.tile:2:19: expected an axis (they are N), found 'M'");
  CHECK(error_of("program p input x : f32 [N]") == "f.tile:1:26: expected an axis (there is none), found 'N'");
  CHECK(error_of("program p axis N input x : f32 kept [N]") ==
        "f.tile:1:32: expected a tile list (there is none), found 'kept'");
  CHECK(error_of("program p {} {") == "f.tile:1:14: expected the end of the text, found '{'");
  CHECK(error_of("program p {") == "f.tile:1:12: expected an operation or '}', found the end of the text");
}

TEST_CASE("parse: an operation") {
  CHECK(error_of_line("%r = frobnicate %n") == "f.tile:8:6: expected an operation, found 'frobnicate'");
  CHECK(error_of_line("frobnicate %n") == "f.tile:8:1: expected an operation or '}', found 'frobnicate'");
  CHECK(error_of_line("%r = load z [%n, %d]") == "f.tile:8:11: expected a tensor (they are x, y), found 'z'");
  CHECK(error_of_line("%r = load x [%n, %e]") ==
        "f.tile:8:18: expected a value that is defined before and can be seen here, found '%e'");
  CHECK(error_of_line("%r = load x [%n, d]") == "f.tile:8:18: expected a value, as in %x, found 'd'");
  CHECK(error_of_line("%r = load x [%n, %d : tile<N:4 x D:7, f32>") == "f.tile:8:21: expected ']', found ':'");
  CHECK(error_of_line("%r = load x [%n, %d]") == "f.tile:9:1: expected ':', found 'store'");
  CHECK(error_of_line("%n = size N : i64") == "f.tile:8:1: expected a value that is not defined yet, found '%n'");
  CHECK(error_of_line("%1x = size N : i64") == "f.tile:8:1: expected a value, as in %x or %12, found '%1x'");
  CHECK(error_of_line("% = size N : i64") == "f.tile:8:1: expected a value, as in %x or %12, found '%'");
  CHECK(error_of_line("size N") == "f.tile:8:1: expected 1 result in front of 'size', found 0");
  CHECK(error_of_line("%a, %b = size N : i64, i64") == "f.tile:8:1: expected 1 result in front of 'size', found 2");
  CHECK(error_of_line("%a = store y [%n] %n : f32") == "f.tile:8:1: expected no results in front of 'store', found 1");
  CHECK(error_of_line("%a, %b = parallel N by 4 : block<N:4>") ==
        "f.tile:8:1: expected 1 or 3 results in front of 'parallel', found 2");
  CHECK(error_of_line("%q = load x [%n, %d] : tile<N:4 x D:7, f32> %r = reduce_sum %q D : tile<N:4, f32>") ==
        "f.tile:8:64: expected 'over', found 'D'");
  CHECK(error_of_line("%r = \x01\x80") == "f.tile:8:6: expected an operation, found '\\x01'");
  CHECK(error_of_line("%r = " + std::string(60, 'a')) ==
        "f.tile:8:6: expected an operation, found '" + std::string(40, 'a') + "...'");
}

TEST_CASE("parse: types") {
  CHECK(error_of_line("%r = size N : tile<N:4 x N:4, i64>") ==
        "f.tile:8:26: expected an axis that the type does not have yet, found 'N'");
  CHECK(error_of_line("%r = size N : tile<N:0, i64>") ==
        "f.tile:8:22: expected a number of indices, at least 1, found '0'");
  CHECK(error_of_line("%r = size N : tile<N:4 D:7, i64>") == "f.tile:8:24: expected ',', found 'D'");
  CHECK(error_of_line("%r = size N : blob<N:4>") ==
        "f.tile:8:15: expected a type (a dtype, tile<...>, block<...>, entry<...>, staged<...>), found 'blob'");
  CHECK(error_of_line("%r = size N : entry<lost>") ==
        "f.tile:8:21: expected a tile list (they are kept), found 'lost'");
}

TEST_CASE("parse: constants mean what their dtype says") {
  CHECK(error_of_line("%r = const 2147483648 : i32") ==
        "f.tile:8:12: expected an integer that fits i32, found '2147483648'");
  CHECK(error_of_line("%r = const 1.5 : i64") == "f.tile:8:12: expected an integer that fits i64, found '1.5'");
  CHECK(error_of_line("%r = const 1 : bool") == "f.tile:8:12: expected true or false for a bool, found '1'");
  CHECK(error_of_line("%r = const much : f32") == "f.tile:8:12: expected a number, inf, -inf or nan, found 'much'");
  CHECK(error_of_line("%r = const 1.5.5 : f32") == "f.tile:8:12: expected a number, inf, -inf or nan, found '1.5.5'");
  CHECK(error_of_line("%r = const 1e999 : f32") == "f.tile:8:12: expected a number, inf, -inf or nan, found '1e999'");
  CHECK(error_of_line("%r = const { : f32") == "f.tile:8:12: expected a number, true or false, found '{'");
}

TEST_CASE("parse: loops, stages and what can be seen where") {
  CHECK(error_of_line("loop row %n of lost [%k : entry<kept>, %v : block<D:2>] { yield }") ==
        "f.tile:8:16: expected a tile list (they are kept), found 'lost'");
  CHECK(error_of_line("loop row by 2") == "f.tile:8:6: expected an axis, found 'row'");
  CHECK(error_of_line("loop D by 2 part %n of 0 [%v : block<D:2>] { yield }") ==
        "f.tile:8:24: expected a number of blocks, at least 1, found '0'");
  CHECK(error_of_line("loop D by 2 [%v : block<D:2>] (%a = %b) { yield }") ==
        "f.tile:8:37: expected a value that is defined before and can be seen here, found '%b'");
  CHECK(error_of_line("loop D by 2 [%v : block<D:2>] { %i = index %v : tile<D:2, i64> yield } %r = cast %i : f32") ==
        "f.tile:8:82: expected a value that is defined before and can be seen here, found '%i'");
  CHECK(error_of_line("%s = stage x [%n, %d] D by 2 : staged<N:4 x D/2, f32>") ==
        "f.tile:8:15: expected a '*' for the subscript of the staged axis, found '%n'");
  CHECK(error_of_line("%s = stage x [*, %d] D by 2 : staged<N:4 x D/2, f32>") ==
        "f.tile:8:22: expected the axis under the '*', N, found 'D'");
}

TEST_CASE("parse: what breaks a rule of the IR is told with the line of the text") {
  CHECK(error_of_line("%r = const 1 : tile<N:4, f32>") ==
        "f.tile:8: const: the result must be a scalar, not tile<N:4, f32>; splat spreads it");
  CHECK(error_of_line("%q = load x [%n, %d] : tile<N:4 x D:7, f32> %r = reduce_sum %q over D : tile<N:4, i32>") ==
        "f.tile:8: reduce_sum: the result is tile<N:4, f32>, not tile<N:4, i32>");
}

TEST_CASE("parse: regions nest 64 deep and no deeper") {
  const auto nested = [](int depth) {
    std::string text =
        "program p\naxis N\noutput y : f32 [N]\n{\n%n = parallel N by 4 : block<N:4>\n"
        "%t = const true : bool\n%x = const 1 : f32\n";
    for (int i = 0; i < depth; ++i) text += "when %t {\n";
    text += "store y [%n] %x\n";
    for (int i = 0; i < depth; ++i) text += "}\n";
    return text + "}\n";
  };
  CHECK(error_of(nested(64)) == "no error");
  CHECK(error_of(nested(65)) == "f.tile:72:9: expected at most 64 regions in each other, found more");
  CHECK(error_of(nested(100000)) == "f.tile:72:9: expected at most 64 regions in each other, found more");
}

TEST_CASE("parse: cut, mixed and random text is an error with its place or a program, never a crash") {
  test::Random random(7);
  std::vector<std::string> tokens;
  std::vector<std::string> texts;
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    texts.push_back(ir::print(test::random_program(seed).program.ir()));
    std::size_t begin = 0;
    for (std::size_t i = 0; i <= texts.back().size(); ++i)
      if (i == texts.back().size() || texts.back()[i] == ' ' || texts.back()[i] == '\n') {
        tokens.push_back(texts.back().substr(begin, i - begin) + " ");
        begin = i + 1;
      }
  }
  const auto below = [&](std::size_t n) {
    return static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(n) - 1));
  };
  int errors = 0;
  const auto try_one = [&](const std::string& text) {
    CAPTURE(text);
    const std::string error = error_of(text);
    if (error == "no error") return;
    ++errors;
    const bool placed = error.starts_with("f.tile:") || error.starts_with("program ");
    CHECK(placed);
  };
  for (int round = 0; round < 6000; ++round) {
    std::string text = texts[below(texts.size())];
    switch (random.integer(0, 5)) {
      case 0: text.resize(below(text.size())); break;
      case 1:
        for (int i = 0; i < 3; ++i) text[below(text.size())] = static_cast<char>(random.integer(0, 255));
        break;
      case 2: text.erase(below(text.size()), below(12) + 1); break;
      case 3: text.insert(below(text.size()), tokens[below(tokens.size())]); break;
      case 4: {  // a line goes elsewhere
        const std::size_t from = text.find('\n', below(text.size()) / 2) + 1, to = text.find('\n', from);
        if (to == std::string::npos) break;
        const std::string line = text.substr(from, to - from + 1);
        text.erase(from, line.size());
        text.insert(text.find('\n', below(text.size()) / 2) + 1, line);
        break;
      }
      default:
        text = "program p ";
        for (int i = 0; i < 60; ++i) text += tokens[below(tokens.size())];
        break;
    }
    try_one(text);
  }
  CHECK(errors > 4000);
}
