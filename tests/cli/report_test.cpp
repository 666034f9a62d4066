// kerf report: the page of a study, and what is said of files that are none.
#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <string>

#include "tests/cli/command.h"
#include "tests/cli/page.h"

using namespace cli;

namespace {

json a_candidate(int n, int v, const std::string& order, double ms, double at_s) {
  return {
      {"parameters", {{"n", n}, {"v", v}, {"order", order}}},
      {"predicted_ms", 1.1 * ms},
      {"median_ms", ms},
      {"spread", 0.01},
      {"samples", 9},
      {"status", "ok"},
      {"reason", ""},
      {"noisy", false},
      {"known", false},
      {"resources", {{"registers", 168}, {"threads", 384}, {"blocks", 1}, {"shared_bytes", 98304}, {"local_bytes", 0}}},
      {"compile_ms", 88.0},
      {"at_s", at_s}};
}

json failed(const json& candidate, const std::string& status, const std::string& reason) {
  json c = candidate;
  c["status"] = status;
  c["reason"] = reason;
  c["median_ms"] = 0;
  c["samples"] = 0;
  c["resources"] = nullptr;
  return c;
}

json a_part(const std::string& name) {
  return {
      {"part", name},
      {"key", {{"op", "linear_cross_entropy"}, {"part", name}, {"D", 72}}},
      {"parameters",
       {{{"name", "n"}, {"values", {64, 128}}},
        {{"name", "v"}, {"values", {64, 128, 256}}},
        {{"name", "order"}, {"values", {"rows", "columns"}}}}},
      {"space_size", 12},
      {"pruned_count", 5},
      {"pruned",
       {{{"parameters", {{"n", 128}, {"v", 256}, {"order", "rows"}}}, {"reason", "needs 300 KiB, there are 227"}},
        {{"parameters", {{"n", 128}, {"v", 256}, {"order", "columns"}}}, {"reason", "needs 1 KiB, there are 0"}}}},
      {"candidates",
       {a_candidate(64, 64, "rows", 4.0, 0.5), a_candidate(64, 64, "columns", 3.25, 1.0),
        a_candidate(128, 64, "rows", 2.5, 1.5), failed(a_candidate(64, 128, "rows", 9, 2), "wrong", "lse[17] is off"),
        failed(a_candidate(64, 256, "rows", 9, 3), "wrong", "lse[4711] is off"),
        failed(a_candidate(128, 128, "rows", 9, 3), "compile", "<script>alert('x') & \"y\"</script>")}},
      {"winner", 2},
      {"default", 0}};
}

json a_study() {
  return {{"kerf", "0.1.0"},
          {"date", "2026-11-21T10:20:30Z"},
          {"shape", {64, 72, 1000}},
          {"dtype", "bf16"},
          {"options", ""},
          {"device", {{"name", "<b>NVIDIA</b> H200"}, {"units", 132}, {"driver", "13.0"}, {"level", "sm_90a"}}},
          {"budget", {{"seconds", 60}, {"candidates", 100}}},
          {"seconds", 12.5},
          {"stopped", ""},
          {"parts", {a_part("forward"), a_part("backward")}}};
}

std::string page_of(const json& study) {
  const Scratch file(".json"), page(".html");
  file.write(study.dump());
  const Result r = kerf(fmt::format("report {} --out {}", file.path, page.path));
  REQUIRE(r.code == 0);
  CHECK(r.out.starts_with(page.path + ": "));
  const std::string html = page.read();
  CHECK(tag_error(html) == "");
  for (const char* outside : {"http", "<script", "src=", "@import", "url("})
    CHECK(html.find(outside) == std::string::npos);
  return html;
}

/// What is said of a study file that holds this, after its name.
std::string said(const std::string& text) {
  const Scratch file(".json"), page(".html");
  file.write(text);
  const Result r = kerf(fmt::format("report {} --out {}", file.path, page.path), true);
  CHECK(r.code == 2);
  CHECK(!std::filesystem::exists(page.path));
  const std::string begin = fmt::format("kerf report: {}: ", file.path);
  REQUIRE(r.out.starts_with(begin));
  return r.out.substr(begin.size(), r.out.size() - begin.size() - 1);
}
std::string said(const std::function<void(json&)>& change) {
  json study = a_study();
  change(study);
  return said(study.dump());
}

}  // namespace

TEST_CASE("kerf report writes one page that needs nothing else: maps, plots, resources and reasons of every part") {
  const std::string html = page_of(a_study());
  CHECK(html.starts_with("<!DOCTYPE html>"));
  CHECK(html.find("width=device-width") != std::string::npos);
  CHECK(html.find("N=64 D=72 V=1000, bf16") != std::string::npos);
  CHECK(html.find("132 units, driver 13.0, sm_90a; Kerf 0.1.0; 2026-11-21T10:20:30Z") != std::string::npos);
  CHECK(html.find("The search took 12.5 s of a budget of 60 s and 100 candidates.") != std::string::npos);
  CHECK(count(html, "<section>") == 2);
  CHECK(count(html, "<select ") == 2);
  CHECK(count(html, "<svg ") == 2 * (3 + 2));  // a map for every two of three parameters, two plots
  CHECK(count(html, "<figure class=\"heat\"") == 6);
  CHECK(count(html, "hidden=\"\"") == 4);  // one is shown
  CHECK(html.find("forward: 2.50 ms, 1.60 times as fast as the default") != std::string::npos);
  CHECK(html.find("Of 12 combinations 5 were left out before they were compiled, 6 were tried and 3 of those ran "
                  "rightly.") != std::string::npos);
  CHECK(html.find("<tr><td>shared a block</td><td>96.0 KiB</td><td>96.0 KiB</td></tr>") != std::string::npos);
  CHECK(html.find("<tr><td>n</td><td>128</td><td>64</td><td>64, 128</td></tr>") != std::string::npos);
  CHECK(html.find("rank correlation 1.00 of 3") != std::string::npos);
}

TEST_CASE("kerf report: a cell of a map has the best time over the other parameters") {
  const std::string html = page_of(a_study());
  CHECK(count(html, "<title>n=64 order=columns v=64: 3.25 ms</title>") > 2);  // in front of 4 ms
  const std::size_t map = html.find("Best ms by n and v");
  REQUIRE(map != std::string::npos);
  const std::string cells = html.substr(map, html.find("</svg>", map) - map);
  CHECK(count(cells, "<title>n=64 order=columns v=64: 3.25 ms</title>") == 1);
  CHECK(cells.find("n=64 order=rows v=64: 4.00 ms") == std::string::npos);
  CHECK(count(cells, ", here is the winner</title>") == 1);
  CHECK(count(cells, ">wrong</text>") == 2);
  CHECK(count(cells, ">×</text>") == 1);  // left out: 128 and 256
}

TEST_CASE("kerf report: reasons that differ in numbers alone are one, and everything is escaped") {
  const std::string html = page_of(a_study());
  CHECK(count(html, "<tr><td>2</td><td>wrong</td><td>lse[17] is off</td><td>n=64 order=rows v=128</td></tr>") == 2);
  CHECK(count(html, "<tr><td>2</td><td>left out</td><td>needs 300 KiB, there are 227</td>") == 2);
  CHECK(html.find("lse[4711]") == html.find("lse[4711] is off</title>"));  // under the pointer alone
  CHECK(html.find("5 were left out before they were compiled; the study lists 2 of them.") != std::string::npos);
  CHECK(html.find("&lt;script&gt;alert(&#39;x&#39;) &amp; &quot;y&quot;&lt;/script&gt;") != std::string::npos);
  CHECK(html.find("&lt;b&gt;NVIDIA&lt;/b&gt; H200") != std::string::npos);
  json odd = a_study();
  odd["parts"][0]["parameters"][0]["name"] = "</svg><img onerror=\"x\">";
  odd["parts"][0]["part"] = "a\u0001b<";
  odd["parts"][0]["key"]["<i>"] = "</p>";
  CHECK(page_of(odd).find("<img") == std::string::npos);
}

TEST_CASE("kerf report: a winner as good as the fastest of its cell is shown there; on a CPU there are no registers") {
  json study = a_study();
  json& part = study["parts"][0];
  part["candidates"].push_back(a_candidate(128, 64, "columns", 2.49, 4));
  for (json& c : part["candidates"]) c["resources"] = nullptr;
  part["candidates"][0]["known"] = true;
  const std::string html = page_of(study);
  CHECK(html.find("n=128 order=columns v=64: 2.49 ms, here is the winner") != std::string::npos);
  CHECK(count(html, "registers a thread") == 1);  // of the other part
  CHECK(count(html, "<td>ok, known before</td>") == 1);
}

TEST_CASE("kerf report --json holds what the page does, with or without one") {
  const Scratch file(".json"), page(".html");
  file.write(a_study().dump());
  const json report = kerf_json("report " + file.path);
  const bool same_with_page = kerf_json(fmt::format("report {} --out {}", file.path, page.path)) == report;
  CHECK(same_with_page);
  CHECK(tag_error(page.read()) == "");
  for (const char* same : {"kerf", "date", "shape", "dtype", "options", "device", "budget", "seconds", "stopped"})
    CHECK(report[same] == a_study()[same]);
  REQUIRE(report["parts"].size() == 2);
  const json& part = report["parts"][0];
  CHECK(part["part"] == "forward");
  CHECK(part["key"] == "D=72 op=linear_cross_entropy part=forward");
  CHECK(part["combinations"] == 12);
  CHECK(part["left_out"] == 5);
  CHECK(part["tried"] == 6);
  CHECK(part["ok"] == 3);
  CHECK(part["times_as_fast"] == 1.6);
  CHECK(part["rank_correlation"] == 1);
  CHECK(part["winner"]["parameters"] == json{{"n", 128}, {"v", 64}, {"order", "rows"}});
  CHECK(part["winner"]["resources"]["shared_bytes"] == 98304);
  CHECK(part["default"]["median_ms"] == 4.0);
  CHECK(part["parameters"] == a_study()["parts"][0]["parameters"]);
  REQUIRE(part["candidates"].size() == 6);
  CHECK(part["candidates"][0] == part["winner"]);
  CHECK(part["candidates"][2] == part["default"]);
  CHECK(part["candidates"][3]["median_ms"].is_null());
  CHECK(part["reasons"][0]["count"] == 2);
  CHECK(part["reasons"].size() == 3);
  CHECK(part["reasons"][2]["reason"].is_string());
  json little = a_study();
  little["parts"].erase(1);
  little["parts"][0]["candidates"] = json::array();
  little["parts"][0]["winner"] = little["parts"][0]["default"] = nullptr;
  file.write(little.dump());
  const json nothing = kerf_json("report " + file.path)["parts"][0];
  for (const char* none : {"winner", "default", "times_as_fast", "rank_correlation"}) CHECK(nothing[none].is_null());
}

TEST_CASE("kerf report: of a very large study what matters most is drawn, and the page stays small") {
  json study = a_study();
  json& part = study["parts"][0];
  for (int i = 0; i < 6; ++i) part["parameters"].push_back({{"name", fmt::format("p{}", i)}, {"values", {1, 2, 3}}});
  for (int i = 0; i < 5000; ++i) {
    json c = a_candidate(128, 64, "rows", 2.6 + 0.0001 * i, i);
    for (int k = 0; k < 6; ++k) c["parameters"][fmt::format("p{}", k)] = 1 + (i + k) % 3;
    part["candidates"].push_back(c);
  }
  const std::string html = page_of(study);
  CHECK(count(html, "<figure class=\"heat\"") == 15 + 3);  // pairs of six of nine; of three
  CHECK(html.find("Best ms by n and order") != std::string::npos);
  CHECK(count(html, "<circle ") < 2 * 2000 + 100);
  CHECK(count(html, ", the default</title>") == 4);  // two plots of each part
  CHECK(html.find("<p>And 4506 more.</p>") != std::string::npos);
  CHECK(html.size() < 2 << 20);
}

TEST_CASE("kerf report shows what kerf tune wrote") {
  const Scratch file(".json"), page(".html");
  REQUIRE(kerf("tune --shape 16,16,300 --budget 60 --candidates 4 --dry-run --out " + file.path).code == 0);
  CHECK(kerf(fmt::format("report {} --out {}", file.path, page.path)).code == 0);
  const std::string html = page.read();
  CHECK(tag_error(html) == "");
  CHECK(html.find("N=16 D=16 V=300, f32") != std::string::npos);
  CHECK(count(html, "<section>") == 2);
  CHECK(count(html, "<figure class=\"heat\"") > 0);
}

TEST_CASE("kerf report: studies that found little") {
  json study = a_study();
  study["stopped"] = "interrupt";
  study["parts"].erase(1);
  json& part = study["parts"][0];
  part["winner"] = nullptr;
  part["default"] = nullptr;
  part["candidates"] = json::array();
  std::string html = page_of(study);
  CHECK(html.find("<b>Interrupted:</b>") != std::string::npos);
  CHECK(html.find("forward: no winner") != std::string::npos);
  CHECK(html.find("Nothing ran rightly") != std::string::npos);
  CHECK(count(html, "<svg ") == 0);

  part["candidates"] = {a_candidate(64, 64, "rows", 1, 0)};
  part["winner"] = 0;
  part["default"] = 0;
  html = page_of(study);
  CHECK(html.find("forward: 1.00 ms, the default is the fastest") != std::string::npos);
  CHECK(count(html, "<svg ") == 3);  // maps; one point makes no plot

  part["parameters"] = {{{"name", "n"}, {"values", {64, 128}}}};
  html = page_of(study);
  CHECK(count(html, "<svg ") == 1);  // a map of one row for each value
  CHECK(count(html, "<select ") == 0);

  study["parts"] = json::array();
  study["stopped"] = "budget";
  html = page_of(study);
  CHECK(html.find("the budget was used up") != std::string::npos);
  CHECK(html.find("Nothing was tuned") != std::string::npos);
}

TEST_CASE("kerf report: what is no study is refused with its place, what stands there and what was expected") {
  const std::string whole = a_study().dump();
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, whole.size() / 2, whole.size() - 1})
    CHECK(said(whole.substr(0, size)).starts_with("is no JSON, or ends early (parse error at line 1, column "));
  CHECK(said(whole + "}").starts_with("is no JSON, or ends early ("));
  CHECK(said("[1]") == "the whole is [1]; expected an object");
  CHECK(said("{}") == "kerf is missing; expected a study as kerf tune --out writes");
  CHECK(said(std::string(100000, '[')) == "is nested deeper than 16, which no study is");
  CHECK(said("{\"kerf\":1e999}").starts_with("is no JSON, or ends early (number overflow"));
  CHECK(said([](json& s) { s["shape"] = {1, 2}; }) == "shape is [1,2]; expected three sizes: N, D, V");
  CHECK(said([](json& s) { s["shape"][1] = -1; }) == "shape[1] is -1; expected an integer, at least 0");
  CHECK(said([](json& s) { s["device"] = "H200"; }) == "device is \"H200\"; expected an object");
  CHECK(said([](json& s) { s["parts"] = 3; }) == "parts is 3; expected a list");
  CHECK(said([](json& s) { s["parts"][1].erase("winner"); }) ==
        "parts[1].winner is missing; expected a study as kerf tune --out writes");
  CHECK(said([](json& s) { s["parts"][1]["winner"] = 6; }) ==
        "parts[1].winner is 6; expected null or a candidate, of which there are 6");
  CHECK(said([](json& s) { s["parts"][1]["winner"] = 3; }) ==
        "parts[1].winner is 3; expected a candidate that is ok; this one's status is wrong");
  const auto candidate = [](const char* field, const json& value) {
    return said([&](json& s) { s["parts"][0]["candidates"][1][field] = value; });
  };
  const std::string place = "parts[0].candidates[1].";
  CHECK(candidate("median_ms", "fast") == place + "median_ms is \"fast\"; expected a number, at least 0");
  CHECK(candidate("median_ms", -1) == place + "median_ms is -1; expected a number, at least 0");
  CHECK(candidate("median_ms", 0) == place + "median_ms is 0; expected more than 0, the status being ok");
  CHECK(candidate("parameters", {{"n", 1.5}}) ==
        place + "parameters.n is 1.5; expected an integer of 64 bits or a text");
  CHECK(candidate("noisy", 1) == place + "noisy is 1; expected true or false");
  CHECK(candidate("resources", std::string(80, 'x')) ==
        place + "resources is \"" + std::string(59, 'x') + "...; expected an object");

  refused("report /nonexistent.json --out /tmp/x.html", 2, "/nonexistent.json: is not there; expected a study");
  refused("report /tmp --out /tmp/x.html", 2, "/tmp: is no file; expected a study");
  refused("report /dev/zero --out /tmp/x.html", 2, "/dev/zero: is no file");
  refused("report x.json", 2, "--out");
  refused("report x.json --out /nonexistent/x.html", 2, "--out /nonexistent/x.html: cannot be written");
}
