//===- EmbeddedClasses.h - the class files as text --------------*- C++ -*-===//
// Generated from lib/Import/classes/*.json by EmbedClasses.cmake.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_IMPORT_EMBEDDEDCLASSES_H
#define MOIRA_LIB_IMPORT_EMBEDDEDCLASSES_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

namespace moira {

struct EmbeddedClass {
  llvm::StringRef name; // file name without .json
  llvm::StringRef text;
};

llvm::ArrayRef<EmbeddedClass> embeddedClasses();

} // namespace moira

#endif // MOIRA_LIB_IMPORT_EMBEDDEDCLASSES_H
