#include "tools/support/lm_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "kerf/error.h"
#include "tools/support/gemm.h"
#include "tools/support/npy.h"
#include "tools/support/problem.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

namespace fs = std::filesystem;

/// The first of the names that stands in the folder, whole or in numbered parts.
std::vector<std::string> find(const std::string& folder, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const std::string stem = (fs::path(folder) / name).string();
    std::error_code error;
    if (fs::exists(stem + ".npy", error)) return {stem + ".npy"};
    std::vector<std::string> parts;
    while (fs::exists(fmt::format("{}_{}.npy", stem, parts.size()), error))
      parts.push_back(fmt::format("{}_{}.npy", stem, parts.size()));
    if (!parts.empty()) return parts;
  }
  throw UsageError(fmt::format("{}: holds no {}.npy; a data folder has hidden states, a classifier and targets", folder,
                               fmt::join(names, ".npy or ")));
}

void require_rank(const NpyArray& a, std::size_t rank, const std::string& path, const char* meaning) {
  if (a.shape.size() != rank) throw UsageError(fmt::format("{}: is {}; expected {}", path, a.describe(), meaning));
}

/// A matrix in any of the float types or int8, appended to `to` as float.
std::int64_t append_matrix(const std::string& path, std::int64_t& columns, std::vector<float>& to) {
  const NpyArray a = read_npy(path);
  require_rank(a, 2, path, "two axes, [rows, hidden]");
  if (columns == 0) columns = a.shape[1];
  if (a.shape[1] != columns || columns < 1)
    throw UsageError(fmt::format("{}: is {}; the other arrays have hidden size {}", path, a.describe(), columns));
  const auto n = static_cast<std::size_t>(a.elements());
  const std::size_t old = to.size();
  to.resize(old + n);
  const std::byte* bytes = a.bytes.data();
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t half = 0;
    switch (a.type) {
      case NpyType::i1: to[old + i] = static_cast<float>(static_cast<std::int8_t>(bytes[i])); break;
      case NpyType::u2: std::memcpy(&half, bytes + 2 * i, 2), to[old + i] = from_bf16(half); break;
      case NpyType::f2: std::memcpy(&half, bytes + 2 * i, 2), to[old + i] = from_f16(half); break;
      case NpyType::f4: std::memcpy(&to[old + i], bytes + 4 * i, 4); break;
      default:
        throw UsageError(
            fmt::format("{}: is {}; expected int8, uint16 (bits of bf16), float16 or float32", path, a.describe()));
    }
  }
  return a.shape[0];
}

void require_finite(const std::vector<float>& x, std::int64_t columns, const char* what, const std::string& folder) {
  const auto bad = std::find_if(x.begin(), x.end(), [](float v) { return !std::isfinite(v); });
  if (bad != x.end())
    throw UsageError(fmt::format("{}: row {} of the {} holds {}", folder, (bad - x.begin()) / columns, what, *bad));
}

}  // namespace

LmData read_lm_data(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw UsageError(fmt::format("{}: no such folder", folder));
  LmData data;
  for (const std::string& path : find(folder, {"hidden_bf16", "hidden_f32", "hidden_f16"}))
    data.tokens += append_matrix(path, data.hidden, data.e);
  const auto classifier = find(folder, {"classifier_i8", "classifier_bf16", "classifier_f32", "classifier_f16"});
  for (const std::string& path : classifier) data.vocabulary += append_matrix(path, data.hidden, data.c);
  if (data.tokens < 1 || data.vocabulary < 1)
    throw UsageError(fmt::format("{}: the hidden states or the classifier are empty", folder));
  if (classifier[0].find("classifier_i8") != std::string::npos) {
    const std::string path = find(folder, {"classifier_scale_f32"})[0];
    const NpyArray scale = read_npy(path);
    require_rank(scale, 1, path, "one axis, [vocabulary]");
    if (scale.type != NpyType::f4 || scale.elements() != data.vocabulary)
      throw UsageError(fmt::format("{}: is {}; expected float32 [{}], one for each row of the classifier", path,
                                   scale.describe(), data.vocabulary));
    for (std::size_t v = 0; v < static_cast<std::size_t>(data.vocabulary); ++v) {
      float s = 0;
      std::memcpy(&s, scale.bytes.data() + 4 * v, 4);
      float* row = data.c.data() + static_cast<std::int64_t>(v) * data.hidden;
      std::transform(row, row + data.hidden, row, [s](float q) { return q * s; });
    }
  }
  require_finite(data.e, data.hidden, "hidden states", folder);
  require_finite(data.c, data.hidden, "classifier", folder);

  const std::string path = find(folder, {"targets_i32", "targets_i64"})[0];
  const NpyArray t = read_npy(path);
  const std::string of_hidden = fmt::format("[{}], one for each hidden state", data.tokens);
  data.target = integers(t, path, of_hidden.c_str());
  if (std::ssize(data.target) != data.tokens)
    throw UsageError(fmt::format("{}: is {}; expected int32 or int64 {}", path, t.describe(), of_hidden));
  for (std::size_t n = 0; n < data.target.size(); ++n)
    if (data.target[n] < 0 || data.target[n] >= data.vocabulary)
      throw UsageError(fmt::format("{}: target {} of row {} is outside the vocabulary of {}", path, data.target[n], n,
                                   data.vocabulary));
  const fs::path counts = fs::path(folder) / "token_counts_i64.npy";
  if (fs::exists(counts, error)) {
    const NpyArray array = read_npy(counts.string());
    const std::string of_token = fmt::format("[{}], one for each token", data.vocabulary);
    data.count = integers(array, counts.string(), of_token.c_str());
    if (std::ssize(data.count) != data.vocabulary)
      throw UsageError(
          fmt::format("{}: is {}; expected int32 or int64 {}", counts.string(), array.describe(), of_token));
  }
  return data;
}

std::vector<float> orthonormal(std::int64_t rows, std::int64_t columns) {
  // Gram-Schmidt, twice, over random columns, each stored as a run.
  std::vector<double> q(static_cast<std::size_t>(rows * columns));
  Random random(20240817, 0);
  for (double& x : q) x = random.bell();
  for (std::int64_t j = 0; j < columns; ++j) {
    double* column = q.data() + j * rows;
    for (std::int64_t i = 0; i < 2 * j; ++i) {
      const double* other = q.data() + i % j * rows;
      double along = 0;
      for (std::int64_t d = 0; d < rows; ++d) along += column[d] * other[d];
      for (std::int64_t d = 0; d < rows; ++d) column[d] -= along * other[d];
    }
    double norm = 0;
    for (std::int64_t d = 0; d < rows; ++d) norm += column[d] * column[d];
    for (std::int64_t d = 0; d < rows; ++d) column[d] /= std::sqrt(norm);
  }
  std::vector<float> out(q.size());
  for (std::int64_t d = 0; d < rows; ++d)
    for (std::int64_t j = 0; j < columns; ++j)
      out[static_cast<std::size_t>(d * columns + j)] = static_cast<float>(q[static_cast<std::size_t>(j * rows + d)]);
  return out;
}

Problem problem_from_data(const ProblemSpec& s, const std::string& folder) {
  LmData data = read_lm_data(folder);
  if (s.hidden < data.hidden)
    throw UsageError(fmt::format("{}: has hidden size {}, D = {} was asked for; D can only be lifted, to {} or more",
                                 folder, data.hidden, s.hidden, data.hidden));
  if (s.vocabulary > data.vocabulary)
    throw UsageError(fmt::format("{}: has a vocabulary of {}, V = {} was asked for; V can only be cut", folder,
                                 data.vocabulary, s.vocabulary));
  std::vector<std::int64_t> rows;
  for (std::int64_t n = 0; n < data.tokens; ++n)
    if (data.target[static_cast<std::size_t>(n)] < s.vocabulary) rows.push_back(n);
  if (rows.empty())
    throw UsageError(fmt::format("{}: no row has its target among the first {} tokens", folder, s.vocabulary));

  Problem p;
  p.spec = s;
  p.source = folder;
  const auto bytes = [&](std::int64_t count) { return static_cast<std::size_t>(count * s.hidden * size_of(s.dtype)); };
  p.e = Buffer(bytes(s.tokens));
  p.c = Buffer(bytes(s.vocabulary));
  p.target.resize(static_cast<std::size_t>(s.tokens));

  const std::vector<float> q = orthonormal(s.hidden, data.hidden);
  Progress progress("lifting data", s.tokens + s.vocabulary);
  // out = x q^T, rounded: inner products, hence logits, stay what they were.
  const auto lift = [&](const float* x, std::int64_t count, std::byte* out) {
    std::vector<float> lifted(static_cast<std::size_t>(count * s.hidden), 0);
    GemmScratch<float> scratch;
    if (s.hidden == data.hidden)
      std::copy_n(x, count * s.hidden, lifted.data());
    else
      gemm<float>(count, s.hidden, data.hidden, {x, data.hidden, 1}, {q.data(), 1, data.hidden}, lifted.data(),
                  s.hidden, scratch);
    from_float(lifted.data(), count * s.hidden, s.dtype, out);
    progress.add(count);
  };
  in_pieces(s.vocabulary, 256, [&](std::int64_t begin, std::int64_t end) {
    lift(data.c.data() + begin * data.hidden, end - begin, element(p.c.data(), s.dtype, begin * s.hidden));
  });
  // Rows that come a second time get noise of two percent, so that no two are equal.
  const auto distinct = static_cast<std::int64_t>(rows.size());
  in_pieces(s.tokens, 64, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> block(static_cast<std::size_t>((end - begin) * data.hidden));
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t from = rows[static_cast<std::size_t>(n % distinct)];
      p.target[static_cast<std::size_t>(n)] = data.target[static_cast<std::size_t>(from)];
      float* row = block.data() + (n - begin) * data.hidden;
      std::copy_n(data.e.data() + from * data.hidden, data.hidden, row);
      if (n < distinct) continue;
      double square = 0;
      for (std::int64_t d = 0; d < data.hidden; ++d) square += row[d] * row[d];
      const auto noise = static_cast<float>(0.02 * std::sqrt(square / static_cast<double>(data.hidden)));
      Random random(s.seed, static_cast<std::uint64_t>(n));
      for (std::int64_t d = 0; d < data.hidden; ++d) row[d] += noise * random.bell();
    }
    lift(block.data(), end - begin, element(p.e.data(), s.dtype, begin * s.hidden));
  });
  finish_problem(p);
  return p;
}

}  // namespace kerf::tools
