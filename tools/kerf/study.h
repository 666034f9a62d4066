// What kerf filter-study measured, and the page that shows it.
#pragma once

#include <string>
#include <vector>

#include "tools/support/compare.h"

namespace kerf::tools {

enum class StudyRule { corrected, plain, largest };
/// "mass, corrected", "mass", "max"
const char* name_of(StudyRule rule);

struct StudyPoint {
  std::string order;
  StudyRule rule = StudyRule::corrected;
  int exponent = 0;  // the threshold is 2^-exponent
  double kept = 1, dropped_mass = 0;
  double ms = 0, exact_ms = 0;  // forward and backward; of the exact plan in turns with it
  GradientError de, dc;
};

struct Study {
  std::string subject;              // "lm256k, N=512 D=128 V=256000 f32, cpu (avx512), 2 threads"
  std::string command, date;        // "kerf filter-study ...", "2026-11-21"
  std::vector<std::string> orders;  // what each is: "auto: c times the mean of e"
  StudyPoint exact;
  std::vector<StudyPoint> points;
  std::size_t planned = 0;  // points; more than there are where it was interrupted
};

/// One HTML file that needs nothing else.
std::string study_page(const Study& study);
/// The first plot of the page, error of de against kept share, as an SVG file of its own.
std::string study_picture(const Study& study);

}  // namespace kerf::tools
