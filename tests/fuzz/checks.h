// What must hold for any bytes that are read: whatever a file holds, it is read or refused, and what was read is
// written so that it is read as the same. Each throws Broken where it does not hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

namespace kerf::fuzz {

struct Broken : std::logic_error {
  using std::logic_error::logic_error;
};
inline void require(bool holds, const std::string& what) {
  if (!holds) throw Broken(what);
}

using Bytes = std::span<const std::uint8_t>;
void wisdom(Bytes bytes);
void cache_entry(Bytes bytes);
void tile_ir(Bytes bytes);

}  // namespace kerf::fuzz
