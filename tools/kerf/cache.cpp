// kerf cache: the folder in which compiled code is kept.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <filesystem>
#include <map>
#include <sstream>

#include "kerf/cache.h"
#include "kerf/error.h"
#include "runtime/cache/folder.h"
#include "tools/kerf/verbs.h"

namespace kerf::tools {
namespace {

using cache::Access;
using cache::Folder;
using Found = Folder::Found;

struct CacheVerbOptions {
  bool json = false;
  double limit_mib = -1;  // negative: not given
};

CacheOptions options_with_folder() {
  CacheOptions options = CacheOptions::from_environment();
  if (options.folder.empty())
    throw UsageError(
        "there is no folder: KERF_CACHE is off, or none of KERF_CACHE_DIR, XDG_CACHE_HOME and HOME is set");
  return options;
}

/// Null where there is nothing yet. Throws DeviceError where the folder must not be used.
std::unique_ptr<Folder> open_folder(const std::string& path, Access access) {
  std::error_code error;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, error))) return nullptr;
  std::string why;
  auto folder = Folder::open(path, access, why);
  if (!folder) throw DeviceError(why);
  return folder;
}

/// What an entry tells about itself, by field.
std::map<std::string, std::string> about(const cache::Entry& entry) {
  std::map<std::string, std::string> fields;
  std::istringstream lines(entry.about());
  for (std::string line; std::getline(lines, line);)
    if (const std::size_t colon = line.find(": "); colon != std::string::npos)
      fields[line.substr(0, colon)] = line.substr(colon + 2);
  return fields;
}

const char* kind_of(const cache::Entry& entry) {
  if (!entry.section(cache::SectionType::object).empty()) return "object";
  if (!entry.section(cache::SectionType::cubin).empty()) return "cubin";
  return "ptx";
}

std::string utc(std::int64_t seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

int list(const CacheVerbOptions& options) {
  const CacheOptions where = options_with_folder();
  const auto folder = open_folder(where.folder, Access::layer);  // which nothing is moved in
  nlohmann::ordered_json entries = nlohmann::ordered_json::array();
  std::uint64_t bytes = 0;
  if (folder)
    for (const cache::EntryFile& file : folder->list()) {
      bytes += file.bytes;
      nlohmann::ordered_json e = {{"file", file.name}, {"bytes", file.bytes}, {"used", utc(file.used)}};
      if (const Folder::Read read = folder->read(file.name); read.found == Found::entry) {
        auto fields = about(read.entry);
        e["kind"] = kind_of(read.entry);
        e["program"] = fields["program"];
        e["target"] = Target{fields["triple"], fields["cpu"], fields["features"]}.level();
        e["kerf"] = fields["kerf"];
        e["llvm"] = fields["llvm"];
      } else {
        e["kind"] = "damaged";
        for (const char* unknown : {"program", "target", "kerf", "llvm"}) e[unknown] = nullptr;
      }
      entries.push_back(std::move(e));
    }
  if (options.json) {
    print_json({{"folder", where.folder}, {"bytes", bytes}, {"entries", entries}});
    return 0;
  }
  const auto text = [](const nlohmann::ordered_json& j) { return j.is_null() ? "?" : j.get<std::string>(); };
  fmt::print("{:<22}{:>9}  {:<8}{:<12}{:<28}{}\n", "last used", "KiB", "kind", "target", "program", "kerf");
  for (const auto& e : entries)
    fmt::print("{:<22}{:>9.1f}  {:<8}{:<12}{:<28}{}\n", text(e["used"]), e["bytes"].get<double>() / 1024,
               text(e["kind"]), text(e["target"]), text(e["program"]), text(e["kerf"]));
  fmt::print("{} entries, {} in {}\n", entries.size(), mib(static_cast<double>(bytes)), where.folder);
  return 0;
}

int verify(const CacheVerbOptions& options) {
  const CacheOptions where = options_with_folder();
  std::int64_t good = 0;
  nlohmann::ordered_json damaged = nlohmann::ordered_json::array();
  const auto look = [&](const std::string& path, Access access) {
    const auto folder = open_folder(path, access);
    if (!folder) return;
    for (const cache::EntryFile& file : folder->list()) {
      if (folder->read(file.name).found == Found::damaged)
        damaged.push_back(path + "/v1/" + file.name);
      else
        ++good;
    }
  };
  look(where.folder, Access::look);
  for (const std::string& layer : where.read_only) look(layer, Access::layer);
  if (options.json) {
    print_json({{"folder", where.folder}, {"good", good}, {"damaged", damaged}});
  } else {
    for (const auto& file : damaged) fmt::print("damaged: {}\n", file.get<std::string>());
    fmt::print("{} entries are whole, {} damaged{}\n", good, damaged.size(),
               damaged.empty() ? "" : "; those of the folder itself were moved to its bad/");
  }
  return damaged.empty() ? 0 : 1;
}

int report(const CacheVerbOptions& options, const std::string& path, const Folder::Swept& swept) {
  if (swept.busy) throw DeviceError(fmt::format("{}: another process is at it; try again", path));
  if (options.json)
    print_json({{"folder", path},
                {"removed", swept.entries},
                {"removed_bytes", swept.bytes},
                {"temporaries", swept.temporaries},
                {"bytes", swept.left}});
  else
    fmt::print("removed {} entries of {} and {} that writers left behind; {} are left\n", swept.entries,
               mib(static_cast<double>(swept.bytes)), swept.temporaries, mib(static_cast<double>(swept.left)));
  return 0;
}

int gc(const CacheVerbOptions& options) {
  const CacheOptions where = options_with_folder();
  const auto folder = open_folder(where.folder, Access::look);
  const auto limit =
      options.limit_mib < 0 ? where.limit_bytes : static_cast<std::uint64_t>(options.limit_mib * (1 << 20));
  return report(options, where.folder, folder ? folder->sweep(limit) : Folder::Swept{});
}

int clear(const CacheVerbOptions& options) {
  const CacheOptions where = options_with_folder();
  const auto folder = open_folder(where.folder, Access::look);
  return report(options, where.folder, folder ? folder->clear() : Folder::Swept{});
}

int path(const CacheVerbOptions& options) {
  const CacheOptions where = options_with_folder();
  if (options.json)
    print_json({{"folder", where.folder}, {"read_only", where.read_only}, {"limit_bytes", where.limit_bytes}});
  else
    fmt::print("{}\n", where.folder);
  return 0;
}

}  // namespace

void add_cache(CLI::App& app, Run& run) {
  CLI::App* verb = app.add_subcommand("cache", "the folder in which compiled code is kept");
  verb->require_subcommand(1);
  verb->footer(
      "The folder is KERF_CACHE_DIR, else XDG_CACHE_HOME/kerf, else HOME/.cache/kerf; KERF_CACHE_RO names more that "
      "are "
      "only read; KERF_CACHE=off: none.\n"
      "Example: kerf cache list");
  const auto add = [&](const char* name, const char* what, int (*action)(const CacheVerbOptions&)) {
    CLI::App* part = verb->add_subcommand(name, what);
    auto& options = options_of<CacheVerbOptions>(*part, run, action);
    part->add_flag("--json", options.json, "print JSON");
    part->footer(fmt::format("Example: kerf cache {}", name));
    return std::pair<CLI::App*, CacheVerbOptions*>(part, &options);
  };
  add("list", "what is in it", list);
  add("verify", "check every byte, also of the folders that are only read; exit code 1 where something is damaged",
      verify);
  const auto [sweep, options] = add("gc", "remove what was not used for longest, and what writers left behind", gc);
  sweep->add_option("--limit-mib", options->limit_mib, "what may stay; 2048 if not given")
      ->check(CLI::NonNegativeNumber);
  add("path", "where it is", path);
  add("clear", "remove everything that is in it", clear);
}

}  // namespace kerf::tools
