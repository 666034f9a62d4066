// kerf-train-lm: learns a neural n-gram language model from text files, with Kerf's loss as its last layer. It stands
// for somebody's own trainer: it includes what is installed, and owns its memory, its data and its optimizer.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "model.h"
#include "text.h"

namespace {

using namespace train_lm;
using Tokens = std::vector<std::int32_t>;
using nlohmann::json;

struct Options {
  std::vector<std::string> text;
  std::int64_t epochs = 3, hidden = 128, context = 4, batch = 256, vocabulary = 8192;
  double minutes = 0;  // 0: no limit
  std::uint64_t seed = 1;
  int threads = 0;
  bool tied = false, as_json = false;
  std::string filter = "off", order = "auto";

  LossFilter loss_filter() const;
};

/// "off", "mass", "mass=2^-12", "max=0.0002".
LossFilter Options::loss_filter() const {
  LossFilter f{.order = order == "identity" ? kerf::Order::identity : kerf::Order::automatic};
  if (filter == "off") return f;
  const std::size_t sign = filter.find('=');
  const std::string rule = filter.substr(0, sign), number = sign == std::string::npos ? "" : filter.substr(sign + 1);
  f.rule = rule == "max" ? kerf::Filter::largest : kerf::Filter::mass;
  if (filter == "mass") return f;
  const std::size_t mantissa = number.starts_with("2^") ? 2 : 0;
  const char* const end = number.data() + number.size();
  double x = 0;
  const auto [stop, error] = std::from_chars(number.data() + mantissa, end, x);
  f.threshold = mantissa ? std::exp2(x) : x;
  if ((rule != "mass" && rule != "max") || error != std::errc{} || stop != end ||
      !(f.threshold > 0 && f.threshold <= 1))
    throw kerf::UsageError(
        fmt::format("--filter {}: is no filter; they are off, mass, mass=X and max=X, X above 0 and at most 1, as "
                    "2^-12 or 0.000244",
                    filter));
  return f;
}

constexpr std::int64_t steps_of_order = 200;  // until it is found anew

/// SIGINT and SIGTERM, held back and asked for between two steps.
class StopSignal {
 public:
  StopSignal() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);  // before threads are made: they inherit it
  }
  bool arrived() {
    const timespec now{};
    return stop_ = stop_ || sigtimedwait(&set_, nullptr, &now) > 0;
  }

 private:
  sigset_t set_;
  bool stop_ = false;
};

/// Positions of a token sequence as rows for the model: the k tokens before each, and the token itself.
struct Batch {
  Tokens contexts, targets;
  void fill(const Tokens& tokens, const std::int64_t* positions, std::int64_t count, std::int64_t context) {
    contexts.clear();
    targets.clear();
    for (std::int64_t n = 0; n < count; ++n) {
      for (std::int64_t at = positions[n] - context; at < positions[n]; ++at)
        contexts.push_back(at < 0 ? Vocabulary::start : tokens[at]);
      targets.push_back(tokens[positions[n]]);
    }
  }
};

/// Total nats, over what they were spent on.
struct Score {
  double nats = 0;
  std::int64_t tokens = 0, bytes = 0, characters = 0;
  double loss() const { return nats / tokens; }
  double bits_per_byte() const { return nats / std::log(2.0) / bytes; }
  double bits_per_character() const { return nats / std::log(2.0) / characters; }
  std::string text() const {
    return fmt::format(
        "held-out loss {:.4f} nats per token, perplexity {:.1f}, {:.3f} bits per byte, {:.3f} per character", loss(),
        std::exp(loss()), bits_per_byte(), bits_per_character());
  }
  json fields() const {
    return {{"held_out_loss", loss()},
            {"perplexity", std::exp(loss())},
            {"bits_per_byte", bits_per_byte()},
            {"bits_per_character", bits_per_character()}};
  }
};

Score evaluate(Model& model, const Tokens& tokens, const Vocabulary& vocabulary, std::int64_t context) {
  constexpr std::int64_t most = 32768, rows = 1024;  // a longer text is judged by its beginning, which is random enough
  std::vector<std::int64_t> positions(std::min<std::int64_t>(tokens.size(), most));
  std::iota(positions.begin(), positions.end(), 0);
  Score score;
  Batch batch;
  for (std::size_t at = 0; at < positions.size(); at += rows) {
    const std::int64_t count = std::min<std::int64_t>(rows, positions.size() - at);
    batch.fill(tokens, &positions[at], count, context);
    score.nats += model.forward(batch.contexts.data(), batch.targets.data(), count) * count;
    score.tokens += count;
    for (std::int32_t t : batch.targets)
      score.bytes += vocabulary.bytes(t), score.characters += vocabulary.characters(t);
  }
  return score;
}

/// Nats per held-out token of the best model without context: frequencies in the training text, plus one.
double unigram_entropy(const Corpus& corpus, std::int64_t vocabulary) {
  std::vector<double> count(vocabulary, 1.0);
  for (std::int32_t t : corpus.train) ++count[t];
  double nats = 0;
  for (std::int32_t t : corpus.held_out) nats -= std::log(count[t] / (corpus.train.size() + vocabulary));
  return nats / corpus.held_out.size();
}

void show_progress(double share, double epoch, double loss, double tokens_per_second) {
  const int width = 30, done = static_cast<int>(share * width);
  fmt::print(stderr, "\r[{:=<{}}{:<{}}] {:3.0f} %  epoch {:.2f}  loss {:.3f}  {:.0f} tokens/s ", "", done, ">",
             width - done, 100 * share, epoch, loss, tokens_per_second);
}

int run(const Options& o) {
  StopSignal stop;
  const bool terminal = isatty(STDERR_FILENO);
  std::FILE* const out = o.as_json ? stderr : stdout;  // with --json stdout is for machines

  const Corpus corpus = make_corpus(read_texts(o.text), o.vocabulary);
  const Vocabulary& vocabulary = corpus.vocabulary;
  if (corpus.held_out.empty() || corpus.train.empty())
    throw kerf::UsageError(fmt::format("--text: {} files with {} bytes are too short to learn from and to be judged by",
                                       corpus.texts, corpus.bytes));
  const LossFilter filter = o.loss_filter();
  const bool filters = filter.rule != kerf::Filter::off;
  Model model(vocabulary.size(), o.hidden, o.context, o.tied, o.threads, o.seed, filter);
  const double unigram = unigram_entropy(corpus, vocabulary.size());
  fmt::print(out,
             "{} files, {} bytes; {} tokens to learn from, {} held out; vocabulary {}; {} parameters, {} threads\n",
             corpus.texts, corpus.bytes, corpus.train.size(), corpus.held_out.size(), vocabulary.size(),
             model.parameters(), model.threads());
  fmt::print(out, "log of the vocabulary {:.4f}, unigram entropy of the held-out text {:.4f} nats per token\n",
             std::log(vocabulary.size()), unigram);
  Score score = evaluate(model, corpus.held_out, vocabulary, o.context);
  fmt::print(out, "before: {}\n", score.text());
  std::fflush(out);
  json report = {{"vocabulary", vocabulary.size()},
                 {"log_vocabulary", std::log(vocabulary.size())},
                 {"unigram_entropy", unigram},
                 {"parameters", model.parameters()},
                 {"threads", model.threads()},
                 {"bytes", corpus.bytes},
                 {"train_tokens", corpus.train.size()},
                 {"held_out_tokens", corpus.held_out.size()},
                 {"filter", o.filter},
                 {"order", filters ? o.order : ""},
                 {"first", score.fields()},
                 {"epochs", json::array()}};

  std::mt19937_64 random(o.seed);
  std::vector<std::int64_t> order(corpus.train.size());
  std::iota(order.begin(), order.end(), 0);
  const std::int64_t steps = (static_cast<std::int64_t>(order.size()) + o.batch - 1) / o.batch;
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  Batch batch;
  double smooth = 0, share = 0;  // running mean of the loss; how much of the training is done
  for (std::int64_t epoch = 0; share < 1 && !stop.arrived(); ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    double nats = 0, kept = 0, dropped_mass = 0;
    std::int64_t seen = 0;
    for (std::int64_t step = 0; step < steps && share < 1 && !stop.arrived(); ++step) {
      const std::int64_t at = step * o.batch, count = std::min<std::int64_t>(o.batch, order.size() - at);
      batch.fill(corpus.train, &order[at], count, o.context);
      // Up over the first hundred steps, then straight down to a twentieth.
      const double rate = 3e-3 * std::min(1.0, (epoch * steps + step + 1) / 100.0) * (1 - 0.95 * share);
      const double loss = model.train(batch.contexts.data(), batch.targets.data(), count, rate);
      if (!std::isfinite(loss)) throw kerf::InternalError(fmt::format("the loss of step {} is {}", step, loss));
      nats += loss * count;
      seen += count;
      const kerf::FilterReport report = model.filter_report();
      kept += report.kept_share * count;
      dropped_mass += report.dropped_mass * count;
      if ((epoch * steps + step + 1) % steps_of_order == 0) model.refresh_order();
      smooth = epoch + step == 0 ? loss : 0.95 * smooth + 0.05 * loss;
      const double passes = epoch + (step + 1.0) / steps;
      share = std::max(o.epochs ? passes / o.epochs : 0, o.minutes > 0 ? seconds() / (60 * o.minutes) : 0);
      if (terminal && (step % 8 == 0 || share >= 1))
        show_progress(std::min(share, 1.0), passes, smooth, passes * order.size() / seconds());
    }
    if (terminal) fmt::print(stderr, "\r\033[K");
    if (seen == 0) break;
    score = evaluate(model, corpus.held_out, vocabulary, o.context);
    fmt::print(out, "epoch {:.2f}, {:.0f} s: training loss {:.4f}; {}{}\n", epoch + double(seen) / order.size(),
               seconds(), nats / seen, score.text(),
               filters ? fmt::format("; kept {:.3f} of the tiles", kept / seen) : "");
    std::fflush(out);
    json fields = score.fields();
    fields.update({{"epoch", epoch + double(seen) / order.size()},
                   {"train_loss", nats / seen},
                   {"kept_share", kept / seen},
                   {"dropped_mass", dropped_mass / seen},
                   {"seconds", seconds()}});
    report["epochs"].push_back(fields);
  }
  if (stop.arrived()) fmt::print(out, "stopped by a signal\n");
  report["last"] = score.fields();
  report["stopped"] = stop.arrived() ? "signal" : "done";
  if (o.as_json) fmt::print("{}\n", report.dump(2));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Learns a neural n-gram language model from text files, with Kerf's loss as its last layer.");
  app.add_option("--text", o.text, "files or folders of text")->required()->check(CLI::ExistingPath);
  CLI::Option* epochs = app.add_option("--epochs", o.epochs, "passes over the text (3, or no limit with --minutes)");
  app.add_option("--minutes", o.minutes, "stop after so many minutes of training");
  app.add_option("--hidden", o.hidden, "width of an embedding and of the hidden layer")->capture_default_str();
  app.add_option("--context", o.context, "tokens looked back at")->capture_default_str();
  app.add_option("--batch", o.batch, "tokens in one step")->capture_default_str();
  app.add_option("--vocab", o.vocabulary, "most tokens in the vocabulary")->capture_default_str();
  app.add_option("--seed", o.seed, "of the initial weights and the order of the text")->capture_default_str();
  app.add_option("--threads", o.threads, "0: KERF_NUM_THREADS, or all processors")->capture_default_str();
  app.add_flag("--tied", o.tied, "one matrix for the embeddings and the classifier");
  app.add_option(
         "--filter", o.filter,
         "what the backward may leave out: off, mass, mass=X or max=X (the rule of cut-cross-entropy), X as 2^-12")
      ->capture_default_str();
  CLI::Option* order = app.add_option("--order", o.order,
                                      "with --filter, order of the vocabulary: auto, found anew every 200 steps, or "
                                      "identity: bytes, then pieces as often as they come");
  order->check(CLI::IsMember({"auto", "identity"}))->capture_default_str();
  app.add_flag("--json", o.as_json, "results as JSON on stdout, the rest on stderr");
  const CLI::Range at_least_1(std::int64_t{1}, std::int64_t{1} << 24);
  for (const char* name : {"--epochs", "--hidden", "--context", "--batch"}) app.get_option(name)->check(at_least_1);
  app.get_option("--minutes")->check(CLI::PositiveNumber);
  app.get_option("--vocab")->check(CLI::Range(std::int64_t{Vocabulary::start + 1}, std::int64_t{1} << 24));
  app.get_option("--threads")->check(CLI::Range(0, 4096));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (o.minutes > 0 && epochs->count() == 0) o.epochs = 0;
  if (order->count() > 0 && o.filter == "off")
    return fmt::print(stderr, "kerf-train-lm: --order {}: nothing is filtered; add --filter mass\n", o.order), 2;
  try {
    return run(o);
  } catch (const kerf::UsageError& error) {
    return fmt::print(stderr, "kerf-train-lm: {}\n", error.what()), 2;
  } catch (const kerf::DeviceError& error) {
    return fmt::print(stderr, "kerf-train-lm: {}\n", error.what()), 3;
  } catch (const std::exception& error) {
    return fmt::print(stderr, "kerf-train-lm: {}\n", error.what()), 4;
  }
}
