// SHA-256, by which code is named and checked. Names no LLVM type.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace kerf::codegen {

using Digest = std::array<std::uint8_t, 32>;
Digest sha256(std::span<const std::byte> bytes);
/// 64 digits, small letters.
std::string to_hex(const Digest& digest);

}  // namespace kerf::codegen
