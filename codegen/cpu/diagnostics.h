// LLVM's complaints as exceptions.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>

#include "codegen/llvm.h"
#include "kerf/error.h"

namespace kerf::codegen::cpu {

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

}  // namespace kerf::codegen::cpu
