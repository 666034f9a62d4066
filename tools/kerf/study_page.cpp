// The page of kerf filter-study: plots as inline SVG, a table, and the command that made it.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "tools/kerf/study.h"

namespace kerf::tools {
namespace {

constexpr double nowhere = std::numeric_limits<double>::quiet_NaN();
constexpr double allowed = 4e-3;  // what check allows a filtered gradient

struct OrderStyle {
  std::string_view name, colour;
};
constexpr OrderStyle order_styles[] = {  // colours that the colour-blind tell apart (Okabe and Ito)
    {"auto", "#0072b2"},
    {"identity", "#8a8a8a"},
    {"counts", "#e69f00"},
    {"meanprob", "#009e73"},
    {"norms", "#cc79a7"}};

std::string_view colour_of(const std::string& order) {
  const auto* at = std::find_if(std::begin(order_styles), std::end(order_styles),
                                [&](const OrderStyle& s) { return s.name == order; });
  return at->colour;
}

constexpr std::array rules = {StudyRule::corrected, StudyRule::plain, StudyRule::largest};

std::string_view dashes(StudyRule rule) {
  return rule == StudyRule::corrected ? ""
         : rule == StudyRule::plain   ? " stroke-dasharray=\"5 3\""
                                      : " stroke-dasharray=\"1 3\"";
}

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
    else
      out += c;
  }
  return out;
}

/// "2⁻¹²"
std::string power(int exponent) {
  constexpr const char* digits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string out = "2⁻";
  for (const char c : std::to_string(exponent)) out += digits[c - '0'];
  return out;
}

struct Plot {
  std::string title, x_label;
  double (*x)(const StudyPoint&);
  double (*y)(const StudyPoint&);
  bool with_limit = true;  // a line at what is allowed
  bool with_plain = true;  // the points without correction: as fast as the corrected ones, and they would hide them
  double exact_x = nowhere;
};

const Plot de_by_kept{"Error of de, by tiles kept", "share of tiles kept", [](const StudyPoint& p) { return p.kept; },
                      [](const StudyPoint& p) { return p.de.norm; }};

std::vector<Plot> plots_of() {
  const auto kept = [](const StudyPoint& p) { return p.kept; };
  const auto time = [](const StudyPoint& p) { return p.ms / p.exact_ms; };
  const auto de = [](const StudyPoint& p) { return p.de.norm; };
  const auto dc = [](const StudyPoint& p) { return p.dc.norm; };
  const auto median = [](const StudyPoint& p) { return p.dc.median_row; };
  return {
      de_by_kept,
      {"Error of dc, by tiles kept", "share of tiles kept", kept, dc},
      {"Error of de, by time", "time of forward and backward over that of the exact ones", time, de, true, false, 1},
      {"Error of dc, by time", "time of forward and backward over that of the exact ones", time, dc, true, false, 1},
      {"Error of the median row of dc, by tiles kept", "share of tiles kept", kept, median, false}};
}

// Sizes in the units of the view box; a phone shows it about as wide as it is.
constexpr double width = 420, height = 352, left = 46, right = 398, top = 30, bottom = 262;

class Picture {
 public:
  Picture(const Plot& plot, const std::vector<StudyPoint>& points) : plot_(plot) {
    for (const StudyPoint& p : points)
      if (plot.x(p) >= 0 && plot.y(p) > 0 && (plot.with_plain || p.rule != StudyRule::plain)) points_.push_back(&p);
    double y_low = plot.with_limit ? allowed : 1, y_high = y_low, x_high = std::isnan(plot.exact_x) ? 0 : plot.exact_x;
    for (const StudyPoint* p : points_) {
      y_low = std::min(y_low, plot.y(*p));
      y_high = std::max(y_high, plot.y(*p));
      x_high = std::max(x_high, plot.x(*p));
    }
    low_ = static_cast<int>(std::floor(std::log10(y_low)));
    high_ = std::max(low_ + 1, static_cast<int>(std::ceil(std::log10(y_high))));
    if (!(x_high > 0)) x_high = 1;
    step_ = std::pow(10, std::floor(std::log10(x_high / 3)));
    for (const double factor : {2.5, 2.0})
      if (x_high / step_ > 6) step_ *= factor;
    x_high_ = step_ * std::ceil(x_high / step_);
  }

  std::string svg(bool alone) {
    out_ = fmt::format("<svg {}viewBox=\"0 0 {} {}\" role=\"img\">\n<title>{}</title>\n",
                       alone ? "xmlns=\"http://www.w3.org/2000/svg\" width=\"840\" " : "", width, height, plot_.title);
    if (alone)
      out_ += fmt::format(
          "<style>svg {{ font: 11px sans-serif; color: #222; }} .axis {{ stroke: #222; opacity: 0.2; }}</style>\n"
          "<rect width=\"{}\" height=\"{}\" fill=\"white\"/>\n",
          width, height);
    out_ += "<g fill=\"currentColor\" font-size=\"11\">\n";
    text(left, 16, "start", "font-size=\"13\" font-weight=\"bold\"", plot_.title);
    axes();
    out_ += "</g>\n";
    for (const OrderStyle& order : order_styles)
      for (const StudyRule rule : rules) series(order, rule);
    if (plot_.with_limit)
      text(right - 3, py(allowed) - 4, "end",
           "font-size=\"11\" style=\"fill:#d55e00;stroke:canvas;stroke-width:3px;paint-order:stroke\"",
           "4e-3: what rounding to bf16 may lose");
    legend();
    return out_ + "</svg>\n";
  }

 private:
  double px(double x) const { return left + (right - left) * x / x_high_; }
  double py(double y) const { return bottom - (bottom - top) * (std::log10(y) - low_) / (high_ - low_); }
  void text(double x, double y, const char* anchor, const char* more, const std::string& what) {
    out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more,
                        escaped(what));
  }
  void line(double x0, double y0, double x1, double y1, const char* more) {
    out_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x0, y0, x1, y1, more);
  }
  void axes() {
    constexpr const char* faint = "class=\"axis\" stroke=\"currentColor\" opacity=\"0.18\"";
    for (int k = low_; k <= high_; ++k) {
      const double y = py(std::pow(10, k));
      line(left, y, right, y, faint);
      text(left - 5, y + 4, "end", "", fmt::format("1e{}", k));
    }
    for (int i = 0; i * step_ <= x_high_ * 1.001; ++i) {
      const double x = px(i * step_);
      line(x, top, x, bottom, faint);
      text(x, bottom + 15, "middle", "", fmt::format("{:g}", std::round(i * step_ * 1e6) / 1e6));
    }
    text((left + right) / 2, bottom + 31, "middle", "", plot_.x_label);
    if (plot_.with_limit) {
      line(left, py(allowed), right, py(allowed), "stroke=\"#d55e00\" stroke-width=\"1\"");
    }
    if (!std::isnan(plot_.exact_x)) {
      line(px(plot_.exact_x), top, px(plot_.exact_x), bottom, "stroke=\"currentColor\" stroke-dasharray=\"2 2\"");
      text(px(plot_.exact_x) - 4, bottom - 6, "end", "", "exact");
    }
  }
  void mark(double x, double y, std::string_view colour, StudyRule rule, const std::string& title) {
    const std::string inside = title.empty() ? "/>" : fmt::format("><title>{}</title></{{}}>", escaped(title));
    const auto shape = [&](const char* name) {
      return title.empty() ? inside : fmt::format(fmt::runtime(inside), name);
    };
    if (rule == StudyRule::largest)
      out_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"5\" height=\"5\" fill=\"{}\"{}\n", x - 2.5, y - 2.5,
                          colour, shape("rect"));
    else
      out_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" stroke=\"{}\" fill=\"{}\"{}\n", x, y, colour,
                          rule == StudyRule::corrected ? colour : "none", shape("circle"));
  }
  void series(const OrderStyle& order, StudyRule rule) {
    std::string path;
    std::vector<const StudyPoint*> shown;
    for (const StudyPoint* p : points_) {
      if (p->order != order.name || p->rule != rule) continue;
      path += fmt::format("{:.1f},{:.1f} ", px(plot_.x(*p)), py(plot_.y(*p)));
      shown.push_back(p);
    }
    if (shown.empty()) return;
    path.pop_back();
    out_ += fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"{} points=\"{}\"/>\n", order.colour,
                        dashes(rule), path);
    for (const StudyPoint* p : shown) {
      mark(px(plot_.x(*p)), py(plot_.y(*p)), order.colour, rule,
           fmt::format("{}, {} >= {}: {:.3g}, error {:.2e}", p->order, name_of(rule), power(p->exponent), plot_.x(*p),
                       plot_.y(*p)));
      const bool labelled = p == shown.front() || p == shown.back() || p->exponent == 12;
      if (rule == StudyRule::corrected && order.name == "auto" && labelled) {
        const bool inside = px(plot_.x(*p)) < right - 30;
        text(px(plot_.x(*p)) + (inside ? 6 : -6), py(plot_.y(*p)) - 4, inside ? "start" : "end",
             "font-size=\"10\" style=\"fill:#0072b2;stroke:canvas;stroke-width:3px;paint-order:stroke\"",
             power(p->exponent));
      }
    }
  }
  void legend() {
    double x = left;
    out_ += "<g fill=\"currentColor\" font-size=\"11\">\n";
    for (const OrderStyle& order : order_styles) {
      const bool there =
          std::any_of(points_.begin(), points_.end(), [&](const StudyPoint* p) { return p->order == order.name; });
      if (!there) continue;
      out_ += fmt::format("<rect x=\"{:.1f}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/>\n", x, height - 45,
                          order.colour);
      text(x + 14, height - 36, "start", "", std::string(order.name));
      x += 74;
    }
    x = left;
    for (const StudyRule rule : rules) {
      if (!plot_.with_plain && rule == StudyRule::plain) continue;
      out_ += fmt::format(
          "<line x1=\"{:.1f}\" y1=\"{}\" x2=\"{:.1f}\" y2=\"{}\" stroke=\"currentColor\" stroke-width=\"1.5\"{}/>\n", x,
          height - 16, x + 26, height - 16, dashes(rule));
      mark(x + 13, height - 16, "currentColor", rule, "");
      text(x + 32, height - 12, "start", "", name_of(rule));
      x += rule == StudyRule::corrected ? 132 : 158;
    }
    out_ += "</g>\n";
  }

  const Plot& plot_;
  std::vector<const StudyPoint*> points_;
  int low_, high_;
  double step_, x_high_;
  std::string out_;
};

std::string row(const StudyPoint& p, bool exact) {
  const auto error = [](double x, bool judged) {
    return fmt::format("<td{}>{:.1e}</td>", judged && !(x <= allowed) ? " class=\"over\"" : "", x);
  };
  std::string out = exact ? "<tr><td colspan=\"3\">exact</td>"
                          : fmt::format("<tr><td><span style=\"color:{}\">■</span> {}</td><td>{}</td><td>{}</td>",
                                        colour_of(p.order), p.order, name_of(p.rule), power(p.exponent));
  out += fmt::format("<td>{:.3f}</td><td>{:.1f}</td><td>{:.2f}</td>", p.kept, p.ms, p.ms / p.exact_ms);
  out += error(p.de.norm, true) + error(p.de.median_row, false) + error(p.de.worst_row, false);
  out += error(p.dc.norm, true) + error(p.dc.median_row, false) + error(p.dc.worst_row, false);
  return out + "</tr>\n";
}

constexpr const char* style = R"(
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
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.over { color: #d55e00; font-weight: bold; }
)";

}  // namespace

const char* name_of(StudyRule rule) {
  return rule == StudyRule::corrected ? "mass, corrected" : rule == StudyRule::plain ? "mass, nothing added" : "max";
}

std::string study_picture(const Study& study) { return Picture(de_by_kept, study.points).svg(true); }

std::string study_page(const Study& study) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>What a filtered backward loses</title>\n<style>{}</style>\n</head>\n<body>\n"
      "<h1>What a filtered backward loses, and what it saves</h1>\n<p class=\"subject\">{}; {}</p>\n",
      style, escaped(study.subject), study.date);
  if (study.points.size() < study.planned)
    out += fmt::format("<p><b>Interrupted:</b> {} of {} points.</p>\n", study.points.size(), study.planned);
  out +=
      "<p>Each point is one threshold, from few tiles kept on the left to many on the right. An error is the norm of "
      "what a gradient is off by, over its norm, against loops in double. <i>mass, corrected</i> is what Kerf does: a "
      "tile (128 rows by 128 tokens) is kept where a row has at least that much probability in it, and nearly what the "
      "others would have added is put back. <i>mass, nothing added</i> leaves that out. <i>max</i> is the rule of "
      "cut-cross-entropy: kept where a single probability is that large, nothing put back.</p>\n";
  out += fmt::format(
      "<p>The exact backward takes {:.1f} ms with the forward; its errors are {:.1e} (de) and {:.1e} (dc).</p>\n",
      study.exact.ms, study.exact.de.norm, study.exact.dc.norm);
  out += "<div class=\"plots\">\n";
  for (const Plot& plot : plots_of())
    out += "<figure style=\"margin:0\">\n" + Picture(plot, study.points).svg(false) + "</figure>\n";
  out += "</div>\n<h2>Orders of the vocabulary</h2>\n<ul>\n";
  for (const std::string& order : study.orders) out += fmt::format("<li>{}</li>\n", escaped(order));
  out += fmt::format("</ul>\n<h2>Made by</h2>\n<pre>{}</pre>\n", escaped(study.command));
  out +=
      "<h2>All points</h2>\n<p>Milliseconds are the least of three calls, in turns with three exact ones. Errors of de "
      "or dc above 4e-3 stand out.</p>\n"
      "<div "
      "class=\"wide\">\n<table>\n<thead><tr><th>order</th><th>rule</th><th>threshold</th><th>kept</th><th>ms</"
      "th><th>of exact</th>"
      "<th>de</th><th>median row</th><th>worst row</th><th>dc</th><th>median row</th><th>worst row</th></tr></thead>\n"
      "<tbody>\n";
  out += row(study.exact, true);
  for (const StudyPoint& p : study.points) out += row(p, false);
  return out + "</tbody>\n</table>\n</div>\n</body>\n</html>\n";
}

}  // namespace kerf::tools
