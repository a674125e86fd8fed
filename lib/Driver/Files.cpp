//===- Files.cpp - writing results atomically -----------------------------===//
#include "Files.h"
#include "moira/rt/OutputFile.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;
namespace rt = moira::rt;
using moira::rt::ErrorId;
using moira::rt::Status;

Status moira::writeFile(StringRef path, StringRef contents) {
  if (path.empty() || path == "-") {
    outs() << contents;
    outs().flush();
    std::error_code error = outs().error();
    outs().clear_error();
    return error ? Status(ErrorId::CannotWrite, "stdout: " + error.message()) : Status();
  }
  Status status = rt::writeOutputFile(path.str(), {contents.data(), contents.size()});
  if (!status)
    return {ErrorId::CannotWrite,
            status.diagnostics().front().message +
                "; give a name in a directory that exists and can be written"};
  return {};
}
