//===- Agree.cpp - one verdict for all ranks ------------------------------===//
// The exchange of failures between ranks that are all still alive.
//===----------------------------------------------------------------------===//
#include "moira/rt/Agree.h"

#include "moira/rt/Mesh.h"

#include <algorithm>
#include <cstring>

namespace moira::rt {
namespace {

// Keeps the exchange small however many problems one rank has found.
constexpr size_t kLongest = size_t(1) << 16;

/// Problems as text: "number message\0" each.
std::string encode(const Status &status) {
  std::string text;
  for (const Diagnostic &d : status.diagnostics()) {
    std::string one = std::to_string(static_cast<int>(d.id)) + " " + d.message;
    if (text.size() + one.size() >= kLongest)
      break;
    text.append(one).push_back('\0');
  }
  return text;
}

void decode(std::string_view text, Status &into) {
  while (!text.empty()) {
    size_t end = std::min(text.find('\0'), text.size());
    std::string one(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    size_t space = one.find(' ');
    if (space == std::string::npos)
      continue;
    std::string message = one.substr(space + 1);
    bool known = std::any_of(into.diagnostics().begin(), into.diagnostics().end(),
                             [&](const Diagnostic &d) { return d.message == message; });
    if (!known)
      into.add(static_cast<ErrorId>(std::atoi(one.c_str())), message);
  }
}

} // namespace

Expected<std::vector<std::string>>
gatherStrings(const std::string &mine, Communicator &communicator, const std::string &what) {
  Group world = worldGroup(communicator);
  uint64_t length = mine.size();
  std::vector<uint64_t> lengths(world.members.size());
  if (Status s = communicator.allGather(world, &length, lengths.data(), sizeof length, what); !s)
    return s;
  std::vector<std::string> strings(lengths.size());
  uint64_t longest = *std::max_element(lengths.begin(), lengths.end());
  if (longest == 0)
    return strings;
  std::string padded = mine, all(longest * lengths.size(), '\0');
  padded.resize(longest, '\0');
  if (Status s = communicator.allGather(world, padded.data(), all.data(), longest, what); !s)
    return s;
  for (size_t r = 0; r < strings.size(); ++r)
    strings[r] = all.substr(r * longest, lengths[r]);
  return strings;
}

Status agree(const Status &mine, Communicator &communicator, const std::string &what) {
  std::string text = encode(mine);
  if (!mine.ok() && text.empty())
    text = format("%d a message of more than %zu bytes", static_cast<int>(ErrorId::Internal),
                  kLongest) +
           '\0';
  Expected<std::vector<std::string>> all = gatherStrings(text, communicator, what);
  if (!all)
    return all.takeStatus();
  Status verdict;
  for (const std::string &one : *all)
    decode(one, verdict);
  return verdict;
}

} // namespace moira::rt
