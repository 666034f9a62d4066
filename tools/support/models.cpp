#include "tools/support/models.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "kerf/error.h"

namespace kerf::tools {
namespace {

using nlohmann::json;

struct Known {
  const char* name;
  std::int64_t hidden, vocabulary;
};
// Source: the config.json that each model was published with; vit-b16 has the 1000 classes of ImageNet.
constexpr Known known[] = {
    {"gemma2-2b", 2304, 256000},   {"gemma2-9b", 3584, 256000},    {"llama3-8b", 4096, 128256},
    {"qwen2.5-7b", 3584, 152064},  {"mistral-nemo", 5120, 131072}, {"phi3.5-mini", 3072, 32064},
    {"deepseek-v3", 7168, 129280}, {"gpt2", 768, 50257},           {"vit-b16", 768, 1000},
};

/// The first of the keys that holds a positive integer, here or in the part that describes the text model.
std::optional<std::int64_t> find(const json& config, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto at = config.find(key);
    if (at == config.end() || !at->is_number_integer()) continue;
    const auto value = at->get<std::int64_t>();
    if (value > 0) return value;
  }
  for (const char* part : {"text_config", "llm_config", "language_config"}) {
    const auto at = config.find(part);
    if (at == config.end() || !at->is_object()) continue;
    if (const auto value = find(*at, keys)) return value;
  }
  return std::nullopt;
}

ModelShape from_config(std::filesystem::path path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) path /= "config.json";
  std::ifstream file(path, std::ios::binary);
  if (!std::filesystem::is_regular_file(path, error) || !file)
    throw UsageError(fmt::format("{}: no such file", path.string()));
  constexpr std::uintmax_t limit = 16 << 20;
  if (std::filesystem::file_size(path, error) > limit)
    throw UsageError(fmt::format("{}: larger than 16 MiB, which no config.json is", path.string()));
  // Depth is bounded, since find() above recurses.
  bool deep = false;
  const json config = json::parse(
      file, [&](int depth, json::parse_event_t, json&) { return !(deep = deep || depth > 64); }, false);
  if (config.is_discarded() || !config.is_object() || deep)
    throw UsageError(fmt::format("{}: not a JSON object, as a transformers config.json is", path.string()));
  const auto hidden = find(config, {"hidden_size", "n_embd", "d_model", "dim"});
  const auto vocabulary = find(config, {"vocab_size", "padded_vocab_size"});
  if (!hidden)
    throw UsageError(fmt::format("{}: has no hidden_size, n_embd or d_model, here or in text_config", path.string()));
  if (!vocabulary)
    throw UsageError(fmt::format("{}: has no vocab_size, here or in text_config; give the shape with --shape N,{},V",
                                 path.string(), *hidden));
  return {path.string(), *hidden, *vocabulary};
}

}  // namespace

std::string model_names() {
  std::vector<std::string> names;
  for (const Known& m : known) names.emplace_back(m.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

ModelShape model_shape(const std::string& name_or_path) {
  for (const Known& m : known)
    if (name_or_path == m.name) return {m.name, m.hidden, m.vocabulary};
  std::error_code error;
  const bool path = name_or_path.find('/') != std::string::npos || name_or_path.ends_with(".json") ||
                    std::filesystem::exists(name_or_path, error);
  if (path) return from_config(name_or_path);
  throw UsageError(
      fmt::format("'{}' is no known model and no config.json; the models are {}", name_or_path, model_names()));
}

}  // namespace kerf::tools
