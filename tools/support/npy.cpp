#include "tools/support/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "kerf/error.h"

namespace kerf::tools {
namespace {

struct TypeName {
  NpyType type;
  std::string_view descr, name;
  std::int64_t size;
};
constexpr TypeName types[] = {{NpyType::i1, "|i1", "int8", 1},    {NpyType::u2, "<u2", "uint16", 2},
                              {NpyType::i4, "<i4", "int32", 4},   {NpyType::i8, "<i8", "int64", 8},
                              {NpyType::f2, "<f2", "float16", 2}, {NpyType::f4, "<f4", "float32", 4}};
const TypeName& of(NpyType t) {
  for (const TypeName& row : types)
    if (row.type == t) return row;
  throw InternalError("npy: a type without a row in the table");
}

/// Reads a Python dictionary of strings, booleans and tuples of numbers, as numpy writes it.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  NpyHeader parse() {
    std::optional<NpyType> type;
    std::optional<std::vector<std::int64_t>> shape;
    std::optional<bool> fortran;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr" && !type)
        type = dtype();
      else if (key == "fortran_order" && !fortran)
        fortran = boolean();
      else if (key == "shape" && !shape)
        shape = tuple();
      else
        fail(fmt::format("unexpected key '{}'", key));
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != text_.size()) fail("text after the dictionary");
    if (!type || !shape || !fortran) fail("descr, fortran_order or shape is missing");
    if (*fortran && shape->size() > 1) fail("the array is in Fortran order; save it with numpy.ascontiguousarray");
    return {*type, *shape};
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UsageError(fmt::format("{}: npy header, character {}: {}", path_, at_, what));
  }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }
  bool accept(char c) {
    skip();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}'", c));
  }
  std::string_view quoted() {
    skip();
    const char quote = at_ < text_.size() ? text_[at_] : ' ';
    if (quote != '\'' && quote != '"') fail("expected a quoted string");
    const std::size_t begin = ++at_;
    const std::size_t end = text_.find(quote, begin);
    if (end == std::string_view::npos) fail("a string without an end");
    at_ = end + 1;
    return text_.substr(begin, end - begin);
  }
  bool boolean() {
    skip();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return value;
    }
    fail("expected True or False");
  }
  NpyType dtype() {
    skip();
    if (at_ < text_.size() && text_[at_] == '[') fail("structured arrays are not read");
    const std::string_view descr = quoted();
    for (const TypeName& row : types)
      if (row.descr == descr) return row.type;
    fail(fmt::format(
        "dtype '{}' is not read; known are int8, uint16 (bits of bf16), int32, int64, float16, float32, all "
        "little-endian",
        descr));
  }
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> shape;
    std::int64_t elements = 1;
    expect('(');
    while (!accept(')')) {
      skip();
      std::int64_t n = 0;
      const auto [stop, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), n);
      if (error != std::errc{} || n < 0) fail("expected a size that is not negative");
      at_ = static_cast<std::size_t>(stop - text_.data());
      if (shape.size() == 32) fail("more than 32 axes");
      shape.push_back(n);
      if (__builtin_mul_overflow(elements, std::max<std::int64_t>(n, 1), &elements) ||
          elements > (std::int64_t{1} << 56))
        fail("the number of elements passes 2^56");
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return shape;
  }

  std::string_view text_;
  const std::string& path_;
  std::size_t at_ = 0;
};

}  // namespace

std::int64_t NpyArray::elements() const {
  std::int64_t n = 1;
  for (const std::int64_t s : shape) n *= s;
  return n;
}

std::string NpyArray::describe() const { return fmt::format("{} [{}]", of(type).name, fmt::join(shape, ", ")); }

std::vector<std::int64_t> integers(const NpyArray& a, const std::string& path, const char* meaning) {
  if (a.shape.size() != 1 || (a.type != NpyType::i4 && a.type != NpyType::i8))
    throw UsageError(fmt::format("{}: is {}; expected int32 or int64 {}", path, a.describe(), meaning));
  std::vector<std::int64_t> out(static_cast<std::size_t>(a.elements()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::int32_t narrow = 0;
    if (a.type == NpyType::i8)
      std::memcpy(&out[i], a.bytes.data() + 8 * i, 8);
    else
      std::memcpy(&narrow, a.bytes.data() + 4 * i, 4), out[i] = narrow;
  }
  return out;
}

NpyHeader parse_npy_header(std::string_view text, const std::string& path) { return HeaderParser(text, path).parse(); }

NpyArray read_npy(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) throw UsageError(fmt::format("{}: no such file", path));
  const std::uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) throw UsageError(fmt::format("{}: cannot be opened", path));

  unsigned char head[12] = {};
  file.read(reinterpret_cast<char*>(head), 10);
  if (!file || std::memcmp(head, "\x93NUMPY", 6) != 0) throw UsageError(fmt::format("{}: not a .npy file", path));
  const int version = head[6];
  if (version < 1 || version > 3) throw UsageError(fmt::format("{}: npy version {} is not known", path, version));
  std::uint64_t begin = 10, length = head[8] | head[9] << 8;
  if (version > 1) {
    file.read(reinterpret_cast<char*>(head) + 10, 2);
    begin = 12;
    length |= static_cast<std::uint64_t>(head[10]) << 16 | static_cast<std::uint64_t>(head[11]) << 24;
  }
  if (!file || length > size - begin || length > (1u << 20))
    throw UsageError(fmt::format("{}: the header is said to be {} bytes long, the file has {}", path, length, size));
  std::string text(length, ' ');
  file.read(text.data(), static_cast<std::streamsize>(length));
  if (!file) throw UsageError(fmt::format("{}: cannot be read", path));

  NpyArray array;
  NpyHeader header = parse_npy_header(text, path);
  array.type = header.type;
  array.shape = std::move(header.shape);
  const auto bytes = static_cast<std::uint64_t>(array.elements() * of(array.type).size);
  if (bytes != size - begin - length)
    throw UsageError(
        fmt::format("{}: {} takes {} bytes, the file holds {}", path, array.describe(), bytes, size - begin - length));
  array.bytes.resize(bytes);
  file.read(reinterpret_cast<char*>(array.bytes.data()), static_cast<std::streamsize>(bytes));
  if (!file) throw UsageError(fmt::format("{}: cannot be read", path));
  return array;
}

}  // namespace kerf::tools
