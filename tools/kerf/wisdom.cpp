// kerf wisdom: looks at what was measured, and carries it from one file to another.
#include "kerf/wisdom.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <tuple>

#include "kerf/error.h"
#include "kerf/version.h"
#include "runtime/wisdom/line.h"
#include "tools/kerf/verbs.h"

namespace kerf::tools {
namespace {

using nlohmann::ordered_json;
using Layer = WisdomLayers::Layer;

struct WisdomOptions {
  std::vector<std::string> from;
  std::string file, out;
  WisdomFilter filter;
  WisdomPrune prune;
  bool other_versions = false, dry_run = false, json = false;

  std::string target() const { return file.empty() ? user_wisdom_file() : file; }
};

/// Tells what was wrong with files, and remembers whether something was lost.
class Problems {
 public:
  explicit Problems(const char* verb) : verb_(verb) {}
  void tell(const std::vector<WisdomProblem>& problems) {
    for (const WisdomProblem& p : problems) {
      fmt::print(stderr, "kerf wisdom {}: {}\n", verb_, p.text());
      lost_ |= !p.note;
    }
  }
  int exit_code() const { return lost_ ? 1 : 0; }

 private:
  const char* verb_;
  bool lost_ = false;
};

/// What a file that was named holds.
Wisdom load_named(const std::string& file, Problems& problems) {
  if (std::error_code error; !std::filesystem::exists(file, error))
    throw UsageError(fmt::format("{} is not there; name a file of wisdom", file));
  WisdomRead read = Wisdom::load(file);
  problems.tell(read.problems);
  return std::move(read.wisdom);
}

/// The file that was named, or all layers; of them what the filter leaves.
std::vector<Layer> layers_of(const WisdomOptions& o, Problems& problems) {
  std::vector<Layer> layers;
  if (!o.file.empty()) {
    layers.push_back({o.file, load_named(o.file, problems)});
  } else {
    const WisdomLayers all = WisdomLayers::open();
    problems.tell(all.problems());
    layers = all.layers();
  }
  for (Layer& l : layers) l.wisdom = l.wisdom.select(o.filter);
  std::erase_if(layers, [](const Layer& l) { return l.wisdom.records().empty(); });
  return layers;
}

/// Records of one key and the same validators, the winner first, what failed last.
using Group = std::vector<const WisdomRecord*>;

std::vector<Group> groups_of(const Wisdom& w) {
  std::vector<Group> groups;
  for (const WisdomRecord& r : w.records()) {
    if (groups.empty() || groups.back().front()->key != r.key || groups.back().front()->validators != r.validators)
      groups.emplace_back();
    groups.back().push_back(&r);
  }
  for (Group& g : groups)
    std::stable_sort(g.begin(), g.end(), [](const WisdomRecord* a, const WisdomRecord* b) {
      const auto rank = [](const WisdomRecord& r) {
        return std::tuple(!r.winner, r.status != WisdomStatus::ok, r.noisy, r.median_ms);
      };
      return rank(*a) < rank(*b);
    });
  return groups;
}

std::string text_of(const WisdomValidators& v) {
  return fmt::format("{}, {} units{}{}, Kerf {}", v.device, v.units, v.driver.empty() ? "" : ", driver ", v.driver,
                     v.kerf);
}

ordered_json json_of(const WisdomRecord& r) { return ordered_json::parse(runtime::to_line(r)); }

/// "-" where there are none.
std::string ms_text(double ms) { return ms > 0 ? fmt::format("{:.4f}", ms) : "-"; }

int nothing_found(const WisdomOptions& o, const Problems& problems) {
  fmt::print("no wisdom in {}\n",
             o.target().empty() ? "this environment: KERF_WISDOM, XDG_DATA_HOME, HOME are not set" : o.target());
  return problems.exit_code();
}

int list(const WisdomOptions& o) {
  Problems problems("list");
  const std::vector<Layer> layers = layers_of(o, problems);
  ordered_json out = ordered_json::array();
  if (layers.empty() && !o.json) return nothing_found(o, problems);
  for (const Layer& layer : layers) {
    const std::vector<Group> groups = groups_of(layer.wisdom);
    ordered_json keys = ordered_json::array();
    if (!o.json) {
      fmt::print("{}: {} records\n", layer.name, layer.wisdom.records().size());
      fmt::print("  {:>6}{:>6}{:>11}  {:<32} key; device\n", "tried", "ok", "median ms", "winner");
    }
    for (const Group& g : groups) {
      const WisdomRecord& best = *g.front();
      const auto ok = std::count_if(g.begin(), g.end(), [](auto* r) { return r->status == WisdomStatus::ok; });
      if (o.json) {
        const ordered_json record = json_of(best);
        keys.push_back({{"key", record["key"]},
                        {"validators", record["validators"]},
                        {"tried", g.size()},
                        {"ok", ok},
                        {"winner", best.winner ? record : ordered_json(nullptr)}});
      } else {
        fmt::print("  {:>6}{:>6}{:>11}  {:<32} {}; {}\n", g.size(), ok, best.winner ? ms_text(best.median_ms) : "-",
                   best.winner ? describe(best.parameters) : "none", best.key.describe(), best.validators.device);
      }
    }
    out.push_back({{"layer", layer.name}, {"records", layer.wisdom.records().size()}, {"keys", keys}});
  }
  if (o.json) print_json({{"layers", out}});
  return problems.exit_code();
}

int show(const WisdomOptions& o) {
  Problems problems("show");
  const std::vector<Layer> layers = layers_of(o, problems);
  if (o.json) {
    ordered_json records = ordered_json::array();
    for (const Layer& layer : layers)
      for (const WisdomRecord& r : layer.wisdom.records()) {
        records.push_back(json_of(r));
        records.back()["layer"] = layer.name;
      }
    print_json({{"records", records}});
    return problems.exit_code();
  }
  if (layers.empty()) return nothing_found(o, problems);
  for (const Layer& layer : layers) {
    fmt::print("{}\n", layer.name);
    for (const Group& g : groups_of(layer.wisdom)) {
      const WisdomRecord& first = *g.front();
      fmt::print("\n{}\non {}; space {}\n", first.key.describe(), text_of(first.validators), first.key.space);
      fmt::print("  {:<10}{:>11}{:>9}{:>9}{:>11}  {}\n", "", "median ms", "spread", "samples", "predicted",
                 "parameters");
      for (const WisdomRecord* r : g)
        fmt::print("{} {:<10}{:>11}{:>8.1f}%{:>9}{:>11}  {}{}{}{}\n", r->winner ? "*" : " ", name_of(r->status),
                   ms_text(r->median_ms), 100 * r->spread, r->samples, ms_text(r->predicted_ms),
                   describe(r->parameters), r->noisy ? " (noisy)" : "", r->reason.empty() ? "" : ": ", r->reason);
    }
  }
  return problems.exit_code();
}

/// The file that was named, or the user's, which need not be there.
Wisdom load_target(const WisdomOptions& o, Problems& problems) {
  if (!o.file.empty()) return load_named(o.file, problems);
  WisdomRead read = Wisdom::load(o.target());
  problems.tell(read.problems);
  return std::move(read.wisdom);
}

/// To standard output, or added to the file that --out names.
void put_out(const WisdomOptions& o, const Wisdom& wisdom, Problems& problems) {
  const std::size_t count = wisdom.records().size();
  if (o.out.empty() && o.json) {
    ordered_json records = ordered_json::array();
    for (const WisdomRecord& r : wisdom.records()) records.push_back(json_of(r));
    print_json({{"records", records}});
  } else if (o.out.empty()) {
    const std::string text = wisdom.text();
    std::fwrite(text.data(), 1, text.size(), stdout);
  } else {
    problems.tell(wisdom.save(o.out));
    if (o.json)
      print_json({{"file", o.out}, {"written", count}});
    else
      fmt::print("{} records written to {}\n", count, o.out);
  }
}

int export_records(const WisdomOptions& o) {
  Problems problems("export");
  put_out(o, load_target(o, problems).select(o.filter), problems);
  return problems.exit_code();
}

Wisdom all_of(const std::vector<std::string>& files, Problems& problems) {
  Wisdom all;
  for (const std::string& file : files) all.merge(load_named(file, problems));
  return all;
}

int merge_files(const WisdomOptions& o) {
  Problems problems("merge");
  put_out(o, all_of(o.from, problems), problems);
  return problems.exit_code();
}

int import_files(const WisdomOptions& o) {
  Problems problems("import");
  const std::string file = o.target();
  const Wisdom found = all_of(o.from, problems);
  std::size_t before = 0, after = 0;
  problems.tell(update_wisdom(file, [&](Wisdom& w) {
    before = w.records().size();
    w.merge(found);
    after = w.records().size();
  }));
  if (o.json)
    print_json({{"file", file}, {"read", found.records().size()}, {"new", after - before}, {"records", after}});
  else
    fmt::print("{}: {} records, {} of them new\n", file, after, after - before);
  return problems.exit_code();
}

int prune_records(const WisdomOptions& o) {
  WisdomPrune what = o.prune;
  if (o.other_versions) what.kerf = version();
  if (what.kerf.empty() && what.before.empty() && !what.losers)
    throw UsageError("prune: says nothing of what to drop; add --other-versions, --before DATE or --losers");
  Problems problems("prune");
  const std::string file = o.target();
  Wisdom rest = load_target(o, problems);
  std::size_t dropped = rest.prune(what);
  if (!o.dry_run && dropped > 0)
    problems.tell(update_wisdom(file, [&](Wisdom& w) {  // others may have written meanwhile
      dropped = w.prune(what);
      rest = w;
    }));
  const std::size_t kept = rest.records().size();
  if (o.json)
    print_json({{"file", file}, {"dropped", dropped}, {"records", kept}, {"dry_run", o.dry_run}});
  else
    fmt::print("{}: {} records {}dropped, {} stay\n", file, dropped, o.dry_run ? "would be " : "", kept);
  return problems.exit_code();
}

void add_file(CLI::App& verb, WisdomOptions& o, const char* help) { verb.add_option("--file", o.file, help); }
void add_filter(CLI::App& verb, WisdomOptions& o) {
  verb.add_option("--op", o.filter.op, "only of this op or program, as linear_cross_entropy");
  verb.add_option("--part", o.filter.part, "only of this part, as forward");
  verb.add_option("--dtype", o.filter.dtype, "only of this dtype");
  verb.add_option("--device", o.filter.device, "only of devices whose name has this in it, as H200");
}
void add_json(CLI::App& verb, WisdomOptions& o) { verb.add_flag("--json", o.json, "print JSON"); }
void add_out(CLI::App& verb, WisdomOptions& o) {
  verb.add_option("--out", o.out, "file to add them to, made where it is missing; standard output if not given");
}
void add_from(CLI::App& verb, WisdomOptions& o) {
  verb.add_option("files", o.from, "files of wisdom")->required()->type_name("FILE");
}

}  // namespace

void add_wisdom(CLI::App& app, Run& run) {
  CLI::App* wisdom = app.add_subcommand("wisdom", "what was measured of candidates: look, export, import, prune");
  wisdom->require_subcommand(1);
  wisdom->footer(
      "Your wisdom is the file that KERF_WISDOM names, or ~/.local/share/kerf/wisdom.jsonl.\n"
      "Exit code 1: lines of a file could not be read; the others were used.\n"
      "Example: kerf wisdom list");
  constexpr const char* of_all = "file to look at; all layers of wisdom if not given";
  constexpr const char* of_user = "file in place of your own";

  CLI::App* verb = wisdom->add_subcommand("list", "a line for each key: what was tried, and what won");
  auto& list_options = options_of<WisdomOptions>(*verb, run, list);
  add_file(*verb, list_options, of_all);
  add_filter(*verb, list_options);
  add_json(*verb, list_options);
  verb->footer("Example: kerf wisdom list --device H200");

  verb = wisdom->add_subcommand("show", "every candidate of each key, with times and reasons");
  auto& show_options = options_of<WisdomOptions>(*verb, run, show);
  add_file(*verb, show_options, of_all);
  add_filter(*verb, show_options);
  add_json(*verb, show_options);
  verb->footer("Example: kerf wisdom show --part forward --dtype bf16");

  verb = wisdom->add_subcommand("export", "write records as text, to ship with a model for example");
  auto& export_options = options_of<WisdomOptions>(*verb, run, export_records);
  add_file(*verb, export_options, of_user);
  add_filter(*verb, export_options);
  add_out(*verb, export_options);
  add_json(*verb, export_options);
  verb->footer("Example: kerf wisdom export --op linear_cross_entropy --device H200 --out model/kerf.jsonl");

  verb = wisdom->add_subcommand("import", "add the records of files to your own wisdom");
  auto& import_options = options_of<WisdomOptions>(*verb, run, import_files);
  add_from(*verb, import_options);
  add_file(*verb, import_options, of_user);
  add_json(*verb, import_options);
  verb->footer("Example: kerf wisdom import model/kerf.jsonl");

  verb = wisdom->add_subcommand("merge", "write the records of several files as one text");
  auto& merge_options = options_of<WisdomOptions>(*verb, run, merge_files);
  add_from(*verb, merge_options);
  add_out(*verb, merge_options);
  add_json(*verb, merge_options);
  verb->footer("Example: kerf wisdom merge host1.jsonl host2.jsonl --out both.jsonl");

  verb = wisdom->add_subcommand("prune", "drop records: those that any of the options names");
  auto& prune_options = options_of<WisdomOptions>(*verb, run, prune_records);
  verb->add_flag("--other-versions", prune_options.other_versions,
                 fmt::format("measured by another version than this Kerf, {}", version()));
  verb->add_option("--before", prune_options.prune.before, "measured before this date, as 2026-11-21, or undated");
  verb->add_flag("--losers", prune_options.prune.losers, "all that did not win, failures too");
  verb->add_flag("--dry-run", prune_options.dry_run, "only say how many");
  add_file(*verb, prune_options, of_user);
  add_json(*verb, prune_options);
  verb->footer("Example: kerf wisdom prune --other-versions --before 2026-01-01");
}

}  // namespace kerf::tools
