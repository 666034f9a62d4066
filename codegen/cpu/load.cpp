// From an LLVM module to an object file, and from an object file to code in this process, linked through ORC.
//
// The object linking layer is used without LLJIT around it: kernels refer to nothing outside their module, so what
// LLJIT adds (platform set-up, symbols of the process, lookup of frame registration) would only cost time.
#include <fmt/format.h>

#include <cstring>
#include <span>

#include "codegen/cpu/diagnostics.h"
#include "codegen/cpu/target.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

namespace {

void check(llvm::Error error, const std::string& name) {
  if (error)
    throw InternalError(fmt::format("load: LLVM could not link {}: {}", name, llvm::toString(std::move(error))));
}

llvm::SmallVector<char, 0> emit(llvm::Module& module, llvm::TargetMachine& machine, llvm::CodeGenFileType type) {
  llvm::SmallVector<char, 0> bytes;
  llvm::raw_svector_ostream out(bytes);
  with_diagnostics(module, "emit", [&] {
    llvm::legacy::PassManager passes;
    if (machine.addPassesToEmitFile(passes, out, nullptr, type, /*DisableVerify=*/true))
      throw InternalError(
          fmt::format("emit: LLVM cannot write this kind of file for {}", machine.getTargetTriple().str()));
    passes.run(module);
  });
  return bytes;
}

/// One linked object and the session that holds it.
class Loaded {
 public:
  explicit Loaded(const std::string& name) {
    auto control =
        llvm::orc::SelfExecutorProcessControl::Create(nullptr, std::make_unique<llvm::orc::InPlaceTaskDispatcher>());
    check(control.takeError(), name);
    session_ = std::make_unique<llvm::orc::ExecutionSession>(std::move(*control));
    session_->setErrorReporter([this](llvm::Error e) {
      if (!errors_.empty()) errors_ += "; ";
      errors_ += llvm::toString(std::move(e));
    });
    layer_ = std::make_unique<llvm::orc::ObjectLinkingLayer>(*session_);
  }
  ~Loaded() {
    if (llvm::Error e = session_->endSession()) llvm::consumeError(std::move(e));
  }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

  void* add(std::span<const std::byte> object, const std::string& symbol) {
    llvm::orc::JITDylib& library = session_->createBareJITDylib("kerf");
    const llvm::StringRef bytes(reinterpret_cast<const char*>(object.data()), object.size());
    check(layer_->add(library, llvm::MemoryBuffer::getMemBufferCopy(bytes, symbol)), symbol);
    auto found = session_->lookup({&library}, session_->intern(symbol));
    if (!found) {
      const std::string text = llvm::toString(found.takeError());
      throw InternalError(
          fmt::format("load: LLVM could not link {}: {}{}{}", symbol, text, errors_.empty() ? "" : "; ", errors_));
    }
    return found->getAddress().toPtr<void*>();
  }

 private:
  std::string errors_;
  std::unique_ptr<llvm::orc::ExecutionSession> session_;
  std::unique_ptr<llvm::orc::ObjectLinkingLayer> layer_;
};

/// The linker takes objects of any machine.
void require_for_this_machine(const Object& object) {
  namespace elf = llvm::ELF;
  const unsigned machine = llvm::Triple(llvm::sys::getProcessTriple()).isAArch64() ? elf::EM_AARCH64 : elf::EM_X86_64;
  elf::Elf64_Ehdr header{};
  if (object.bytes.size() >= sizeof header) std::memcpy(&header, object.bytes.data(), sizeof header);
  if (!header.checkMagic() || header.getFileClass() != elf::ELFCLASS64 || header.e_machine != machine)
    throw InternalError(fmt::format("load: {} is no object file for this machine", object.symbol));
}

}  // namespace

Code load(const Object& object) {
  require_for_this_machine(object);
  auto holder = std::make_shared<Loaded>(object.symbol);
  Code code;
  code.entry = reinterpret_cast<Entry>(holder->add(object.bytes, object.symbol));
  code.scratch_bytes = object.scratch_bytes;
  code.loaded = std::move(holder);
  return code;
}

std::string to_text(llvm::Module& module) {
  std::string text;
  llvm::raw_string_ostream out(text);
  module.print(out, nullptr);
  return text;
}

std::string to_assembly(llvm::Module& module, llvm::TargetMachine& machine) {
  const llvm::SmallVector<char, 0> text = emit(module, machine, llvm::CodeGenFileType::AssemblyFile);
  return {text.begin(), text.end()};
}

std::vector<std::byte> to_object(llvm::Module& module, llvm::TargetMachine& machine) {
  const llvm::SmallVector<char, 0> bytes = emit(module, machine, llvm::CodeGenFileType::ObjectFile);
  const auto* first = reinterpret_cast<const std::byte*>(bytes.data());
  return {first, first + bytes.size()};
}

}  // namespace kerf::codegen::cpu
