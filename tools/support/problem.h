// A loss to compute: random with the shape of a real softmax, or taken from a trained model's data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kerf/loss.h"
#include "tools/support/parallel.h"
#include "tools/support/reference.h"

namespace kerf::tools {

/// Numbers from a seed and a stream (one for each row of each array), so that threads can share the work: splitmix64.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : state_(mix(seed * 0x9e3779b97f4a7c15u + mix(stream + 1))) {}
  std::uint64_t bits() { return mix(state_ += 0x9e3779b97f4a7c15u); }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(uniform() * static_cast<double>(n)); }
  double normal();
  /// Mean 0, deviation 1, within +-3.5: the sum of four uniform numbers. For arrays, where it is cheap.
  float bell() {
    const std::uint64_t b = bits();
    const std::uint32_t sum =
        static_cast<std::uint32_t>((b & 0xffff) + ((b >> 16) & 0xffff) + ((b >> 32) & 0xffff) + (b >> 48));
    return (static_cast<float>(sum) - 131070.0f) * (1.7320508f / 65536);
  }

 private:
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::uint64_t state_;
};

struct ProblemSpec {
  std::int64_t tokens = 0, hidden = 0, vocabulary = 0;
  DType dtype = DType::f32;
  Reduction reduction = Reduction::mean;
  std::uint64_t seed = 0;
  double ignored = 0.05;  // share of the rows
};

/// Inputs, owned.
struct Problem {
  ProblemSpec spec;
  static constexpr std::int64_t ignore_index = -100;
  Buffer e, c;  // dense, in spec.dtype; ignored rows of e are NaN, since they must not matter
  std::vector<std::int64_t> target;
  std::vector<float> grad_loss;  // one a row for `none`, else one
  std::int64_t valid = 0;        // rows not ignored
  std::string source;            // "random, seed 0"

  LossProblem view() const;
};

/// Throws UsageError for sizes that make no sense, DeviceError when memory is short; `copies` counts what will be held
/// of e and c in all.
void check_problem_size(const ProblemSpec& spec, double copies);

/// Logits of deviation 2.5; a tenth of the rows peaky, their e close to their target's row of c; Zipf targets over a
/// shuffled vocabulary; grad_loss N(0, 1) for `none`.
Problem random_problem(const ProblemSpec& spec);

/// The data of a trained model (see lm_data.h), lifted to the hidden size asked for.
Problem problem_from_data(const ProblemSpec& spec, const std::string& folder);

/// What both share: ignores a share of the rows, fills them with NaN, makes grad_loss. mean and sum have grad_loss 1;
/// but mean in f16 gets a power of two near the number of valid rows, as mixed-precision training does, since gradients
/// divided by that number would mostly be subnormal halves.
void finish_problem(Problem& problem);

/// "1000,333,50257" as tokens, hidden, vocabulary.
void parse_shape(const std::string& text, ProblemSpec& spec);
Reduction reduction_from_name(std::string_view name);

}  // namespace kerf::tools
