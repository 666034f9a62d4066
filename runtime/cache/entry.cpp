#include "runtime/cache/entry.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

namespace kerf::cache {

namespace {

constexpr std::string_view magic = "KERFCODE";
constexpr std::size_t header_bytes = 56, table_row_bytes = 24, digest_bytes = 32;
constexpr std::uint32_t most_sections = 5;

class Writer {
 public:
  template <class T>
  void number(T value) {
    const auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (std::size_t i = 0; i < sizeof bits; ++i) out_.push_back(static_cast<std::byte>(bits >> (8 * i) & 0xff));
  }
  void raw(std::span<const std::byte> bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }
  void text(std::string_view s) {
    number(static_cast<std::uint64_t>(s.size()));
    raw(std::as_bytes(std::span(s)));
  }
  const std::vector<std::byte>& bytes() const { return out_; }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  std::vector<std::byte> out_;
};

/// Past the end of the bytes everything is 0 and ok() false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  template <class T>
  T number() {
    std::make_unsigned_t<T> bits = 0;
    const std::span<const std::byte> bytes = raw(sizeof bits);
    for (std::size_t i = 0; i < bytes.size(); ++i)
      bits = static_cast<std::make_unsigned_t<T>>(bits | std::to_integer<std::make_unsigned_t<T>>(bytes[i]) << (8 * i));
    return static_cast<T>(bits);
  }
  std::span<const std::byte> raw(std::uint64_t size) {
    if (size > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const auto bytes = rest_.first(static_cast<std::size_t>(size));
    rest_ = rest_.subspan(bytes.size());
    return bytes;
  }
  std::string text() {
    const auto bytes = raw(number<std::uint64_t>());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

std::vector<std::byte> bytes_of(std::string_view s) {
  const auto bytes = std::as_bytes(std::span(s));
  return {bytes.begin(), bytes.end()};
}
std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Entry with_about(const Key& key) { return {digest(key), {{SectionType::about, bytes_of(to_text(key))}}}; }

void write_code(Writer& out, const codegen::nvptx::Code& code) {
  out.text(code.entry);
  out.number(code.threads);
  out.number(code.shared_bytes);
  out.number(code.argument_words);
  out.number(static_cast<std::uint64_t>(code.maps.size()));
  for (const codegen::nvptx::TensorMap& map : code.maps) {
    out.number(map.tensor);
    out.number(map.rows);
  }
  out.number(static_cast<std::uint64_t>(code.aligned.size()));
  for (int tensor : code.aligned) out.number(tensor);
}

codegen::nvptx::Code read_code(Reader& in) {
  codegen::nvptx::Code code;
  code.entry = in.text();
  code.threads = in.number<int>();
  code.shared_bytes = in.number<std::int64_t>();
  code.argument_words = in.number<std::int64_t>();
  for (auto n = in.number<std::uint64_t>(); n > 0 && in.ok(); --n) {
    const int tensor = in.number<int>();
    code.maps.push_back({tensor, in.number<std::int64_t>()});
  }
  for (auto n = in.number<std::uint64_t>(); n > 0 && in.ok(); --n) code.aligned.push_back(in.number<int>());
  return code;
}

}  // namespace

std::span<const std::byte> Entry::section(SectionType type) const {
  for (const Section& s : sections)
    if (s.type == type) return s.bytes;
  return {};
}

std::string Entry::about() const { return text_of(section(SectionType::about)); }

std::vector<std::byte> serialize(const Entry& entry) {
  std::uint64_t offset = header_bytes + table_row_bytes * entry.sections.size();
  std::uint64_t total = offset + digest_bytes;
  for (const Section& s : entry.sections) total += s.bytes.size();
  Writer out;
  out.raw(std::as_bytes(std::span(magic)));
  out.number(entry_format);
  out.number(static_cast<std::uint32_t>(entry.sections.size()));
  out.number(total);
  out.raw(std::as_bytes(std::span(entry.key)));
  for (const Section& s : entry.sections) {
    out.number(static_cast<std::uint32_t>(s.type));
    out.number(std::uint32_t{0});
    out.number(offset);
    out.number(static_cast<std::uint64_t>(s.bytes.size()));
    offset += s.bytes.size();
  }
  for (const Section& s : entry.sections) out.raw(s.bytes);
  const codegen::Digest hash = codegen::sha256(out.bytes());
  out.raw(std::as_bytes(std::span(hash)));
  return out.take();
}

std::optional<Entry> parse(std::span<const std::byte> bytes) {
  if (bytes.size() < header_bytes + digest_bytes || bytes.size() > largest_entry) return {};
  Reader in(bytes);
  if (text_of(in.raw(magic.size())) != magic || in.number<std::uint32_t>() != entry_format) return {};
  const auto count = in.number<std::uint32_t>();
  if (count > most_sections || in.number<std::uint64_t>() != bytes.size()) return {};
  const auto body = bytes.first(bytes.size() - digest_bytes);
  const codegen::Digest hash = codegen::sha256(body);
  if (std::memcmp(hash.data(), bytes.data() + body.size(), digest_bytes) != 0) return {};

  Entry entry;
  std::memcpy(entry.key.data(), in.raw(digest_bytes).data(), digest_bytes);
  std::uint64_t next = header_bytes + std::uint64_t{table_row_bytes} * count;
  std::uint32_t before = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto type = in.number<std::uint32_t>(), zero = in.number<std::uint32_t>();
    const auto offset = in.number<std::uint64_t>(), size = in.number<std::uint64_t>();
    if (!in.ok() || type <= before || type > most_sections || zero != 0) return {};
    if (offset != next || offset > body.size() || size > body.size() - offset) return {};
    const auto section = body.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
    entry.sections.push_back({static_cast<SectionType>(type), {section.begin(), section.end()}});
    before = type;
    next = offset + size;
  }
  if (next != body.size()) return {};
  return entry;
}

Entry to_entry(const Key& key, const codegen::cpu::Object& object) {
  Entry entry = with_about(key);
  Writer out;
  out.text(object.symbol);
  out.number(static_cast<std::uint64_t>(object.scratch_bytes));
  entry.sections.push_back({SectionType::metadata, out.take()});
  entry.sections.push_back({SectionType::object, object.bytes});
  return entry;
}

Entry to_entry(const Key& key, const codegen::nvptx::Code& code) {
  Entry entry = with_about(key);
  Writer out;
  write_code(out, code);
  entry.sections.push_back({SectionType::metadata, out.take()});
  entry.sections.push_back({SectionType::ptx, bytes_of(code.ptx)});
  return entry;
}

Entry to_entry(const Key& key, const Cubin& cubin) {
  Entry entry = with_about(key);
  Writer out;
  write_code(out, cubin.code);
  out.text(cubin.log);
  entry.sections.push_back({SectionType::metadata, out.take()});
  entry.sections.push_back({SectionType::cubin, cubin.bytes});
  return entry;
}

std::optional<codegen::cpu::Object> to_object(const Entry& entry) {
  const auto bytes = entry.section(SectionType::object);
  Reader in(entry.section(SectionType::metadata));
  codegen::cpu::Object object;
  object.symbol = in.text();
  object.scratch_bytes = static_cast<std::size_t>(in.number<std::uint64_t>());
  if (!in.at_end() || bytes.empty()) return {};
  object.bytes.assign(bytes.begin(), bytes.end());
  return object;
}

std::optional<codegen::nvptx::Code> to_ptx(const Entry& entry) {
  const auto bytes = entry.section(SectionType::ptx);
  Reader in(entry.section(SectionType::metadata));
  codegen::nvptx::Code code = read_code(in);
  if (!in.at_end() || bytes.empty()) return {};
  code.ptx = text_of(bytes);
  return code;
}

std::optional<Cubin> to_cubin(const Entry& entry) {
  const auto bytes = entry.section(SectionType::cubin);
  Reader in(entry.section(SectionType::metadata));
  Cubin cubin;
  cubin.code = read_code(in);
  cubin.log = in.text();
  if (!in.at_end() || bytes.empty()) return {};
  cubin.bytes.assign(bytes.begin(), bytes.end());
  return cubin;
}

}  // namespace kerf::cache
