// Records to test with.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "kerf/wisdom.h"

namespace kerf::test {

inline WisdomKey a_key(std::int64_t tokens = 1024) {
  return {"linear_cross_entropy", "forward", "bf16", 2304, 256000, "", "sm_90a", "space1", tokens, {}};
}
inline WisdomValidators an_h200() { return {"NVIDIA H200", 132, "13.0", "0.1.0", {}}; }

/// An ok record of 20 samples.
inline WisdomRecord a_record(std::int64_t n, double median_ms) {
  WisdomRecord r;
  r.key = a_key();
  r.validators = an_h200();
  r.parameters = {{"n", n}, {"v", 256}};
  r.median_ms = median_ms;
  r.spread = 0.01;
  r.samples = 20;
  r.date = "2026-11-21";
  return r;
}

inline Wisdom wisdom_of(const std::vector<WisdomRecord>& records) {
  Wisdom w;
  for (const WisdomRecord& r : records) w.add(r);
  return w;
}

/// n of the winner of a_key() on an H200; 0 where there is none.
inline std::int64_t winner(const Wisdom& w) {
  const WisdomChoice choice = w.lookup(a_key(), an_h200());
  return choice.record ? std::get<std::int64_t>(choice.record->parameters.at("n")) : 0;
}

/// Records with few keys, parameters and times, so that all kinds of ties are common.
inline std::vector<WisdomRecord> random_records(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::vector<WisdomRecord> all;
  for (std::size_t i = 0; i < count; ++i) {
    WisdomRecord r;
    r.key = a_key(std::int64_t{1024} << below(4));
    r.validators = an_h200();
    r.validators.kerf = below(2) == 0 ? "0.1.0" : "0.2.0";
    r.parameters = {{"n", 16 << below(5)}, {"v", 16 << below(5)}, {"order", below(2) == 0 ? "rows" : "columns"}};
    r.status = below(3) > 0 ? WisdomStatus::ok : static_cast<WisdomStatus>(below(7));
    r.samples = r.status == WisdomStatus::ok ? 1 + below(3) : 0;
    r.median_ms = r.samples > 0 ? 1 + 0.01 * below(6) : 0;
    r.noisy = below(3) == 0;
    r.date = below(2) == 0 ? "2026-11-21" : "2026-11-20";
    r.winner = below(2) == 0;
    r.predicted_ms = below(3);
    all.push_back(r);
  }
  return all;
}

/// A folder that goes with the test.
class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / ("kerf-wisdom-" + std::to_string(getpid()))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return path_ / name; }
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string contents(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void write(const std::string& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }

}  // namespace kerf::test
