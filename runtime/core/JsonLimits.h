//===- JsonLimits.h - what a JSON text will cost, before parsing it *- C++ -*-===//
// One pass without memory, so that hostile headers are refused before the parser copies strings.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_JSONLIMITS_H
#define MOIRA_RT_CORE_JSONLIMITS_H

#include <cstddef>
#include <cstdint>
#include <span>

namespace moira::rt {

/// Longest string that our readers accept (the parser holds two copies of one).
inline constexpr size_t kJsonStringLimit = size_t(1) << 20;

struct JsonShape {
  size_t longestString = 0; // bytes between two quotes, escapes as written
  size_t objects = 0;       // '{' outside strings
  size_t brackets = 0;      // '{' and '[' outside strings
  size_t commas = 0;        // outside strings
};

inline JsonShape scanJson(std::span<const uint8_t> text) {
  JsonShape shape;
  bool inString = false, escaped = false;
  size_t length = 0;
  for (uint8_t c : text) {
    if (!inString) {
      if (c == '"') {
        inString = true;
        length = 0;
      } else {
        shape.objects += c == '{';
        shape.brackets += c == '{' || c == '[';
        shape.commas += c == ',';
      }
      continue;
    }
    if (!escaped && c == '"') {
      inString = false;
      continue;
    }
    escaped = !escaped && c == '\\';
    if (++length > shape.longestString)
      shape.longestString = length;
  }
  return shape;
}

} // namespace moira::rt

#endif // MOIRA_RT_CORE_JSONLIMITS_H
