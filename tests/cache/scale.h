// Small programs, told apart by a number, for tests of the cache.
#pragma once

#include <memory>
#include <vector>

#include "kerf/cache.h"
#include "kerf/kernel.h"
#include "lib/passes/passes.h"
#include "runtime/cache/key.h"

namespace kerf::test {

/// y[N] = number * x[N].
inline Program scale(int number) {
  ProgramBuilder p("scale");
  const Axis N = p.axis("N");
  const Tensor x = p.input("x", f32, {N}), y = p.output("y", f32, {N});
  const Block n = p.parallel(N, 64);
  store(y, n, load(x, n) * number);
  return p.finish();
}

inline cache::Key key_of_scale(int number) {
  return cache::key_of(passes::pipeline(scale(number).ir(), true), Target::host(), {});
}

/// Compiled through the cache, it runs and gives what it should.
inline bool scales(int number, const std::shared_ptr<CodeCache>& cache) {
  const Kernel kernel = compile(scale(number), Target::host(), {}, {}, cache);
  std::vector<float> x(100), y(100);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  ThreadPool pool(1);
  kernel.launch({{{"x", TensorRef(x.data(), {100})}, {"y", TensorRef(y.data(), {100})}}}, pool);
  for (std::size_t i = 0; i < x.size(); ++i)
    if (y[i] != static_cast<float>(number) * x[i]) return false;
  return true;
}

inline std::shared_ptr<CodeCache> cache_in(const std::string& folder, std::vector<std::string> read_only = {}) {
  return std::make_shared<CodeCache>(CacheOptions{.folder = folder, .read_only = std::move(read_only)});
}
inline std::shared_ptr<CodeCache> no_folder() { return cache_in(""); }

}  // namespace kerf::test
