// Which instructions code may use: levels of x86, the machine at hand, LLVM's view of both.
//
// A target spells its features out; its processor name only tunes (instruction scheduling). So code for one level uses
// the same instructions on every machine, and a level can be lowered for a test.
#include "codegen/cpu/target.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cstdlib>
#include <string_view>

#include "kerf/error.h"

namespace kerf {

namespace {

struct Level {
  std::string_view name;
  std::string_view features;  // LLVM's names; those of a level include those of the levels below
};
constexpr std::array<Level, 4> levels{{
    {"sse2", "+sse2"},
    {"avx2", "+sse2,+avx2,+fma,+f16c"},
    {"avx512", "+sse2,+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl"},
    {"avx512bf16", "+sse2,+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16"},
}};
constexpr std::string_view cuda_triple = "nvptx64-nvidia-cuda";
constexpr std::string_view level_names = "sse2, avx2, avx512, avx512bf16";

/// The names in "+avx2,+fma"; throws UsageError where one lacks its sign.
std::vector<std::string_view> split_features(std::string_view list) {
  std::vector<std::string_view> names;
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    const std::string_view item = list.substr(0, comma);
    if (item.size() < 2 || item[0] != '+')
      throw UsageError(fmt::format("target: '{}' in the feature list is not of the form +name", item));
    names.push_back(item.substr(1));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return names;
}

bool has(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool covers(const std::vector<std::string_view>& names, std::string_view level_features) {
  for (std::string_view f : split_features(level_features))
    if (!has(names, f)) return false;
  return true;
}

bool is_x86(const Target& t) { return llvm::Triple(t.triple).getArch() == llvm::Triple::x86_64; }
bool is_aarch64(const Target& t) { return llvm::Triple(t.triple).getArch() == llvm::Triple::aarch64; }

/// What this machine has; asking the processor takes a while under a hypervisor, so it is asked once.
struct Machine {
  llvm::Triple triple{llvm::sys::getProcessTriple()};
  std::string cpu = llvm::sys::getHostCPUName().str();
  llvm::StringMap<bool> features = llvm::sys::getHostCPUFeatures();

  bool has(std::string_view feature) const { return features.lookup(feature); }
  std::vector<std::string_view> missing(std::string_view wanted) const {
    std::vector<std::string_view> names = split_features(wanted);
    std::erase_if(names, [&](std::string_view f) { return has(f); });
    return names;
  }
};
const Machine& machine_at_hand() {
  static const Machine machine;
  return machine;
}

}  // namespace

Target Target::x86(const std::string& level) {
  for (const Level& l : levels)
    if (l.name == level) return {"x86_64-unknown-linux-gnu", "", std::string(l.features)};
  throw UsageError(fmt::format("target: '{}' is no level of x86; they are {}", level, level_names));
}

Target Target::cuda(const std::string& arch) {
  // PTX 8.0 came with CUDA 12.0, 8.3 with 12.3: the least that has every instruction the engine of that architecture
  // uses.
  for (std::string_view known : {"sm_80", "sm_86", "sm_87", "sm_89", "sm_90"})
    if (arch == known) return {std::string(cuda_triple), arch, "+ptx80"};
  if (arch == "sm_90a") return {std::string(cuda_triple), arch, "+ptx83"};
  throw UsageError(
      fmt::format("target: '{}' is no GPU architecture that code is generated for; they are sm_80, sm_86, "
                  "sm_87, sm_89, sm_90, sm_90a (sm_80 runs on every later GPU)",
                  arch));
}

bool Target::is_cuda() const { return triple == cuda_triple; }

Target Target::aarch64() { return {"aarch64-unknown-linux-gnu", "", "+neon"}; }

Target Target::host() {
  const Machine& machine = machine_at_hand();
  const char* cap = std::getenv("KERF_CPU_FEATURES");
  if (cap && !*cap) cap = nullptr;
  Target t;
  if (machine.triple.getArch() == llvm::Triple::x86_64) {
    for (const Level& l : levels) {
      if (!machine.missing(l.features).empty()) break;
      t = x86(std::string(l.name));
      if (cap && l.name == cap) break;
    }
    if (cap) {
      try {
        x86(cap);
      } catch (const UsageError&) {
        throw UsageError(fmt::format("KERF_CPU_FEATURES is '{}'; it must be one of {}, or unset", cap, level_names));
      }
    }
  } else if (machine.triple.getArch() == llvm::Triple::aarch64) {
    t = aarch64();
    if (cap && std::string_view(cap) != "neon")
      throw UsageError(fmt::format("KERF_CPU_FEATURES is '{}'; on this machine it must be neon, or unset", cap));
  } else {
    throw DeviceError(fmt::format("target: Kerf generates code for x86-64 and AArch64, this machine is {}",
                                  machine.triple.getArchName().str()));
  }
  t.triple = machine.triple.str();
  t.cpu = machine.cpu;
  return t;
}

std::string Target::level() const {
  if (is_cuda()) return cpu;
  if (is_aarch64(*this)) return "neon";
  const std::vector<std::string_view> names = split_features(features);
  for (auto l = levels.rbegin(); l != levels.rend(); ++l)
    if (covers(names, l->features)) return std::string(l->name);
  return "sse2";  // every x86-64 has it
}

namespace codegen::cpu {

std::string llvm_version() { return LLVM_VERSION_STRING; }

CpuInfo cpu_info(const Target& target) {
  CpuInfo cpu;
  if (is_aarch64(target)) {
    cpu.registers = 32;
    cpu.fma = true;
    cpu.f16c = true;
    return cpu;
  }
  cpu.x86 = true;
  const std::vector<std::string_view> names = split_features(target.features);
  const std::string level = target.level();
  if (level == "avx2") cpu.lanes = 8;
  if (level.starts_with("avx512")) cpu.lanes = 16, cpu.registers = 32;
  cpu.fma = has(names, "fma");
  cpu.f16c = has(names, "f16c");
  cpu.bf16_dot = level == "avx512bf16";
  return cpu;
}

void require_runnable(const Target& target) {
  const Machine& machine = machine_at_hand();
  if (llvm::Triple(target.triple).getArch() != machine.triple.getArch())
    throw DeviceError(
        fmt::format("compile: the target is {}, this machine is {}; code for another machine can be "
                    "emitted but not run",
                    target.triple, machine.triple.str()));
  const std::vector<std::string_view> missing = machine.missing(target.features);
  if (!missing.empty())
    throw DeviceError(fmt::format("compile: the target needs {}, which this machine ({}) lacks; Target::host() is {}",
                                  fmt::join(missing, ", "), machine.cpu, Target::host().level()));
}

std::unique_ptr<llvm::TargetMachine> make_target_machine(const Target& target) {
  static const bool initialized = [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeAArch64TargetInfo();
    LLVMInitializeAArch64Target();
    LLVMInitializeAArch64TargetMC();
    LLVMInitializeAArch64AsmPrinter();
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
    return true;
  }();
  (void)initialized;

  if (!is_x86(target) && !is_aarch64(target) && !target.is_cuda())
    throw UsageError(fmt::format("target: '{}' is neither x86-64, AArch64 nor a CUDA GPU, which Kerf generates code for",
                                 target.triple));
  std::string error;
  const llvm::Target* found = llvm::TargetRegistry::lookupTarget(target.triple, error);
  if (!found) throw InternalError(fmt::format("target: LLVM knows no '{}': {}", target.triple, error));

  // LLVM itself only prints a warning about a name it does not know.
  const std::unique_ptr<llvm::MCSubtargetInfo> names(found->createMCSubtargetInfo(target.triple, "", ""));
  for (std::string_view f : split_features(target.features)) {
    const auto known = [f](const llvm::SubtargetFeatureKV& k) { return f == k.Key; };
    if (llvm::none_of(names->getAllProcessorFeatures(), known))
      throw UsageError(fmt::format("target: '{}' is no feature that LLVM {} knows", f, LLVM_VERSION_STRING));
  }
  if (!target.cpu.empty() && !names->isCPUStringValid(target.cpu))
    throw UsageError(fmt::format("target: '{}' is no processor that LLVM {} knows", target.cpu, LLVM_VERSION_STRING));

  std::unique_ptr<llvm::TargetMachine> machine(
      found->createTargetMachine(target.triple, target.is_cuda() ? target.cpu : "", target.features, llvm::TargetOptions(), llvm::Reloc::PIC_,
                                 llvm::CodeModel::Small, llvm::CodeGenOptLevel::Default));
  if (!machine) throw InternalError(fmt::format("target: LLVM has no code generator for '{}'", target.triple));
  return machine;
}

void set_target_attributes(llvm::Function& f, const Target& target) {
  f.addFnAttr("target-features", target.features);
  if (!target.cpu.empty()) f.addFnAttr("tune-cpu", target.cpu);
  // Without this, processors on which LLVM thinks 512-bit vectors slow get them split.
  if (cpu_info(target).lanes == 16) {
    f.addFnAttr("prefer-vector-width", "512");
    f.addFnAttr("min-legal-vector-width", "512");
  }
  f.addFnAttr(llvm::Attribute::NoUnwind);
}

}  // namespace codegen::cpu
}  // namespace kerf
