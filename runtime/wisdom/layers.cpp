// Where wisdom is looked for, and in which order.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <sstream>

#include "kerf/wisdom.h"
#include "runtime/wisdom/builtin.h"

namespace kerf {
namespace {

namespace fs = std::filesystem;

/// A file, or the *.jsonl of a folder in the order of their names.
std::vector<std::string> files_at(const std::string& place, std::vector<WisdomProblem>& problems) {
  std::error_code error;
  if (!fs::is_directory(place, error)) {
    if (!fs::exists(place, error))
      problems.push_back({place, 0, "is not there; mend KERF_WISDOM_PATH, which names it", false});
    return {place};
  }
  std::vector<std::string> files;
  for (fs::directory_iterator entry(place, error), end; !error && entry != end; entry.increment(error))
    if (entry->path().extension() == ".jsonl") files.push_back(entry->path());
  if (error) problems.push_back({place, 0, fmt::format("cannot be read: {}", error.message()), false});
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

WisdomLayers WisdomLayers::open() {
  WisdomLayers all;
  const auto put = [&](const std::string& name, WisdomRead read) {
    std::move(read.problems.begin(), read.problems.end(), std::back_inserter(all.problems_));
    if (!read.wisdom.records().empty()) all.layers_.push_back({name, std::move(read.wisdom)});
  };
  if (const std::string file = user_wisdom_file(); !file.empty()) put(file, Wisdom::load(file));
  const char* const path = std::getenv("KERF_WISDOM_PATH");
  std::istringstream places(path != nullptr ? path : "");
  for (std::string place; std::getline(places, place, ':');) {
    if (place.empty()) continue;
    for (const std::string& file : files_at(place, all.problems_)) put(file, Wisdom::load(file));
  }
  put("built in", Wisdom::parse(runtime::builtin_wisdom(), "built in"));
  return all;
}

void WisdomLayers::put_first(const std::string& name, Wisdom wisdom) {
  layers_.insert(layers_.begin(), {name, std::move(wisdom)});
}

WisdomChoice WisdomLayers::lookup(const WisdomKey& key, const WisdomValidators& validators,
                                  const WisdomRefusal& refusal) const {
  WisdomChoice best;
  for (const Layer& layer : layers_) {
    WisdomChoice choice = layer.wisdom.lookup(key, validators, refusal);
    for (std::string& note : choice.notes) best.notes.push_back(fmt::format("{}: {}", layer.name, note));
    if (choice.exact || !best.record) best.record = std::move(choice.record);
    best.exact = choice.exact;
    if (best.exact) break;
  }
  return best;
}

std::vector<WisdomParameters> WisdomLayers::seeds(const WisdomKey& key, const WisdomValidators& validators) const {
  Wisdom all;
  for (const Layer& layer : layers_) all.merge(layer.wisdom);
  return all.seeds(key, validators);
}

}  // namespace kerf
