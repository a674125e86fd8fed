//===- Files.cpp - writing results atomically -----------------------------===//
#include "Files.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;
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
  // Devices such as /dev/null cannot be replaced by a rename.
  sys::fs::file_status info;
  if (!sys::fs::status(path, info) && sys::fs::exists(info) && !sys::fs::is_regular_file(info) &&
      !sys::fs::is_directory(info)) {
    std::error_code error;
    raw_fd_ostream out(path, error);
    if (!error) {
      out << contents;
      out.flush();
      error = out.error();
      out.clear_error(); // reported here; the destructor would end the process over it
    }
    return error ? Status(ErrorId::CannotWrite, path.str() + ": " + error.message()) : Status();
  }
  Error error = writeToOutput(path, [&](raw_ostream &out) {
    out << contents;
    return Error::success();
  });
  if (error)
    return {ErrorId::CannotWrite,
            path.str() + ": " + toString(std::move(error)) +
                "; give a name in a directory that exists and can be written"};
  return {};
}
