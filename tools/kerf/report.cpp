// kerf report: what kerf tune measured, as one page.
#include "tools/kerf/report.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "kerf/error.h"
#include "kerf/version.h"
#include "tools/kerf/page.h"
#include "tools/kerf/verbs.h"

namespace kerf::tools {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::uintmax_t most_bytes = std::uintmax_t{256} << 20;
constexpr int most_depth = 16;

/// A value in the file, and its place: "parts[0].candidates[3].median_ms".
class Value {
 public:
  Value(const ordered_json& json, std::string place, const std::string& file)
      : json_(&json), place_(std::move(place)), file_(&file) {}

  [[noreturn]] void fail(const std::string& expected) const {
    std::string found = json_->dump(-1, ' ', false, json::error_handler_t::replace);
    if (found.size() > 60) found.replace(60, std::string::npos, "...");
    throw UsageError(
        fmt::format("{}: {} is {}; expected {}", *file_, place_.empty() ? "the whole" : place_, found, expected));
  }
  Value operator[](const char* name) const {
    if (!json_->is_object()) fail("an object");
    const auto found = json_->find(name);
    const std::string place = place_.empty() ? name : fmt::format("{}.{}", place_, name);
    if (found == json_->end())
      throw UsageError(fmt::format("{}: {} is missing; expected a study as kerf tune --out writes", *file_, place));
    return {*found, place, *file_};
  }
  std::vector<Value> items() const {
    if (!json_->is_array()) fail("a list");
    std::vector<Value> all;
    for (const ordered_json& item : *json_) all.emplace_back(item, fmt::format("{}[{}]", place_, all.size()), *file_);
    return all;
  }
  bool is_null() const { return json_->is_null(); }
  std::string text() const {
    if (!json_->is_string()) fail("a text");
    return json_->get<std::string>();
  }
  std::int64_t count() const {
    if (!json_->is_number_unsigned() || json_->get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max())
      fail("an integer, at least 0");
    return json_->get<std::int64_t>();
  }
  /// Null stands for 0, what was not measured.
  double number() const {
    if (json_->is_null()) return 0;
    if (!json_->is_number() || !(json_->get<double>() >= 0)) fail("a number, at least 0");
    return json_->get<double>();
  }
  bool flag() const {
    if (!json_->is_boolean()) fail("true or false");
    return json_->get<bool>();
  }
  WisdomParameters::mapped_type parameter() const {
    if (json_->is_string()) return json_->get<std::string>();
    if (!json_->is_number_integer() ||
        (json_->is_number_unsigned() && json_->get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()))
      fail("an integer of 64 bits or a text");
    return json_->get<std::int64_t>();
  }
  WisdomParameters parameters() const {
    if (!json_->is_object()) fail("an object of parameters");
    WisdomParameters all;
    for (const auto& [name, value] : json_->items())
      all[name] = Value(value, fmt::format("{}.{}", place_, name), *file_).parameter();
    return all;
  }
  /// "op=linear_cross_entropy part=forward D=2304"
  std::string fields() const {
    if (!json_->is_object()) fail("an object");
    std::string text;
    for (const auto& [name, value] : json_->items())
      if (value != "")
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", name,
                            value.is_string() ? value.get<std::string>() : value.dump());
    return text;
  }

 private:
  const ordered_json* json_;
  std::string place_;
  const std::string* file_;
};

ReportCandidate candidate_of(const Value& v) {
  ReportCandidate c;
  c.parameters = v["parameters"].parameters();
  c.predicted_ms = v["predicted_ms"].number();
  c.median_ms = v["median_ms"].number();
  c.spread = v["spread"].number();
  c.samples = v["samples"].count();
  c.status = v["status"].text();
  c.reason = v["reason"].text();
  c.noisy = v["noisy"].flag();
  c.known = v["known"].flag();
  if (const Value r = v["resources"]; !r.is_null())
    c.resources = {r["registers"].count(), r["threads"].count(), r["blocks"].count(), r["shared_bytes"].count(),
                   r["local_bytes"].count()};
  c.compile_ms = v["compile_ms"].number();
  c.at_s = v["at_s"].number();
  if (c.ok() && !(c.median_ms > 0)) v["median_ms"].fail("more than 0, the status being ok");
  return c;
}

ReportPart part_of(const Value& v) {
  ReportPart part;
  part.part = v["part"].text();
  part.key = v["key"].fields();
  for (const Value& p : v["parameters"].items()) {
    ReportParameter& parameter = part.parameters.emplace_back();
    parameter.name = p["name"].text();
    for (const Value& value : p["values"].items()) parameter.values.push_back(value.parameter());
  }
  part.space_size = v["space_size"].count();
  part.pruned_count = v["pruned_count"].count();
  for (const Value& p : v["pruned"].items()) part.pruned.push_back({p["parameters"].parameters(), p["reason"].text()});
  for (const Value& c : v["candidates"].items()) part.candidates.push_back(candidate_of(c));
  const auto index = [&](const char* name) -> std::optional<std::size_t> {
    const Value i = v[name];
    if (i.is_null()) return {};
    if (static_cast<std::uint64_t>(i.count()) >= part.candidates.size())
      i.fail(fmt::format("null or a candidate, of which there are {}", part.candidates.size()));
    return static_cast<std::size_t>(i.count());
  };
  part.winner = index("winner");
  part.untuned = index("default");
  if (part.winner && !part.candidates[*part.winner].ok())
    v["winner"].fail(
        fmt::format("a candidate that is ok; this one's status is {}", part.candidates[*part.winner].status));
  return part;
}

struct ReportOptions {
  std::string study, out;
  bool json = false;
};

int report_study(const ReportOptions& options) {
  if (options.out.empty() && !options.json)
    throw UsageError("nothing to show it in; give --out FILE for a page, or --json");
  require_writable("--out", options.out);
  const ReportStudy study = read_study(options.study);
  if (!options.out.empty()) write_file("--out", options.out, report_page(study));
  if (options.json) {
    print_json(report_json(study));
    return 0;
  }
  std::size_t candidates = 0;
  for (const ReportPart& part : study.parts) candidates += part.candidates.size();
  fmt::print("{}: {} parts, {} candidates\n", options.out, study.parts.size(), candidates);
  return 0;
}

}  // namespace

ReportStudy read_study(const std::string& file) {
  const auto fail = [&](const std::string& what) { throw UsageError(fmt::format("{}: {}", file, what)); };
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (!std::filesystem::exists(status)) fail("is not there; expected a study as kerf tune --out writes");
  if (!std::filesystem::is_regular_file(status)) fail("is no file; expected a study as kerf tune --out writes");
  if (std::filesystem::file_size(file, error) > most_bytes) fail("is larger than 256 MiB, which no study is");
  std::ifstream in(file, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in) fail("cannot be read");
  ordered_json json;
  try {
    json = ordered_json::parse(text, [&](int depth, ordered_json::parse_event_t, ordered_json&) {
      if (depth > most_depth) fail(fmt::format("is nested deeper than {}, which no study is", most_depth));
      return true;
    });
  } catch (const json::exception& e) {
    std::string_view what = e.what();
    if (const std::size_t colon = what.find("] "); colon != std::string_view::npos) what.remove_prefix(colon + 2);
    fail(fmt::format("is no JSON, or ends early ({}); expected a study as kerf tune --out writes", what));
  }
  const Value v(json, "", file);
  ReportStudy s;
  s.kerf = v["kerf"].text();
  s.date = v["date"].text();
  const std::vector<Value> shape = v["shape"].items();
  if (shape.size() != 3) v["shape"].fail("three sizes: N, D, V");
  s.tokens = shape[0].count();
  s.hidden = shape[1].count();
  s.vocabulary = shape[2].count();
  s.dtype = v["dtype"].text();
  s.options = v["options"].text();
  s.device = v["device"]["name"].text();
  s.units = v["device"]["units"].count();
  s.driver = v["device"]["driver"].text();
  s.level = v["device"]["level"].text();
  s.budget_seconds = v["budget"]["seconds"].number();
  s.budget_candidates = v["budget"]["candidates"].count();
  s.seconds = v["seconds"].number();
  s.stopped = v["stopped"].text();
  for (const Value& part : v["parts"].items()) s.parts.push_back(part_of(part));
  return s;
}

void add_report(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("report", "show what kerf tune measured, as one page or as JSON");
  auto& options = options_of<ReportOptions>(*verb, run, report_study);
  verb->add_option("study", options.study, "what kerf tune --out wrote")->required()->type_name("FILE");
  verb->add_option("--out", options.out, "the page: one HTML file");
  verb->add_flag("--json", options.json, "print what the page holds as JSON");
  verb->footer(
      "Example: kerf report study.json --out report.html\n"
      "Example: kerf report study.json --json");
}

}  // namespace kerf::tools
