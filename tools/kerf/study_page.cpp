// The page of kerf filter-study: plots as inline SVG, a table, and the command that made it.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "tools/kerf/page.h"
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
    step_ = nice_step(x_high);
    x_high_ = step_ * std::ceil(x_high / step_);
  }

  std::string svg(bool alone) {
    Drawing drawing(width, height, plot_.title, alone);
    out_ = &drawing;
    out_->text(left, 16, "start", "font-size=\"13\" font-weight=\"bold\"", plot_.title);
    axes();
    for (const OrderStyle& order : order_styles)
      for (const StudyRule rule : rules) series(order, rule);
    if (plot_.with_limit)
      out_->text(right - 3, py(allowed) - 4, "end",
                 "font-size=\"11\" style=\"fill:#d55e00;stroke:canvas;stroke-width:3px;paint-order:stroke\"",
                 "4e-3: what rounding to bf16 may lose");
    legend();
    return drawing.end();
  }

 private:
  double px(double x) const { return left + (right - left) * x / x_high_; }
  double py(double y) const { return bottom - (bottom - top) * (std::log10(y) - low_) / (high_ - low_); }
  void axes() {
    constexpr const char* faint = "class=\"axis\" stroke=\"currentColor\" opacity=\"0.18\"";
    for (int k = low_; k <= high_; ++k) {
      const double y = py(std::pow(10, k));
      out_->line(left, y, right, y, faint);
      out_->text(left - 5, y + 4, "end", "", fmt::format("1e{}", k));
    }
    for (int i = 0; i * step_ <= x_high_ * 1.001; ++i) {
      const double x = px(i * step_);
      out_->line(x, top, x, bottom, faint);
      out_->text(x, bottom + 15, "middle", "", fmt::format("{:g}", std::round(i * step_ * 1e6) / 1e6));
    }
    out_->text((left + right) / 2, bottom + 31, "middle", "", plot_.x_label);
    if (plot_.with_limit) {
      out_->line(left, py(allowed), right, py(allowed), "stroke=\"#d55e00\" stroke-width=\"1\"");
    }
    if (!std::isnan(plot_.exact_x)) {
      out_->line(px(plot_.exact_x), top, px(plot_.exact_x), bottom, "stroke=\"currentColor\" stroke-dasharray=\"2 2\"");
      out_->text(px(plot_.exact_x) - 4, bottom - 6, "end", "", "exact");
    }
  }
  void mark(double x, double y, std::string_view colour, StudyRule rule, const std::string& tip) {
    if (rule == StudyRule::largest)
      out_->rect(x - 2.5, y - 2.5, 5, 5, fmt::format("fill=\"{}\"", colour), tip);
    else
      out_->circle(x, y, 3,
                   fmt::format("stroke=\"{}\" fill=\"{}\"", colour, rule == StudyRule::corrected ? colour : "none"),
                   tip);
  }
  void series(const OrderStyle& order, StudyRule rule) {
    std::vector<std::pair<double, double>> path;
    std::vector<const StudyPoint*> shown;
    for (const StudyPoint* p : points_) {
      if (p->order != order.name || p->rule != rule) continue;
      path.emplace_back(px(plot_.x(*p)), py(plot_.y(*p)));
      shown.push_back(p);
    }
    if (shown.empty()) return;
    out_->polyline(path, fmt::format("stroke=\"{}\" stroke-width=\"1.5\"{}", order.colour, dashes(rule)));
    for (const StudyPoint* p : shown) {
      mark(px(plot_.x(*p)), py(plot_.y(*p)), order.colour, rule,
           fmt::format("{}, {} >= {}: {:.3g}, error {:.2e}", p->order, name_of(rule), power(p->exponent), plot_.x(*p),
                       plot_.y(*p)));
      const bool labelled = p == shown.front() || p == shown.back() || p->exponent == 12;
      if (rule == StudyRule::corrected && order.name == "auto" && labelled) {
        const bool inside = px(plot_.x(*p)) < right - 30;
        out_->text(px(plot_.x(*p)) + (inside ? 6 : -6), py(plot_.y(*p)) - 4, inside ? "start" : "end",
                   "font-size=\"10\" style=\"fill:#0072b2;stroke:canvas;stroke-width:3px;paint-order:stroke\"",
                   power(p->exponent));
      }
    }
  }
  void legend() {
    double x = left;
    for (const OrderStyle& order : order_styles) {
      const bool there =
          std::any_of(points_.begin(), points_.end(), [&](const StudyPoint* p) { return p->order == order.name; });
      if (!there) continue;
      out_->rect(x, height - 45, 10, 10, fmt::format("fill=\"{}\"", order.colour));
      out_->text(x + 14, height - 36, "start", "", order.name);
      x += 74;
    }
    x = left;
    for (const StudyRule rule : rules) {
      if (!plot_.with_plain && rule == StudyRule::plain) continue;
      out_->line(x, height - 16, x + 26, height - 16,
                 fmt::format("stroke=\"currentColor\" stroke-width=\"1.5\"{}", dashes(rule)));
      mark(x + 13, height - 16, "currentColor", rule, "");
      out_->text(x + 32, height - 12, "start", "", name_of(rule));
      x += rule == StudyRule::corrected ? 132 : 158;
    }
  }

  const Plot& plot_;
  std::vector<const StudyPoint*> points_;
  int low_, high_;
  double step_, x_high_;
  Drawing* out_ = nullptr;
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

constexpr const char* style = R"(td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.over { color: #d55e00; font-weight: bold; }
)";

}  // namespace

const char* name_of(StudyRule rule) {
  return rule == StudyRule::corrected ? "mass, corrected" : rule == StudyRule::plain ? "mass, nothing added" : "max";
}

std::string study_picture(const Study& study) { return Picture(de_by_kept, study.points).svg(true); }

std::string study_page(const Study& study) {
  std::string out = page_begin("What a filtered backward loses", style);
  out += fmt::format("<h1>What a filtered backward loses, and what it saves</h1>\n<p class=\"subject\">{}; {}</p>\n",
                     escaped(study.subject), study.date);
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
  return out + "</tbody>\n</table>\n</div>\n" + page_end();
}

}  // namespace kerf::tools
