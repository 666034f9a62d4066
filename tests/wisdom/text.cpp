// Wisdom as text: there and back, and what is said of text that is wrong.
#include <doctest/doctest.h>

#include <limits>
#include <string>

#include "kerf/error.h"
#include "tests/support/errors.h"
#include "tests/wisdom/records.h"

using namespace kerf;
using namespace kerf::test;

namespace {

const std::string header = R"({"kerf_wisdom":1})";
const std::string good =
    R"({"key":{"op":"linear_cross_entropy","part":"forward","dtype":"bf16","D":2304,"V":256000,"target":"sm_90a",)"
    R"("space":"space1","N":1024},"validators":{"device":"NVIDIA H200","units":132,"driver":"13.0","kerf":"0.1.0"},)"
    R"("parameters":{"n":128,"v":256},"status":"ok","median_ms":1.5,"spread":0.01,"samples":20,"winner":true,)"
    R"("date":"2026-11-21"})";

/// `good` with one piece of it in place of another.
std::string with(const std::string& piece, const std::string& other) {
  std::string line = good;
  const std::size_t at = line.find(piece);
  REQUIRE(at != std::string::npos);
  return line.replace(at, piece.size(), other);
}

/// What is said of a text whose second line is this.
std::string said(const std::string& line) {
  const WisdomRead read = Wisdom::parse(header + "\n" + line + "\n" + good + "\n", "w");
  CHECK(read.wisdom.records().size() == 1);  // what stands behind is read
  REQUIRE(read.problems.size() == 1);
  CHECK(!read.problems[0].note);
  return read.problems[0].text();
}

}  // namespace

TEST_CASE("wisdom: a record is a line whose fields have a fixed order") {
  const Wisdom w = wisdom_of({a_record(128, 1.5)});
  CHECK(w.text() == header + "\n" + good + "\n");
  const WisdomRead read = Wisdom::parse(w.text());
  CHECK(read.problems.empty());
  CHECK(read.wisdom == w);
}

TEST_CASE("wisdom: every field survives") {
  WisdomRecord r = a_record(64, 0.1 + 0.2);
  r.key.options = "softcap=30 shift=1";
  r.key.tokens = std::numeric_limits<std::int64_t>::max();
  r.parameters = {{"least", std::numeric_limits<std::int64_t>::min()},
                  {"most", std::numeric_limits<std::int64_t>::max()},
                  {"order", "rows \"first\"\n\t\u00e9"}};
  r.spread = 1e-300;
  r.predicted_ms = 1e300;
  r.noisy = true;
  r.date = "2026-11-21T10:20:30Z";
  WisdomRecord failed = a_record(32, 0);
  failed.samples = 0;
  failed.spread = 0;
  failed.validators.driver = "";
  for (const WisdomStatus s : {WisdomStatus::compile, WisdomStatus::resources, WisdomStatus::fault, WisdomStatus::wrong,
                               WisdomStatus::timeout, WisdomStatus::slow}) {
    failed.status = s;
    failed.reason = "needs 192 KiB of shared memory, sm_80 has 163 KiB";
    const Wisdom w = wisdom_of({r, failed});
    const WisdomRead read = Wisdom::parse(w.text());
    CHECK(read.problems.empty());
    CHECK(read.wisdom == w);
    CHECK(read.wisdom.text() == w.text());
  }
}

TEST_CASE("wisdom: random records survive") {
  const Wisdom w = wisdom_of(random_records(300, 1));
  CHECK(Wisdom::parse(w.text()).wisdom == w);
}

TEST_CASE("wisdom: unknown fields of header, record, key and validators survive") {
  const std::string unknown_header = R"({"kerf_wisdom":1,"about":{"a":[1,null],"z":"x"},"made_by":"a later Kerf"})";
  std::string line = good;
  line.replace(line.find("},\"validators\""), 1, R"(,"layout":[1,[2,-0.5]]})");
  line.replace(line.find("},\"parameters\""), 1, R"(,"power":350})");
  line.replace(line.size() - 1, 1, R"(,"clock_mhz":18446744073709551615,"counters":{"bank":1e-07,"l2":null}})");
  const std::string text = unknown_header + "\n" + line + "\n";
  const WisdomRead read = Wisdom::parse(text);
  CHECK(read.problems.empty());
  CHECK(read.wisdom.text() == text);
  CHECK(read.wisdom.header().at("made_by") == "\"a later Kerf\"");
  // What an unknown field of the key means is not known, so it is another key.
  CHECK(!read.wisdom.lookup(a_key(), an_h200()).record);
}

TEST_CASE("wisdom: files one behind the other, blank lines and ends of lines of Windows are read") {
  const std::string text = "\n" + header + "\r\n\r\n" + good + "\r\n" + header + "\n  \n" + good;
  const WisdomRead read = Wisdom::parse(text);
  CHECK(read.problems.empty());
  CHECK(read.wisdom.text() == header + "\n" + good + "\n");
}

TEST_CASE("wisdom: nothing at all is wisdom without records") {
  CHECK(Wisdom::parse("").problems.empty());
  CHECK(Wisdom().text() == header + "\n");
}

TEST_CASE("wisdom: a last line that was not written to its end is skipped with a note, wherever it ends") {
  const std::string whole = header + "\n" + good;
  for (std::size_t n = header.size() + 2; n < whole.size(); n += 7) {
    const WisdomRead read = Wisdom::parse(whole.substr(0, n), "w");
    REQUIRE(read.problems.size() == 1);
    CHECK(read.problems[0].text() == "w:2: the last line was not written to its end; it is skipped");
    CHECK(read.problems[0].note);
    CHECK(!read.damaged());
  }
}

TEST_CASE("wisdom: what is wrong with a line is said with its number, and the rest is read") {
  CHECK(said("<<<<<<< mine") ==
        "w:2: no JSON at column 1 (syntax error while parsing value - invalid literal; last read: '<'); mend the line "
        "or delete it");
  CHECK(said("[1,2]") == "w:2: is [1,2]; a line is an object, {...}: the header or a record");
  CHECK(said("{}") == "w:2: key is missing; a record has key, validators, parameters and status");
  CHECK(said(with("\"op\":\"linear_cross_entropy\",", "")) ==
        "w:2: key.op is missing; a record has key, validators, parameters and status");
  CHECK(said(with("\"op\":\"linear_cross_entropy\"", "\"op\":\"\"")) ==
        "w:2: key.op is \"\"; name the op or the program, as in \"linear_cross_entropy\"");
  CHECK(said(with("\"forward\"", "3")) == "w:2: key.part is 3; must be a text");
  CHECK(said(with("2304", "-1")) == "w:2: key.D is -1; must be an integer from 0 to 2^63 - 1");
  CHECK(said(with("2304", "9223372036854775808")) ==
        "w:2: key.D is 9223372036854775808; must be an integer from 0 to 2^63 - 1");
  CHECK(said(with("256000", "2.5")) == "w:2: key.V is 2.5; must be an integer from 0 to 2^63 - 1");
  CHECK(said(with("1024", "1000")) ==
        "w:2: key.N is 1000, which no bucket ends with; that many tokens are tuned as 1024");
  CHECK(said(with("\"parameters\":{\"n\":128,\"v\":256}", "\"parameters\":7")) ==
        "w:2: parameters is 7; must be an object");
  CHECK(said(with("128", "1.5")) == "w:2: parameters.n is 1.5; must be an integer of 64 bits or a text");
  CHECK(said(with("128", "9223372036854775808")) ==
        "w:2: parameters.n is 9223372036854775808; must be an integer of 64 bits or a text");
  CHECK(said(with("128", "99999999999999999999")) ==
        "w:2: 99999999999999999999 does not fit 64 bits; write it as a text or with a decimal point");
  CHECK(said(with("\"v\":256", "\"n\":256")) == "w:2: field 'n' is there twice; keep one of them");
  CHECK(said(with("\"status\":\"ok\"", "\"status\":\"fine\"")) ==
        "w:2: status is 'fine'; must be one of ok, compile, resources, fault, wrong, timeout, slow");
  CHECK(said(with("\"winner\":true", "\"winner\":1")) == "w:2: winner is 1; must be true or false");
  CHECK(said(with("2026-11-21", "today")) == "w:2: date is 'today'; must be as 2026-11-21 or 2026-11-21T10:20:30Z");
  CHECK(said(R"({"kerf_wisdom":"one"})") == "w:2: kerf_wisdom is \"one\"; must be an integer from 0 to 2^63 - 1");
  CHECK(said(R"({"kerf_wisdom":0})") == "w:2: kerf_wisdom is 0; schemas count from 1");
}

TEST_CASE("wisdom: times are finite and not negative") {
  CHECK(said(with("1.5", "-1.5")) == "w:2: median_ms is -1.5; must be a number of milliseconds, at least 0");
  CHECK(said(with("1.5", "null")) == "w:2: median_ms is null; must be a number of milliseconds, at least 0");
  CHECK(said(with("1.5", "NaN")).find("w:2: no JSON at column") == 0);
  CHECK(said(with("1.5", "1e999")) == "w:2: a number is larger than any double; write one that is finite");
  CHECK(said(with("0.01", "-0.01")) == "w:2: spread is -0.01; must be a number of parts of the median, at least 0");
  CHECK(said(with("\"samples\":20", "\"predicted_ms\":-1,\"samples\":20")) ==
        "w:2: predicted_ms is -1; must be a number of milliseconds, at least 0");
  CHECK(said(with("1.5", "0")) == "w:2: median_ms is 0 and samples is 20; give both above 0, or neither");
  CHECK(said(with("\"median_ms\":1.5,\"spread\":0.01,\"samples\":20,", "")) ==
        "w:2: status is ok and nothing was measured; give median_ms and samples, or another status");
}

TEST_CASE("wisdom: a depth bomb is refused where it passes the limit") {
  CHECK(said(std::string(30000, '[')) == "w:2: nested deeper than 8; nothing that Kerf writes is");
  std::string bomb;
  for (int i = 0; i < 10000; ++i) bomb += "{\"a\":";
  CHECK(said(bomb) == "w:2: nested deeper than 8; nothing that Kerf writes is");
  const std::string deep = with("\"winner\":true", "\"x\":[[[[[[[1]]]]]]]");  // the line itself is the first level
  CHECK(Wisdom::parse(header + "\n" + deep + "\n").problems.empty());
}

TEST_CASE("wisdom: a line has at most 64 KiB") {
  const std::string least = with("\"winner\":true", "\"x\":\"\"");
  const std::string fits = with("\"winner\":true", "\"x\":\"" + std::string(65536 - least.size(), 'x') + "\"");
  REQUIRE(fits.size() == 65536);
  CHECK(Wisdom::parse(header + "\n" + fits + "\n").problems.empty());
  CHECK(said(fits + " ") == "w:2: the line has more than 65536 bytes; nothing that Kerf writes has");
  CHECK(said(std::string(10 << 20, 'x')) == "w:2: the line has more than 65536 bytes; nothing that Kerf writes has");
}

TEST_CASE("wisdom: at most a million lines are read") {
  std::string text = header + "\n" + std::string(999'998, '\n') + good + "\n";
  CHECK(Wisdom::parse(text).problems.empty());
  text += good + "\n";
  const WisdomRead read = Wisdom::parse(text, "w");
  REQUIRE(read.problems.size() == 1);
  CHECK(read.problems[0].text() ==
        "w:1000001: the file has more than 1000000 lines; from here on it was not read: prune it or take it apart");
  CHECK(read.wisdom.records().size() == 1);
}

TEST_CASE("wisdom: of very many bad lines a thousand are told") {
  std::string text = header + "\n";
  for (int i = 0; i < 5000; ++i) text.append("x\n");
  const WisdomRead read = Wisdom::parse(text, "w");
  REQUIRE(read.problems.size() == 1000);
  CHECK(read.problems.back().what == "there are more lines like these before; they are not listed one by one");
}

TEST_CASE("wisdom: a text without a header is read with a note") {
  const WisdomRead read = Wisdom::parse(good + "\n", "w");
  CHECK(read.wisdom.records().size() == 1);
  REQUIRE(read.problems.size() == 1);
  CHECK(read.problems[0].text() ==
        "w:1: the first line is a record and must be the header: put {\"kerf_wisdom\":1} above it");
  CHECK(!read.damaged());
}

TEST_CASE("wisdom: nothing of a newer schema is used") {
  const WisdomRead read = Wisdom::parse(header + "\n" + good + "\n{\"kerf_wisdom\":2}\n" + good + "\n", "w");
  CHECK(read.newer);
  CHECK(read.wisdom.records().empty());
  REQUIRE(read.problems.size() == 1);
  CHECK(read.problems[0].text() == "w:3: the file is of schema 2, this Kerf reads schema 1; use a newer Kerf");
}

TEST_CASE("wisdom: any bytes are read or refused, and nothing is thrown") {
  std::mt19937 random(7);
  const std::string seed = header + "\n" + good + "\n" + with("128", "64") + "\n";
  for (int i = 0; i < 5000; ++i) {
    std::string text = seed;
    for (int k = 0; k < 1 + i % 5; ++k) text[random() % text.size()] = static_cast<char>(random() % 256);
    if (i % 7 == 0) text.resize(random() % text.size());
    const WisdomRead read = Wisdom::parse(text);
    const WisdomRead again = Wisdom::parse(read.wisdom.text());
    REQUIRE(again.problems.empty());
    REQUIRE(again.wisdom == read.wisdom);
  }
}

TEST_CASE("wisdom: a record that no file could hold is refused when added") {
  const auto refused = [](const std::function<void(WisdomRecord&)>& change, const std::string& text) {
    WisdomRecord r = a_record(128, 1.5);
    change(r);
    Wisdom w;
    check_error([&] { w.add(r); }, "wisdom: a record of " + text);
    CHECK(w.records().empty());
  };
  const std::string who = "linear_cross_entropy, n=128 v=256: ";
  refused([](WisdomRecord& r) { r.median_ms = std::numeric_limits<double>::quiet_NaN(); },
          who + "median_ms is null; must be a number of milliseconds, at least 0");
  refused([](WisdomRecord& r) { r.median_ms = -1; },
          who + "median_ms is -1.0; must be a number of milliseconds, at least 0");
  refused([](WisdomRecord& r) { r.key.op = ""; },
          ", n=128 v=256: key.op is \"\"; name the op or the program, as in \"linear_cross_entropy\"");
  refused([](WisdomRecord& r) { r.key.tokens = 1000; },
          who + "key.N is 1000, which no bucket ends with; that many tokens are tuned as 1024");
  refused([](WisdomRecord& r) { r.reason.push_back(static_cast<char>(0xff)); },
          who + "a text in it is no UTF-8, and JSON holds nothing else");
  refused([](WisdomRecord& r) { r.reason = std::string(70000, 'x'); },
          who + "takes 70334 bytes, a line has at most 65536; shorten the reason");
  refused([](WisdomRecord& r) { r.other.emplace("winner", "1"); }, who + "winner is 1; must be true or false");
  refused([](WisdomRecord& r) { r.other.emplace("kerf_wisdom", "1"); },
          who + "a field is called kerf_wisdom, as only that of a header is");
}
