// Pieces of the pages that kerf writes: one HTML file each that needs nothing else, with plots as inline SVG.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kerf::tools {

/// As text or a quoted attribute of HTML. What no document may hold becomes U+FFFD.
std::string escaped(std::string_view text);

/// Up to the heading; `style` is added to what all pages have.
std::string page_begin(std::string_view title, std::string_view style = "");
std::string page_end();

/// 1, 2 or 2.5 times a power of ten, so that about `most` of them make `range`.
double nice_step(double range, int most = 6);

/// A picture, in the units of its view box; 420 are as wide as a phone. Text has the colour of the page.
class Drawing {
 public:
  /// `alone`: a file of its own, on white.
  Drawing(double width, double height, std::string_view title, bool alone = false);
  /// `anchor` is start, middle or end; `more` are attributes.
  void text(double x, double y, std::string_view anchor, std::string_view more, std::string_view what);
  void line(double x0, double y0, double x1, double y1, std::string_view more);
  /// With what is shown under the pointer, if anything.
  void circle(double x, double y, double r, std::string_view more, std::string_view tip = "");
  void rect(double x, double y, double width, double height, std::string_view more, std::string_view tip = "");
  void polyline(const std::vector<std::pair<double, double>>& points, std::string_view more);
  std::string end();

 private:
  std::string out_;
};

/// Throws UsageError where the file of an option cannot be made; before the work that fills it.
void require_writable(const char* option, const std::string& path);
/// Nothing where `path` is empty.
void write_file(const char* option, const std::string& path, const std::string& content);

}  // namespace kerf::tools
