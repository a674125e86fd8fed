//===- Status.cpp - error ids as text and exit codes ------------*- C++ -*-===//
// What Status.h declares. The ids, titles and exit codes are data of Errors.def.
//===----------------------------------------------------------------------===//
#include "moira/rt/Status.h"

#include <cstdarg>
#include <cstdio>

namespace moira::rt {

int exitCodeOf(ErrorId id) {
  switch (id) {
#define MOIRA_ERROR(symbol, number, exitCode, title)                                               \
  case ErrorId::symbol:                                                                            \
    return exitCode;
#include "moira/rt/Errors.def"
  }
  return 4;
}

std::string Status::str(size_t limit) const {
  std::string text;
  size_t shown = 0;
  for (const Diagnostic &d : problems) {
    if (shown++ == limit)
      break;
    text += format("error MOE-%04d: ", static_cast<int>(d.id)) + d.message + "\n";
  }
  if (problems.size() > limit)
    text += format("%zu more problems are not shown\n", problems.size() - limit);
  return text;
}

int Status::exitCode() const { return ok() ? 0 : exitCodeOf(problems.front().id); }

std::string format(const char *fmt, ...) {
  va_list args, again;
  va_start(args, fmt);
  va_copy(again, args);
  int size = std::vsnprintf(nullptr, 0, fmt, args);
  va_end(args);
  std::string text(size > 0 ? size : 0, '\0');
  if (size > 0)
    std::vsnprintf(text.data(), text.size() + 1, fmt, again);
  va_end(again);
  return text;
}

} // namespace moira::rt
