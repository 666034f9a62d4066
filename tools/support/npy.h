// Reads arrays in NumPy's .npy format (versions 1 to 3, little-endian, C order).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kerf::tools {

enum class NpyType : std::uint8_t { i1, u2, i4, i8, f2, f4 };  // named as in the file, sizes in bytes

struct NpyArray {
  NpyType type = NpyType::f4;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;  // dense, row-major

  std::int64_t elements() const;
  /// "uint16 [8192, 128]"
  std::string describe() const;
};

/// Throws UsageError, naming the file and what is wrong with it, for anything but a whole well-formed array.
NpyArray read_npy(const std::string& path);

/// The numbers of one axis of int32 or int64; `meaning` says in an error what was expected.
std::vector<std::int64_t> integers(const NpyArray& array, const std::string& path, const char* meaning);

struct NpyHeader {
  NpyType type;
  std::vector<std::int64_t> shape;
};
/// The dictionary at the head of a file; throws UsageError that begins with `path`.
NpyHeader parse_npy_header(std::string_view text, const std::string& path);

}  // namespace kerf::tools
