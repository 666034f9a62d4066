// One kept piece of code as bytes, the same on every machine. All numbers are little-endian.
//
//     0  8  "KERFCODE"
//     8  4  format
//    12  4  number of sections
//    16  8  size of the whole
//    24 32  digest of the key
//    56     for each section: u32 type, u32 0, u64 offset, u64 size
//           the sections, in order and without gaps
//   end 32  SHA-256 of all before it
//
// There is one way to write an entry, and parse takes no other: a byte that is changed is found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codegen/cpu/jit.h"
#include "codegen/digest.h"
#include "codegen/nvptx/ptx.h"
#include "runtime/cache/key.h"

namespace kerf::cache {

enum class SectionType : std::uint32_t {
  about = 1,     // the key as text
  metadata = 2,  // what the structs of codegen hold beside the code
  object = 3,    // host object file
  ptx = 4,
  cubin = 5,
};
struct Section {
  SectionType type{};
  std::vector<std::byte> bytes;
};
struct Entry {
  codegen::Digest key{};
  std::vector<Section> sections;  // of a type at most one, in the order of the types

  /// Empty where there is none.
  std::span<const std::byte> section(SectionType type) const;
  std::string about() const;
};

inline constexpr std::uint64_t largest_entry = std::uint64_t{256} << 20;
std::vector<std::byte> serialize(const Entry& entry);
/// Nothing where `bytes` are not what serialize writes. Reads no byte outside them, whatever they are.
std::optional<Entry> parse(std::span<const std::byte> bytes);

/// What a GPU's driver made of PTX.
struct Cubin {
  codegen::nvptx::Code code;  // without the PTX
  std::vector<std::byte> bytes;
  std::string log;  // of the translator
};

Entry to_entry(const Key& key, const codegen::cpu::Object& object);
Entry to_entry(const Key& key, const codegen::nvptx::Code& code);
Entry to_entry(const Key& key, const Cubin& cubin);
/// Nothing where the entry holds something else.
std::optional<codegen::cpu::Object> to_object(const Entry& entry);
std::optional<codegen::nvptx::Code> to_ptx(const Entry& entry);
std::optional<Cubin> to_cubin(const Entry& entry);

}  // namespace kerf::cache
