//===- Agree.h - what ranks tell each other besides tensors -----*- C++ -*-===//
// Small collectives of a run: one verdict for all, and strings gathered everywhere.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_AGREE_H
#define MOIRA_RT_AGREE_H

#include "moira/rt/Communicator.h"

namespace moira::rt {

/// Collective over all ranks: success if `mine` is one on every rank. Otherwise every rank gets the
/// same failure, with the distinct problems of all ranks in rank order, so that one of them can
/// speak for all.
Status agree(const Status &mine, Communicator &communicator, const std::string &what);

/// Collective over all ranks: every rank's string, in rank order, on every rank.
Expected<std::vector<std::string>>
gatherStrings(const std::string &mine, Communicator &communicator, const std::string &what);

} // namespace moira::rt

#endif // MOIRA_RT_AGREE_H
