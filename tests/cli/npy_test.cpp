#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "kerf/error.h"
#include "tools/support/lm_data.h"
#include "tools/support/npy.h"
#include "tools/support/problem.h"

using namespace kerf;
using namespace kerf::tools;

namespace {

namespace fs = std::filesystem;

/// A folder that goes with the test.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "kerf-npy-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path / name, std::ios::binary) << content;
    return (path / name).string();
  }
};

std::string npy(const std::string& header, const std::string& data, int version = 1) {
  std::string out = "\x93NUMPY";
  out += static_cast<char>(version);
  out += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) out += static_cast<char>(header.size() >> (8 * i) & 255);
  return out + header + data;
}
template <class T>
std::string array(const std::string& descr, const std::string& shape, const std::vector<T>& data) {
  return npy("{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }\n",
             std::string(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(T)));
}

/// A small model: 6 rows, hidden size 2, vocabulary 5; the classifier in two parts of int8 with scales.
void write_model(const Folder& f) {
  std::vector<std::uint16_t> hidden;
  for (int i = 0; i < 12; ++i) hidden.push_back(to_bf16(0.5f * static_cast<float>(i) - 2));
  f.write("hidden_bf16.npy", array("<u2", "(6, 2)", hidden));
  f.write("classifier_i8_0.npy", array<std::int8_t>("|i1", "(2, 2)", {1, -2, 3, 127}));
  f.write("classifier_i8_1.npy", array<std::int8_t>("|i1", "(3, 2)", {-128, 5, 6, 7, 8, 9}));
  f.write("classifier_scale_f32.npy", array<float>("<f4", "(5,)", {0.5f, 0.25f, 0.125f, 1, 2}));
  f.write("targets_i32.npy", array<std::int32_t>("<i4", "(6,)", {0, 4, 1, 2, 3, 1}));
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "no UsageError";
}

}  // namespace

TEST_CASE("npy: every type and version that numpy writes is read") {
  const Folder f;
  const NpyArray a = read_npy(f.write("a.npy", array<std::int32_t>("<i4", "(2, 3)", {1, 2, 3, 4, 5, -6})));
  CHECK(a.type == NpyType::i4);
  CHECK(a.shape == std::vector<std::int64_t>{2, 3});
  std::int32_t last = 0;
  std::memcpy(&last, a.bytes.data() + 20, 4);
  CHECK(last == -6);
  CHECK(a.describe() == "int32 [2, 3]");
  for (const int version : {1, 2, 3})
    CHECK(read_npy(f.write("b.npy", npy("{'descr':'<f4','fortran_order':False,'shape':()}", "abcd", version)))
              .elements() == 1);
  CHECK(read_npy(f.write("c.npy", array<std::int64_t>("<i8", "(0,)", {}))).elements() == 0);
  CHECK(read_npy(f.write("d.npy", npy("{\"shape\": (2,), \"fortran_order\": True, \"descr\": \"|i1\"}", "xy")))
            .elements() == 2);
}

TEST_CASE("npy: what is malformed is refused by name") {
  const Folder f;
  const std::string good = array<float>("<f4", "(2,)", {1, 2});
  const auto with = [](const std::string& header) { return npy(header, "12345678"); };
  const std::pair<std::string, std::string> cases[] = {
      {"", "not a .npy file"},
      {"PK\3\4 a zip file is no npy", "not a .npy file"},
      {good.substr(0, 9), "not a .npy file"},
      {good.substr(0, 30), "the header is said to be"},
      {good.substr(0, good.size() - 1), "takes 8 bytes, the file holds 7"},
      {good + "x", "takes 8 bytes, the file holds 9"},
      {npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "12345678", 4), "npy version 4 is not known"},
      {with(""), "expected '{'"},
      {with("{}"), "descr, fortran_order or shape is missing"},
      {with("{'descr': '<f4', 'fortran_order': False}"), "is missing"},
      {with("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}"), "dtype '>f4' is not read"},
      {with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"), "structured arrays are not read"},
      {with("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2)}"), "Fortran order"},
      {with("{'descr': '<f4', 'fortran_order': maybe, 'shape': (2,)}"), "expected True or False"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}"), "expected a size that is not negative"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (2 3)}"), "expected ')'"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (2,"), "expected a size"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}"), "expected a size"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 0)}"), "passes 2^56"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}"), "unexpected key 'more'"},
      {with("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"), "unexpected key 'descr'"},
      {with("{'descr': '<f4"), "a string without an end"},
      {with("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} + 1"), "text after the dictionary"},
  };
  for (const auto& [content, expected] : cases) {
    const std::string path = f.write("bad.npy", content);
    const std::string what = message([&] { read_npy(path); });
    CAPTURE(what);
    CAPTURE(expected);
    CHECK(what.find(expected) != std::string::npos);
    CHECK(what.starts_with(path));
  }
  CHECK(message([&] { read_npy((f.path / "absent.npy").string()); }).ends_with("absent.npy: no such file"));
  CHECK(message([&] { read_npy(f.path.string()); }).ends_with("no such file"));
}

TEST_CASE("npy: no cut and no change of a byte does worse than a UsageError") {
  const Folder f;
  const std::string good = array<float>("<f4", "(3, 2)", {1, 2, 3, 4, 5, 6});
  const auto survives = [&](const std::string& content) {
    try {
      const NpyArray a = read_npy(f.write("x.npy", content));
      CHECK(static_cast<std::int64_t>(a.bytes.size()) >= a.elements());
    } catch (const UsageError&) {
    }
  };
  for (std::size_t n = 0; n < good.size(); ++n) survives(good.substr(0, n));
  for (std::size_t i = 0; i + 24 < good.size(); ++i) {
    for (const int x : {0, 1, 32, 39, 44, 48, 57, 127, 128, 255}) {
      std::string bad = good;
      bad[i] = static_cast<char>(x);
      survives(bad);
    }
  }
}

TEST_CASE("model data: parts are joined, scales applied, bf16 bits read") {
  const Folder f;
  write_model(f);
  const LmData d = read_lm_data(f.path.string());
  CHECK(d.tokens == 6);
  CHECK(d.hidden == 2);
  CHECK(d.vocabulary == 5);
  CHECK(d.e[0] == -2);
  CHECK(d.e[11] == 3.5);
  CHECK(d.c == std::vector<float>{0.5, -1, 0.75, 31.75, -16, 0.625, 6, 7, 16, 18});
  CHECK(d.target == std::vector<std::int64_t>{0, 4, 1, 2, 3, 1});
}

TEST_CASE("model data: a folder whose arrays are missing or disagree is refused by name") {
  const auto refused = [](const std::string& file, const std::string& content, const std::string& expected) {
    const Folder f;
    write_model(f);
    if (content.empty()) {
      fs::remove(f.path / file);
    } else {
      f.write(file, content);
    }
    const std::string what = message([&] { read_lm_data(f.path.string()); });
    CAPTURE(what);
    CHECK(what.find(expected) != std::string::npos);
  };
  refused("hidden_bf16.npy", "", "holds no hidden_bf16.npy or hidden_f32.npy");
  refused("classifier_scale_f32.npy", "", "holds no classifier_scale_f32.npy");
  refused("targets_i32.npy", "", "holds no targets_i32.npy");
  refused("classifier_i8_1.npy", array<std::int8_t>("|i1", "(2, 3)", {1, 2, 3, 4, 5, 6}),
          "the other arrays have hidden size 2");
  refused("classifier_scale_f32.npy", array<float>("<f4", "(4,)", {1, 1, 1, 1}), "expected float32 [5]");
  refused("targets_i32.npy", array<std::int32_t>("<i4", "(5,)", {0, 0, 0, 0, 0}), "expected int32 or int64 [6]");
  refused("targets_i32.npy", array<std::int32_t>("<i4", "(6,)", {0, 0, 5, 0, 0, 0}),
          "target 5 of row 2 is outside the vocabulary of 5");
  refused("hidden_bf16.npy", array<std::uint16_t>("<u2", "(6, 2)", std::vector<std::uint16_t>(12, 0x7fc0)),
          "row 0 of the hidden states holds nan");
  refused("hidden_bf16.npy", array<std::int64_t>("<i8", "(6, 2)", std::vector<std::int64_t>(12)),
          "expected int8, uint16");
  CHECK(message([] { read_lm_data("/nonexistent"); }) == "/nonexistent: no such folder");
}

TEST_CASE("model data: lifting keeps the logits, repeated rows differ, a cut vocabulary keeps only its rows") {
  const Folder f;
  write_model(f);
  const LmData d = read_lm_data(f.path.string());
  const std::int64_t N = 11, D = 7, V = 4;
  const Problem p = problem_from_data({N, D, V, f32, Reduction::mean, 0, 0}, f.path.string());
  const std::int64_t kept[] = {0, 2, 3, 4, 5};  // row 1 has target 4
  const float *e = p.e.as<float>(), *c = p.c.as<float>();
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int64_t from = kept[n % 5];
    CHECK(p.target[static_cast<std::size_t>(n)] == d.target[static_cast<std::size_t>(from)]);
    for (std::int64_t v = 0; n < 5 && v < V; ++v) {
      double z = 0, expected = 0;
      for (std::int64_t i = 0; i < D; ++i) z += static_cast<double>(e[n * D + i]) * c[v * D + i];
      for (std::int64_t i = 0; i < 2; ++i)
        expected +=
            static_cast<double>(d.e[static_cast<std::size_t>(from * 2 + i)]) * d.c[static_cast<std::size_t>(v * 2 + i)];
      CHECK(std::abs(z - expected) < 1e-4);
    }
  }
  std::set<std::vector<float>> rows;
  for (std::int64_t n = 0; n < N; ++n) rows.emplace(e + n * D, e + (n + 1) * D);
  CHECK(rows.size() == static_cast<std::size_t>(N));
  const auto refusal = [&](std::int64_t hidden, std::int64_t vocabulary) {
    return message([&] { problem_from_data({1, hidden, vocabulary, f32, Reduction::mean, 0, 0}, f.path.string()); });
  };
  CHECK(refusal(1, 4).find("has hidden size 2, D = 1 was asked for") != std::string::npos);
  CHECK(refusal(2, 6).find("has a vocabulary of 5, V = 6 was asked for") != std::string::npos);
}
