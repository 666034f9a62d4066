#include "tools/support/reference.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>

#include "tools/support/gemm.h"
#include "tools/support/parallel.h"
#include "tools/support/progress.h"

namespace kerf::tools {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Rows of e or c as doubles, one behind the other.
void gather(const void* data, DType dtype, std::int64_t hidden, const std::int64_t* rows, std::int64_t count,
            double* to) {
  for (std::int64_t i = 0; i < count; ++i)
    to_double(element(data, dtype, rows[i] * hidden), dtype, hidden, to + i * hidden);
}

/// What each thread keeps from tile to tile.
struct Workspace {
  std::vector<double> c, z, dc;
  GemmScratch<double> scratch;
};

/// Walks the tiles of the logits of some rows and some columns: columns are cut into chunks that threads take as they
/// come free, and inside a chunk the thread walks all rows.
struct Tiles {
  Tiles(const LossProblem& problem, std::vector<std::int64_t> which_rows, std::vector<std::int64_t> which_columns,
        int thread_count)
      : p(problem), rows(std::move(which_rows)), columns(std::move(which_columns)), threads(thread_count) {
    const auto n = static_cast<std::int64_t>(rows.size()), v = static_cast<std::int64_t>(columns.size());
    block_n = std::clamp<std::int64_t>(n / (2 * threads), 32, 256);
    block_v = std::clamp<std::int64_t>(v / (4 * threads), 24, 192);
    row_blocks = (n + block_n - 1) / block_n;
    chunks = (v + block_v - 1) / block_v;
    e.resize(static_cast<std::size_t>(n * p.hidden));
    in_pieces(n, 64, [&](std::int64_t a, std::int64_t b) {
      gather(p.e, p.dtype, p.hidden, rows.data() + a, b - a, e.data() + a * p.hidden);
    });
  }

  /// on_tile(thread, workspace, n0, height, v0, width) with the logits in workspace.z [height, width]; around the tiles
  /// of one chunk before(workspace, width) and after(workspace, v0, width).
  template <class Before, class OnTile, class After>
  void walk(const char* what, const Before& before, const OnTile& on_tile, const After& after) const {
    Progress progress(what, chunks * row_blocks);
    std::atomic<std::int64_t> next = 0;
    on_threads(threads, [&](int thread) {
      Workspace w;
      for (std::int64_t chunk; (chunk = next.fetch_add(1)) < chunks;) {
        const std::int64_t v0 = chunk * block_v;
        const std::int64_t width = std::min(block_v, static_cast<std::int64_t>(columns.size()) - v0);
        w.c.resize(static_cast<std::size_t>(width * p.hidden));
        gather(p.c, p.dtype, p.hidden, columns.data() + v0, width, w.c.data());
        before(w, width);
        for (std::int64_t i = 0; i < row_blocks; ++i) {
          const std::int64_t n0 = (i + chunk) % row_blocks * block_n;  // threads start at different rows
          const std::int64_t height = std::min(block_n, static_cast<std::int64_t>(rows.size()) - n0);
          w.z.assign(static_cast<std::size_t>(height * width), 0);
          gemm<double>(height, width, p.hidden, {e.data() + n0 * p.hidden, p.hidden, 1}, {w.c.data(), 1, p.hidden},
                       w.z.data(), width, w.scratch);
          on_tile(thread, w, n0, height, v0, width);
          progress.add();
        }
        after(w, v0, width);
      }
    });
  }

  const LossProblem& p;
  std::vector<std::int64_t> rows, columns;
  int threads;
  std::int64_t block_n = 0, block_v = 0, row_blocks = 0, chunks = 0;
  std::vector<double> e;  // [rows, hidden]
};

/// Sum of exp z as exp(max) * sum.
struct Sum {
  double max = -infinity, sum = 0;
  void add(double other_max, double other_sum) {
    if (other_sum == 0) return;
    const double m = std::max(max, other_max);
    sum = sum * std::exp(max - m) + other_sum * std::exp(other_max - m);
    max = m;
  }
};

std::vector<double> row_lse(const LossProblem& p, const std::vector<std::int64_t>& rows, int threads) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(p.vocabulary));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  const Tiles tiles(p, rows, std::move(all), threads);
  std::vector<std::vector<Sum>> sums(static_cast<std::size_t>(threads), std::vector<Sum>(rows.size()));
  tiles.walk(
      "reference: lse", [](Workspace&, std::int64_t) {},
      [&](int thread, Workspace& w, std::int64_t n0, std::int64_t height, std::int64_t, std::int64_t width) {
        for (std::int64_t i = 0; i < height; ++i) {
          const double* z = w.z.data() + i * width;
          const double m = *std::max_element(z, z + width);
          double s = 0;
          for (std::int64_t j = 0; j < width; ++j) s += std::exp(z[j] - m);
          sums[static_cast<std::size_t>(thread)][static_cast<std::size_t>(n0 + i)].add(m, s);
        }
      },
      [](Workspace&, std::int64_t, std::int64_t) {});
  std::vector<double> lse(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Sum total;
    for (const auto& of_thread : sums) total.add(of_thread[i].max, of_thread[i].sum);
    lse[i] = total.max + std::log(total.sum);
  }
  return lse;
}

/// Gradients of the tiles given by rows and columns: de [rows, hidden] is added to, dc_row gets whole rows; either may
/// be left out.
void gradients(const Tiles& tiles, const std::vector<double>& g, const std::vector<double>& lse, double* de,
               const std::function<void(std::int64_t, const double*)>& dc_row) {
  const LossProblem& p = tiles.p;
  const auto guards =
      std::make_unique<std::mutex[]>(static_cast<std::size_t>(std::max<std::int64_t>(tiles.row_blocks, 1)));
  tiles.walk(
      "reference: gradients",
      [&](Workspace& w, std::int64_t width) {
        if (dc_row) w.dc.assign(static_cast<std::size_t>(width * p.hidden), 0);
      },
      [&](int, Workspace& w, std::int64_t n0, std::int64_t height, std::int64_t v0, std::int64_t width) {
        for (std::int64_t i = 0; i < height; ++i) {
          const auto n = static_cast<std::size_t>(tiles.rows[static_cast<std::size_t>(n0 + i)]);
          double* z = w.z.data() + i * width;
          for (std::int64_t j = 0; j < width; ++j) {
            const bool hit = tiles.columns[static_cast<std::size_t>(v0 + j)] == p.target[n];
            z[j] = g[n] * (std::exp(z[j] - lse[n]) - (hit ? 1 : 0));
          }
        }
        if (de != nullptr) {
          const std::lock_guard lock(guards[static_cast<std::size_t>(n0 / tiles.block_n)]);
          gemm<double>(height, p.hidden, width, {w.z.data(), width, 1}, {w.c.data(), p.hidden, 1}, de + n0 * p.hidden,
                       p.hidden, w.scratch);
        }
        if (dc_row)
          gemm<double>(width, p.hidden, height, {w.z.data(), 1, width}, {tiles.e.data() + n0 * p.hidden, p.hidden, 1},
                       w.dc.data(), p.hidden, w.scratch);
      },
      [&](Workspace& w, std::int64_t v0, std::int64_t width) {
        for (std::int64_t j = 0; dc_row && j < width; ++j) dc_row(v0 + j, w.dc.data() + j * p.hidden);
      });
}

}  // namespace

Reference reference_loss(const LossProblem& p, const ReferenceRows& wanted,
                         const std::function<void(std::int64_t, const double*)>& dc_row, int threads) {
  if (threads <= 0) threads = processors();
  const auto tokens = static_cast<std::size_t>(p.tokens);
  Reference r;
  r.lse.assign(tokens, 0);
  r.loss.assign(tokens, 0);
  r.g.assign(tokens, 0);
  for (std::int64_t n = 0; n < p.tokens; ++n)
    if (p.target[n] != p.ignore_index) r.valid.push_back(n);

  // The rows of de that are not ignored, and where each was asked for.
  std::vector<std::int64_t> de_rows, de_at;
  for (std::size_t i = 0; i < wanted.de.size(); ++i) {
    if (p.target[wanted.de[i]] == p.ignore_index) continue;
    de_rows.push_back(wanted.de[i]);
    de_at.push_back(static_cast<std::int64_t>(i));
  }
  if (wanted.lse != nullptr)
    for (const std::int64_t n : r.valid) r.lse[static_cast<std::size_t>(n)] = wanted.lse[n];
  const std::vector<std::int64_t>& own = wanted.lse != nullptr ? de_rows : r.valid;
  const std::vector<double> lse = row_lse(p, own, threads);
  for (std::size_t i = 0; i < own.size(); ++i) r.lse[static_cast<std::size_t>(own[i])] = lse[i];

  in_pieces(static_cast<std::int64_t>(r.valid.size()), 64, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> e(static_cast<std::size_t>(p.hidden)), c(e.size());
    for (std::int64_t i = begin; i < end; ++i) {
      const auto n = r.valid[static_cast<std::size_t>(i)];
      gather(p.e, p.dtype, p.hidden, &n, 1, e.data());
      gather(p.c, p.dtype, p.hidden, &p.target[n], 1, c.data());
      const auto row = static_cast<std::size_t>(n);
      r.loss[row] = r.lse[row] - std::inner_product(e.begin(), e.end(), c.begin(), 0.0);
      r.g[row] = p.reduction == Reduction::none   ? p.grad_loss[row]
                 : p.reduction == Reduction::mean ? p.grad_loss[0] / static_cast<double>(r.valid.size())
                                                  : p.grad_loss[0];
    }
  });
  r.reduced = std::accumulate(r.loss.begin(), r.loss.end(), 0.0);
  if (p.reduction == Reduction::mean)
    r.reduced /= static_cast<double>(r.valid.size());  // 0 / 0 is NaN, as it should be

  std::vector<double> de(de_rows.size() * static_cast<std::size_t>(p.hidden), 0);
  std::vector<std::int64_t> all(static_cast<std::size_t>(p.vocabulary));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  if (de_rows == r.valid && wanted.dc == all) {  // everything: the logits are shared
    gradients(Tiles(p, r.valid, all, threads), r.g, r.lse, de.data(), dc_row);
  } else {
    gradients(Tiles(p, de_rows, std::move(all), threads), r.g, r.lse, de.data(), {});
    gradients(Tiles(p, r.valid, wanted.dc, threads), r.g, r.lse, nullptr, dc_row);
  }
  r.de.assign(wanted.de.size() * static_cast<std::size_t>(p.hidden), 0);
  for (std::size_t i = 0; i < de_at.size(); ++i)
    std::copy_n(de.data() + static_cast<std::int64_t>(i) * p.hidden, p.hidden, r.de.data() + de_at[i] * p.hidden);
  return r;
}

}  // namespace kerf::tools
