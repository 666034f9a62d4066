#include "runtime/wisdom/line.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "kerf/error.h"

namespace kerf::runtime {
namespace {

using nlohmann::json;

constexpr std::array statuses{WisdomStatus::ok,    WisdomStatus::compile, WisdomStatus::resources, WisdomStatus::fault,
                              WisdomStatus::wrong, WisdomStatus::timeout, WisdomStatus::slow};

/// Text for a message: what a stranger wrote may be long.
std::string cut(std::string text) {
  constexpr std::size_t most = 120;
  if (text.size() > most) text.replace(most, std::string::npos, "...");
  return text;
}
std::string shown(const json& value) { return cut(value.dump()); }

[[noreturn]] void fail(const std::string& what) { throw BadLine{what}; }

/// Builds the value of a line, and stops at what is too deep, there twice, or an integer that nothing here can hold.
class Builder : public nlohmann::json_sax<json> {
 public:
  json value;
  BadLine bad;

  bool null() override { return put(nullptr); }
  bool boolean(bool x) override { return put(x); }
  bool number_integer(number_integer_t x) override { return put(x); }
  bool number_unsigned(number_unsigned_t x) override { return put(x); }
  bool number_float(number_float_t x, const string_t& text) override {
    if (text.find_first_of(".eE") == std::string::npos)
      return stop(fmt::format("{} does not fit 64 bits; write it as a text or with a decimal point", cut(text)));
    return put(x);
  }
  bool string(string_t& x) override { return put(std::move(x)); }
  bool binary(binary_t&) override { return false; }  // JSON has none
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (open_.back()->contains(name))
      return stop(fmt::format("field '{}' is there twice; keep one of them", cut(name)));
    key_ = std::move(name);
    return true;
  }
  bool parse_error(std::size_t column, const std::string&, const nlohmann::detail::exception& error) override {
    if (error.id == 406) return stop("a number is larger than any double; write one that is finite");
    std::string_view what = error.what();
    const std::size_t colon = what.find(": ");
    if (colon != std::string_view::npos) what.remove_prefix(colon + 2);
    stop(fmt::format("no JSON at column {} ({}); mend the line or delete it", column, cut(std::string(what))));
    bad.syntax = true;
    return false;
  }

 private:
  bool stop(std::string what) {
    bad.what = std::move(what);
    return false;
  }
  json* place(json x) {
    if (open_.empty()) return &(value = std::move(x));
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(x));
      return &parent.back();
    }
    return &(parent[key_] = std::move(x));
  }
  bool put(json x) {
    place(std::move(x));
    return true;
  }
  bool open(json x) {
    if (open_.size() == wisdom_depth_limit)
      return stop(fmt::format("nested deeper than {}; nothing that Kerf writes is", wisdom_depth_limit));
    open_.push_back(place(std::move(x)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::vector<json*> open_;
  std::string key_;
};

/// The fields of an object, taken one by one; what remains is not known.
class Fields {
 public:
  Fields(json object, std::string prefix) : object_(std::move(object)), prefix_(std::move(prefix)) {}

  std::string text(const char* name, bool needed = true) {
    const std::optional<json> x = take(name, needed);
    if (!x) return {};
    if (!x->is_string()) wrong(name, *x, "a text");
    return x->get<std::string>();
  }
  /// At least 0.
  std::int64_t count(const char* name, bool needed = true) {
    const std::optional<json> x = take(name, needed);
    if (!x) return 0;
    if (!x->is_number_unsigned() || x->get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max())
      wrong(name, *x, "an integer from 0 to 2^63 - 1");
    return x->get<std::int64_t>();
  }
  /// At least 0; 0 where it is not there.
  double number(const char* name, const char* unit) {
    const std::optional<json> x = take(name, false);
    if (!x) return 0;
    if (!x->is_number() || !(x->get<double>() >= 0)) wrong(name, *x, fmt::format("a number of {}, at least 0", unit));
    return x->get<double>();
  }
  bool flag(const char* name) {
    const std::optional<json> x = take(name, false);
    if (!x) return false;
    if (!x->is_boolean()) wrong(name, *x, "true or false");
    return x->get<bool>();
  }
  Fields object(const char* name) {
    std::optional<json> x = take(name, true);
    if (!x->is_object()) wrong(name, *x, "an object");
    return {*std::move(x), prefix_ + name + "."};
  }
  WisdomFields rest() const {
    WisdomFields fields;
    for (const auto& [name, value] : object_.items()) fields.emplace(name, value.dump());
    return fields;
  }
  WisdomParameters parameters() const {
    WisdomParameters all;
    for (const auto& [name, x] : object_.items()) {
      if (x.is_string())
        all.emplace(name, x.get<std::string>());
      else if (x.is_number_integer() &&
               !(x.is_number_unsigned() && x.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()))
        all.emplace(name, x.get<std::int64_t>());
      else
        wrong(name, x, "an integer of 64 bits or a text");
    }
    return all;
  }

 private:
  std::optional<json> take(const char* name, bool needed) {
    const auto found = object_.find(name);
    if (found == object_.end()) {
      if (needed)
        fail(fmt::format("{}{} is missing; a record has key, validators, parameters and status", prefix_, name));
      return {};
    }
    json x = std::move(*found);
    object_.erase(found);
    return x;
  }
  [[noreturn]] void wrong(const std::string& name, const json& x, const std::string& wanted) const {
    fail(fmt::format("{}{} is {}; must be {}", prefix_, name, shown(x), wanted));
  }

  json object_;
  std::string prefix_;
};

WisdomKey key_of(Fields f) {
  WisdomKey k;
  k.op = f.text("op");
  if (k.op.empty()) fail("key.op is \"\"; name the op or the program, as in \"linear_cross_entropy\"");
  k.part = f.text("part");
  k.dtype = f.text("dtype");
  k.hidden = f.count("D");
  k.vocabulary = f.count("V");
  k.options = f.text("options", false);
  k.target = f.text("target");
  k.space = f.text("space");
  k.tokens = f.count("N");
  if (k.tokens != 0 && k.tokens != token_bucket(k.tokens))
    fail(fmt::format("key.N is {}, which no bucket ends with; that many tokens are tuned as {}", k.tokens,
                     token_bucket(k.tokens)));
  k.other = f.rest();
  return k;
}

WisdomValidators validators_of(Fields f) {
  WisdomValidators v;
  v.device = f.text("device");
  v.units = f.count("units");
  v.driver = f.text("driver", false);
  v.kerf = f.text("kerf");
  v.other = f.rest();
  return v;
}

WisdomStatus status_of(const std::string& name) {
  std::string names;
  for (const WisdomStatus s : statuses) {
    if (name == name_of(s)) return s;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name_of(s));
  }
  fail(fmt::format("status is '{}'; must be one of {}", cut(name), names));
}

WisdomRecord record_of(Fields f) {
  WisdomRecord r;
  r.key = key_of(f.object("key"));
  r.validators = validators_of(f.object("validators"));
  r.parameters = f.object("parameters").parameters();
  r.status = status_of(f.text("status"));
  r.reason = f.text("reason", false);
  r.median_ms = f.number("median_ms", "milliseconds");
  r.spread = f.number("spread", "parts of the median");
  r.samples = f.count("samples", false);
  r.predicted_ms = f.number("predicted_ms", "milliseconds");
  r.winner = f.flag("winner");
  r.noisy = f.flag("noisy");
  r.date = f.text("date", false);
  r.other = f.rest();
  if ((r.median_ms > 0) != (r.samples > 0))
    fail(fmt::format("median_ms is {} and samples is {}; give both above 0, or neither", r.median_ms, r.samples));
  if (r.status == WisdomStatus::ok && r.samples == 0)
    fail("status is ok and nothing was measured; give median_ms and samples, or another status");
  if (!r.date.empty() && !is_date(r.date))
    fail(fmt::format("date is '{}'; must be as 2026-11-21 or 2026-11-21T10:20:30Z", cut(r.date)));
  return r;
}

/// A JSON object with its fields in the order they are given.
class ObjectText {
 public:
  void put(const std::string& name, const json& value) { put_text(name, value.dump()); }
  void put_text(const std::string& name, const std::string& value) {
    text_ += fmt::format("{}{}:{}", text_.size() > 1 ? "," : "", json(name).dump(), value);
  }
  void put_all(const WisdomFields& fields) {
    for (const auto& [name, value] : fields) put_text(name, value);
  }
  std::string end() { return std::move(text_) + "}"; }

 private:
  std::string text_ = "{";
};

}  // namespace

bool is_date(std::string_view text) {
  constexpr std::string_view full = "dddd-dd-ddTdd:dd:ddZ";
  if (text.size() != 10 && text.size() != full.size()) return false;
  for (std::size_t i = 0; i < text.size(); ++i)
    if (full[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != full[i]) return false;
  return true;
}

std::variant<WisdomHeader, WisdomRecord, BadLine> parse_wisdom_line(std::string_view line) {
  Builder builder;
  if (!json::sax_parse(line, &builder)) return builder.bad;
  try {
    if (!builder.value.is_object())
      fail(fmt::format("is {}; a line is an object, {{...}}: the header or a record", shown(builder.value)));
    Fields fields(std::move(builder.value), "");
    if (const WisdomFields names = fields.rest(); names.contains("kerf_wisdom")) {
      WisdomHeader header;
      header.schema = fields.count("kerf_wisdom");
      header.other = fields.rest();
      if (header.schema == 0) fail("kerf_wisdom is 0; schemas count from 1");
      return header;
    }
    return record_of(std::move(fields));
  } catch (BadLine& bad) {
    return std::move(bad);
  }
}

std::string to_line(const WisdomHeader& header) {
  ObjectText o;
  o.put("kerf_wisdom", header.schema);
  o.put_all(header.other);
  return o.end();
}

std::string to_line(const WisdomRecord& r) {
  ObjectText key, validators, parameters, record;
  key.put("op", r.key.op);
  key.put("part", r.key.part);
  key.put("dtype", r.key.dtype);
  key.put("D", r.key.hidden);
  key.put("V", r.key.vocabulary);
  if (!r.key.options.empty()) key.put("options", r.key.options);
  key.put("target", r.key.target);
  key.put("space", r.key.space);
  key.put("N", r.key.tokens);
  key.put_all(r.key.other);
  validators.put("device", r.validators.device);
  validators.put("units", r.validators.units);
  if (!r.validators.driver.empty()) validators.put("driver", r.validators.driver);
  validators.put("kerf", r.validators.kerf);
  validators.put_all(r.validators.other);
  for (const auto& [name, value] : r.parameters)
    std::visit([&, &name = name](const auto& x) { parameters.put(name, x); }, value);

  record.put_text("key", key.end());
  record.put_text("validators", validators.end());
  record.put_text("parameters", parameters.end());
  record.put("status", name_of(r.status));
  if (!r.reason.empty()) record.put("reason", r.reason);
  if (r.median_ms != 0) record.put("median_ms", r.median_ms);
  if (r.spread != 0) record.put("spread", r.spread);
  if (r.samples != 0) record.put("samples", r.samples);
  if (r.predicted_ms != 0) record.put("predicted_ms", r.predicted_ms);
  if (r.winner) record.put("winner", true);
  if (r.noisy) record.put("noisy", true);
  if (!r.date.empty()) record.put("date", r.date);
  record.put_all(r.other);
  return record.end();
}

WisdomRecord checked(const WisdomRecord& record) {
  const auto refuse = [&](const std::string& what) {
    throw UsageError(
        fmt::format("wisdom: a record of {}, {}: {}", cut(record.key.op), cut(describe(record.parameters)), what));
  };
  std::string line;
  try {
    line = to_line(record);
  } catch (const json::type_error&) {
    refuse("a text in it is no UTF-8, and JSON holds nothing else");
  }
  if (line.size() > wisdom_line_limit)
    refuse(fmt::format("takes {} bytes, a line has at most {}; shorten the reason", line.size(), wisdom_line_limit));
  auto parsed = parse_wisdom_line(line);
  if (const auto* bad = std::get_if<BadLine>(&parsed)) refuse(bad->what);
  if (!std::holds_alternative<WisdomRecord>(parsed))
    refuse("a field is called kerf_wisdom, as only that of a header is");
  return std::get<WisdomRecord>(std::move(parsed));
}

}  // namespace kerf::runtime

namespace kerf {

std::string_view name_of(WisdomStatus s) {
  switch (s) {
    case WisdomStatus::ok: return "ok";
    case WisdomStatus::compile: return "compile";
    case WisdomStatus::resources: return "resources";
    case WisdomStatus::fault: return "fault";
    case WisdomStatus::wrong: return "wrong";
    case WisdomStatus::timeout: return "timeout";
    case WisdomStatus::slow: return "slow";
  }
  return "?";
}

}  // namespace kerf
