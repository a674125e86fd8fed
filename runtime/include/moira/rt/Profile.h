//===- Profile.h - where a step's time went ---------------------*- C++ -*-===//
// One event an instruction and rank, written as a trace that Perfetto and chrome://tracing open.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_PROFILE_H
#define MOIRA_RT_PROFILE_H

#include "moira/rt/PlanFile.h"

namespace moira::rt {

/// Times of one rank, in microseconds since the run's start. Not thread-safe: one a rank.
struct RankProfile {
  struct Event {
    uint32_t program; // among those that run
    uint32_t instr;
    uint32_t attempt; // 0, or the number of the retry
    double start, duration;
  };
  int rank = 0;
  std::vector<Event> events;
};

/// What an instruction is called in profiles and errors: "linear", "kernel fused_3", "all_to_all".
std::string instrName(const fb::Plan &plan, const fb::Instr &instr);
/// The model part that it belongs to: "model.layers.0.self_attn".
std::string instrLocation(const fb::Plan &plan, const fb::Instr &instr);

/// Writes a trace: a process for each rank, a thread for each queue. CannotWrite on failure.
Status writeProfile(const std::string &path, const fb::Plan &plan,
                    std::span<const fb::Program *const> programs,
                    const std::vector<RankProfile> &ranks);

} // namespace moira::rt

#endif // MOIRA_RT_PROFILE_H
