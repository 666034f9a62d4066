#include "tools/kerf/page.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "kerf/error.h"

namespace kerf::tools {
namespace {

constexpr const char* common_style = R"(
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.subject { opacity: 0.75; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px; }
svg { width: 100%; height: auto; display: block; font-family: inherit; }
pre { overflow-x: auto; padding: 10px; border: 1px solid var(--line); border-radius: 6px; font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap; }
td, th { padding: 3px 9px; text-align: right; border-bottom: 1px solid var(--line); }
)";

/// The end of an element: "/>", or with what is shown under the pointer.
std::string end_of(std::string_view name, std::string_view tip) {
  return tip.empty() ? "/>\n" : fmt::format("><title>{}</title></{}>\n", escaped(tip), name);
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else if ((c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == '\x7f')
      out += "\ufffd";
    else
      out += c;
  }
  return out;
}

std::string page_begin(std::string_view title, std::string_view style) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>{}</title>\n<style>{}{}</style>\n</head>\n<body>\n",
      escaped(title), common_style, style);
}
std::string page_end() { return "</body>\n</html>\n"; }

double nice_step(double range, int most) {
  const double step = std::pow(10, std::floor(std::log10(range / 3)));
  for (const double factor : {1.0, 2.0, 2.5, 5.0})
    if (range / (step * factor) <= most) return step * factor;
  return 10 * step;
}

Drawing::Drawing(double width, double height, std::string_view title, bool alone) {
  out_ = fmt::format("<svg {}viewBox=\"0 0 {} {}\" role=\"img\">\n<title>{}</title>\n",
                     alone ? "xmlns=\"http://www.w3.org/2000/svg\" width=\"840\" " : "", width, height, escaped(title));
  if (alone)
    out_ += fmt::format(
        "<style>svg {{ font: 11px sans-serif; color: #222; }} .axis {{ stroke: #222; opacity: 0.2; }}</style>\n"
        "<rect width=\"{}\" height=\"{}\" fill=\"white\"/>\n",
        width, height);
  out_ += "<g fill=\"currentColor\" font-size=\"11\">\n";
}

void Drawing::text(double x, double y, std::string_view anchor, std::string_view more, std::string_view what) {
  out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more,
                      escaped(what));
}
void Drawing::line(double x0, double y0, double x1, double y1, std::string_view more) {
  out_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x0, y0, x1, y1, more);
}
void Drawing::circle(double x, double y, double r, std::string_view more, std::string_view tip) {
  out_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" {}", x, y, r, more) + end_of("circle", tip);
}
void Drawing::rect(double x, double y, double width, double height, std::string_view more, std::string_view tip) {
  out_ +=
      fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" {}", x, y, width, height, more) +
      end_of("rect", tip);
}
void Drawing::polyline(const std::vector<std::pair<double, double>>& points, std::string_view more) {
  std::string path;
  for (const auto& [x, y] : points) path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", x, y);
  out_ += fmt::format("<polyline fill=\"none\" {} points=\"{}\"/>\n", more, path);
}
std::string Drawing::end() { return std::move(out_) + "</g>\n</svg>\n"; }

void require_writable(const char* option, const std::string& path) {
  if (path.empty()) return;
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  if (std::filesystem::is_directory(path) || access(folder.c_str(), W_OK) != 0)
    throw UsageError(fmt::format("{} {}: cannot be written", option, path));
}

void write_file(const char* option, const std::string& path, const std::string& content) {
  if (!path.empty() && !(std::ofstream(path) << content << std::flush))
    throw UsageError(fmt::format("{} {}: cannot be written", option, path));
}

}  // namespace kerf::tools
