// What a lookup finds and says, what seeds a search, and which records are exported and pruned.
#include <doctest/doctest.h>

#include "tests/support/errors.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;

namespace {

const std::string key_text = "linear_cross_entropy forward bf16 D=2304 V=256000 N=1024 sm_90a";

WisdomRecord in_bucket(std::int64_t tokens, std::int64_t n) {
  WisdomRecord r = a_record(n, 1.0);
  r.key.tokens = tokens;
  return r;
}

std::int64_t n_of(const WisdomParameters& p) { return std::get<std::int64_t>(p.at("n")); }

}  // namespace

TEST_CASE("wisdom: tokens are rounded up when looked up") {
  const Wisdom w = wisdom_of({a_record(128, 1.0)});
  for (const std::int64_t tokens : {769, 1000, 1024}) {
    const WisdomChoice choice = w.lookup(a_key(tokens), an_h200());
    REQUIRE(choice.record);
    CHECK(choice.exact);
    CHECK(choice.notes.empty());
  }
  CHECK(!w.lookup(a_key(1025), an_h200()).exact);
  CHECK(!w.lookup(a_key(768), an_h200()).exact);
}

TEST_CASE("wisdom: where a bucket has nothing, the nearest serves and a note says so") {
  const Wisdom w = wisdom_of({in_bucket(256, 1), in_bucket(2048, 2), in_bucket(65536, 3)});
  const WisdomChoice choice = w.lookup(a_key(), an_h200());
  REQUIRE(choice.record);
  CHECK(n_of(choice.record->parameters) == 2);
  CHECK(!choice.exact);
  REQUIRE(choice.notes.size() == 1);
  CHECK(choice.notes[0] == key_text + ": no choice for this bucket; the nearest that has one is N=2048");
  CHECK(n_of(w.lookup(a_key(1), an_h200()).record->parameters) == 1);
  CHECK(n_of(w.lookup(a_key(std::int64_t{1} << 40), an_h200()).record->parameters) == 3);
  const Wisdom both_sides = wisdom_of({in_bucket(512, 1), in_bucket(2048, 2)});
  CHECK(n_of(both_sides.lookup(a_key(), an_h200()).record->parameters) == 2);  // as near, and rounded up
}

TEST_CASE("wisdom: any other field of the key is another key") {
  const Wisdom w = wisdom_of({a_record(128, 1.0)});
  for (int i = 0; i < 8; ++i) {
    WisdomKey key = a_key();
    if (i == 0) key.op = "mine";
    if (i == 1) key.part = "backward";
    if (i == 2) key.dtype = "f16";
    if (i == 3) key.hidden = 2305;
    if (i == 4) key.vocabulary = 1;
    if (i == 5) key.options = "softcap=30";
    if (i == 6) key.target = "sm_90";
    if (i == 7) key.space = "space2";
    CHECK(!w.lookup(key, an_h200()).record);
    CHECK(w.lookup(key, an_h200()).notes.empty());
  }
}

TEST_CASE("wisdom: what was measured elsewhere is reported and not used") {
  const Wisdom w = wisdom_of({a_record(64, 1.0), a_record(128, 2.0)});
  WisdomValidators here = an_h200();
  here.device = "NVIDIA H100";
  here.units = 114;
  here.driver = "12.9";
  here.kerf = "0.2.0";
  here.other["power"] = "350";
  const WisdomChoice choice = w.lookup(a_key(), here);
  CHECK(!choice.record);
  REQUIRE(choice.notes.size() == 1);
  CHECK(choice.notes[0] ==
        key_text +
            ": 2 records were measured elsewhere (device 'NVIDIA H200', here 'NVIDIA H100'; units 132, here 114; "
            "driver '13.0', here '12.9'; kerf '0.1.0', here '0.2.0'; power unknown, here 350): of use as seeds "
            "alone; tune here");
  const std::vector<WisdomParameters> seeds = w.seeds(a_key(), here);
  REQUIRE(seeds.size() == 1);
  CHECK(n_of(seeds[0]) == 64);
}

TEST_CASE("wisdom: a winner outside the space is refused with the reason, and the next best taken") {
  const Wisdom w = wisdom_of({a_record(64, 1.0), a_record(128, 2.0), a_record(256, 1.5), a_record(512, 3.0)});
  const auto only = [&](std::int64_t n) {
    return w.lookup(a_key(), an_h200(), [n](const WisdomParameters& p) {
      return n_of(p) == n ? "" : "n=" + std::to_string(n_of(p)) + " needs 192 KiB, there are 163 KiB";
    });
  };
  const WisdomChoice choice = only(128);
  REQUIRE(choice.record);
  CHECK(n_of(choice.record->parameters) == 128);
  CHECK(choice.exact);
  REQUIRE(choice.notes.size() == 2);
  CHECK(choice.notes[0] == key_text + ": n=64 v=256 is refused: n=64 needs 192 KiB, there are 163 KiB");
  CHECK(choice.notes[1] == key_text + ": n=256 v=256 is refused: n=256 needs 192 KiB, there are 163 KiB");
  CHECK(!only(7).record);
  CHECK(only(7).notes.size() == 4);
}

TEST_CASE("wisdom: of many refused candidates a few are told") {
  Wisdom w;
  for (int n = 1; n <= 100; ++n) w.add(a_record(n, n));
  const WisdomChoice choice = w.lookup(a_key(), an_h200(), [](const WisdomParameters&) { return "no"; });
  REQUIRE(choice.notes.size() == 9);
  CHECK(choice.notes.back() == "92 more were refused");
}

TEST_CASE("wisdom: seeds are winners, each once, those of the most alike keys first") {
  std::vector<WisdomRecord> records{in_bucket(1024, 1), in_bucket(2048, 2), in_bucket(65536, 3)};
  records.push_back(in_bucket(1024, 4));
  records.back().validators.device = "NVIDIA H100";
  records.push_back(in_bucket(1024, 5));
  records.back().key.space = "space0";
  records.push_back(in_bucket(1024, 6));
  records.back().key.options = "softcap=30";
  records.push_back(in_bucket(1024, 7));
  records.back().key.hidden = 4096;
  records.push_back(in_bucket(4096, 2));
  records.push_back(in_bucket(1024, 8));
  records.back().key.target = "sm_80";
  const std::vector<WisdomParameters> seeds = wisdom_of(records).seeds(a_key(1000), an_h200());
  std::vector<std::int64_t> order;
  for (const WisdomParameters& p : seeds) order.push_back(n_of(p));
  CHECK(order == std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7});
}

TEST_CASE("wisdom: select takes records by op, part, dtype and a part of the device's name") {
  std::vector<WisdomRecord> records(5, a_record(64, 1.0));
  records[1].key.op = "mine";
  records[2].key.part = "backward";
  records[3].key.dtype = "f32";
  records[4].validators.device = "NVIDIA H100";
  const Wisdom w = wisdom_of(records);
  CHECK(w.select({}) == w);
  CHECK(w.select({.op = "mine"}).records().size() == 1);
  CHECK(w.select({.op = "linear_cross_entropy"}).records().size() == 4);
  CHECK(w.select({.part = "backward"}).records().size() == 1);
  CHECK(w.select({.dtype = "f32"}).records().begin()->key.dtype == "f32");
  CHECK(w.select({.device = "H200"}).records().size() == 4);
  CHECK(w.select({.device = "H20 0"}).records().empty());
}

TEST_CASE("wisdom: prune drops other versions, old records and losers, and finds winners anew") {
  WisdomRecord other = a_record(64, 1.0), old = a_record(128, 0.5), undated = a_record(256, 0.4);
  other.validators.kerf = "0.0.9";
  old.date = "2026-10-01";
  undated.date = "";
  const Wisdom all = wisdom_of({other, old, undated, a_record(512, 2.0), a_record(1024, 3.0)});
  Wisdom w = all;
  CHECK(w.prune({}) == 0);
  CHECK(w == all);
  CHECK(w.prune({.kerf = "0.1.0"}) == 1);
  CHECK(winner(w) == 256);
  CHECK(w.prune({.before = "2026-11-01"}) == 2);
  CHECK(winner(w) == 512);
  CHECK(w.prune({.losers = true}) == 1);
  CHECK(w.records().size() == 1);
  w = all;
  CHECK(w.prune({.kerf = "0.1.0", .before = "2026-11-01", .losers = true}) == 4);
  CHECK(winner(w) == 512);
  check_error([&] { w.prune({.before = "yesterday"}); },
              "prune: 'yesterday' is no date; write it as 2026-11-21 or 2026-11-21T10:20:30Z");
}
