// A loss to measure, and what some of its rows and columns must come out as.
//
// Logits are random with deviation 2 on top of a bias that falls with the logarithm of the token's rank, as Zipf found
// words to do, and alike ranks lie apart, as in a tokenizer's vocabulary. So the mass of a row lies in few blocks once
// the vocabulary is put in order, which is what decides about a filtered backward's time: with 256000 tokens it keeps a
// fifth of its tiles, as of a trained model's softmax. Targets are drawn by the same ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kerf/kernel.h"
#include "kerf/tensor.h"

namespace kerf::runtime {

struct LossProblem {
  std::int64_t tokens = 0, hidden = 0, vocabulary = 0;
  DType dtype = DType::f32;
  std::unique_ptr<std::byte[]> e = {}, c = {};  // [tokens, hidden], [vocabulary, hidden]
  std::vector<std::int64_t> target = {};        // [tokens]
  std::vector<std::int64_t> order = {};         // tokens of the vocabulary by rank, as Order::automatic finds them

  std::size_t bytes_of_e() const { return static_cast<std::size_t>(tokens * hidden * size_of(dtype)); }
  std::size_t bytes_of_c() const { return static_cast<std::size_t>(vocabulary * hidden * size_of(dtype)); }
};
LossProblem make_problem(std::int64_t tokens, std::int64_t hidden, std::int64_t vocabulary, DType dtype,
                         ThreadPool& pool);

/// Plain sums over some rows and columns, by loops that share nothing with the programs of the loss. The upstream
/// gradient of every row is 1.
struct LossReference {
  std::vector<std::int64_t> rows, columns;  // rising
  std::vector<double> lse, loss;            // of the rows
  std::vector<double> de;                   // [rows, hidden]
  std::vector<double> dc;                   // [columns, hidden]; empty until expect_columns
};
LossReference reference_rows(const LossProblem& problem, ThreadPool& pool);
/// dc of the columns, which follow from the lse of all rows.
void expect_columns(LossReference& reference, const LossProblem& problem, const std::vector<float>& lse,
                    ThreadPool& pool);

}  // namespace kerf::runtime
