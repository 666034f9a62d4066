// What the cache's entries need of codegen, without the rest of LLVM.
#include <llvm/ADT/StringExtras.h>
#include <llvm/Support/SHA256.h>

#include "codegen/cpu/jit.h"
#include "codegen/digest.h"

namespace kerf::codegen {

Digest sha256(std::span<const std::byte> bytes) {
  return llvm::SHA256::hash({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}
std::string to_hex(const Digest& digest) { return llvm::toHex(digest, /*LowerCase=*/true); }

std::string cpu::llvm_version() { return "0"; }

}  // namespace kerf::codegen
