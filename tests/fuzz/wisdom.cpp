#include <algorithm>
#include <string_view>

#include "kerf/wisdom.h"
#include "runtime/wisdom/reader.h"
#include "tests/fuzz/checks.h"

namespace kerf::fuzz {

void wisdom(Bytes bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const WisdomRead read = Wisdom::parse(text, "w");
  for (const WisdomProblem& p : read.problems) require(!p.text().empty(), "a problem says nothing");
  require(!read.newer || read.wisdom.records().empty(), "a newer schema was used");

  runtime::WisdomReader pieces("w");
  for (std::size_t at = 0, step = 1; at < text.size(); at += step, step = step % 7 + 1)
    pieces.feed(text.substr(at, step));
  const WisdomRead again = pieces.finish();
  require(again.wisdom == read.wisdom && again.problems.size() == read.problems.size(), "pieces read otherwise");

  const WisdomRead written = Wisdom::parse(read.wisdom.text());
  require(written.problems.empty(), "what was written has problems");
  require(written.wisdom == read.wisdom, "what was written is read otherwise");
  Wisdom twice = read.wisdom;
  twice.merge(written.wisdom);
  require(twice == read.wisdom, "merged with itself it changed");

  Wisdom one_by_one;
  for (auto r = read.wisdom.records().rbegin(); r != read.wisdom.records().rend(); ++r) one_by_one.add(*r);
  require(one_by_one.records() == read.wisdom.records(), "records in another order make another set");
  for (const WisdomRecord& r : read.wisdom.records()) {
    const WisdomChoice choice = read.wisdom.lookup(r.key, r.validators);
    require(!r.winner || (choice.record && choice.record->winner && choice.exact), "a winner is not found");
    read.wisdom.seeds(r.key, {});
  }
}

}  // namespace kerf::fuzz
