//===- moe-opt.cpp - the compiler, and a driver for its passes ------------===//
// Two modes: pass flags make it MLIR's pass driver; compiler options or a model make it the
// compiler. Both at once is a usage error.
//===----------------------------------------------------------------------===//
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "moira/Driver/Compiler.h"
#include "moira/rt/OutputFile.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Config/llvm-config.h"
#include "llvm/Support/raw_ostream.h"

namespace {

/// The exit code. The streams' destructors would end the process over what could not be written.
int leaveWith(int code) {
  llvm::outs().flush();
  if (std::error_code error = llvm::outs().error(); error && code == 0) {
    moira::rt::Status status(moira::rt::ErrorId::CannotWrite, "stdout: " + error.message());
    llvm::errs() << status.str();
    code = status.exitCode();
  }
  llvm::outs().clear_error();
  llvm::errs().clear_error();
  return code;
}

} // namespace

int main(int argc, char **argv) {
  moira::rt::openStandardStreams();
  if (llvm::is_contained(llvm::ArrayRef(argv, argc).drop_front(), llvm::StringRef("--version"))) {
    llvm::outs() << "moe-opt " MOIRA_VERSION " (LLVM " LLVM_VERSION_STRING ")\n";
    return leaveWith(0);
  }
  moira::registerMoiraPasses();
  if (!moira::wantsCompiler(argc, argv)) {
    mlir::DialectRegistry registry;
    moira::registerMoiraDialects(registry);
    return mlir::asMainReturnCode(mlir::MlirOptMain(argc, argv, "Moira pass driver\n", registry));
  }
  moira::CompilerOptions options;
  bool help = false;
  moira::rt::Status status = moira::parseCompilerOptions(argc, argv, options, help);
  if (!status) {
    llvm::errs() << status.str();
    return leaveWith(status.exitCode());
  }
  return leaveWith(help ? 0 : moira::runCompiler(options));
}
