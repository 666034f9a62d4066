// The model, written as a user of Kerf would: the classifier and its loss are a Plan, every other layer is a tile
// program.
//
//   x[n] = the rows of `table` for the k tokens before position n, and a 1      (so the last row of w is the bias)
//   h = tanh(x w),   loss = linear cross-entropy of h and the classifier
#pragma once

#include <kerf/kerf.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace train_lm {

using kerf::Axis, kerf::Block, kerf::Tensor, kerf::TensorRef, kerf::Tile;

/// h = tanh(x w)
inline kerf::Program hidden_layer(std::int64_t features, std::int64_t hidden) {
  kerf::ProgramBuilder p("hidden_layer");
  Axis N = p.axis("N"), F = p.axis("F", features), D = p.axis("D", hidden);
  Tensor x = p.input("x", kerf::f32, {N, F}), w = p.input("w", kerf::f32, {F, D}), h = p.output("h", kerf::f32, {N, D});
  Block n = p.parallel(N, 64), d = p.parallel(D, 64);
  store(h, n, d,
        tanh(p.loop(F, 64, zeros(n, d), [&](Block f, Tile sum) { return sum + dot(load(x, n, f), load(w, f, d)); })));
  return p.finish();
}

/// dx = (dh (1 - h^2)) w^T
inline kerf::Program hidden_grad_x(std::int64_t features, std::int64_t hidden) {
  kerf::ProgramBuilder p("hidden_grad_x");
  Axis N = p.axis("N"), F = p.axis("F", features), D = p.axis("D", hidden);
  Tensor h = p.input("h", kerf::f32, {N, D}), dh = p.input("dh", kerf::f32, {N, D});
  Tensor w = p.input("w", kerf::f32, {F, D}), dx = p.output("dx", kerf::f32, {N, F});
  Block n = p.parallel(N, 64), f = p.parallel(F, 64);
  store(dx, n, f, p.loop(D, 64, zeros(n, f), [&](Block d, Tile sum) {
    Tile y = load(h, n, d);
    return sum + dot(load(dh, n, d) * (1 - y * y), load(w, f, d));
  }));
  return p.finish();
}

/// dw = x^T (dh (1 - h^2))
inline kerf::Program hidden_grad_w(std::int64_t features, std::int64_t hidden) {
  kerf::ProgramBuilder p("hidden_grad_w");
  Axis N = p.axis("N"), F = p.axis("F", features), D = p.axis("D", hidden);
  Tensor x = p.input("x", kerf::f32, {N, F}), h = p.input("h", kerf::f32, {N, D});
  Tensor dh = p.input("dh", kerf::f32, {N, D}), dw = p.output("dw", kerf::f32, {F, D});
  Block f = p.parallel(F, 64), d = p.parallel(D, 64);
  store(dw, f, d, p.loop(N, 64, zeros(f, d), [&](Block n, Tile sum) {
    Tile y = load(h, n, d);
    return sum + dot(load(x, n, f), load(dh, n, d) * (1 - y * y));
  }));
  return p.finish();
}

/// One step of Adam; `rate` is the learning rate with the bias corrections in it.
/// Source: Kingma and Ba, Adam, ICLR 2015, end of section 2.
inline kerf::Program adam() {
  kerf::ProgramBuilder p("adam");
  Axis P = p.axis("P"), One = p.axis("One", 1);
  Tensor w = p.inout("w", kerf::f32, {P}), m = p.inout("m", kerf::f32, {P}), v = p.inout("v", kerf::f32, {P});
  Tensor g = p.input("g", kerf::f32, {P}), rate = p.input("rate", kerf::f32, {One});
  Block i = p.parallel(P, 1024);
  Tile grad = load(g, i);
  Tile mean = 0.9 * load(m, i) + 0.1 * grad, square = 0.999 * load(v, i) + 0.001 * grad * grad;
  store(m, i, mean);
  store(v, i, square);
  store(w, i, load(w, i) - reduce_sum(load(rate, p.whole(One)), One) * mean / (sqrt(square) + 1e-8));
  return p.finish();
}

/// A matrix to be learned, with its gradient and Adam's two moments.
struct Parameter {
  Parameter(std::int64_t rows, std::int64_t columns, float deviation, std::mt19937_64& random)
      : rows(rows),
        columns(columns),
        value(rows * columns),
        grad(value.size()),
        mean(value.size()),
        square(value.size()) {
    std::normal_distribution<float> normal(0, deviation);
    for (float& x : value) x = normal(random);
  }
  static TensorRef matrix(const Parameter& p, const std::vector<float>& of) { return {of.data(), {p.rows, p.columns}}; }
  TensorRef ref() const { return matrix(*this, value); }
  TensorRef grad_ref() const { return matrix(*this, grad); }
  std::int64_t rows, columns;
  std::vector<float> value, grad, mean, square;
};

/// What the backward of the loss may leave out; by default nothing.
struct LossFilter {
  kerf::Filter rule = kerf::Filter::off;
  double threshold = 0;
  kerf::Order order = kerf::Order::automatic;
};

class Model {
 public:
  Model(std::int64_t vocabulary, std::int64_t hidden, std::int64_t context, bool tied, int threads, std::uint64_t seed,
        const LossFilter& filter = {})
      : hidden_(hidden),
        context_(context),
        features_(context * hidden + 1),
        tied_(tied),
        random_(seed),
        pool_(std::make_shared<kerf::ThreadPool>(threads)),
        plan_(plan_of(vocabulary, hidden, filter), {.pool = pool_}),
        table_(vocabulary, hidden, 0.05f, random_),
        classifier_(tied ? 0 : vocabulary, hidden, 0.02f, random_),
        w_(features_, hidden, 1 / std::sqrt(static_cast<float>(features_)), random_),
        layer_(kerf::compile(hidden_layer(features_, hidden))),
        grad_x_(kerf::compile(hidden_grad_x(features_, hidden))),
        grad_w_(kerf::compile(hidden_grad_w(features_, hidden))),
        adam_(kerf::compile(adam())) {
    plan_.prepare();
  }

  std::int64_t parameters() const {
    return static_cast<std::int64_t>(table_.value.size() + classifier_.value.size() + w_.value.size());
  }
  int threads() const { return pool_->size(); }
  Parameter& table() { return table_; }
  Parameter& classes() { return tied_ ? table_ : classifier_; }
  Parameter& w() { return w_; }

  /// Mean loss, in nats, of `count` positions; contexts holds the k tokens before each.
  double forward(const std::int32_t* contexts, const std::int32_t* targets, std::int64_t count) {
    last_count_ = 0;  // what the last step left is overwritten
    return forward(contexts, targets, count, {});
  }

  /// After a step: finds the order that the filter forms its blocks by anew, from its rows.
  void refresh_order() {
    if (plan_.filters() && plan_.desc().order == kerf::Order::automatic && last_count_ > 0)
      plan_.refresh_order(h(last_count_), classes().ref());
  }
  /// After a step: what it left out.
  kerf::FilterReport filter_report() {
    return plan_.filters() && last_count_ > 0 ? plan_.filter_report(workspace(last_count_, true))
                                              : kerf::FilterReport{};
  }

  /// The gradients of that loss; returns the loss.
  double gradients(const std::int32_t* contexts, const std::int32_t* targets, std::int64_t count) {
    TensorRef block_lse;
    if (plan_.filters()) {
      const auto [blocks, rows] = plan_.block_lse_shape(count);
      block_lse_.resize(static_cast<std::size_t>(blocks * rows));
      block_lse = {block_lse_.data(), {blocks, rows}};
    }
    last_count_ = count;
    const double loss = forward(contexts, targets, count, block_lse);
    std::fill(table_.grad.begin(), table_.grad.end(), 0.f);
    dh_.resize(h_.size());
    dx_.resize(x_.size());
    const TensorRef dh(dh_.data(), {count, hidden_}), dx(dx_.data(), {count, features_});
    plan_.backward({.e = h(count),
                    .c = classes().ref(),
                    .target = {targets, kerf::i32, {count}},
                    .lse = {lse_.data(), {count}},
                    .de = dh,
                    .dc = classes().grad_ref(),
                    .accumulate_dc = tied_,  // the table's gradient gets both its parts in one buffer
                    .block_lse = block_lse,
                    .workspace = workspace(count, true)});
    grad_x_.launch({.tensors = {{"h", h(count)}, {"dh", dh}, {"w", w_.ref()}, {"dx", dx}}}, *pool_);
    grad_w_.launch({.tensors = {{"x", x(count)}, {"h", h(count)}, {"dh", dh}, {"dw", w_.grad_ref()}}}, *pool_);
    for (std::int64_t n = 0; n < count; ++n)
      for (std::int64_t k = 0; k < context_; ++k)
        for (std::int64_t d = 0; d < hidden_; ++d)
          table_.grad[contexts[n * context_ + k] * hidden_ + d] += dx_[n * features_ + k * hidden_ + d];
    return loss;
  }

  /// One step of training; returns the mean loss before it.
  double train(const std::int32_t* contexts, const std::int32_t* targets, std::int64_t count, double learning_rate) {
    const double loss = gradients(contexts, targets, count);
    ++step_;
    update(table_, learning_rate);
    if (!tied_) update(classifier_, learning_rate);
    update(w_, learning_rate);
    return loss;
  }

 private:
  static kerf::PlanDesc plan_of(std::int64_t vocabulary, std::int64_t hidden, const LossFilter& filter) {
    kerf::PlanDesc desc{.hidden = hidden, .vocabulary = vocabulary};
    desc.filter = filter.rule;
    if (filter.rule == kerf::Filter::off) return desc;
    desc.strategy = kerf::Strategy::filtered;
    desc.filter_threshold = filter.threshold;
    desc.order = filter.order;
    desc.correction = filter.rule != kerf::Filter::largest;  // cut-cross-entropy, whose rule that is, has none
    return desc;
  }
  double forward(const std::int32_t* contexts, const std::int32_t* targets, std::int64_t count,
                 const TensorRef& block_lse) {
    x_.resize(count * features_);
    h_.resize(count * hidden_);
    lse_.resize(count);
    for (std::int64_t n = 0; n < count; ++n) {
      float* row = &x_[n * features_];
      for (std::int64_t k = 0; k < context_; ++k)
        std::copy_n(&table_.value[contexts[n * context_ + k] * hidden_], hidden_, row + k * hidden_);
      row[features_ - 1] = 1;
    }
    layer_.launch({.tensors = {{"x", x(count)}, {"w", w_.ref()}, {"h", h(count)}}}, *pool_);
    float loss = 0;
    plan_.forward({.e = h(count),
                   .c = classes().ref(),
                   .target = {targets, kerf::i32, {count}},
                   .loss = {&loss, {1}},
                   .lse = {lse_.data(), {count}},
                   .block_lse = block_lse,
                   .workspace = workspace(count, false)});
    return loss;
  }

  struct alignas(64) Line {
    std::byte bytes[64];
  };
  TensorRef x(std::int64_t count) const { return {x_.data(), {count, features_}}; }
  TensorRef h(std::int64_t count) const { return {h_.data(), {count, hidden_}}; }
  TensorRef workspace(std::int64_t count, bool backward) {
    const std::size_t bytes = plan_.workspace_bytes(count, backward);
    if (workspace_.size() * sizeof(Line) < bytes) workspace_.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
    return {
        workspace_.data(), kerf::f32, {static_cast<std::int64_t>(workspace_.size() * sizeof(Line) / sizeof(float))}};
  }
  void update(Parameter& p, double learning_rate) {
    const float rate =
        static_cast<float>(learning_rate * std::sqrt(1 - std::pow(0.999, step_)) / (1 - std::pow(0.9, step_)));
    const auto flat = [](const std::vector<float>& v) {
      return TensorRef(v.data(), {static_cast<std::int64_t>(v.size())});
    };
    adam_.launch({.tensors = {{"w", flat(p.value)},
                              {"m", flat(p.mean)},
                              {"v", flat(p.square)},
                              {"g", flat(p.grad)},
                              {"rate", TensorRef(&rate, {1})}}},
                 *pool_);
  }

  std::int64_t hidden_, context_, features_;
  bool tied_;
  std::int64_t step_ = 0, last_count_ = 0;
  std::mt19937_64 random_;
  std::shared_ptr<kerf::ThreadPool> pool_;
  kerf::Plan plan_;
  Parameter table_, classifier_, w_;
  kerf::Kernel layer_, grad_x_, grad_w_, adam_;
  std::vector<float> x_, h_, lse_, block_lse_, dh_, dx_;
  std::vector<Line> workspace_;
};

}  // namespace train_lm
