#include "tools/train_lm/model.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

using namespace train_lm;

namespace {

constexpr std::int64_t vocabulary = 311, hidden = 20, context = 3, rows = 70;

struct Data {
  std::vector<std::int32_t> contexts, targets;
  explicit Data(std::uint64_t seed, std::int64_t count = rows) {
    std::mt19937_64 random(seed);
    for (std::int64_t i = 0; i < count * context; ++i)
      contexts.push_back(static_cast<std::int32_t>(random() % vocabulary));
    // A rule that can be learned: the target is a function of the last token.
    for (std::int64_t n = 0; n < count; ++n) targets.push_back((contexts[n * context + 2] * 7 + 5) % vocabulary);
  }
};

/// Loss of the model's own parameters in plain loops.
double reference(Model& model, const Data& data) {
  const Parameter &table = model.table(), &c = model.classes(), &w = model.w();
  double total = 0;
  for (std::int64_t n = 0; n < rows; ++n) {
    std::vector<double> h(hidden), z(vocabulary);
    for (std::int64_t d = 0; d < hidden; ++d) {
      h[d] = w.value[context * hidden * hidden + d];
      for (std::int64_t f = 0; f < context * hidden; ++f)
        h[d] += double(table.value[data.contexts[n * context + f / hidden] * hidden + f % hidden]) *
                w.value[f * hidden + d];
      h[d] = std::tanh(h[d]);
    }
    double sum = 0;
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      for (std::int64_t d = 0; d < hidden; ++d) z[v] += h[d] * c.value[v * hidden + d];
      sum += std::exp(z[v]);
    }
    total += std::log(sum) - z[data.targets[n]];
  }
  return total / rows;
}

}  // namespace

TEST_CASE("train_lm: the loss is that of plain loops and starts near log V") {
  for (bool tied : {false, true}) {
    Model model(vocabulary, hidden, context, tied, 2, 1);
    const Data data(2);
    const double loss = model.forward(data.contexts.data(), data.targets.data(), rows);
    CHECK(loss == doctest::Approx(reference(model, data)).epsilon(1e-6));
    CHECK(loss == doctest::Approx(std::log(vocabulary)).epsilon(0.02));
  }
}

TEST_CASE("train_lm: gradients match differences of the plain loops, tied and not") {
  for (bool tied : {false, true}) {
    CAPTURE(tied);
    Model model(vocabulary, hidden, context, tied, 2, 4);
    const Data data(5);
    for (int i = 0; i < 20; ++i) model.train(data.contexts.data(), data.targets.data(), rows, 1e-2);  // away from 0
    model.gradients(data.contexts.data(), data.targets.data(), rows);

    std::vector<Parameter*> parameters = {&model.table(), &model.w()};
    if (!tied) parameters.push_back(&model.classes());
    std::mt19937_64 random(6);
    std::normal_distribution<double> normal;
    for (Parameter* p : parameters) {  // along a random direction: every element counts
      std::vector<double> direction(p->value.size());
      for (double& x : direction) x = normal(random);
      double expected = 0;
      for (std::size_t i = 0; i < direction.size(); ++i) expected += direction[i] * p->grad[i];
      const std::vector<float> kept = p->value;
      const auto at = [&](double step) {
        for (std::size_t i = 0; i < direction.size(); ++i)
          p->value[i] = static_cast<float>(kept[i] + step * direction[i]);
        return reference(model, data);
      };
      const double step = 1e-3, measured = (at(step) - at(-step)) / (2 * step);
      p->value = kept;
      CHECK(expected == doctest::Approx(measured).epsilon(2e-3));
    }
  }
}

TEST_CASE("train_lm: 1 and 3 threads train to the same bits, and the rule is learned") {
  Model one(vocabulary, hidden, context, true, 1, 9), three(vocabulary, hidden, context, true, 3, 9);
  double loss = 0;
  for (int step = 0; step < 300; ++step) {
    const Data data(static_cast<std::uint64_t>(step), 256);
    loss = one.train(data.contexts.data(), data.targets.data(), 256, 1e-2);
    CHECK(three.train(data.contexts.data(), data.targets.data(), 256, 1e-2) == loss);
  }
  CHECK(one.table().value == three.table().value);
  CHECK(loss < 0.5 * std::log(vocabulary));
}
