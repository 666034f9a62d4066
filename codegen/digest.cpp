#include "codegen/digest.h"

#include "codegen/llvm.h"

namespace kerf::codegen {

Digest sha256(std::span<const std::byte> bytes) {
  return llvm::SHA256::hash({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}

std::string to_hex(const Digest& digest) { return llvm::toHex(digest, /*LowerCase=*/true); }

}  // namespace kerf::codegen
