// Hidden states, classifier and targets of a trained language model, as .npy files in one folder:
//
//   hidden_bf16.npy  (uint16 bits) or hidden_f32.npy             [N0, D0]
//   classifier_i8.npy with classifier_scale_f32.npy [V0], or classifier_bf16.npy, or classifier_f32.npy   [V0, D0];
//     may be cut into classifier_i8_0.npy, classifier_i8_1.npy, ... by rows
//   targets_i32.npy or targets_i64.npy                           [N0]
//   token_counts_i64.npy, where there is one                     [V0]: how often each token comes in a larger text
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kerf::tools {

struct LmData {
  std::int64_t tokens = 0, hidden = 0, vocabulary = 0;
  std::vector<float> e, c;           // [tokens, hidden], [vocabulary, hidden]
  std::vector<std::int64_t> target;  // in [0, vocabulary)
  std::vector<std::int64_t> count;   // [vocabulary], or empty
};

/// Throws UsageError naming the file that is missing, malformed or disagrees with another.
LmData read_lm_data(const std::string& folder);

/// Columns of a random orthonormal matrix [rows, columns], rows >= columns; always the same one for the same sizes.
std::vector<float> orthonormal(std::int64_t rows, std::int64_t columns);

}  // namespace kerf::tools
