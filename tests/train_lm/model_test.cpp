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

namespace {

/// A text of its own kind: the next token mostly follows from the last one, and low ids are far more frequent.
struct Chain {
  static constexpr std::int64_t vocabulary = 2048;
  std::vector<std::int32_t> contexts, targets;
  Chain(std::uint64_t seed, std::int64_t count) {
    std::mt19937_64 random(seed);
    const auto rare = [&] {  // Zipf's law, nearly
      return static_cast<std::int32_t>(std::exp(std::log(vocabulary) * 0x1p-64 * static_cast<double>(random()))) - 1;
    };
    for (std::int64_t n = 0; n < count; ++n) {
      const std::int32_t last = rare();
      contexts.insert(contexts.end(), {rare(), last});
      targets.push_back(random() % 32 == 0 ? rare() : (last * 5 + 3) % 256);
    }
  }
};

struct Trained {
  double held_out = 0, kept = 0;
};

Trained train(const LossFilter& filter) {
  constexpr std::int64_t steps = 450, batch = 256;
  const Chain data(11, steps * batch / 3), held_out(12, 2048);
  Model model(Chain::vocabulary, 32, 2, false, 2, 13, filter);
  Trained t;
  for (std::int64_t step = 0; step < steps; ++step) {  // three epochs
    const std::int64_t at = step * batch % (std::ssize(data.targets) - batch);
    model.train(&data.contexts[2 * at], &data.targets[at], batch, 5e-3);
    t.kept += model.filter_report().kept_share / steps;
    if (step % 50 == 49) model.refresh_order();
  }
  t.held_out = model.forward(held_out.contexts.data(), held_out.targets.data(), std::ssize(held_out.targets));
  return t;
}

}  // namespace

TEST_CASE("train_lm: a filtered backward that drops tiles trains to the loss of the exact one, within 0.2 %") {
  const Trained exact = train({});
  CHECK(exact.kept == doctest::Approx(1));
  CHECK(exact.held_out < 0.7 * std::log(Chain::vocabulary));
  for (const kerf::Order order : {kerf::Order::automatic, kerf::Order::identity}) {
    const Trained filtered = train({.rule = kerf::Filter::mass, .threshold = 0x1p-7, .order = order});
    CAPTURE(filtered.kept);
    CHECK(filtered.kept < 0.9);
    CHECK(filtered.held_out == doctest::Approx(exact.held_out).epsilon(2e-3));
    CHECK(filtered.held_out != exact.held_out);
  }
}
