// What compiled code depends on. Code is kept under the digest of its key, so a field that is left out here is code
// that is used where it must not be.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "codegen/digest.h"
#include "kerf/kernel.h"
#include "lib/ir/ir.h"

namespace kerf::cache {

inline constexpr std::uint32_t entry_format = 1;

struct Key {
  std::uint32_t format = entry_format;  // of the file that holds the code
  std::string kerf;                     // version, and a digest of the sources that make code of tile IR
  std::string llvm;
  std::string program;  // its name
  codegen::Digest ir;   // of the text of the tile IR after the passes, which has all that codegen reads
  Schedule schedule;
  /// Its features are all that the machine decides; its processor only tunes.
  Target target;
  bool any_stride = false;
  // Of code that a GPU's driver translated, else 0.
  int driver = 0;      // 13000 for CUDA 13.0
  int capability = 0;  // 90 for 9.0
};

/// `program` has been through the passes.
Key key_of(const ir::Program& program, const Target& target, const Schedule& schedule, bool any_stride = false);
/// Every field by its name.
std::vector<std::pair<std::string_view, std::string>> fields(const Key& key);
/// "kerf: 0.1.0+...\nllvm: 19.1.7\n...": what an entry says about itself.
std::string to_text(const Key& key);
codegen::Digest digest(const Key& key);

}  // namespace kerf::cache
