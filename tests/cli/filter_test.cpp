// --filter, --no-correction, --order and --presorted of the kerf command.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/cli/command.h"

using namespace cli;

namespace {

constexpr std::int64_t rows = 3000, vocabulary = 2048, hidden = 8;

template <class T>
void write_npy(const std::filesystem::path& path, const char* type, const std::string& shape, const std::vector<T>& x) {
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type, shape);
  header.resize((header.size() + 10) / 64 * 64 + 63 - 9, ' ');
  header += '\n';
  std::ofstream out(path, std::ios::binary);
  out << "\x93NUMPY" << '\1' << '\0' << static_cast<char>(header.size() & 0xff) << static_cast<char>(header.size() >> 8)
      << header;
  out.write(reinterpret_cast<const char*>(x.data()), static_cast<std::streamsize>(x.size() * sizeof(T)));
}

/// A model that likes its tokens less and less in an order that is not theirs: mean logits fall from 0 to -12.
class SmallModel {
 public:
  explicit SmallModel(bool with_counts = false)
      : folder_(std::filesystem::temp_directory_path() / fmt::format("kerf-filter-{}", getpid())), rank_(vocabulary) {
    std::filesystem::create_directories(folder_);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::iota(rank_.begin(), rank_.end(), 0);
    std::shuffle(rank_.begin(), rank_.end(), random);
    std::vector<float> c(vocabulary * hidden), e(rows * hidden);
    std::vector<std::int64_t> target(rows), order = in_order(), counts(vocabulary);
    for (float& x : c) x = 0.3f * normal(random);
    for (float& x : e) x = normal(random);
    for (std::size_t v = 0; v < vocabulary; ++v) {
      c[v * hidden] = -12.f * static_cast<float>(rank_[v]) / vocabulary;
      counts[v] = vocabulary - rank_[v];
    }
    for (std::size_t n = 0; n < rows; ++n) {
      e[n * hidden] = 1;
      target[n] = order[random() % 300];
    }
    write_npy(folder_ / "hidden_f32.npy", "<f4", fmt::format("{}, {}", rows, hidden), e);
    write_npy(folder_ / "classifier_f32.npy", "<f4", fmt::format("{}, {}", vocabulary, hidden), c);
    write_npy(folder_ / "targets_i64.npy", "<i8", fmt::format("{},", rows), target);
    if (with_counts) write_npy(folder_ / "token_counts_i64.npy", "<i8", fmt::format("{},", vocabulary), counts);
  }
  ~SmallModel() { std::filesystem::remove_all(folder_); }
  SmallModel(const SmallModel&) = delete;
  SmallModel& operator=(const SmallModel&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  std::vector<std::int64_t> in_order() const {
    std::vector<std::int64_t> order(vocabulary);
    for (std::size_t v = 0; v < vocabulary; ++v)
      order[static_cast<std::size_t>(rank_[v])] = static_cast<std::int64_t>(v);
    return order;
  }
  /// A call of `verb` on 512 of its rows.
  std::string call(const char* verb, const std::string& options) const {
    return fmt::format("{} --data '{}' --shape 512,{},{} {}", verb, folder_.string(), hidden, vocabulary, options);
  }

 private:
  std::filesystem::path folder_;
  std::vector<std::int32_t> rank_;
};

}  // namespace

TEST_CASE("kerf check --filter mass drops tiles and loses less than rounding to bf16, in every dtype") {
  const SmallModel model;
  for (const char* dtype : {"f32", "bf16", "f16"}) {
    for (const char* filter : {"mass=2^-9", "mass=0.001953125", "mass=1.953125e-3"}) {
      CAPTURE(dtype);
      const json j = kerf_json(model.call("check", fmt::format("--dtype {} --filter {}", dtype, filter)));
      CHECK(j["pass"] == true);
      CHECK(j["strategy"] == "filtered");
      CHECK(j["filter"] == "mass");
      CHECK(j["filter_threshold"] == 0x1p-9);
      CHECK(j["correction"] == true);
      CHECK(j["order"] == "auto");
      CHECK(j["tolerance"] == 4e-3);
      CHECK(j["kept_share"].get<double>() > 0.2);
      CHECK(j["kept_share"].get<double>() < 0.8);
      CHECK(j["dropped_mass"].get<double>() > 0);
      CHECK(j["block_lse_bytes"].get<std::size_t>() >= 512 * vocabulary / 128 * 4);
      CHECK(j["workspace_bytes"].get<std::size_t>() > j["block_lse_bytes"].get<std::size_t>());
    }
  }
}

TEST_CASE("kerf check fails where a filter loses more than rounding to bf16: no correction, or the max rule") {
  const SmallModel model;
  for (const char* filter : {"mass=2^-5 --no-correction", "max=2^-9"}) {
    const Result r = kerf(model.call("check", fmt::format("--filter {}", filter)));
    CAPTURE(filter);
    CAPTURE(r.out);
    CHECK(r.code == 1);
    CHECK(r.out.find("FAILED de: relative error") != std::string::npos);
    CHECK(r.out.find("without correction, kept ") != std::string::npos);
  }
}

TEST_CASE("kerf check --filter off and --filter auto in f32 are exact, to f32's limits") {
  const SmallModel model;
  for (const char* filter : {"", "--filter auto", "--filter off"}) {
    const json j = kerf_json(model.call("check", filter));
    CHECK(j["filter"] == "off");
    CHECK(j["order"] == "");
    CHECK(j["kept_share"] == 1);
    CHECK(j["block_lse_bytes"] == 0);
    CHECK(j["tolerance"] == 1e-5);
  }
  CHECK(kerf_json(model.call("check", "--strategy filtered"))["strategy"] == "filtered");
}

TEST_CASE("kerf check --order: every order that puts like tokens together drops tiles, the shuffled one none") {
  const SmallModel model(true);
  const auto text = (model.folder() / "order.txt").string(), npy = (model.folder() / "order.npy").string();
  std::ofstream out(text);
  for (const std::int64_t v : model.in_order()) out << v << '\n';
  out.close();
  write_npy(npy, "<i8", fmt::format("{},", vocabulary), model.in_order());
  for (const auto& [order, words] : {std::pair<std::string, std::string>{"auto", "auto: c times the mean of e"},
                                     {"counts", "counts: token counts of the data"},
                                     {"meanprob", "meanprob: mean probability in 2048 rows after those in use"},
                                     {"norms", "norms: norms of the rows of c"},
                                     {text, "given by " + text},
                                     {npy, "given by " + npy}}) {
    CAPTURE(order);
    const json j = kerf_json(model.call("check", fmt::format("--filter mass=2^-9 --order '{}'", order)));
    CHECK(j["order"] == order);
    CHECK(j["order_text"] == words);
    CHECK(j["kept_share"].get<double>() < 0.8);
    CHECK(j["pass"] == true);
  }
  const json shuffled = kerf_json(model.call("check", "--filter mass=2^-9 --order identity"));
  CHECK(shuffled["order_text"] == "identity: as the rows of c lie");
  CHECK(shuffled["kept_share"] == 1);
}

TEST_CASE("kerf check --order takes targets for counts, and says what mean probabilities came of") {
  const SmallModel model;
  const std::string folder = model.folder().string();
  CHECK(kerf_json(model.call("check", "--filter mass --order counts"))["order_text"] ==
        "counts: counts of 3000 targets");
  const json random = kerf_json("check --shape 40,16,600 --filter mass --order meanprob");
  CHECK(random["order_text"] == "meanprob: mean probability in 2048 fresh rows");
  const json most =
      kerf_json(fmt::format("check --data '{}' --shape 2900,8,2048 --filter mass --order meanprob", folder));
  CHECK(most["order_text"] ==
        "meanprob: mean probability in 2048 rows after those in use, 1948 of them copies of rows in use with noise of "
        "2 %");
}

TEST_CASE("kerf bench --presorted measures a vocabulary that lies in its order, with the same tiles") {
  const SmallModel model;
  for (const char* order : {"auto", "meanprob"}) {
    const std::string options = fmt::format("--filter mass=2^-9 --seconds 0 --order {}", order);
    const json given = kerf_json(model.call("bench", options));
    const json sorted = kerf_json(model.call("bench", options + " --presorted"));
    CHECK(given["order"] == order);
    CHECK(sorted["order"] == order);
    CHECK(sorted["order_text"] == given["order_text"].get<std::string>() + ", presorted");
    CHECK(sorted["kept_share"].get<double>() == doctest::Approx(given["kept_share"].get<double>()).epsilon(0.1));
    CHECK(given["kept_share"].get<double>() < 0.8);
    CHECK(given["ranges"].get<int>() >= 1);
    CHECK(given["forward_workspace_bytes"].get<std::size_t>() > given["block_lse_bytes"].get<std::size_t>());
  }
  const Result r = kerf(model.call("bench", "--filter mass=2^-9 --seconds 0"));
  for (const char* words :
       {"mass >= 0.00195, kept 0.", "order auto: c times the mean of e", "block_lse of ", " ranges, "})
    CHECK(r.out.find(words) != std::string::npos);
}

TEST_CASE("kerf: filter options that make no sense are refused before any work is done") {
  const std::string check = "check --shape 9,8,1000 ", cuda = "check --device cuda --shape 9,8,1000 ";
  refused(check + "--filter best", 2, "--filter best: is no filter; they are auto, off, mass, mass=X and max=X");
  refused(cuda + "--filter best", 2, "--filter best: is no filter");
  refused(check + "--filter mass=tiny", 2, "'tiny' is no number; write 2^-12, 0.000244 or 2.44e-4");
  refused(check + "--filter mass=2^x", 2, "'2^x' is no number");
  refused(check + "--filter mass=", 2, "'' is no number");
  for (const char* x : {"0", "-0.5", "1.5", "2^1", "nan", "inf"})
    refused(check + "--filter mass=" + x, 2, "a threshold is above 0 and at most 1; --filter off keeps every tile");
  refused(check + "--filter max", 2,
          "--filter max: needs the least probability that matters, as in --filter max=2^-12");
  refused(check + "--filter mass --strategy exact_recompute", 2,
          "--filter mass: --strategy exact_recompute filters nothing; leave one of the two out");
  refused(check + "--filter off --strategy filtered", 2, "--filter off leaves nothing to filter");
  refused(check + "--no-correction", 2,
          "--no-correction: nothing is filtered: --filter auto leaves f32 with V = 1000 alone");
  refused(check + "--order norms --dtype bf16", 2,
          "--order norms: nothing is filtered: --filter auto leaves bf16 with V = 1000");
  refused(check + "--order norms --filter off", 2,
          "--order norms: nothing is filtered with --filter off; leave it out");
  refused(check + "--order norms --strategy min_memory", 2, "nothing is filtered with --strategy min_memory");
  refused(check + "--filter mass --order best", 2, "--order best: is no order and no file; orders are auto, identity");
  refused(check + "--filter mass --presorted", 2, "--presorted");
  refused("bench --shape 9,8,1000 --presorted", 2, "--presorted: nothing is filtered");
  refused("bench --shape 9,8,1000 --filter mass --presorted --order identity", 2, "leaves nothing to sort by");
}

TEST_CASE("kerf check --order FILE says where a file is no order of the vocabulary") {
  const auto path = std::filesystem::temp_directory_path() / fmt::format("kerf-order-{}.txt", getpid());
  const std::string check = fmt::format("check --shape 9,8,3 --filter mass --order '{}'", path.string());
  const auto with = [&](const char* text) { std::ofstream(path) << text; };
  with("2\n0\n1\n");
  CHECK(kerf(check).code == 0);
  with("2\none\n1\n");
  refused(check, 2, path.string() + ":2: 'one' is no token id; expected one a line");
  with("2\n0\n");
  refused(check, 2, path.string() + ": the order has 2 tokens and the vocabulary 3; each token comes once");
  with("2\n0\n3\n");
  refused(check, 2, "order[2] is 3; it must be in [0, 3)");
  with("2\n0\n2\n");
  refused(check, 2, "order[0] and order[2] are both 2; each token comes once");
  std::filesystem::remove(path);
}
