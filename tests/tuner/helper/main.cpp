// A worker whose candidates take x ms, but for some that hang, fault, exit or fail, as the setup says: "hang=3
// fault=5".
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <sstream>
#include <thread>

#include "kerf/error.h"
#include "runtime/tuner/worker.h"

namespace {

using namespace kerf;

class Troubled : public runtime::TuneSubject {
 public:
  explicit Troubled(const std::string& setup) {
    std::istringstream words(setup);
    for (std::string word; words >> word;) {
      const std::size_t sign = word.find('=');
      trouble_[std::stol(word.substr(sign + 1))] = word.substr(0, sign);
      if (word == "refuse=0") throw DeviceError("there is no such device");
    }
  }
  std::optional<KernelResources> compile(const TunePoint& point) override {
    act(point, "compile-");
    return KernelResources{.registers = 40};
  }
  std::string check(const TunePoint& point) override {
    act(point, "");
    return of(point) == "wrong" ? "dc: wrong" : "";
  }
  double run(const TunePoint& point) override { return 10.0 + static_cast<double>(point.at("x")); }
  void forget(const TunePoint&) override {}

 private:
  std::string of(const TunePoint& point) const {
    const auto at = trouble_.find(point.at("x"));
    return at == trouble_.end() ? "" : at->second;
  }
  void act(const TunePoint& point, const std::string& when) const {
    const std::string trouble = of(point);
    if (trouble == when + "hang") std::this_thread::sleep_for(std::chrono::hours(1));
    if (trouble == when + "fault") raise(SIGSEGV);
    if (trouble == when + "exit") _exit(7);
    if (trouble == when + "error") throw DeviceError("needs 300 KiB");
  }
  std::map<std::int64_t, std::string> trouble_;
};

}  // namespace

int main() {
  signal(SIGSEGV, SIG_DFL);
  return runtime::serve_candidates(STDIN_FILENO,
                                   [](const std::string& setup) { return std::make_unique<Troubled>(setup); });
}
