//===- RunSummary.h - what a run tells at its end ---------------*- C++ -*-===//
// Figures of all ranks, gathered to one place, and the lines that moe-run prints.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_RUNSUMMARY_H
#define MOIRA_RT_CORE_RUNSUMMARY_H

#include "RunSession.h"
#include "moira/rt/Run.h"

namespace moira::rt {

/// Collective: the figures of all ranks, in rank order.
Expected<std::vector<RankFigures>> gatherFigures(const ProgramRunner &executor,
                                                 Communicator &communicator);
/// Collective: where the time of all steps went, averaged over the ranks. Waiting is what a
/// collective took longer than on the rank where it took least.
Expected<TimeShares> gatherTimes(const ProgramRunner &runner,
                                 std::span<const fb::Program *const> programs,
                                 Communicator &communicator);
/// Collective: the profiles of all ranks, in rank order.
Expected<std::vector<RankProfile>> gatherProfiles(const RankProfile &mine,
                                                  Communicator &communicator);

/// The summary, a few lines; rank 0 only.
std::string summarize(const RunOptions &options, const LaunchInfo &launch, const Ranks &ranks,
                      const RunSession &session, const std::vector<RankFigures> &figures);

} // namespace moira::rt

#endif // MOIRA_RT_CORE_RUNSUMMARY_H
