// Hidden size and vocabulary of models people train.
#pragma once

#include <cstdint>
#include <string>

namespace kerf::tools {

struct ModelShape {
  std::string name;
  std::int64_t hidden = 0, vocabulary = 0;
};

/// A name from the table ("gemma2-2b"), or the path of a transformers config.json or of the folder that holds it.
/// Throws UsageError that lists the names, or says what the file lacks.
ModelShape model_shape(const std::string& name_or_path);

/// "gemma2-2b, gemma2-9b, ..."
std::string model_names();

}  // namespace kerf::tools
