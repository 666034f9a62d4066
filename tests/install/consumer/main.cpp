// A program that knows Kerf only as installed. With an argument it first loads that LLVM into the process, for all to see,
// and uses it: Kerf's own must not notice. Exits 0 when the loss is that of plain loops and errors arrive as what they are.
#include <dlfcn.h>
#include <kerf/kerf.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

double mean_loss(const std::vector<float>& e, const std::vector<float>& c, const std::vector<std::int32_t>& target,
                 std::int64_t hidden);

int main(int argc, char** argv) {
  if (argc > 1) {
    void* other = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    if (!other) return std::fprintf(stderr, "%s\n", dlerror()), 1;
    using Create = void* (*)();
    using Dispose = void (*)(void*);
    auto create = reinterpret_cast<Create>(dlsym(other, "LLVMContextCreate"));
    auto dispose = reinterpret_cast<Dispose>(dlsym(other, "LLVMContextDispose"));
    if (!create || !dispose) return std::fprintf(stderr, "%s is no LLVM\n", argv[1]), 1;
    dispose(create());
  }

  constexpr std::int64_t hidden = 19, tokens = 37, vocabulary = 211;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> e(tokens * hidden), c(vocabulary * hidden);
  for (float& x : e) x = normal(random);
  for (float& x : c) x = normal(random);
  std::vector<std::int32_t> target(tokens);
  for (std::int32_t& t : target) t = static_cast<std::int32_t>(random() % vocabulary);

  double expected = 0;
  for (std::int64_t n = 0; n < tokens; ++n) {
    double sum = 0, at_target = 0;
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      double z = 0;
      for (std::int64_t d = 0; d < hidden; ++d) z += double(e[n * hidden + d]) * c[v * hidden + d];
      sum += std::exp(z);
      if (v == target[n]) at_target = z;
    }
    expected += (std::log(sum) - at_target) / tokens;
  }
  const double loss = mean_loss(e, c, target, hidden);
  std::printf("loss %.7f, plain loops %.7f\n", loss, expected);
  if (!(std::abs(loss - expected) <= 1e-5 * expected)) return 1;

  target[3] = vocabulary;
  try {
    mean_loss(e, c, target, hidden);
  } catch (const kerf::UsageError& error) {
    std::printf("as it should: %s\n", error.what());
    return 0;
  }
  std::fprintf(stderr, "a label outside the vocabulary was accepted\n");
  return 1;
}
