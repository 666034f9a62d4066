// From an LLVM module to machine code: clean up, emit an object, link it into this process through ORC.
//
// The object linking layer is used without LLJIT around it: kernels refer to nothing outside their module, so what
// LLJIT adds (platform set-up, symbols of the process, lookup of frame registration) would only cost time.
#include <fmt/format.h>

#include "codegen/cpu/target.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

namespace {

/// Collects what LLVM complains about; the default handler would end the process.
struct Diagnostics : llvm::DiagnosticHandler {
  explicit Diagnostics(std::string& errors) : errors(errors) {}
  bool handleDiagnostics(const llvm::DiagnosticInfo& info) override {
    if (info.getSeverity() == llvm::DS_Error) {
      llvm::raw_string_ostream out(errors);
      if (!errors.empty()) out << "; ";
      llvm::DiagnosticPrinterRawOStream printer(out);
      info.print(printer);
    }
    return true;
  }
  std::string& errors;
};

/// Calls work() and throws InternalError if LLVM reported an error meanwhile.
template <class F>
void with_diagnostics(llvm::Module& module, const char* what, F&& work) {
  std::string errors;
  llvm::LLVMContext& context = module.getContext();
  std::unique_ptr<llvm::DiagnosticHandler> before = context.getDiagnosticHandler();
  context.setDiagnosticHandler(std::make_unique<Diagnostics>(errors));
  work();
  context.setDiagnosticHandler(std::move(before));
  if (!errors.empty())
    throw InternalError(fmt::format("{}: LLVM could not compile {}: {}", what, module.getName().str(), errors));
}

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

  void* add(llvm::SmallVector<char, 0> object, const std::string& symbol) {
    llvm::orc::JITDylib& library = session_->createBareJITDylib("kerf");
    check(layer_->add(library, std::make_unique<llvm::SmallVectorMemoryBuffer>(std::move(object), symbol,
                                                                               /*RequiresNullTerminator=*/false)),
          symbol);
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

}  // namespace

void optimize(llvm::Module& module, llvm::TargetMachine& machine) {
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager sccs;
  llvm::ModuleAnalysisManager modules;
  llvm::PassBuilder builder(&machine);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(sccs);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, sccs, modules);

  llvm::FunctionPassManager passes;
  passes.addPass(llvm::EarlyCSEPass());
  passes.addPass(llvm::InstCombinePass());
  passes.addPass(llvm::createFunctionToLoopPassAdaptor(llvm::LICMPass(llvm::LICMOptions()), /*UseMemorySSA=*/true));
  passes.addPass(llvm::SimplifyCFGPass());
  with_diagnostics(module, "optimize", [&] {
    for (llvm::Function& f : module)
      if (!f.isDeclaration()) passes.run(f, functions);
  });
}

void* load(Module module, const std::string& symbol, const Target& target, std::shared_ptr<void>& loaded) {
  const std::unique_ptr<llvm::TargetMachine> machine = make_target_machine(target);
  llvm::SmallVector<char, 0> object = emit(*module.module, *machine, llvm::CodeGenFileType::ObjectFile);
  auto holder = std::make_shared<Loaded>(symbol);
  void* address = holder->add(std::move(object), symbol);
  loaded = std::move(holder);
  return address;
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
