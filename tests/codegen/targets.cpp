#include "tests/codegen/targets.h"

#include <elf.h>

#include <cstring>
#include <stdexcept>

#include "codegen/cpu/jit.h"
#include "lib/passes/passes.h"

namespace kerf::test {

const std::vector<std::string>& x86_levels() {
  static const std::vector<std::string> levels{"sse2", "avx2", "avx512", "avx512bf16"};
  return levels;
}

std::vector<Target> runnable_targets() {
  const Target host = Target::host();
  std::vector<Target> targets;
  if (host.triple.starts_with("x86_64"))
    for (const std::string& level : x86_levels()) {
      targets.push_back(Target::x86(level));
      if (level == host.level()) return targets;
    }
  return {host};
}

std::vector<Target> all_targets() {
  std::vector<Target> targets{Target::aarch64()};
  for (const std::string& level : x86_levels()) targets.push_back(Target::x86(level));
  return targets;
}

namespace {
template <class T>
T read(const std::vector<std::byte>& file, std::size_t at) {
  T value;
  if (at + sizeof(T) > file.size()) throw std::runtime_error("object file: cut short");
  std::memcpy(&value, file.data() + at, sizeof(T));
  return value;
}
}  // namespace

Object read_object(const std::vector<std::byte>& file) {
  const auto header = read<Elf64_Ehdr>(file, 0);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_type != ET_REL)
    throw std::runtime_error("object file: not a relocatable 64-bit little-endian ELF file");
  Object object;
  object.machine = header.e_machine;
  const auto section = [&](std::size_t i) { return read<Elf64_Shdr>(file, header.e_shoff + i * sizeof(Elf64_Shdr)); };
  for (std::size_t s = 0; s < header.e_shnum; ++s) {
    const Elf64_Shdr symbols = section(s);
    if (symbols.sh_type != SHT_SYMTAB) continue;
    const Elf64_Shdr strings = section(symbols.sh_link);
    for (std::size_t at = sizeof(Elf64_Sym); at < symbols.sh_size; at += sizeof(Elf64_Sym)) {  // the first is empty
      const auto symbol = read<Elf64_Sym>(file, symbols.sh_offset + at);
      std::string name;
      for (std::size_t c = strings.sh_offset + symbol.st_name; read<char>(file, c); ++c) name += read<char>(file, c);
      if (symbol.st_shndx == SHN_UNDEF)
        object.undefined.push_back(name);
      else if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC)
        object.functions.push_back(name);
    }
  }
  return object;
}

Object lower(const Program& program, const Target& target) {
  return read_object(codegen::cpu::compile(passes::pipeline(program.ir(), true), target, {}).bytes);
}

}  // namespace kerf::test
