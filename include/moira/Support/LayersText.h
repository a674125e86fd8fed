//===- LayersText.h - layers as messages name them --------------*- C++ -*-===//
// Header only: parts that have nothing else in common name layers alike.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_SUPPORT_LAYERSTEXT_H
#define MOIRA_SUPPORT_LAYERSTEXT_H

#include <cstdint>
#include <set>
#include <string>

namespace moira {

/// {1,2,3,7} → "layers 1-3, 7".
inline std::string layersText(const std::set<int64_t> &layers) {
  std::string text;
  for (auto it = layers.begin(); it != layers.end();) {
    int64_t first = *it, last = first;
    while (++it != layers.end() && *it == last + 1)
      last = *it;
    text += (text.empty() ? "" : ", ") + std::to_string(first);
    if (last != first)
      text += "-" + std::to_string(last);
  }
  return (layers.size() == 1 ? "layer " : "layers ") + text;
}

} // namespace moira

#endif // MOIRA_SUPPORT_LAYERSTEXT_H
