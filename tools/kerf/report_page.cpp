// The page of kerf report: of each part a heat map, plots, the winner beside what is used without a study, and why the
// others lost.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "tools/kerf/page.h"
#include "tools/kerf/report.h"
#include "tools/kerf/report_figures.h"

namespace kerf::tools {
namespace {

using Value = WisdomParameters::mapped_type;

// Colours that the colour-blind tell apart (after Okabe and Ito), on white and on black.
constexpr const char *blue = "#3a8fc8", *orange = "#d55e00", *green = "#009e73", *grey = "#8a8a8a";
// So that the page of a very large study can still be opened.
constexpr std::size_t most_rows = 500, most_groups = 40, most_cells = 40, most_axes = 6, most_points = 2000;

std::string text_of(const Value& value) {
  return std::visit([](const auto& x) { return fmt::format("{}", x); }, value);
}
/// Of an axis: no more digits than it takes.
std::string tick_text(double x) { return x >= 1000 ? fmt::format("{:.0f}", x) : fmt::format("{:.3g}", x); }
/// Three digits that count.
std::string number_text(double x) { return x >= 100 ? fmt::format("{:.0f}", x) : fmt::format("{:#.3g}", x); }
std::string ms_text(double ms) { return ms > 0 ? number_text(ms) + " ms" : "-"; }
std::string cut(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  std::size_t end = most - 1;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // between two characters of UTF-8
  return text.substr(0, end) + "…";
}

// ---- scales ----

/// Of an axis: logarithmic where values differ much.
struct Scale {
  double low = 0, high = 1;
  bool log = false;
  std::vector<double> ticks;

  Scale(double least, double most, bool from_zero = false) {
    log = !from_zero && least > 0 && most / least > 4;
    if (log) {
      low = least / 1.15;
      high = most * 1.15;
      const bool decades = high / low > 300;
      for (int k = static_cast<int>(std::floor(std::log10(low))); k <= std::log10(high); ++k)
        for (const double digit : {1.0, 2.0, 5.0})
          if (const double t = digit * std::pow(10, k); t >= low && t <= high && (digit == 1 || !decades))
            ticks.push_back(t);
      return;
    }
    if (from_zero) least = 0;
    if (!(most > least)) most = least + std::max(1e-3, least / 10);
    const double step = nice_step(most - least, 5);
    low = step * std::floor(least / step);
    high = step * std::ceil(most / step - 1e-9);
    for (int i = 0; low + i * step <= high + step / 100; ++i) ticks.push_back(low + i * step);
  }
  double at(double x) const { return log ? std::log(x / low) / std::log(high / low) : (x - low) / (high - low); }
};

// Sizes in the units of the view box.
constexpr double width = 380, height = 310, left = 48, right = 366, top = 44, bottom = 260;

/// A plot with its axes; `x` and `y` map to the view box.
class Axes {
 public:
  Axes(std::string_view title, Scale across, Scale up, std::string_view x_label, std::string_view y_label)
      : drawing(width, height, title), x_(std::move(across)), y_(std::move(up)) {
    constexpr const char* faint = "stroke=\"currentColor\" opacity=\"0.18\"";
    drawing.text(8, 16, "start", "font-size=\"13\" font-weight=\"bold\"", title);
    drawing.text(8, 34, "start", "opacity=\"0.75\"", y_label);
    for (const double t : x_.ticks) {
      drawing.line(x(t), top, x(t), bottom, faint);
      drawing.text(x(t), bottom + 15, "middle", "", tick_text(t));
    }
    for (const double t : y_.ticks) {
      drawing.line(left, y(t), right, y(t), faint);
      drawing.text(left - 6, y(t) + 4, "end", "", tick_text(t));
    }
    drawing.text((left + right) / 2, bottom + 32, "middle", "opacity=\"0.75\"", x_label);
  }
  double x(double v) const { return left + (right - left) * x_.at(v); }
  double y(double v) const { return bottom - (bottom - top) * y_.at(v); }

  Drawing drawing;

 private:
  Scale x_, y_;
};

std::string figure(std::string svg) { return "<figure>\n" + std::move(svg) + "</figure>\n"; }

// ---- heat map ----

/// From the fastest (0) to the slowest (1): viridis, the fastest bright.
std::array<int, 3> heat_colour(double t) {
  constexpr int stops[5][3] = {{253, 231, 37}, {94, 201, 98}, {33, 145, 140}, {59, 82, 139}, {68, 1, 84}};
  const double at = 4 * std::clamp(t, 0.0, 1.0);
  const int i = std::min(3, static_cast<int>(at));
  std::array<int, 3> colour{};
  for (std::size_t c = 0; c < 3; ++c)
    colour[c] = static_cast<int>(std::lround(stops[i][c] + (at - i) * (stops[i + 1][c] - stops[i][c])));
  return colour;
}
std::string hex(std::array<int, 3> c) { return fmt::format("#{:02x}{:02x}{:02x}", c[0], c[1], c[2]); }

class HeatMap {
 public:
  explicit HeatMap(const ReportPart& part) : part_(part) {
    for (const ReportParameter& p : part.parameters) {
      std::vector<Value> values = p.values;
      const auto add = [&](const WisdomParameters& parameters) {
        if (const auto v = parameters.find(p.name); v != parameters.end() && !contains(values, v->second))
          values.push_back(v->second);
      };
      for (const ReportCandidate& c : part.candidates) add(c.parameters);
      if (values.size() > 1) axes_.push_back({p.name, std::move(values), effect(p.name)});
    }
    // What matters most is shown first.
    std::stable_sort(axes_.begin(), axes_.end(), [](const Axis& a, const Axis& b) { return a.effect > b.effect; });
    if (axes_.size() > most_axes) axes_.resize(most_axes);
    for (const ReportCandidate& c : part.candidates)
      if (c.ok()) {
        best_ = best_ > 0 ? std::min(best_, c.median_ms) : c.median_ms;
        worst_ = std::max(worst_, c.median_ms);
      }
    clamped_ = worst_ > 4 * best_;  // a few that are very slow leave colours for the others
    worst_ = std::clamp(worst_, 1.1 * best_, 4 * best_);
  }

  std::string html() const {
    if (axes_.empty() || best_ <= 0) return {};
    std::vector<std::pair<const Axis*, const Axis*>> pairs;
    for (std::size_t i = 0; i < axes_.size(); ++i)
      for (std::size_t k = i + 1; k < axes_.size(); ++k) pairs.emplace_back(&axes_[i], &axes_[k]);
    if (pairs.empty()) pairs.emplace_back(&axes_[0], nullptr);
    std::string out = "<div>\n";
    if (pairs.size() > 1) {
      // Every pair is drawn; the choice shows one.
      out +=
          "<p><label>Best time by <select onchange=\"for (const m of "
          "this.closest('section').querySelectorAll('.heat')) m.hidden = m.dataset.pair !== this.value\">\n";
      for (std::size_t i = 0; i < pairs.size(); ++i)
        out += fmt::format("<option value=\"{}\">{} and {}</option>\n", i, escaped(pairs[i].first->name),
                           escaped(pairs[i].second->name));
      out += "</select></label></p>\n";
    }
    for (std::size_t i = 0; i < pairs.size(); ++i)
      out += fmt::format("<figure class=\"heat\" data-pair=\"{}\"{}>\n{}</figure>\n", i, i == 0 ? "" : " hidden=\"\"",
                         picture(*pairs[i].first, pairs[i].second));
    return out + "</div>\n";
  }

 private:
  struct Axis {
    std::string name;
    std::vector<Value> values;
    double effect = 1;
  };
  struct Cell {
    const ReportCandidate *best = nullptr, *failed = nullptr;
    bool winner = false;  // in it, be it the fastest or as good
    const ReportPruned* pruned = nullptr;
  };

  static bool contains(const std::vector<Value>& values, const Value& v) {
    return std::find(values.begin(), values.end(), v) != values.end();
  }
  /// How much the best time depends on the parameter: its worst value's over its best one's.
  double effect(const std::string& name) const {
    std::map<Value, double> best;
    for (const ReportCandidate& c : part_.candidates) {
      const auto v = c.parameters.find(name);
      if (!c.ok() || v == c.parameters.end()) continue;
      double& ms = best.try_emplace(v->second, c.median_ms).first->second;
      ms = std::min(ms, c.median_ms);
    }
    double low = 0, high = 0;
    for (const auto& [value, ms] : best) {
      low = low > 0 ? std::min(low, ms) : ms;
      high = std::max(high, ms);
    }
    return low > 0 ? high / low : 1;
  }

  std::string picture(const Axis& down, const Axis* across) const {
    static const Axis one{"", {Value(std::string())}, 1};
    const Axis& columns = across ? *across : one;
    const std::size_t rows = std::min(down.values.size(), most_cells),
                      wide = std::min(columns.values.size(), most_cells);
    std::vector<Cell> cells(rows * wide);
    const auto cell_of = [&](const WisdomParameters& p) -> Cell* {
      const auto index = [&](const Axis& axis) -> std::size_t {
        if (axis.name.empty()) return 0;
        const auto v = p.find(axis.name);
        if (v == p.end()) return most_cells;
        return static_cast<std::size_t>(std::find(axis.values.begin(), axis.values.end(), v->second) -
                                        axis.values.begin());
      };
      const std::size_t r = index(down), c = index(columns);
      return r < rows && c < wide ? &cells[r * wide + c] : nullptr;
    };
    for (const ReportCandidate& c : part_.candidates)
      if (Cell* cell = cell_of(c.parameters)) {
        if (c.ok() && (!cell->best || c.median_ms < cell->best->median_ms)) cell->best = &c;
        if (!c.ok() && !cell->failed) cell->failed = &c;
        cell->winner |= part_.winner && &c == &part_.candidates[*part_.winner];
      }
    for (const ReportPruned& p : part_.pruned)
      if (Cell* cell = cell_of(p.parameters); cell && !cell->pruned) cell->pruned = &p;

    std::size_t longest = 1;
    for (std::size_t r = 0; r < rows; ++r) longest = std::max(longest, text_of(down.values[r]).size());
    const double x0 = 14 + 6.5 * static_cast<double>(std::min<std::size_t>(longest, 14));
    const double cell_width = (width - 8 - x0) / static_cast<double>(wide), cell_height = 28, y0 = 62;
    const double y1 = y0 + cell_height * static_cast<double>(rows);
    const std::string title =
        across ? fmt::format("Best ms by {} and {}", down.name, columns.name) : fmt::format("Best ms by {}", down.name);
    Drawing d(width, y1 + 46, title);
    d.text(8, 16, "start", "font-size=\"13\" font-weight=\"bold\"", cut(title, 52));
    d.text(8, 36, "start", "opacity=\"0.75\"",
           across ? fmt::format("{} down, {} across", cut(down.name, 24), cut(columns.name, 24)) : "");
    for (std::size_t c = 0; across && c < wide; ++c)
      d.text(x0 + cell_width * (static_cast<double>(c) + 0.5), y0 - 7, "middle", "",
             cut(text_of(columns.values[c]), static_cast<std::size_t>(std::max(2.0, cell_width / 6.5))));
    for (std::size_t r = 0; r < rows; ++r) {
      const double y = y0 + cell_height * static_cast<double>(r);
      d.text(x0 - 6, y + 18, "end", "", cut(text_of(down.values[r]), 14));
      for (std::size_t c = 0; c < wide; ++c)
        put(d, cells[r * wide + c], x0 + cell_width * static_cast<double>(c), y, cell_width, cell_height);
    }
    legend(d, y1 + 12);
    return d.end();
  }

  void put(Drawing& d, const Cell& cell, double x, double y, double w, double h) const {
    const auto label = [&](std::string_view more, const std::string& text) {
      if (6.0 * static_cast<double>(text.size()) < w) d.text(x + w / 2, y + h / 2 + 4, "middle", more, text);
    };
    const auto box = [&](const std::string& more, const std::string& tip) {
      d.rect(x + 1, y + 1, w - 2, h - 2, "rx=\"2\" " + more, tip);
    };
    constexpr const char* empty = "fill=\"currentColor\" fill-opacity=\"0.07\"";
    if (const ReportCandidate* c = cell.best) {
      const double t = std::log(c->median_ms / best_) / std::log(worst_ / best_);
      const std::string outline =
          cell.winner ? fmt::format(" stroke=\"{}\" stroke-width=\"3\"", orange) : std::string();
      box(fmt::format("fill=\"{}\"{}", hex(heat_colour(t)), outline),
          fmt::format("{}: {}{}", describe(c->parameters), ms_text(c->median_ms),
                      cell.winner ? ", here is the winner" : ""));
      label(t < 0.6 ? "fill=\"#111\"" : "fill=\"#fff\"", number_text(c->median_ms));
    } else if (cell.failed) {
      box(empty,
          fmt::format("{}: {}: {}", describe(cell.failed->parameters), cell.failed->status, cell.failed->reason));
      label("opacity=\"0.75\"", cell.failed->status);
    } else if (cell.pruned) {
      box(empty, fmt::format("{}: left out: {}", describe(cell.pruned->parameters), cell.pruned->reason));
      label("opacity=\"0.6\"", "×");
    } else {
      box("fill=\"none\" stroke=\"currentColor\" stroke-opacity=\"0.15\"", "not tried");
    }
  }

  void legend(Drawing& d, double y) const {
    constexpr int steps = 8;
    for (int i = 0; i < steps; ++i)
      d.rect(8 + 12 * i, y, 12.5, 10,
             fmt::format("fill=\"{}\"", hex(heat_colour(static_cast<double>(i) / (steps - 1)))));
    d.text(8 + 12 * steps + 6, y + 9, "start", "",
           fmt::format("{} to {}{}", ms_text(best_), ms_text(worst_), clamped_ ? " and more" : ""));
    d.rect(8, y + 16, 11, 11, fmt::format("fill=\"none\" stroke=\"{}\" stroke-width=\"2\"", orange));
    d.text(26, y + 26, "start", "", "the winner; × none tried, some left out by rules");
  }

  const ReportPart& part_;
  std::vector<Axis> axes_;
  double best_ = 0, worst_ = 0;  // the ends of the colours
  bool clamped_ = false;
};

// ---- plots ----

std::string tip_of(const ReportCandidate& c) {
  return fmt::format("{}: {}{}", describe(c.parameters), ms_text(c.median_ms), c.noisy ? ", noisy" : "");
}

bool is_default(const ReportPart& part, const ReportCandidate& c) {
  return part.untuned && &part.candidates[*part.untuned] == &c;
}

/// A point in either plot.
void mark(Drawing& d, double x, double y, const ReportPart& part, const ReportCandidate& c) {
  if (part.winner && &part.candidates[*part.winner] == &c)
    d.circle(x, y, 6, fmt::format("fill=\"{}\" stroke=\"canvas\"", orange), tip_of(c) + ", the winner");
  else if (is_default(part, c))
    d.rect(x - 5, y - 5, 10, 10, fmt::format("fill=\"{}\" stroke=\"canvas\"", green), tip_of(c) + ", the default");
  else
    d.circle(x, y, 3.5, fmt::format("fill=\"{}\" stroke=\"{}\" fill-opacity=\"0.75\"", c.noisy ? "none" : blue, blue),
             tip_of(c));
}

void mark_legend(Drawing& d, const ReportPart& part, double y) {
  double x = left;
  const auto entry = [&](const char* text, auto symbol) {
    symbol(x, y);
    d.text(x + 10, y + 4, "start", "", text);
    x += 30 + 6.4 * static_cast<double>(std::string_view(text).size());
  };
  if (part.winner)
    entry("winner", [&](double px, double py) { d.circle(px, py, 5, fmt::format("fill=\"{}\"", orange)); });
  if (part.untuned)
    entry("default", [&](double px, double py) { d.rect(px - 4, py - 4, 8, 8, fmt::format("fill=\"{}\"", green)); });
  entry("measured", [&](double px, double py) { d.circle(px, py, 3.5, fmt::format("fill=\"{}\"", blue)); });
  const bool noisy =
      std::any_of(part.candidates.begin(), part.candidates.end(), [](const ReportCandidate& c) { return c.noisy; });
  if (noisy)
    entry("noisy",
          [&](double px, double py) { d.circle(px, py, 3.5, fmt::format("fill=\"none\" stroke=\"{}\"", blue)); });
}

/// The time up to which candidates are drawn as points; the default always is.
double slowest_drawn(const ReportPart& part) {
  std::vector<double> times;
  for (const ReportCandidate& c : part.candidates)
    if (c.ok()) times.push_back(c.median_ms);
  if (times.size() <= most_points) return std::numeric_limits<double>::infinity();
  std::nth_element(times.begin(), times.begin() + (most_points - 1), times.end());
  return times[most_points - 1];
}

std::string scatter(const ReportPart& part) {
  const std::vector<std::pair<double, double>> points = predictions(part);
  double low = 0, high = 0;
  for (const auto& [predicted, measured] : points) {
    low = low > 0 ? std::min({low, predicted, measured}) : std::min(predicted, measured);
    high = std::max({high, predicted, measured});
  }
  if (points.size() < 2) return {};
  const double slowest = slowest_drawn(part);
  const Scale scale(low, high);
  Axes a("Predicted and measured", scale, scale, "predicted ms", "measured ms");
  a.drawing.line(a.x(scale.low), a.y(scale.low), a.x(scale.high), a.y(scale.high),
                 fmt::format("stroke=\"{}\" stroke-dasharray=\"4 3\"", grey));
  for (const ReportCandidate& c : part.candidates)
    if (c.ok() && c.predicted_ms > 0 && (c.median_ms <= slowest || is_default(part, c)))
      mark(a.drawing, a.x(c.predicted_ms), a.y(c.median_ms), part, c);
  mark_legend(a.drawing, part, height - 8);
  a.drawing.text(right, 16, "end", "opacity=\"0.75\"",
                 fmt::format("rank correlation {:.2f} of {}", rank_correlation(points), points.size()));
  return figure(a.drawing.end());
}

std::string over_time(const ReportPart& part) {
  std::vector<const ReportCandidate*> by_time;
  for (const ReportCandidate& c : part.candidates)
    if (c.ok()) by_time.push_back(&c);
  if (by_time.size() < 2) return {};
  std::stable_sort(by_time.begin(), by_time.end(),
                   [](const ReportCandidate* a, const ReportCandidate* b) { return a->at_s < b->at_s; });
  double low = by_time[0]->median_ms, high = low;
  for (const ReportCandidate* c : by_time) {
    low = std::min(low, c->median_ms);
    high = std::max(high, c->median_ms);
  }
  Axes a("Best so far", Scale(0, std::max(by_time.back()->at_s, 1e-3), true), Scale(low, high),
         "seconds since the search began", "measured ms");
  std::vector<std::pair<double, double>> path;
  double best = by_time[0]->median_ms;
  for (const ReportCandidate* c : by_time) {
    if (!path.empty()) path.emplace_back(a.x(c->at_s), a.y(best));
    best = std::min(best, c->median_ms);
    path.emplace_back(a.x(c->at_s), a.y(best));
  }
  a.drawing.polyline(path, fmt::format("stroke=\"{}\" stroke-width=\"2\"", orange));
  if (part.untuned && part.candidates[*part.untuned].ok()) {
    const double y = a.y(part.candidates[*part.untuned].median_ms);
    a.drawing.line(left, y, right, y, fmt::format("stroke=\"{}\" stroke-dasharray=\"4 3\"", green));
  }
  const double slowest = slowest_drawn(part);
  for (const ReportCandidate* c : by_time)
    if (c->median_ms <= slowest || is_default(part, *c)) mark(a.drawing, a.x(c->at_s), a.y(c->median_ms), part, *c);
  mark_legend(a.drawing, part, height - 8);
  return figure(a.drawing.end());
}

// ---- tables ----

class Table {
 public:
  /// `kind` says in the style which columns are text.
  Table(std::string_view kind, const std::vector<std::string>& head) {
    out_ = fmt::format("<div class=\"wide\">\n<table class=\"{}\">\n<thead><tr>", kind);
    for (const std::string& h : head) out_ += "<th>" + escaped(h) + "</th>";
    out_ += "</tr></thead>\n<tbody>\n";
  }
  void row(const std::vector<std::string>& cells, bool stands_out = false) {
    out_ += stands_out ? "<tr class=\"out\">" : "<tr>";
    for (const std::string& c : cells) out_ += "<td>" + escaped(c) + "</td>";
    out_ += "</tr>\n";
  }
  std::string end() { return std::move(out_) + "</tbody>\n</table>\n</div>\n"; }

 private:
  std::string out_;
};

std::string kib(std::int64_t bytes) { return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024); }

/// The winner beside the default, a quantity a row.
std::string resources(const ReportPart& part) {
  std::vector<const ReportCandidate*> shown;
  std::vector<std::string> head{""};
  if (part.winner) shown.push_back(&part.candidates[*part.winner]), head.push_back("winner");
  if (part.untuned && part.untuned != part.winner)
    shown.push_back(&part.candidates[*part.untuned]), head.push_back("default");
  if (shown.empty()) return "<p>Nothing ran rightly, so there is no winner.</p>\n";
  Table table("sides", head);
  const auto row = [&](const char* name, auto text) {
    std::vector<std::string> cells{name};
    for (const ReportCandidate* c : shown) cells.push_back(text(*c));
    table.row(cells);
  };
  const auto of_resources = [&](const char* name, auto text) {
    row(name, [&](const ReportCandidate& c) { return c.resources ? text(*c.resources) : std::string("-"); });
  };
  row("time", [](const ReportCandidate& c) { return c.ok() ? ms_text(c.median_ms) : c.status; });
  row("spread", [](const ReportCandidate& c) { return fmt::format("{:.1f} %", 100 * c.spread); });
  row("samples", [](const ReportCandidate& c) { return fmt::format("{}", c.samples); });
  row("predicted", [](const ReportCandidate& c) { return ms_text(c.predicted_ms); });
  row("compiled in", [](const ReportCandidate& c) { return ms_text(c.compile_ms); });
  const bool known = std::any_of(shown.begin(), shown.end(), [](const ReportCandidate* c) { return c->resources; });
  if (!known) return table.end();  // on a CPU
  of_resources("registers a thread", [](const ReportResources& r) { return fmt::format("{}", r.registers); });
  of_resources("threads a block", [](const ReportResources& r) { return fmt::format("{}", r.threads); });
  of_resources("blocks at once", [](const ReportResources& r) { return fmt::format("{}", r.blocks); });
  of_resources("shared a block", [](const ReportResources& r) { return kib(r.shared_bytes); });
  of_resources("local a thread", [](const ReportResources& r) { return fmt::format("{} B", r.local_bytes); });
  return table.end();
}

std::string reasons(const ReportPart& part) {
  const std::vector<ReportReason> all = reasons_of(part);
  if (all.empty()) return "<p>None failed, and none was left out.</p>\n";
  std::string out;
  if (static_cast<std::uint64_t>(part.pruned_count) > part.pruned.size())
    out += fmt::format("<p>{} were left out before they were compiled; the study lists {} of them.</p>\n",
                       part.pruned_count, part.pruned.size());
  Table table("reasons", {"how many", "fate", "reason", "one of them"});
  for (std::size_t i = 0; i < std::min(all.size(), most_groups); ++i)
    table.row({fmt::format("{}", all[i].count), all[i].fate, all[i].reason, describe(all[i].parameters)});
  out += table.end();
  if (all.size() > most_groups) out += fmt::format("<p>And {} more reasons.</p>\n", all.size() - most_groups);
  return out;
}

std::string parameters(const ReportPart& part) {
  Table table("parameters", {"parameter", "winner", "default", "values"});
  const auto of = [&](const std::optional<std::size_t>& i, const std::string& name) -> std::string {
    if (!i) return "-";
    const auto& p = part.candidates[*i].parameters;
    const auto v = p.find(name);
    return v == p.end() ? "-" : text_of(v->second);
  };
  for (const ReportParameter& p : part.parameters) {
    std::string values;
    for (const Value& v : p.values) values += (values.empty() ? "" : ", ") + text_of(v);
    table.row({p.name, of(part.winner, p.name), of(part.untuned, p.name), values});
  }
  return table.end();
}

std::string all_candidates(const ReportPart& part) {
  const std::vector<const ReportCandidate*> sorted = ranked(part);
  std::vector<std::string> head;
  for (const ReportParameter& p : part.parameters) head.push_back(p.name);
  for (const char* h : {"ms", "spread", "samples", "predicted", "compile ms", "at s", "fate"}) head.emplace_back(h);
  Table table("candidates", head);
  for (std::size_t i = 0; i < std::min(sorted.size(), most_rows); ++i) {
    const ReportCandidate& c = *sorted[i];
    std::vector<std::string> cells;
    for (const ReportParameter& p : part.parameters) {
      const auto v = c.parameters.find(p.name);
      cells.push_back(v == c.parameters.end() ? "-" : text_of(v->second));
    }
    cells.push_back(c.median_ms > 0 ? fmt::format("{:.4g}", c.median_ms) : "-");
    cells.push_back(c.median_ms > 0 ? fmt::format("{:.1f} %", 100 * c.spread) : "-");
    cells.push_back(fmt::format("{}", c.samples));
    cells.push_back(c.predicted_ms > 0 ? fmt::format("{:.4g}", c.predicted_ms) : "-");
    cells.push_back(fmt::format("{:.0f}", c.compile_ms));
    cells.push_back(fmt::format("{:.2f}", c.at_s));
    cells.push_back(c.status + (c.ok() && c.noisy ? ", noisy" : "") + (c.known ? ", known before" : ""));
    table.row(cells, part.winner && &c == &part.candidates[*part.winner]);
  }
  std::string out = table.end();
  if (sorted.size() > most_rows) out += fmt::format("<p>And {} more.</p>\n", sorted.size() - most_rows);
  return out;
}

/// "2.31 ms, 1.42 times as fast as the default"
std::string gain(const ReportPart& part) {
  if (!part.winner) return "no winner";
  const double ms = part.candidates[*part.winner].median_ms;
  std::string text = ms_text(ms);
  if (part.winner == part.untuned)
    text += ", the default is the fastest";
  else if (const double times = gain_of(part); times > 0)
    text += fmt::format(", {:.2f} times as fast as the default", times);
  return text;
}

std::string section(const ReportPart& part) {
  const auto ok = std::count_if(part.candidates.begin(), part.candidates.end(), [](const auto& c) { return c.ok(); });
  std::string out = fmt::format("<section>\n<h2>{}: {}</h2>\n<p class=\"subject\">{}</p>\n", escaped(part.part),
                                gain(part), escaped(part.key));
  out += fmt::format(
      "<p>Of {} combinations {} were left out before they were compiled, {} were tried and {} of those ran "
      "rightly.</p>\n",
      part.space_size, part.pruned_count, part.candidates.size(), ok);
  out += "<div class=\"plots\">\n" + HeatMap(part).html() + scatter(part) + over_time(part) + "</div>\n";
  out += "<h3>Parameters</h3>\n" + parameters(part);
  out += "<h3>What it takes</h3>\n" + resources(part);
  out += "<h3>Why others failed, or were left out</h3>\n" + reasons(part);
  out += "<details>\n<summary>All that were tried</summary>\n" + all_candidates(part) + "</details>\n";
  return out + "</section>\n";
}

constexpr const char* style = R"(h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
figure { margin: 0; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
select { font: inherit; max-width: 100%; }
summary { cursor: pointer; margin: 1.5rem 0 0.5rem; font-weight: bold; }
.sides td:first-child, .reasons td, .reasons th, .parameters td, .parameters th { text-align: left; }
.reasons td:nth-child(n+3), .parameters td:last-child { white-space: normal; overflow-wrap: anywhere; }
.reasons td:nth-child(n+3) { min-width: 11rem; }
.reasons td, .parameters td, .sides td { vertical-align: top; }
.out { font-weight: bold; color: #d55e00; }
)";

}  // namespace

std::string report_page(const ReportStudy& s) {
  std::string out = page_begin("What tuning found", style);
  out += fmt::format(
      "<h1>What tuning found: N={} D={} V={}, {}</h1>\n<p class=\"subject\">{}{}, {} units{}{}, {}; Kerf {}; {}</p>\n",
      s.tokens, s.hidden, s.vocabulary, escaped(s.dtype), escaped(s.options.empty() ? "" : s.options + "; "),
      escaped(s.device), s.units, s.driver.empty() ? "" : ", driver ", escaped(s.driver), escaped(s.level),
      escaped(s.kerf), escaped(s.date));
  const auto limit = [](double n, const char* unit) { return n > 0 ? fmt::format("{:g} {}", n, unit) : std::string(); };
  const std::string seconds = limit(s.budget_seconds, "s"),
                    candidates = limit(static_cast<double>(s.budget_candidates), "candidates");
  out += fmt::format("<p>The search took {:.1f} s{}{}{}{}.</p>\n", s.seconds,
                     seconds.empty() && candidates.empty() ? "" : " of a budget of ", seconds,
                     seconds.empty() || candidates.empty() ? "" : " and ", candidates);
  if (s.stopped == "interrupt")
    out += "<p><b>Interrupted:</b> what follows was known by then.</p>\n";
  else if (!s.stopped.empty())
    out += fmt::format("<p><b>Stopped early:</b> {}.</p>\n",
                       s.stopped == "budget" ? "the budget was used up" : escaped(s.stopped));
  if (s.parts.empty()) out += "<p>Nothing was tuned.</p>\n";
  for (const ReportPart& part : s.parts) out += section(part);
  return out + page_end();
}

}  // namespace kerf::tools
