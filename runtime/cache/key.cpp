#include "runtime/cache/key.h"

#include <fmt/format.h>

#include <span>

#include "codegen/build.h"
#include "codegen/cpu/jit.h"

namespace kerf::cache {

namespace {

codegen::Digest digest(std::string_view text) { return codegen::sha256(std::as_bytes(std::span(text))); }

}  // namespace

Key key_of(const ir::Program& program, const Target& target, const Schedule& schedule, bool any_stride) {
  Key key;
  key.kerf = KERF_BUILD;
  key.llvm = codegen::cpu::llvm_version();
  key.program = program.name;
  key.ir = digest(ir::print(program));
  key.schedule = schedule;
  key.target = target;
  key.any_stride = any_stride;
  return key;
}

std::vector<std::pair<std::string_view, std::string>> fields(const Key& key) {
  // A field that is added and not listed here does not compile.
  const auto& [format, kerf, llvm, program, ir, schedule, target, any_stride, driver, capability] = key;
  const auto& [dot_rows, dot_vectors, stage, stages, band] = schedule;
  const auto& [triple, cpu, features] = target;
  return {
      {"format", fmt::to_string(format)},
      {"kerf", kerf},
      {"llvm", llvm},
      {"program", program},
      {"ir", codegen::to_hex(ir)},
      {"dot_rows", fmt::to_string(dot_rows)},
      {"dot_vectors", fmt::to_string(dot_vectors)},
      {"stage", fmt::to_string(stage)},
      {"stages", fmt::to_string(stages)},
      {"band", fmt::to_string(band)},
      {"triple", triple},
      {"cpu", cpu},
      {"features", features},
      {"any_stride", fmt::to_string(any_stride)},
      {"driver", fmt::to_string(driver)},
      {"capability", fmt::to_string(capability)},
  };
}

std::string to_text(const Key& key) {
  std::string text;
  for (const auto& [name, value] : fields(key)) text += fmt::format("{}: {}\n", name, value);
  return text;
}

codegen::Digest digest(const Key& key) {
  // Lengths, so that no value can look like another field.
  std::string text;
  for (const auto& [name, value] : fields(key)) text += fmt::format("{}:{}:{}\n", name, value.size(), value);
  return digest(std::string_view(text));
}

}  // namespace kerf::cache
