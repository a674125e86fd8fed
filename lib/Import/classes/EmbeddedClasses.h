//===- EmbeddedClasses.h - the class files as text --------------*- C++ -*-===//
// Generated from lib/Import/classes/*.json by EmbedClasses.cmake.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_IMPORT_CLASSES_EMBEDDEDCLASSES_H
#define MOIRA_LIB_IMPORT_CLASSES_EMBEDDEDCLASSES_H

#include <span>
#include <string_view>

namespace moira {

struct EmbeddedClass {
  std::string_view name; // file name without .json
  std::string_view text;
};

std::span<const EmbeddedClass> embeddedClasses();

} // namespace moira

#endif // MOIRA_LIB_IMPORT_CLASSES_EMBEDDEDCLASSES_H
