//===- Files.h - writing results so that a failure leaves nothing half done ---*- C++ -*-===//
#ifndef MOIRA_DRIVER_FILES_H
#define MOIRA_DRIVER_FILES_H

#include "moira/rt/Status.h"
#include "llvm/ADT/StringRef.h"

namespace moira {

/// Writes to a temporary name beside `path` and renames; "-" or "" is stdout. CannotWrite says why
/// not.
rt::Status writeFile(llvm::StringRef path, llvm::StringRef contents);

} // namespace moira

#endif // MOIRA_DRIVER_FILES_H
