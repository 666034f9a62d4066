#include "runtime/tuner/loss_problem.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>
#include <numeric>

namespace kerf::runtime {

namespace {

constexpr std::int64_t sampled = 64;        // rows, and columns
constexpr double products_of_thread = 4e9;  // of sampled rows with the vocabulary: about a second
// Of the logits: what is each one's own, a bias that falls with the logarithm of the rank, and what a row likes of the
// vocabulary, alike for neighbours in rank. Together they let wider blocks ask for little more, as a trained model's
// do.
constexpr float deviation = 0.5F, slope = 1.6F, liking = 4;
constexpr std::int64_t alike = 1024;

/// splitmix64: numbers by seed and place, so that threads can share the work.
class Random {
 public:
  Random(std::uint64_t stream, std::uint64_t row) : state_(mix(stream * 0x9e3779b97f4a7c15U + mix(row + 1))) {}
  std::uint64_t bits() { return mix(state_ += 0x9e3779b97f4a7c15U); }
  /// Mean 0, deviation 1, within +-3.5.
  float bell() {
    const std::uint64_t b = bits();
    const std::uint64_t sum = (b & 0xffff) + ((b >> 16) & 0xffff) + ((b >> 32) & 0xffff) + (b >> 48);
    return (static_cast<float>(sum) - 131070.0F) * (1.7320508F / 65536);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

 private:
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
  }
  std::uint64_t state_;
};

void store(const std::vector<float>& row, DType dtype, std::byte* to) {
  if (dtype == f32) {
    std::memcpy(to, row.data(), row.size() * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < row.size(); ++i) {
    const std::uint16_t bits = dtype == bf16 ? to_bf16(row[i]) : to_f16(row[i]);
    std::memcpy(to + 2 * i, &bits, 2);
  }
}

void load(const std::byte* from, DType dtype, std::vector<float>& row) {
  if (dtype == f32) {
    std::memcpy(row.data(), from, row.size() * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < row.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, from + 2 * i, 2);
    row[i] = dtype == bf16 ? from_bf16(bits) : from_f16(bits);
  }
}

constexpr std::size_t together = 4;
/// Products of one row with several others: sums of a few hundred in f32, those in double.
std::array<double, together> dots(const float* a, const std::array<const float*, together>& b, std::size_t n) {
  constexpr std::size_t lanes = 8, run = 256;
  std::array<double, together> sum{};
  for (std::size_t begin = 0; begin < n; begin += run) {
    const std::size_t end = std::min(begin + run, n), whole = begin + (end - begin) / lanes * lanes;
    std::array<std::array<float, lanes>, together> part{};
    for (std::size_t i = begin; i < whole; i += lanes)
      for (std::size_t k = 0; k < together; ++k)
        for (std::size_t j = 0; j < lanes; ++j) part[k][j] += a[i + j] * b[k][i + j];
    for (std::size_t k = 0; k < together; ++k) {
      for (std::size_t i = whole; i < end; ++i) part[k][i - whole] += a[i] * b[k][i];
      sum[k] += std::accumulate(part[k].begin(), part[k].end(), 0.0);
    }
  }
  return sum;
}

constexpr std::int64_t at_once = 32;  // tokens whose products are summed in f32
/// sum += g of each token times the token.
void add_products(const std::vector<std::vector<float>>& tokens, const std::array<float, at_once>& g, std::size_t count,
                  double* sum) {
  constexpr std::size_t lanes = 32;
  const std::size_t D = tokens[0].size();
  for (std::size_t d = 0; d < D; d += lanes) {
    const std::size_t width = std::min(lanes, D - d);
    std::array<float, lanes> part{};
    for (std::size_t k = 0; k < count; ++k) {
      const float* token = tokens[k].data() + d;
      const float by = g[k];
      if (width == lanes)
        for (std::size_t j = 0; j < lanes; ++j) part[j] += by * token[j];
      else
        for (std::size_t j = 0; j < width; ++j) part[j] += by * token[j];
    }
    for (std::size_t j = 0; j < width; ++j) sum[d + j] += part[j];
  }
}

/// The tokens by rank: alike ranks lie apart.
std::vector<std::int64_t> scattered(std::int64_t vocabulary) {
  std::int64_t step = vocabulary * 61 / 100 + 1;
  while (std::gcd(step, vocabulary) != 1) ++step;
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(vocabulary));
  for (std::int64_t token = 0; std::int64_t & t : tokens) t = token, token = (token + step) % vocabulary;
  return tokens;
}

class Matrix {
 public:
  Matrix(const std::byte* data, std::int64_t columns, DType dtype)
      : data_(data), row_bytes_(columns * size_of(dtype)), dtype_(dtype) {}
  void row(std::int64_t i, std::vector<float>& to) const { load(data_ + i * row_bytes_, dtype_, to); }

 private:
  const std::byte* data_;
  std::int64_t row_bytes_;
  DType dtype_;
};

}  // namespace

LossProblem make_problem(std::int64_t tokens, std::int64_t hidden, std::int64_t vocabulary, DType dtype,
                         ThreadPool& pool) {
  LossProblem p{.tokens = tokens, .hidden = hidden, .vocabulary = vocabulary, .dtype = dtype};
  p.e.reset(new std::byte[std::max<std::size_t>(p.bytes_of_e(), 1)]);
  p.c.reset(new std::byte[p.bytes_of_c()]);
  p.order = scattered(vocabulary);
  const std::int64_t row_bytes = hidden * size_of(dtype);
  const auto width = static_cast<std::size_t>(hidden);
  const float scale = deviation / std::sqrt(static_cast<float>(hidden));
  // The first coordinate of e is 1 and carries the bias; the next two are a direction that a row likes, if there are
  // more.
  const bool likes = hidden > 3;
  const auto direction = [&](std::vector<float>& row, std::uint64_t stream, std::int64_t of, float length) {
    const double angle = 2 * std::numbers::pi * Random(stream, static_cast<std::uint64_t>(of)).uniform();
    row[1] = length * static_cast<float>(std::cos(angle)), row[2] = length * static_cast<float>(std::sin(angle));
  };
  pool.run(tokens, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> row(width);
    for (std::int64_t n = begin; n < end; ++n) {
      Random random(1, static_cast<std::uint64_t>(n));
      for (float& x : row) x = random.bell();
      row[0] = 1;
      if (likes) direction(row, 4, n, liking);
      store(row, dtype, p.e.get() + n * row_bytes);
    }
  });
  pool.run(vocabulary, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> row(width);
    for (std::int64_t rank = begin; rank < end; ++rank) {
      Random random(2, static_cast<std::uint64_t>(rank));
      for (float& x : row) x = scale * random.bell();
      row[0] = -slope * std::log(static_cast<float>(rank + 1));
      if (likes) direction(row, 5, rank / alike, 1);
      store(row, dtype, p.c.get() + p.order[static_cast<std::size_t>(rank)] * row_bytes);
    }
  });
  p.target.resize(static_cast<std::size_t>(tokens));
  for (std::size_t n = 0; n < p.target.size(); ++n) {
    const double u = Random(3, n).uniform();
    // From a density of rank^-slope.
    const double rest = std::pow(static_cast<double>(vocabulary), 1.0 - slope);
    const auto rank = static_cast<std::int64_t>(std::pow(1 - u * (1 - rest), 1 / (1.0 - slope))) - 1;
    p.target[n] = p.order[static_cast<std::size_t>(std::clamp<std::int64_t>(rank, 0, vocabulary - 1))];
  }
  return p;
}

LossReference reference_rows(const LossProblem& p, ThreadPool& pool) {
  LossReference r;
  const auto D = static_cast<std::size_t>(p.hidden);
  const double each = static_cast<double>(p.vocabulary) * static_cast<double>(p.hidden);
  const auto affordable = std::max<std::int64_t>(8, static_cast<std::int64_t>(products_of_thread * pool.size() / each));
  const std::int64_t count = std::min({sampled, affordable, p.tokens});
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t n = i * p.tokens / count;
    r.rows.push_back(n);
    if (i % 2 == 0) r.columns.push_back(p.target[static_cast<std::size_t>(n)]);
  }
  for (std::int64_t i = 0; i < sampled / 2; ++i)
    r.columns.push_back(static_cast<std::int64_t>(Random(4, static_cast<std::uint64_t>(i)).bits() %
                                                  static_cast<std::uint64_t>(p.vocabulary)));
  std::sort(r.columns.begin(), r.columns.end());
  r.columns.erase(std::unique(r.columns.begin(), r.columns.end()), r.columns.end());

  const auto R = r.rows.size();
  const Matrix e(p.e.get(), p.hidden, p.dtype), c(p.c.get(), p.hidden, p.dtype);
  std::vector<std::vector<float>> rows(R, std::vector<float>(D));
  for (std::size_t i = 0; i < R; ++i) e.row(r.rows[i], rows[i]);
  std::vector<float> z(R * static_cast<std::size_t>(p.vocabulary));
  const auto V = static_cast<std::size_t>(p.vocabulary);
  constexpr std::int64_t four = together;
  pool.run((p.vocabulary + four - 1) / four, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<std::vector<float>> tokens(together, std::vector<float>(D));
    for (std::int64_t first = begin * four; first < std::min(end * four, p.vocabulary); first += four) {
      const auto here = static_cast<std::size_t>(std::min(four, p.vocabulary - first));
      std::array<const float*, together> of{};
      for (std::size_t k = 0; k < together; ++k) {
        if (k < here) c.row(first + static_cast<std::int64_t>(k), tokens[k]);
        of[k] = tokens[k].data();
      }
      for (std::size_t i = 0; i < R; ++i) {
        const auto products = dots(rows[i].data(), of, D);
        for (std::size_t k = 0; k < here; ++k)
          z[i * V + static_cast<std::size_t>(first) + k] = static_cast<float>(products[k]);
      }
    }
  });
  for (std::size_t i = 0; i < R; ++i) {
    const float* of = z.data() + i * V;
    const double largest = *std::max_element(of, of + V);
    double sum = 0;
    for (std::size_t v = 0; v < V; ++v) sum += std::exp(of[v] - largest);
    r.lse.push_back(largest + std::log(sum));
    r.loss.push_back(r.lse.back() - of[p.target[static_cast<std::size_t>(r.rows[i])]]);
  }
  // Each thread sums a share of the vocabulary.
  std::vector<std::vector<double>> sums(static_cast<std::size_t>(pool.size()));
  pool.run((p.vocabulary + at_once - 1) / at_once, [&](std::int64_t begin, std::int64_t end, int thread) {
    std::vector<double>& sum = sums[static_cast<std::size_t>(thread)];
    sum.resize(R * D);
    std::vector<std::vector<float>> tokens(at_once, std::vector<float>(D));
    for (std::int64_t first = begin * at_once; first < std::min(end * at_once, p.vocabulary); first += at_once) {
      const auto here = static_cast<std::size_t>(std::min(at_once, p.vocabulary - first));
      for (std::size_t k = 0; k < here; ++k) c.row(first + static_cast<std::int64_t>(k), tokens[k]);
      for (std::size_t i = 0; i < R; ++i) {
        std::array<float, at_once> g{};
        for (std::size_t k = 0; k < here; ++k) {
          const std::int64_t v = first + static_cast<std::int64_t>(k);
          const bool hit = p.target[static_cast<std::size_t>(r.rows[i])] == v;
          g[k] = static_cast<float>(std::exp(z[i * V + static_cast<std::size_t>(v)] - r.lse[i]) - (hit ? 1 : 0));
        }
        add_products(tokens, g, here, sum.data() + i * D);
      }
    }
  });
  r.de.assign(R * D, 0);
  for (const std::vector<double>& sum : sums)
    for (std::size_t i = 0; i < sum.size(); ++i) r.de[i] += sum[i];
  return r;
}

void expect_columns(LossReference& r, const LossProblem& p, const std::vector<float>& lse, ThreadPool& pool) {
  const auto D = static_cast<std::size_t>(p.hidden), C = r.columns.size();
  const Matrix e(p.e.get(), p.hidden, p.dtype), c(p.c.get(), p.hidden, p.dtype);
  std::vector<std::vector<float>> columns(C, std::vector<float>(D));
  for (std::size_t i = 0; i < C; ++i) c.row(r.columns[i], columns[i]);
  std::vector<std::vector<double>> sums(static_cast<std::size_t>(pool.size()));
  pool.run(p.tokens, [&](std::int64_t begin, std::int64_t end, int thread) {
    std::vector<double>& sum = sums[static_cast<std::size_t>(thread)];
    sum.resize(C * D);
    std::vector<float> row(D);
    for (std::int64_t n = begin; n < end; ++n) {
      e.row(n, row);
      const auto at = static_cast<std::size_t>(n);
      for (std::size_t first = 0; first < C; first += together) {
        std::array<const float*, together> of{};
        for (std::size_t k = 0; k < together; ++k) of[k] = columns[std::min(first + k, C - 1)].data();
        const auto products = dots(row.data(), of, D);
        for (std::size_t i = first; i < std::min(first + together, C); ++i) {
          const double g = std::exp(products[i - first] - lse[at]) - (p.target[at] == r.columns[i]);
          for (std::size_t d = 0; d < D; ++d) sum[i * D + d] += g * row[d];
        }
      }
    }
  });
  r.dc.assign(C * D, 0);
  for (const std::vector<double>& sum : sums)
    for (std::size_t i = 0; i < sum.size(); ++i) r.dc[i] += sum[i];
}

}  // namespace kerf::runtime
