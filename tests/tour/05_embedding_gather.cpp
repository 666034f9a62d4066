// Fifth walk: a tile of indices as a subscript. An index outside its axis loads the fill and stores nothing, so a label
// like -100 needs no branch.
#include "tests/support/run.h"

using namespace kerf;
using namespace kerf::test;

namespace {

std::vector<double> reference(const Array& table, const Array& token) {
  const std::int64_t N = token.size(), V = table.shape()[0], D = table.shape()[1];
  std::vector<double> y;
  for (std::int64_t n = 0; n < N; ++n) {
    const auto v = static_cast<std::int64_t>(token[n]);
    for (std::int64_t d = 0; d < D; ++d) y.push_back(v >= 0 && v < V ? table[v * D + d] : 0);
  }
  return y;
}

Program embedding_gather(DType dtype, DType index) {
  ProgramBuilder p("embedding_gather");
  Axis N = p.axis("N"), V = p.axis("V"), D = p.axis("D");
  Tensor token = p.input("token", index, {N}), table = p.input("table", dtype, {V, D});
  Tensor y = p.output("y", dtype, {N, D});
  Block n = p.parallel(N, 16), d = p.parallel(D, 32);
  store(y, n, d, load(table, load(token, n), d));
  return p.finish();
}

/// The way back: y[n] goes to row token[n] of the table.
Program embedding_scatter() {
  ProgramBuilder p("embedding_scatter");
  Axis N = p.axis("N"), V = p.axis("V"), D = p.axis("D");
  Tensor token = p.input("token", i64, {N}), y = p.input("y", f32, {N, D}), table = p.inout("table", f32, {V, D});
  Block n = p.parallel(N, 16), d = p.parallel(D, 32);
  store(table, load(token, n, fill(-1)), d, load(y, n, d));
  return p.finish();
}

}  // namespace

TEST_CASE("embedding_gather: rows of a table in the order of the tokens, exactly, zeros for tokens outside it") {
  Random random(5);
  const std::int64_t V = 50;
  for (DType dtype : {f32, bf16, f16, i64})
    for (DType index : {i32, i64})
      for (std::int64_t N : {1, 16, 37})
        for (std::int64_t D : {1, 32, 45}) {
          Array token = integers(random, index, {N}, 0, V - 1);
          Array table = dtype == i64 ? integers(random, i64, {V, D}, -9, 9) : normal(random, dtype, {V, D}, 1, 3);
          Array y(dtype, {N, D});
          token.set(N / 2, -100);
          if (N > 1) token.set(0, static_cast<double>(V));
          on_each_backend(embedding_gather(dtype, index), {{{"token", &token}, {"table", &table}, {"y", &y}}},
                          [&] { CHECK(y.values() == reference(table, token)); });
        }
}

TEST_CASE("embedding_scatter: writes the rows of the tokens and no others") {
  Random random(6);
  const std::int64_t N = 21, V = 40, D = 45;
  Array token(i64, {N}), y = normal(random, f32, {N, D}), table = normal(random, f32, {V, D});
  for (std::int64_t n = 0; n < N; ++n) token.set(n, static_cast<double>((7 * n + 3) % V));  // 7 and V share no factor
  token.set(4, -100);
  std::vector<double> expected = table.values();
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t d = 0; d < D; ++d)
      if (n != 4) expected[static_cast<std::size_t>((7 * n + 3) % V * D + d)] = y[n * D + d];
  on_each_backend(embedding_scatter(), {{{"token", &token}, {"y", &y}, {"table", &table}}},
                  [&] { CHECK(table.values() == expected); });
}
