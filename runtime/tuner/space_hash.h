// The field `space` of a key: records of other programs, or of another choice of parameters, are not used.
#pragma once

#include <span>
#include <string>

#include "codegen/digest.h"

namespace kerf::runtime {

inline std::string space_hash(const std::string& text) {
  return codegen::to_hex(codegen::sha256(std::as_bytes(std::span(text)))).substr(0, 16);
}

}  // namespace kerf::runtime
