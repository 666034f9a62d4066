// What merging means: it does not matter in which order, how often or in which groups records are added.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;

namespace {

Wisdom merged(Wisdom a, const Wisdom& b) {
  a.merge(b);
  return a;
}

Wisdom with_header(Wisdom w, const std::string& fields) {
  w.merge(Wisdom::parse("{\"kerf_wisdom\":1," + fields + "}\n").wisdom);
  return w;
}

WisdomRecord failed(std::int64_t n, WisdomStatus status) {
  WisdomRecord r = a_record(n, 0);
  r.samples = 0;
  r.spread = 0;
  r.status = status;
  return r;
}

/// The one record that is kept of these, in any order.
WisdomRecord kept(WisdomRecord a, WisdomRecord b) {
  const Wisdom w = wisdom_of({a, b});
  CHECK(w == wisdom_of({b, a}));
  REQUIRE(w.records().size() == 1);
  return *w.records().begin();
}

}  // namespace

TEST_CASE("wisdom: merging is commutative, associative and idempotent") {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const Wisdom a = with_header(wisdom_of(random_records(60, 3 * seed)), "\"x\":1,\"y\":2");
    const Wisdom b = with_header(wisdom_of(random_records(60, 3 * seed + 1)), "\"x\":3");
    const Wisdom c = wisdom_of(random_records(60, 3 * seed + 2));
    REQUIRE(merged(a, b) == merged(b, a));
    REQUIRE(merged(merged(a, b), c) == merged(a, merged(b, c)));
    REQUIRE(merged(a, a) == a);
    REQUIRE(merged(merged(a, b), b) == merged(a, b));
    REQUIRE(merged(a, Wisdom()) == a);
    REQUIRE(merged(a, b).text() == merged(b, a).text());
  }
}

TEST_CASE("wisdom: merging 10000 records is commutative and idempotent") {
  std::vector<WisdomRecord> records = random_records(10000, 11);
  for (std::size_t i = 0; i < records.size(); ++i) records[i].key.hidden = static_cast<std::int64_t>(i % 50);
  const auto middle = records.begin() + 5000;
  const Wisdom a = wisdom_of({records.begin(), middle}), b = wisdom_of({middle, records.end()});
  const Wisdom both = merged(a, b);
  CHECK(both == merged(b, a));
  CHECK(both == merged(both, a));
  CHECK(both == merged(both, both));
  CHECK(both.records().size() > 5000);
  std::shuffle(records.begin(), records.end(), std::mt19937(5));
  CHECK(both == wisdom_of(records));
  CHECK(both == Wisdom::parse(b.text() + a.text()).wisdom);
}

TEST_CASE("wisdom: a key has one winner if anything of it is ok, and else none") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::map<std::pair<WisdomKey, WisdomValidators>, std::pair<int, int>> counts;  // ok, winners
    const Wisdom w = wisdom_of(random_records(80, 100 + seed));
    for (const WisdomRecord& r : w.records()) {
      auto& [ok, winners] = counts[{r.key, r.validators}];
      ok += r.status == WisdomStatus::ok ? 1 : 0;
      winners += r.winner ? 1 : 0;
      if (r.winner) CHECK(r.status == WisdomStatus::ok);
    }
    for (const auto& [group, count] : counts) REQUIRE(count.second == (count.first > 0 ? 1 : 0));
  }
}

TEST_CASE(
    "wisdom: the least median wins, and surely within 2 % the least prediction, then the first in the order of "
    "parameters") {
  CHECK(winner(wisdom_of({a_record(64, 1.1), a_record(128, 1.0), a_record(256, 1.5)})) == 128);
  CHECK(winner(wisdom_of({a_record(64, 1.013), a_record(128, 1.0)})) == 64);
  CHECK(winner(wisdom_of({a_record(64, 1.019), a_record(128, 1.0)})) == 128);  // of 20 samples 1 % apart
  WisdomRecord known = a_record(64, 1.019), best = a_record(128, 1.0);
  known.spread = best.spread = 0;
  CHECK(winner(wisdom_of({known, best})) == 64);
  CHECK(winner(wisdom_of({a_record(64, 1.021), a_record(128, 1.0)})) == 128);
  CHECK(winner(wisdom_of({a_record(64, 1.03), a_record(128, 1.012), a_record(256, 1.0)})) == 128);
  WisdomRecord first = a_record(64, 1.005), least = a_record(128, 1.01);
  first.predicted_ms = 0.9, least.predicted_ms = 0.8;
  WisdomRecord fastest = a_record(256, 1.0);
  fastest.predicted_ms = 0.9;
  CHECK(winner(wisdom_of({first, least, fastest})) == 128);
  WisdomRecord unpredicted = a_record(32, 1.005);  // by hand, or from elsewhere
  CHECK(winner(wisdom_of({unpredicted, first, least, fastest})) == 128);
  least.median_ms = 1.03;
  CHECK(winner(wisdom_of({first, least, fastest})) == 64);
}

TEST_CASE("wisdom: noisy records win where nothing else is ok, failures never") {
  WisdomRecord noisy = a_record(64, 0.5);
  noisy.noisy = true;
  CHECK(winner(wisdom_of({noisy, a_record(128, 1.0)})) == 128);
  CHECK(winner(wisdom_of({noisy, failed(128, WisdomStatus::resources)})) == 64);
  CHECK(winner(wisdom_of({failed(64, WisdomStatus::wrong), failed(128, WisdomStatus::slow)})) == 0);
}

TEST_CASE("wisdom: of one candidate not noisy is kept before noisy, then more samples, then the lower median") {
  WisdomRecord noisy = a_record(64, 0.5);
  noisy.noisy = true;
  noisy.samples = 100;
  CHECK(!kept(noisy, a_record(64, 1.0)).noisy);
  WisdomRecord more = a_record(64, 2.0);
  more.samples = 21;
  CHECK(kept(more, a_record(64, 1.0)).median_ms == 2.0);
  CHECK(kept(a_record(64, 2.0), a_record(64, 1.0)).median_ms == 1.0);
  WisdomRecord later = a_record(64, 1.0);
  later.date = "2026-11-22";
  CHECK(kept(later, a_record(64, 1.0)).date == "2026-11-22");
  WisdomRecord predicted = a_record(64, 1.0);
  predicted.predicted_ms = 3;
  CHECK(kept(predicted, a_record(64, 1.0)).predicted_ms == 0);  // all else being equal, the text that sorts first
}

TEST_CASE("wisdom: what was once found to be wrong or to fault is not chosen again") {
  for (const WisdomStatus s : {WisdomStatus::wrong, WisdomStatus::fault})
    CHECK(kept(failed(64, s), a_record(64, 1.0)).status == s);
  CHECK(kept(failed(64, WisdomStatus::timeout), a_record(64, 1.0)).status == WisdomStatus::ok);
}

TEST_CASE("wisdom: the winner that a file names is found anew") {
  std::string text = wisdom_of({a_record(64, 1.0), a_record(128, 2.0)}).text();
  const std::string mark = ",\"winner\":true";
  text.erase(text.find(mark), mark.size());
  text.insert(text.rfind(",\"date\""), mark);
  const WisdomRead read = Wisdom::parse(text);
  CHECK(read.problems.empty());
  CHECK(winner(read.wisdom) == 64);
  CHECK(read.wisdom.records().begin()->winner);
}
