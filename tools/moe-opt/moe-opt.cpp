//===- moe-opt.cpp - the compiler, and a driver for its passes ------------===//
// Two modes: pass flags make it MLIR's pass driver; compiler options or a model make it the
// compiler. Both at once is a usage error.
//===----------------------------------------------------------------------===//
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "moira/Driver/Compiler.h"
#include "llvm/Support/raw_ostream.h"

int main(int argc, char **argv) {
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
    return status.exitCode();
  }
  return help ? 0 : moira::runCompiler(options);
}
