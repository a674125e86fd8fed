//===- CollectiveChecks.h - what every collective checks first --*- C++ -*-===//
// A plan that passed its verifier never fails these; they keep a mistake in the executor from
// becoming a hang.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMM_COLLECTIVECHECKS_H
#define MOIRA_RT_COMM_COLLECTIVECHECKS_H

#include "moira/rt/Communicator.h"
#include "moira/rt/OrderedReduce.h"

#include <algorithm>

namespace moira::rt {

inline Status checkGroup(const Group &group, int rank, int size, const std::string &what) {
  auto known = [&](int r) { return r >= 0 && r < size; };
  if (group.self >= 0 && size_t(group.self) < group.members.size() &&
      group.members[size_t(group.self)] == rank &&
      std::all_of(group.members.begin(), group.members.end(), known))
    return {};
  return Status(ErrorId::Internal,
                format("'%s' runs on a group that rank %d is not in; please report this",
                       what.c_str(), rank));
}

inline Status checkReducible(fb::DType dtype, const std::string &what) {
  if (reducibleSize(dtype))
    return {};
  return Status(ErrorId::Internal, format("'%s' reduces %s, which has no sum; please report this",
                                          what.c_str(), fb::EnumNameDType(dtype)));
}

} // namespace moira::rt

#endif // MOIRA_RT_COMM_COLLECTIVECHECKS_H
