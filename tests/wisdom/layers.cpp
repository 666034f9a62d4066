// Where wisdom is looked for, and which place is asked first.
#include <doctest/doctest.h>

#include <cstdlib>
#include <optional>

#include "runtime/wisdom/builtin.h"
#include "tests/support/errors.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;

namespace {

/// Sets a variable of the environment, or takes it away, until the end of the scope.
class Variable {
 public:
  Variable(const char* name, std::optional<std::string> value) : name_(name) {
    if (const char* const old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~Variable() { set(old_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const std::optional<std::string>& value) const {
    if (value)
      setenv(name_, value->c_str(), 1);
    else
      unsetenv(name_);
  }
  const char* name_;
  std::optional<std::string> old_;
};

WisdomRecord in_bucket(std::int64_t tokens, std::int64_t n) {
  WisdomRecord r = a_record(n, 1.0);
  r.key.tokens = tokens;
  return r;
}

}  // namespace

TEST_CASE("wisdom: the user's file is the one that KERF_WISDOM names, or lies in the folder for data") {
  const Variable home("HOME", "/home/me");
  const Variable data("XDG_DATA_HOME", "/data");
  const Variable file("KERF_WISDOM", "some/file");
  CHECK(user_wisdom_file() == "some/file");
  const Variable no_file("KERF_WISDOM", {});
  CHECK(user_wisdom_file() == "/data/kerf/wisdom.jsonl");
  const Variable relative_data("XDG_DATA_HOME", "data");  // which its specification says to pass over
  CHECK(user_wisdom_file() == "/home/me/.local/share/kerf/wisdom.jsonl");
  const Variable no_data("XDG_DATA_HOME", {});
  CHECK(user_wisdom_file() == "/home/me/.local/share/kerf/wisdom.jsonl");
}

TEST_CASE("wisdom: without a home there is no user's file, which is an error only to save to") {
  const Variable home("HOME", {}), data("XDG_DATA_HOME", {}), file("KERF_WISDOM", {}), path("KERF_WISDOM_PATH", {});
  CHECK(user_wisdom_file().empty());
  CHECK(WisdomLayers::open().problems().empty());
  check_error([] { Wisdom().save(user_wisdom_file()); },
              "wisdom: no file: none of KERF_WISDOM, XDG_DATA_HOME and HOME is set; set KERF_WISDOM");
}

TEST_CASE("wisdom: what is built in has no problems") {
  const WisdomRead read = Wisdom::parse(runtime::builtin_wisdom());
  CHECK(read.problems.empty());
  CHECK(read.wisdom.text() == runtime::builtin_wisdom());
}

TEST_CASE("wisdom: layers are what was given, the user's file, and the files of KERF_WISDOM_PATH in order") {
  const Folder folder;
  const Variable file("KERF_WISDOM", folder / "user.jsonl");
  const Variable path("KERF_WISDOM_PATH", (folder / "all") + "::" + (folder / "one.jsonl") + ":" + (folder / "none"));
  wisdom_of({in_bucket(1024, 1)}).save(folder / "user.jsonl");
  wisdom_of({in_bucket(1024, 3), in_bucket(2048, 3)}).save(folder / "all/b.jsonl");
  wisdom_of({in_bucket(1024, 2), in_bucket(512, 2)}).save(folder / "all/a.jsonl");
  write(folder / "all/a.txt", "no wisdom");
  wisdom_of({in_bucket(4096, 4)}).save(folder / "one.jsonl");
  WisdomLayers all = WisdomLayers::open();
  REQUIRE(all.problems().size() == 1);
  CHECK(all.problems()[0].text() == (folder / "none") + ": is not there; mend KERF_WISDOM_PATH, which names it");
  std::vector<std::string> names;
  for (const WisdomLayers::Layer& layer : all.layers()) names.push_back(layer.name);
  CHECK(names == std::vector<std::string>{folder / "user.jsonl", folder / "all/a.jsonl", folder / "all/b.jsonl",
                                          folder / "one.jsonl"});

  const auto n = [&](std::int64_t tokens) {
    const WisdomChoice choice = all.lookup(a_key(tokens), an_h200());
    REQUIRE(choice.record);
    return std::get<std::int64_t>(choice.record->parameters.at("n")) * (choice.exact ? 1 : -1);
  };
  CHECK(n(1024) == 1);
  CHECK(n(512) == 2);
  CHECK(n(2048) == 3);
  CHECK(n(4096) == 4);
  CHECK(n(8192) == -1);  // no layer has the bucket: the first serves
  all.put_first("model", wisdom_of({in_bucket(1024, 5)}));
  CHECK(n(1024) == 5);
  CHECK(n(512) == 2);
  CHECK(all.seeds(a_key(), an_h200()).size() == 4);
}

TEST_CASE("wisdom: a layer passed over says why") {
  WisdomLayers all;
  WisdomRecord elsewhere = in_bucket(1024, 1);
  elsewhere.validators.kerf = "0.0.9";
  all.put_first("second", wisdom_of({in_bucket(1024, 2)}));
  all.put_first("first", wisdom_of({elsewhere}));
  const WisdomChoice choice = all.lookup(a_key(), an_h200());
  REQUIRE(choice.record);
  CHECK(std::get<std::int64_t>(choice.record->parameters.at("n")) == 2);
  REQUIRE(choice.notes.size() == 1);
  CHECK(choice.notes[0] ==
        "first: linear_cross_entropy forward bf16 D=2304 V=256000 N=1024 sm_90a: 1 record was measured elsewhere (kerf "
        "'0.0.9', here '0.1.0'): of use as seeds alone; tune here");
}

TEST_CASE("wisdom: nothing that lies at the user's name stops a plan") {
  const Folder folder;
  const Variable file("KERF_WISDOM", folder.path()), path("KERF_WISDOM_PATH", {});
  const WisdomLayers all = WisdomLayers::open();
  CHECK(all.layers().empty());
  CHECK(all.problems().size() == 1);
}
