//===- Suggest.h - the nearest known word -----------------------*- C++ -*-===//
// For "did you mean": flags, axes, config fields. Shared by all tools and the compiler.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SUGGEST_H
#define MOIRA_RT_SUGGEST_H

#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// The known word that is fewest edits (insert, delete, replace, swap two neighbours) away from
/// `word`, the first of equals; empty if none is within max(2, a third of the word's length) edits.
///
///     "--wieghts", {"--weights", "--inputs"} → "--weights"
///     "--frobnicate", {"--weights"}          → ""
std::string nearestWord(std::string_view word, const std::vector<std::string> &known);

} // namespace moira::rt

#endif // MOIRA_RT_SUGGEST_H
