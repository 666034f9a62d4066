// Wisdom: what was measured of the candidates for a kernel, kept as text that people read, diff, merge and ship with a
// model.
//
// The text is JSON Lines: a header with the version of the schema, then a record for every candidate that was tried,
// not only for the best. Fields that this version does not know are kept as they are. `token_bucket` says which numbers
// of tokens share a choice.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace kerf::runtime {
class WisdomReader;  // runtime/wisdom/reader.h
}

namespace [[gnu::visibility("default")]] kerf {

/// The number of tokens that a choice for `tokens` is tuned with: the least of 1, 16, 32, 64, 128, 256, steps of 256 up
/// to 2048, steps of 512 up to 4096, then powers of two that is not below it. Above 2^62 the largest i64. UsageError
/// below 1.
std::int64_t token_bucket(std::int64_t tokens);

/// The named choices of a candidate: {"n": 128, "v": 256, "order": "rows"}.
using WisdomParameters = std::map<std::string, std::variant<std::int64_t, std::string>>;
/// Fields that this version does not know, by name, as JSON.
using WisdomFields = std::map<std::string, std::string>;

/// What a choice is for. Records are used for no other key.
struct WisdomKey {
  std::string op = {};                      // "linear_cross_entropy", or the name of a program
  std::string part = {};                    // "forward", "backward", or a program of the op
  std::string dtype = {};                   // "bf16"
  std::int64_t hidden = 0, vocabulary = 0;  // D, V; 0: the op has no such axis
  std::string options = {};                 // those that change the kernels, in a fixed order: "softcap=30 shift=1"
  std::string target = {};                  // "sm_90a", "avx512bf16"
  std::string space = {};                   // hash of the programs and of the space of parameters
  std::int64_t tokens = 0;                  // N, one of token_bucket's; 0: the op has no such axis
  WisdomFields other = {};                  // count as any other field does

  friend auto operator<=>(const WisdomKey&, const WisdomKey&) = default;
  /// "linear_cross_entropy forward bf16 D=2304 V=256000 N=8192 sm_90a"
  std::string describe() const;
};

/// Where times were measured. Records from elsewhere are seeds for a search and never choices.
struct WisdomValidators {
  std::string device = {};  // "NVIDIA H200", or the processor's name
  std::int64_t units = 0;   // multiprocessors or cores
  std::string driver = {};  // empty on a CPU
  std::string kerf = {};    // version()
  WisdomFields other = {};

  friend auto operator<=>(const WisdomValidators&, const WisdomValidators&) = default;
};

/// How a candidate ended: it ran rightly; it did not compile; it asks for more than the device has; it faulted; its
/// results were wrong; it did not end in time; it was given up early since others are faster.
enum class WisdomStatus : std::uint8_t { ok, compile, resources, fault, wrong, timeout, slow };
std::string_view name_of(WisdomStatus s);

/// One candidate, measured once. Key, validators and parameters say which; a Wisdom holds one record of each.
struct WisdomRecord {
  WisdomKey key = {};
  WisdomValidators validators = {};
  WisdomParameters parameters = {};
  double median_ms = 0;  // of `samples` runs; 0: not measured
  double spread = 0;     // of the samples, first quarter to third, relative to the median
  std::int64_t samples = 0;
  double predicted_ms = 0;  // by the model that ranked it; 0: none
  WisdomStatus status = WisdomStatus::ok;
  std::string reason = {};  // of another status than ok
  bool winner = false;      // found by the Wisdom that holds the record: what is given is not looked at
  bool noisy = false;       // something else ran on the device meanwhile
  std::string date = {};    // "2026-11-21" or "2026-11-21T10:20:30Z"; empty: unknown
  WisdomFields other = {};

  friend bool operator==(const WisdomRecord&, const WisdomRecord&) = default;
};
/// The order of records in a file: by key, validators, parameters.
struct WisdomOrder {
  bool operator()(const WisdomRecord& a, const WisdomRecord& b) const;
};
/// "n=128 v=256"
std::string describe(const WisdomParameters& parameters);

/// Something in a file that was not used, or that is to be known of it.
struct WisdomProblem {
  std::string source = {};  // the file
  std::int64_t line = 0;    // from 1; 0: the file as a whole
  std::string what = {};
  bool note = false;  // nothing is lost but a last line that was not written to its end
  /// "wisdom.jsonl:12: field 'n' is there twice; keep one of them"
  std::string text() const;
};

/// Says why parameters are not legal now; empty: they are.
using WisdomRefusal = std::function<std::string(const WisdomParameters&)>;

/// What a lookup found.
struct WisdomChoice {
  std::optional<WisdomRecord> record = {};
  bool exact = false;                   // of the bucket that was asked for, and not of the nearest one
  std::vector<std::string> notes = {};  // what was passed over, and why
};

/// Which records: an empty field stands for all.
struct WisdomFilter {
  std::string op = {}, part = {}, dtype = {};
  std::string device = {};  // a part of the device's name, "H200"
  bool matches(const WisdomRecord& record) const;
};

/// What prune drops: a record that any of these names.
struct WisdomPrune {
  std::string kerf = {};    // measured by another version than this; empty: any is good
  std::string before = {};  // measured before this date, or without one; empty: any is good
  bool losers = false;      // all but winners
};

struct WisdomRead;

/// A set of records. Of those with one key and the same validators one is the winner, if any is ok: the least median
/// with its standard error added among what is ok and not noisy (noisy where nothing else is), or what is surely within
/// 2 % of it, twice the standard error of both medians included, and has the least predicted_ms; of those with the same
/// the first in the order of parameters, which are compared by names, then values, one after the other. Of records with
/// the same parameters one is kept: `wrong` and `fault` before all others, not noisy before noisy, then more samples,
/// the lower median, the later date. So it does not matter in which order, how often or in which groups records were
/// added.
class Wisdom {
 public:
  /// What the text holds, and what in it could not be used. Never throws because of the text.
  static WisdomRead parse(std::string_view text, const std::string& source = "wisdom");
  /// The same of a file; of one that is not there nothing, without a problem. Follows links, reads regular files alone.
  static WisdomRead load(const std::string& file);

  /// Throws UsageError for a record that a file could not hold: without a key, with a negative or infinite time, ...
  void add(const WisdomRecord& record);
  /// The same in place of what there is of the candidate, whichever is the better: it was measured anew.
  void replace(const WisdomRecord& record);
  void merge(const Wisdom& other);
  /// Drops what is named; returns how many records that were. UsageError where `before` is no date.
  std::size_t prune(const WisdomPrune& what);

  /// The winner for a key, its tokens rounded up, as measured with these validators; where that bucket has none, the
  /// one of the nearest bucket that has. A winner that `refusal` refuses is reported and the next best taken.
  WisdomChoice lookup(const WisdomKey& key, const WisdomValidators& validators,
                      const WisdomRefusal& refusal = {}) const;
  /// Parameters that won for keys of this op, part, dtype and target, wherever measured, without repetitions: those
  /// first whose sizes, options and space are the same, then those with fewer other validators, then near buckets.
  std::vector<WisdomParameters> seeds(const WisdomKey& key, const WisdomValidators& validators) const;
  Wisdom select(const WisdomFilter& filter) const;

  const std::set<WisdomRecord, WisdomOrder>& records() const { return records_; }
  /// Fields of the header that this version does not know.
  const WisdomFields& header() const { return header_; }
  /// The whole as text; the same records make the same text.
  std::string text() const;

  /// Adds all to what the file holds, under a lock, and replaces the file at once: savers lose nothing of each other. A
  /// file of which lines could not be read is kept beside it as FILE.bad-1, -2, ...; returns what was wrong with it.
  /// Throws UsageError for a link, for what is no regular file, for a file of a newer schema or where the folder cannot
  /// be written, DeviceError where the disk fails.
  std::vector<WisdomProblem> save(const std::string& file) const;

  friend bool operator==(const Wisdom&, const Wisdom&) = default;

 private:
  friend class runtime::WisdomReader;
  using Records = std::set<WisdomRecord, WisdomOrder>;
  Records::iterator put(WisdomRecord record);
  Records::iterator crown(Records::iterator begin);
  void crown_all();
  void merge_header(const WisdomFields& header);

  Records records_;
  WisdomFields header_;
};

/// What a file or text held.
struct WisdomRead {
  Wisdom wisdom = {};
  std::vector<WisdomProblem> problems = {};
  bool newer = false;  // of a schema that this version does not read: nothing was used
  /// Whether lines were skipped that somebody may want back.
  bool damaged() const;
};

/// Reads the file, changes what it holds and replaces it as save does, all under one lock.
std::vector<WisdomProblem> update_wisdom(const std::string& file, const std::function<void(Wisdom&)>& change);

/// Adds records to a file one by one while they are found: each is on its way to the disk when append returns, and a
/// process that is killed leaves at most one torn line, which readers skip and the next append takes away. Several may
/// append to a file and save it at once.
class WisdomAppender {
 public:
  /// Throws as Wisdom::save does.
  explicit WisdomAppender(const std::string& file);
  ~WisdomAppender();
  WisdomAppender(WisdomAppender&&) noexcept;
  WisdomAppender& operator=(WisdomAppender&&) noexcept;
  void append(const WisdomRecord& record);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Where this user's wisdom lies: the file that KERF_WISDOM names, else kerf/wisdom.jsonl in XDG_DATA_HOME or in
/// HOME/.local/share. Empty where none of the three is set.
std::string user_wisdom_file();

/// Wisdom from several places, each asked when those before it have no answer.
class WisdomLayers {
 public:
  struct Layer {
    std::string name;
    Wisdom wisdom;
  };

  /// The user's file, then the files and folders (their *.jsonl) of KERF_WISDOM_PATH, separated by colons, then what is
  /// built into the library.
  static WisdomLayers open();
  /// To be asked before all others: wisdom that came with a model.
  void put_first(const std::string& name, Wisdom wisdom);

  /// As Wisdom::lookup. The bucket asked for in any layer goes before the nearest one in the first.
  WisdomChoice lookup(const WisdomKey& key, const WisdomValidators& validators,
                      const WisdomRefusal& refusal = {}) const;
  /// As Wisdom::seeds, of all layers.
  std::vector<WisdomParameters> seeds(const WisdomKey& key, const WisdomValidators& validators) const;
  const std::vector<Layer>& layers() const { return layers_; }
  const std::vector<WisdomProblem>& problems() const { return problems_; }

 private:
  std::vector<Layer> layers_;
  std::vector<WisdomProblem> problems_;
};

}  // namespace kerf
