#include "lib/passes/case_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "kerf/error.h"
#include "lib/passes/passes.h"

namespace kerf::passes {

namespace {

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

/// One newline at the end, whatever was there.
void trim_end(std::string& text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  if (!text.empty()) text += '\n';
}

void run_one(ir::Program& p, std::string_view name,
             const std::function<void(std::string_view pass, const ir::Program&)>& after) {
  if (name == "pipeline") {
    p = pipeline(std::move(p), true, after);
    return;
  }
  for (const NamedPass& pass : all()) {
    if (pass.name != name) continue;
    run_pass(p, pass);
    if (after) after(name, p);
    return;
  }
  throw UsageError(fmt::format("there is no pass '{}'", name));
}

}  // namespace

CaseFile read_cases(std::string_view text, std::string name) {
  CaseFile file{.name = std::move(name), .opening = {}, .cases = {}};
  std::string* half = &file.opening;
  int number = 0;
  const auto fail = [&](std::string_view what) { throw UsageError(fmt::format("{}:{}: {}", file.name, number, what)); };
  const auto finish = [&] {
    if (file.cases.empty()) return;
    Case& c = file.cases.back();
    if (half == &c.before) fail("the case before ends without '-- after' or '-- unchanged'");
    trim_end(c.before);
    trim_end(c.after);
  };
  for (std::string_view line : lines_of(text)) {
    ++number;
    if (line.starts_with("== ")) {
      finish();
      const std::size_t colon = line.find(": ");
      if (colon == std::string_view::npos) fail("a case begins '== PASS[,PASS]: the fact it shows'");
      Case c;
      try {
        c.passes = pass_names(line.substr(3, colon - 3));
      } catch (const UsageError& e) {
        fail(e.what());
      }
      c.fact = line.substr(colon + 2);
      c.line = number;
      file.cases.push_back(std::move(c));
      half = &file.cases.back().before;
    } else if (line == "-- after" || line == "-- unchanged") {
      if (file.cases.empty() || half != &file.cases.back().before)
        fail(fmt::format("'{}' without a program before", line));
      file.cases.back().unchanged = line == "-- unchanged";
      half = &file.cases.back().after;
    } else if (!line.empty() && !file.cases.empty() && file.cases.back().unchanged &&
               half == &file.cases.back().after) {
      fail("nothing follows '-- unchanged'");
    } else {
      half->append(line).push_back('\n');
    }
  }
  ++number;
  finish();
  trim_end(file.opening);
  if (file.cases.empty()) fail("the file holds no case; one begins '== PASS[,PASS]: the fact it shows'");
  return file;
}

std::string write_cases(const CaseFile& file) {
  std::string text = file.opening;
  for (const Case& c : file.cases) {
    if (!text.empty()) text += '\n';
    text += fmt::format("== {}: {}\n{}", fmt::join(c.passes, ","), c.fact, c.before);
    text += c.unchanged ? "-- unchanged\n" : "-- after\n" + c.after;
  }
  return text;
}

std::vector<std::string> pass_names(std::string_view list) {
  std::vector<std::string> names;
  std::string known = "pipeline";
  for (const NamedPass& pass : all()) known += fmt::format(", {}", pass.name);
  for (bool more = true; more;) {
    const std::size_t comma = list.find(',');
    const std::string_view name = list.substr(0, comma);
    const bool found = name == "pipeline" || std::any_of(all().begin(), all().end(),
                                                         [&](const NamedPass& pass) { return pass.name == name; });
    if (!found) throw UsageError(fmt::format("'{}' is no pass; they are {}", name, known));
    names.emplace_back(name);
    more = comma != std::string_view::npos;
    if (more) list.remove_prefix(comma + 1);
  }
  return names;
}

ir::Program run_passes(ir::Program p, const std::vector<std::string>& names,
                       const std::function<void(std::string_view pass, const ir::Program&)>& after) {
  for (const std::string& name : names) run_one(p, name, after);
  return p;
}

Outcome run_case(const Case& c, std::string_view file) {
  Outcome o;
  o.before = ir::parse(std::string(static_cast<std::size_t>(c.line), '\n') + c.before, file);
  o.after = run_passes(o.before, c.passes);
  o.got = ir::print(o.after);
  o.expected = c.unchanged ? ir::print(o.before) : c.after;
  return o;
}

std::string difference(std::string_view expected, std::string_view got) {
  const std::vector<std::string_view> a = lines_of(expected), b = lines_of(got);
  // common[i][j]: length of the longest common subsequence of a[i..] and b[j..].
  std::vector<std::vector<int>> common(a.size() + 1, std::vector<int>(b.size() + 1, 0));
  for (std::size_t i = a.size(); i-- > 0;)
    for (std::size_t j = b.size(); j-- > 0;)
      common[i][j] = a[i] == b[j] ? common[i + 1][j + 1] + 1 : std::max(common[i + 1][j], common[i][j + 1]);
  std::string out;
  for (std::size_t i = 0, j = 0; i < a.size() || j < b.size();) {
    if (i < a.size() && j < b.size() && a[i] == b[j]) {
      out += fmt::format("  {}\n", a[i]);
      ++i, ++j;
    } else if (j == b.size() || (i < a.size() && common[i + 1][j] >= common[i][j + 1])) {
      out += fmt::format("- {}\n", a[i++]);
    } else {
      out += fmt::format("+ {}\n", b[j++]);
    }
  }
  return out;
}

}  // namespace kerf::passes
