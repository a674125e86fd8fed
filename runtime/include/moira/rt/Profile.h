//===- Profile.h - where a step's time went ---------------------*- C++ -*-===//
// One event an instruction and rank, and what the loop above was at, written as a trace that
// Perfetto and chrome://tracing open.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_PROFILE_H
#define MOIRA_RT_PROFILE_H

#include "moira/rt/PlanFile.h"

#include <chrono>

namespace moira::rt {

/// Times of one rank, in microseconds since the run's start. Not thread-safe: one a rank.
struct RankProfile {
  struct Event {
    uint32_t program; // among those that run
    uint32_t instr;
    uint32_t attempt; // 0, or the number of the retry
    double start, duration;
  };
  /// A part of the loop: a step of training, a run of a program, …
  struct Span {
    enum Kind : uint32_t { step, program, input, save };
    Kind kind;
    uint32_t which;  // program, among those that run
    uint64_t number; // of the step
    double start, duration;
  };
  int rank = 0;
  std::chrono::steady_clock::time_point epoch; // zero of all times
  bool recording = true;                       // false: nothing is taken down at present
  std::vector<Event> events;
  std::vector<Span> spans;
};

/// Takes down what a loop is at, from here to its own end. A null profile takes nothing.
class ProfileSpan {
public:
  ProfileSpan(RankProfile *profile, RankProfile::Span::Kind kind, uint64_t number,
              uint32_t which = 0)
      : profile(profile && profile->recording ? profile : nullptr),
        span{kind, which, number, microseconds(), 0} {}
  ProfileSpan(const ProfileSpan &) = delete;
  ~ProfileSpan() {
    if (!profile)
      return;
    span.duration = microseconds() - span.start;
    profile->spans.push_back(span);
  }

private:
  double microseconds() const {
    if (!profile)
      return 0;
    std::chrono::duration<double, std::micro> now =
        std::chrono::steady_clock::now() - profile->epoch;
    return now.count();
  }
  RankProfile *profile;
  RankProfile::Span span;
};

/// What an instruction is called in profiles and errors: "linear", "kernel fused_3", "all_to_all".
std::string instrName(const fb::Plan &plan, const fb::Instr &instr);
/// The model part that it belongs to: "model.layers.0.self_attn".
std::string instrLocation(const fb::Plan &plan, const fb::Instr &instr);

/// Writes a trace: a process for each rank, a thread for each queue, and one for the loop's steps.
/// CannotWrite on failure.
Status writeProfile(const std::string &path, const fb::Plan &plan,
                    std::span<const fb::Program *const> programs,
                    const std::vector<RankProfile> &ranks);

} // namespace moira::rt

#endif // MOIRA_RT_PROFILE_H
