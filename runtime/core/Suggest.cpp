//===- Suggest.cpp - the nearest known word -------------------------------===//
#include "moira/rt/Suggest.h"

#include <algorithm>

namespace {

/// Edits that turn one word into the other.
size_t editDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> twoUp, up(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j)
    up[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({up[j] + 1, row[j - 1] + 1, up[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], twoUp[j - 2] + 1);
    }
    twoUp = up;
    up = row;
  }
  return up[b.size()];
}

} // namespace

std::string moira::rt::nearestWord(std::string_view word, const std::vector<std::string> &known) {
  std::string best;
  size_t distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string &candidate : known) {
    size_t apart =
        std::max(word.size(), candidate.size()) - std::min(word.size(), candidate.size());
    if (apart >= distance) // so many edits at least; hostile words may be megabytes long
      continue;
    if (size_t d = editDistance(word, candidate); d < distance) {
      distance = d;
      best = candidate;
    }
  }
  return best;
}
