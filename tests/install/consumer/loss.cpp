#include <kerf/kerf.h>

#include <vector>

double mean_loss(const std::vector<float>& e, const std::vector<float>& c, const std::vector<std::int32_t>& target,
                 std::int64_t hidden) {
  const auto tokens = static_cast<std::int64_t>(target.size()), vocabulary = static_cast<std::int64_t>(c.size()) / hidden;
  return kerf::linear_cross_entropy(kerf::TensorRef(e.data(), {tokens, hidden}),
                                    kerf::TensorRef(c.data(), {vocabulary, hidden}),
                                    kerf::TensorRef(target.data(), kerf::i32, {tokens}))
      .loss.at(0);
}
