// The records as a set: which one is kept, which one wins, and what a lookup finds.
//
// Everything here is a function of the set of records that were ever added, and not of the order: of two records of one
// candidate the better in a total order stays, and winners are found from what is there. So merging is commutative,
// associative and idempotent.
#include "kerf/wisdom.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "kerf/error.h"
#include "runtime/wisdom/line.h"
#include "runtime/wisdom/tie.h"

namespace kerf {
namespace {

using runtime::to_line;

constexpr std::size_t most_notes = 8;

bool same_group(const WisdomRecord& a, const WisdomRecord& b) { return a.key == b.key && a.validators == b.validators; }

/// Which of two records of one candidate is kept.
bool better(const WisdomRecord& a, const WisdomRecord& b) {
  const auto rank = [](const WisdomRecord& r) {
    const bool safe = r.status != WisdomStatus::wrong && r.status != WisdomStatus::fault;
    return std::tuple(safe, r.noisy, -r.samples,
                      r.median_ms > 0 ? r.median_ms : std::numeric_limits<double>::infinity());
  };
  if (const auto ra = rank(a), rb = rank(b); ra != rb) return ra < rb;
  if (a.date != b.date) return a.date > b.date;
  WisdomRecord x = a, y = b;
  x.winner = y.winner = false;
  return to_line(x) < to_line(y);
}

bool can_win(const WisdomRecord& r) { return r.status == WisdomStatus::ok; }

/// Of a group's records those that may be chosen, the winner first, the others by their times.
std::vector<const WisdomRecord*> by_merit(std::vector<const WisdomRecord*> group) {
  std::erase_if(group, [](const WisdomRecord* r) { return !can_win(*r); });
  std::stable_sort(group.begin(), group.end(), [](const WisdomRecord* a, const WisdomRecord* b) {
    return std::tie(a->noisy, a->median_ms, a->parameters) < std::tie(b->noisy, b->median_ms, b->parameters);
  });
  if (group.empty()) return group;
  const auto alike = std::find_if(group.begin(), group.end(), [&](auto* r) { return r->noisy != group[0]->noisy; });
  const auto winner = runtime::chosen(
      group.begin(), alike,
      [](const WisdomRecord* r) {
        return runtime::Timed{r->median_ms, r->spread, static_cast<std::size_t>(r->samples), r->predicted_ms};
      },
      [](const WisdomRecord* r) -> const WisdomParameters& { return r->parameters; });
  std::rotate(group.begin(), winner, winner + 1);
  return group;
}

/// What differs between two sets of validators, "device 'a', here 'b'".
std::vector<std::string> differences(const WisdomValidators& there, const WisdomValidators& here) {
  std::vector<std::string> all;
  const auto compare = [&](std::string_view name, const auto& a, const auto& b) {
    if (a != b) all.push_back(fmt::format("{} {}, here {}", name, a, b));
  };
  const auto quoted = [](const std::string& s) { return fmt::format("'{}'", s); };
  compare("device", quoted(there.device), quoted(here.device));
  compare("units", there.units, here.units);
  compare("driver", quoted(there.driver), quoted(here.driver));
  compare("kerf", quoted(there.kerf), quoted(here.kerf));
  for (const WisdomFields* fields : {&there.other, &here.other}) {
    for (const auto& [name, value] : *fields) {
      const auto value_in = [&name = name](const WisdomFields& f) {
        const auto found = f.find(name);
        return found == f.end() ? std::string("unknown") : found->second;
      };
      if (fields == &there.other || !there.other.contains(name))
        compare(name, value_in(there.other), value_in(here.other));
    }
  }
  return all;
}

double distance(std::int64_t bucket, std::int64_t wanted) {
  const double ratio = static_cast<double>(bucket) / static_cast<double>(wanted);
  return std::max(ratio, 1 / ratio);
}

/// The same key up to its tokens.
bool alike(const WisdomKey& a, const WisdomKey& b) {
  return std::tie(a.op, a.part, a.dtype, a.hidden, a.vocabulary, a.options, a.target, a.space) ==
         std::tie(b.op, b.part, b.dtype, b.hidden, b.vocabulary, b.options, b.target, b.space);
}

WisdomKey rounded(WisdomKey key) {
  if (key.tokens != 0) key.tokens = token_bucket(key.tokens);
  return key;
}

/// Notes about many records, of which a few are told.
class Notes {
 public:
  explicit Notes(std::vector<std::string>& notes) : notes_(notes) {}
  ~Notes() {
    if (count_ > most_notes) notes_.push_back(fmt::format("{} more were refused", count_ - most_notes));
  }
  Notes(const Notes&) = delete;
  Notes& operator=(const Notes&) = delete;
  void refused(const WisdomRecord& r, const std::string& reason) {
    if (count_++ < most_notes)
      notes_.push_back(fmt::format("{}: {} is refused: {}", r.key.describe(), describe(r.parameters), reason));
  }

 private:
  std::vector<std::string>& notes_;
  std::size_t count_ = 0;
};

}  // namespace

bool WisdomOrder::operator()(const WisdomRecord& a, const WisdomRecord& b) const {
  if (const auto c = a.key <=> b.key; c != 0) return c < 0;
  if (const auto c = a.validators <=> b.validators; c != 0) return c < 0;
  return a.parameters < b.parameters;
}

std::string WisdomKey::describe() const {
  std::string text = op;
  const auto add = [&](const std::string& word) { text += word.empty() ? "" : " " + word; };
  add(part);
  add(dtype);
  if (hidden != 0) add(fmt::format("D={}", hidden));
  if (vocabulary != 0) add(fmt::format("V={}", vocabulary));
  if (tokens != 0) add(fmt::format("N={}", tokens));
  add(options);
  add(target);
  return text;
}

std::string describe(const WisdomParameters& parameters) {
  std::string text;
  for (const auto& [name, value] : parameters)
    std::visit([&, &name = name](const auto& x) { text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, x); },
               value);
  return text;
}

bool WisdomFilter::matches(const WisdomRecord& r) const {
  const auto fits = [](const std::string& wanted, const std::string& has) { return wanted.empty() || wanted == has; };
  return fits(op, r.key.op) && fits(part, r.key.part) && fits(dtype, r.key.dtype) &&
         r.validators.device.find(device) != std::string::npos;
}

Wisdom::Records::iterator Wisdom::put(WisdomRecord record) {
  const auto at = records_.lower_bound(record);
  if (at == records_.end() || WisdomOrder()(record, *at)) return records_.insert(at, std::move(record));
  if (!better(record, *at)) return at;
  return records_.insert(records_.erase(at), std::move(record));
}

/// Marks the winner of the group that begins here; returns where the next begins.
Wisdom::Records::iterator Wisdom::crown(Records::iterator begin) {
  std::vector<const WisdomRecord*> group;
  auto end = begin;
  for (; end != records_.end() && same_group(*begin, *end); ++end) group.push_back(&*end);
  const std::vector<const WisdomRecord*> ranked = by_merit(group);
  const WisdomRecord* const winner = ranked.empty() ? nullptr : ranked.front();
  for (auto r = begin; r != end;) {
    const bool wins = &*r == winner;
    if (r->winner == wins) {
      ++r;
      continue;
    }
    const auto next = std::next(r);
    auto node = records_.extract(r);
    node.value().winner = wins;
    records_.insert(next, std::move(node));
    r = next;
  }
  return end;
}

void Wisdom::crown_all() {
  for (auto group = records_.begin(); group != records_.end();) group = crown(group);
}

void Wisdom::merge_header(const WisdomFields& header) {
  for (const auto& [name, value] : header) {
    std::string& mine = header_[name];
    mine = std::max(mine, value);
  }
}

void Wisdom::add(const WisdomRecord& record) {
  const WisdomRecord clean = runtime::checked(record);
  put(clean);
  WisdomRecord first;
  first.key = clean.key;
  first.validators = clean.validators;
  crown(records_.lower_bound(first));
}

void Wisdom::replace(const WisdomRecord& record) {
  const WisdomRecord clean = runtime::checked(record);
  records_.erase(clean);
  add(clean);
}

void Wisdom::merge(const Wisdom& other) {
  for (const WisdomRecord& r : other.records_) put(r);
  merge_header(other.header_);
  crown_all();
}

std::size_t Wisdom::prune(const WisdomPrune& what) {
  if (!what.before.empty() && !runtime::is_date(what.before))
    throw UsageError(
        fmt::format("prune: '{}' is no date; write it as 2026-11-21 or 2026-11-21T10:20:30Z", what.before));
  const std::size_t before = records_.size();
  std::erase_if(records_, [&](const WisdomRecord& r) {
    return (!what.kerf.empty() && r.validators.kerf != what.kerf) || r.date < what.before;
  });
  crown_all();
  if (what.losers) std::erase_if(records_, [](const WisdomRecord& r) { return !r.winner; });
  return before - records_.size();
}

WisdomChoice Wisdom::lookup(const WisdomKey& key, const WisdomValidators& validators,
                            const WisdomRefusal& refusal) const {
  WisdomRecord first;
  first.key = rounded(key);
  const WisdomKey wanted = first.key;
  first.key.tokens = 0;
  first.key.other = {};
  std::map<std::int64_t, std::vector<const WisdomRecord*>> buckets;
  std::size_t elsewhere = 0;
  const WisdomRecord* example = nullptr;
  for (auto r = records_.lower_bound(first); r != records_.end() && alike(r->key, wanted); ++r) {
    if (r->key.other != wanted.other) continue;
    if (r->validators == validators) {
      buckets[r->key.tokens].push_back(&*r);
    } else if (r->key == wanted) {
      ++elsewhere;
      if (example == nullptr || (r->winner && !example->winner)) example = &*r;
    }
  }
  std::vector<std::int64_t> order;
  for (const auto& [tokens, group] : buckets)
    if (tokens == wanted.tokens || (tokens != 0 && wanted.tokens != 0)) order.push_back(tokens);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    if (a == wanted.tokens || b == wanted.tokens) return a == wanted.tokens && b != wanted.tokens;
    const double da = distance(a, wanted.tokens), db = distance(b, wanted.tokens);
    return da != db ? da < db : a > b;
  });

  WisdomChoice choice;
  {
    Notes notes(choice.notes);
    for (const std::int64_t tokens : order) {
      for (const WisdomRecord* r : by_merit(buckets[tokens])) {
        const std::string reason = refusal ? refusal(r->parameters) : "";
        if (!reason.empty()) {
          notes.refused(*r, reason);
          continue;
        }
        choice.record = *r;
        choice.exact = tokens == wanted.tokens;
        break;
      }
      if (choice.record) break;
    }
  }
  if (choice.record && !choice.exact)
    choice.notes.push_back(fmt::format("{}: no choice for this bucket; the nearest that has one is N={}",
                                       wanted.describe(), choice.record->key.tokens));
  if (!choice.exact && example != nullptr)
    choice.notes.push_back(fmt::format("{}: {} record{} measured elsewhere ({}): of use as seeds alone; tune here",
                                       wanted.describe(), elsewhere, elsewhere == 1 ? " was" : "s were",
                                       fmt::join(differences(example->validators, validators), "; ")));
  return choice;
}

std::vector<WisdomParameters> Wisdom::seeds(const WisdomKey& key, const WisdomValidators& validators) const {
  const WisdomKey wanted = rounded(key);
  struct Seed {
    std::tuple<bool, bool, bool, std::size_t, double> far;
    const WisdomRecord* record;
  };
  std::vector<Seed> found;
  for (const WisdomRecord& r : records_) {
    if (!r.winner || std::tie(r.key.op, r.key.part, r.key.dtype, r.key.target) !=
                         std::tie(wanted.op, wanted.part, wanted.dtype, wanted.target))
      continue;
    const bool both = r.key.tokens != 0 && wanted.tokens != 0;
    found.push_back({{std::tie(r.key.hidden, r.key.vocabulary) != std::tie(wanted.hidden, wanted.vocabulary),
                      r.key.options != wanted.options || r.key.other != wanted.other, r.key.space != wanted.space,
                      differences(r.validators, validators).size(), both ? distance(r.key.tokens, wanted.tokens) : 0},
                     &r});
  }
  std::stable_sort(found.begin(), found.end(), [](const Seed& a, const Seed& b) { return a.far < b.far; });
  std::vector<WisdomParameters> seeds;
  std::set<WisdomParameters> seen;
  for (const Seed& s : found)
    if (seen.insert(s.record->parameters).second) seeds.push_back(s.record->parameters);
  return seeds;
}

Wisdom Wisdom::select(const WisdomFilter& filter) const {
  Wisdom some;
  some.header_ = header_;
  std::copy_if(records_.begin(), records_.end(), std::inserter(some.records_, some.records_.end()),
               [&](const WisdomRecord& r) { return filter.matches(r); });
  return some;
}

std::string Wisdom::text() const {
  std::string all = to_line(runtime::WisdomHeader{runtime::wisdom_schema, header_}) + "\n";
  for (const WisdomRecord& r : records_) all += to_line(r) + "\n";
  return all;
}

}  // namespace kerf
