#include "runtime/loss_parts.h"

#include <fmt/format.h>

#include <algorithm>

#include "lib/ir/ir.h"
#include "runtime/device_programs.h"
#include "runtime/loss_programs.h"
#include "runtime/processors.h"
#include "runtime/tuner/space_hash.h"

namespace kerf::runtime {

namespace {

constexpr std::int64_t shared_bytes_90 = 227 << 10, shared_bytes_80 = 163 << 10;
constexpr std::int64_t stage_row_bytes = 128;  // of a row in one stage of a product
constexpr std::int64_t most_accumulators =
    1 << 15;  // of a tile, in the registers of two warpgroups; a third holds half more
constexpr std::int64_t scratch_limit = std::int64_t{4} << 20;  // of one thread's tile in f32

kernels::Shape shape_of(const PlanDesc& d) { return {d.vocabulary, d.hidden, d.dtype}; }

std::int64_t value(const TunePoint& p, const char* name, std::int64_t otherwise = 0) {
  const auto at = p.find(name);
  return at == p.end() ? otherwise : at->second;
}

Schedule cpu_schedule(const TunePoint& p, bool stage) {
  Schedule s;
  s.dot_rows = static_cast<int>(value(p, "rows"));
  s.dot_vectors = static_cast<int>(value(p, "vectors"));
  s.stage = stage;
  return s;
}

/// `values` below the axis, and `standard`.
std::vector<std::int64_t> fitting(std::vector<std::int64_t> values, std::int64_t axis, std::int64_t standard) {
  const std::int64_t round = (axis + 15) / 16 * 16;
  std::erase_if(values, [&](std::int64_t v) { return v > round; });
  values.push_back(standard);
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

bool wide_registers(const Target& target) {
  const std::string level = target.level();
  return level.starts_with("avx512") || level == "neon";
}

void add_register_block(Space& space, const Target& target) {
  const int registers = wide_registers(target) ? 32 : 16;
  space.parameter("rows", {4, 6, 8, 12, 14}).parameter("vectors", {1, 2, 3, 4});
  space.rule([registers](const TunePoint& p) {
    const std::int64_t needed = p.at("rows") * p.at("vectors") + p.at("vectors") + 1;
    return needed <= registers ? std::string()
                               : fmt::format("{} x {} vectors and their operands need {} registers, there are {}",
                                             p.at("rows"), p.at("vectors"), needed, registers);
  });
}

void limit_tile(Space& space) {
  space.rule([](const TunePoint& p) {
    const std::int64_t bytes = p.at("n") * p.at("v") * 4;
    return bytes <= scratch_limit ? std::string()
                                  : fmt::format("a tile of {} x {} takes {} KiB of each thread, at most {}", p.at("n"),
                                                p.at("v"), bytes >> 10, scratch_limit >> 10);
  });
}

/// What tensor cores and shared memory allow for a tile that two parameters span.
void limit_product(Space& space, const Target& target, const char* rows, const char* columns) {
  space.rule([=](const TunePoint& p) {
    const std::int64_t r = p.at(rows), c = p.at(columns);
    const std::int64_t held = r == 192 ? most_accumulators * 3 / 2 : most_accumulators;
    if (r * c > held)
      return fmt::format("a tile of {} x {} ({} x {}) has {} accumulators, registers hold {}", rows, columns, r, c,
                         r * c, held);
    constexpr std::int64_t least_stages = 3;
    const std::int64_t limit = target.cpu.starts_with("sm_90") ? shared_bytes_90 : shared_bytes_80;
    const std::int64_t bytes = least_stages * (r + c) * stage_row_bytes;
    if (bytes > limit)
      return fmt::format("{} stages of {} x {} need {} KiB of shared memory, a block has {}", least_stages, rows,
                         columns, bytes >> 10, limit >> 10);
    return std::string();
  });
}

Space host_space(const PlanDesc& desc, const Target& target, LossPart part) {
  const TunePoint standard = default_point(desc, target, part, many_tokens);
  Space space;
  const bool filtered = part == LossPart::filtered;
  space.parameter("n", fitting({16, 32, 64, 128, 192, 256, 384}, 1 << 30, standard.at("n")));
  space.parameter("v", fitting({64, 128, 192, 256, 384, 512}, desc.vocabulary, standard.at("v")));
  if (part == LossPart::backward) {
    space.parameter("d", fitting({64, 128, 256, 384}, desc.hidden, standard.at("d")));
    add_register_block(space, target);
    limit_tile(space);
    return space;
  }
  // Longer sums in f32 round more.
  const std::int64_t longest = std::max<std::int64_t>(standard.at("d"), desc.hidden <= 256 ? 64 : 256);
  space.parameter("d", fitting({64, 128, 256}, std::min(longest, desc.hidden), standard.at("d")));
  const std::int64_t blocks = (desc.vocabulary + 63) / 64;
  space.parameter("split", fitting({1, 2, 4, 8, 16, 32, 64}, blocks, standard.at("split")));
  space.parameter("stage", {0, 1});
  limit_tile(space);
  if (!filtered) {
    add_register_block(space, target);
    return space;
  }
  space.parameter("bn", {64, 128, 256});  // the lists want divisors of a block of labels
  space.parameter("e_d", fitting({64, 128, 256}, desc.hidden, standard.at("e_d")));
  space.parameter("c_d", fitting({64, 128, 256}, desc.hidden, standard.at("c_d")));
  return space;
}

/// Every value is a tile that a kernel has, and has been the best of some shape, or might be: an exhaustive search is a
/// matter of a minute or two. Warpgroups follow from n, stages from what shared memory is left, there are no clusters.
Space gpu_space(const PlanDesc& desc, const Target& target, LossPart part) {
  const bool boxed = reads_in_boxes(desc, target), tall = target.cpu == "sm_90a" && boxed;
  const bool chunked = desc.strategy == Strategy::min_memory;
  const TunePoint standard = default_point(desc, target, part, 1), many = default_point(desc, target, part, 1 << 20);
  Space space;
  const std::int64_t widest = boxed ? 256 : 128;
  // Blocks of half the widest and more; narrower ones where the axis is, or where the default has them.
  const auto across = [&](std::int64_t axis, const char* name) {
    std::vector<std::int64_t> values;
    for (std::int64_t b = 64; b <= widest && b / 2 < axis; b *= 2)
      if (2 * b >= widest || b >= axis) values.push_back(b);
    for (const TunePoint* p : {&standard, &many}) values = fitting(values, 1 << 30, p->at(name));
    return values;
  };
  if (part != LossPart::backward) {
    std::vector<std::int64_t> n = {boxed ? 128 : 64, tall && !chunked ? 192 : boxed ? 256 : 128};
    // Lists follow both directions' blocks: fewer values for what only the forward has.
    const bool alone = part == LossPart::forward;
    std::vector<std::int64_t> split = alone ? std::vector<std::int64_t>{2, 4, 8, 16} : std::vector<std::int64_t>{4, 8};
    std::vector<std::int64_t> band = alone ? std::vector<std::int64_t>{8, 16, 24, 32} : std::vector<std::int64_t>{16};
    for (const TunePoint* p : {&standard, &many}) {
      split = fitting(split, 1 << 30, p->at("split"));
      band = fitting(band, 1 << 30, p->at("band"));
    }
    space.parameter("n", n).parameter("v", across(desc.vocabulary, "v"));
    space.parameter("split", split).parameter("band", band);
    limit_product(space, target, "n", "v");
  }
  if (part == LossPart::forward) return space;
  const bool both = part == LossPart::filtered;
  const char* n = both ? "bn" : "n";
  space.parameter(n, boxed ? std::vector<std::int64_t>{128, 256} : std::vector<std::int64_t>{64, 128});
  if (!both) space.parameter("v", across(desc.vocabulary, "v")).parameter("band", {8, 12, 16, 24, 32});
  space.parameter("e_d", across(desc.hidden, "e_d")).parameter("c_d", across(desc.hidden, "c_d"));
  limit_product(space, target, n, "v");
  limit_product(space, target, n, "e_d");
  limit_product(space, target, "v", "c_d");
  return space;
}

/// What else the times depend on.
std::string options_of(const PlanDesc& desc, LossPart part, int threads) {
  std::string text;
  const auto add = [&](const std::string& option) { text += (text.empty() ? "" : " ") + option; };
  if (part == LossPart::filtered) {
    add(fmt::format("filter={}", name_of(desc.filter)));
    if (desc.filter_threshold > 0) add(fmt::format("threshold={}", desc.filter_threshold));
    if (!desc.filter_e) add("filter_e=0");
    if (!desc.filter_c) add("filter_c=0");
    if (!desc.correction) add("correction=0");
    if (desc.order == Order::identity) add("order=identity");
  } else if (desc.strategy != Strategy::automatic && desc.strategy != Strategy::filtered) {
    add(fmt::format("strategy={}", name_of(desc.strategy)));
  }
  if (desc.workspace_limit > 0 && part != LossPart::forward) add(fmt::format("workspace={}", desc.workspace_limit));
  if (desc.device.type == DeviceType::cpu && threads != processors()) add(fmt::format("threads={}", threads));
  return text;
}

/// The programs that the part's time goes to, with the default's blocks.
std::string programs_text(const PlanDesc& desc, const Target& target, LossPart part) {
  std::string text;
  const bool filtered = part == LossPart::filtered;
  if (!target.is_cuda() && !filtered) {
    const LossPrograms programs(shape_of(desc), choose_blocks(shape_of(desc)), nullptr);
    for (const LossProgram w : part == LossPart::forward
                                   ? std::vector{LossProgram::lse_forward}
                                   : std::vector{LossProgram::grad_tiles, LossProgram::grad_e, LossProgram::grad_c})
      text += ir::print(programs.record(w).ir());
    return text;
  }
  const DevicePrograms programs(desc, filtered ? filtered_blocks(desc, target, {}) : device_blocks(desc, target, {}),
                                target, filtered);
  if (part != LossPart::backward) text += ir::print(programs.record(DeviceProgram::lse_forward_run).ir());
  if (part != LossPart::forward)
    for (const DeviceProgram w : {DeviceProgram::grad_tiles, DeviceProgram::grad_e_begin, DeviceProgram::grad_c})
      text += ir::print(programs.record(w).ir());
  return text;
}

}  // namespace

std::string_view name_of(LossPart part) {
  return part == LossPart::forward ? "forward" : part == LossPart::backward ? "backward" : "filtered";
}

TunePoint& LossPoints::of(LossPart part) {
  return part == LossPart::forward ? forward : part == LossPart::backward ? backward : filtered;
}
const TunePoint& LossPoints::of(LossPart part) const { return const_cast<LossPoints*>(this)->of(part); }

PlanBlocks host_blocks(const PlanDesc& desc, const LossPoints& points) {
  PlanBlocks b = choose_blocks(shape_of(desc));
  if (const TunePoint& p = points.forward; !p.empty()) {
    b.forward = {.n = p.at("n"), .v = p.at("v"), .d = p.at("d"), .split = p.at("split")};
    b.forward_schedule = cpu_schedule(p, p.at("stage") != 0);
  }
  if (const TunePoint& p = points.backward; !p.empty()) {
    b.backward = {.n = p.at("n"), .v = p.at("v"), .d = p.at("d"), .split = 1};
    b.backward_schedule = cpu_schedule(p, true);
  }
  return b;
}

DeviceBlocks device_blocks(const PlanDesc& desc, const Target& target, const LossPoints& points) {
  const kernels::Shape shape = shape_of(desc);
  DeviceBlocks b = reads_in_boxes(desc, target) ? choose_boxed_blocks(shape, target) : choose_plain_blocks(shape);
  if (const TunePoint& p = points.forward; !p.empty()) {
    b.forward = {.n = p.at("n"), .v = p.at("v"), .d = b.forward.d, .split = p.at("split")};
    b.tall = {};
    b.many = 1;
    b.band = p.at("band");
  }
  if (const TunePoint& p = points.backward; !p.empty()) {
    b.backward.n = p.at("n"), b.backward.v = p.at("v");
    b.list_band = p.at("band");
    b.grad_e_d = p.at("e_d"), b.grad_c_d = p.at("c_d");
  }
  return b;
}

DeviceBlocks filtered_blocks(const PlanDesc& desc, const Target& target, const LossPoints& points) {
  const TunePoint& p = points.filtered;
  if (!target.is_cuda()) {
    DeviceBlocks b = choose_filter_blocks(shape_of(desc));
    if (p.empty()) return b;
    b.forward = {.n = p.at("n"), .v = p.at("v"), .d = p.at("d"), .split = p.at("split")};
    b.backward = {.n = p.at("bn"), .v = p.at("v"), .d = p.at("d"), .split = b.backward.split};
    b.grad_e_d = p.at("e_d"), b.grad_c_d = p.at("c_d");
    b.forward_schedule.stage = p.at("stage") != 0;
    return b;
  }
  if (p.empty()) return device_blocks(desc, target, {});
  TunePoint backward = p;
  backward["n"] = p.at("bn");
  return device_blocks(desc, target, {.forward = p, .backward = backward, .filtered = {}});
}

bool has_part(const PlanDesc& desc, LossPart part) { return part != LossPart::filtered || filters(desc); }

bool has_part(const PlanDesc& desc, const Target& target, LossPart part, std::int64_t tokens) {
  if (part != LossPart::filtered) return true;
  return filters(desc) && filters(desc, reads_in_boxes(desc, target), tokens);
}

Space loss_space(const PlanDesc& desc, const Target& target, LossPart part) {
  return target.is_cuda() ? gpu_space(desc, target, part) : host_space(desc, target, part);
}

TunePoint default_point(const PlanDesc& desc, const Target& target, LossPart part, std::int64_t tokens) {
  if (target.is_cuda()) {
    const DeviceBlocks b = device_blocks(desc, target, {});
    TunePoint p;
    if (part != LossPart::backward) {
      const DeviceProgram form = forward_program(desc, b, tokens);
      const kernels::Blocks& f = form == DeviceProgram::lse_forward_tall ? b.tall : b.forward;
      p = {{"n", f.n},
           {"v", f.v},
           {"split", form == DeviceProgram::lse_forward ? 1 : f.split},
           {"band", b.band * b.forward.n / f.n}};
    }
    if (part == LossPart::forward) return p;
    p[part == LossPart::backward ? "n" : "bn"] = b.backward.n;
    p["v"] = b.backward.v;
    if (part == LossPart::backward) p["band"] = b.list_band;
    p["e_d"] = b.grad_e_d, p["c_d"] = b.grad_c_d;
    return p;
  }
  const std::int64_t rows = wide_registers(target) ? 12 : 6, vectors = 2;  // as the compiler chooses
  if (part == LossPart::filtered) {
    const DeviceBlocks b = choose_filter_blocks(shape_of(desc));
    return {{"n", b.forward.n},
            {"v", b.forward.v},
            {"d", b.forward.d},
            {"split", b.forward.split},
            {"stage", b.forward_schedule.stage},
            {"bn", b.backward.n},
            {"e_d", b.grad_e_d},
            {"c_d", b.grad_c_d}};
  }
  const PlanBlocks b = choose_blocks(shape_of(desc), tokens);
  if (part == LossPart::backward)
    return {{"n", b.backward.n}, {"v", b.backward.v}, {"d", b.backward.d}, {"rows", rows}, {"vectors", vectors}};
  return {{"n", b.forward.n},
          {"v", b.forward.v},
          {"d", b.forward.d},
          {"split", b.forward.split},
          {"rows", rows},
          {"vectors", b.forward_schedule.dot_vectors > 0 ? b.forward_schedule.dot_vectors : vectors},
          {"stage", b.forward_schedule.stage}};
}

WisdomKey loss_key(const PlanDesc& desc, const Target& target, LossPart part, std::int64_t tokens, int threads) {
  WisdomKey key{
      .op = "linear_cross_entropy", .part = std::string(name_of(part)), .dtype = std::string(name_of(desc.dtype))};
  key.hidden = desc.hidden, key.vocabulary = desc.vocabulary;
  key.options = options_of(desc, part, threads);
  key.target = target.level();
  key.space = space_hash(programs_text(desc, target, part) + loss_space(desc, target, part).text());
  key.tokens = token_bucket(std::max<std::int64_t>(1, tokens));
  return key;
}

}  // namespace kerf::runtime
