//===- PlanSummary.h - what a plan will do, in numbers ----------*- C++ -*-===//
// Derived from a verified plan alone; nothing is run. All byte figures are for one rank and one
// step.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_PLANSUMMARY_H
#define MOIRA_RT_PLANSUMMARY_H

#include "moira/rt/PlanFile.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace moira::rt {

struct ArenaSummary {
  std::string name, role;  // role: state, activations, ragged
  bool onHost = false;     // in the memory of a device's host
  uint64_t bytes = 0;      // at the initial bound
  uint64_t bytesAtMax = 0; // at the largest bound
};

/// One state: the whole of it, and what a rank holds.
struct ShardSummary {
  std::string name, dtype;
  std::string role; // weights, optimizer (what training keeps of them), caches
  int layer = -1;
  std::vector<int64_t> shape, localShape;
  std::vector<std::vector<std::string>> axes; // for each dimension
  std::vector<int64_t> pads;
  uint64_t localBytes = 0;
};

/// All states of one role.
struct StateClass {
  std::string role;
  uint64_t bytes = 0;      // on a rank
  uint64_t hostBytes = 0;  // of these, in the memory of a device's host
  uint64_t wholeBytes = 0; // of one copy of them; ranks · bytes / wholeBytes are held
};

/// Collectives of one kind over one axis list in one layer (-1: outside the layers).
///
/// `payload` is what a rank must send at least, with n the bytes of its operand and p the ranks of
/// the group (ring lower bounds):
///   all_reduce 2(p-1)/p·n, reduce_scatter and all_to_all (p-1)/p·n, all_gather (p-1)·n.
/// An all_to_all of ragged rows sends whole slots: payload then counts the tokens·k rows of this
/// rank under balanced routing, (p-1)/p of them leaving the rank; `padding` is what the slots send
/// beyond that at the initial bound.
struct CollectiveSummary {
  std::string axes, kind;
  int layer = -1;
  uint64_t count = 0, payload = 0, padding = 0;
  uint64_t message = 0; // n, summed over the calls
};

struct QueueSummary {
  std::string name;
  uint64_t instructions = 0, records = 0, waits = 0;
};

struct ProgramSummary {
  std::string name;
  bool reference = false;
  uint64_t ranks = 1, boundInitial = 0, boundMax = 0;
  std::vector<ArenaSummary> arenas;
  uint64_t totalBytes = 0;      // what the runtime will allocate on a rank at the initial bound
  uint64_t totalBytesAtMax = 0; // and at the largest bound
  uint64_t hostBytes = 0;       // what it will allocate in the memory of a device's host
  uint64_t bytesToHost = 0, bytesToDevice = 0; // that one run moves between them
  uint64_t peakLiveBytes = 0;  // largest sum of live values of the device outside the state arena
  uint64_t keptBytes = 0;      // live when the loss is known: what its gradient needs again
  std::string peakInstruction; // "call linear", at peakLocation
  std::string peakLocation;
  std::vector<ShardSummary> shards;
  std::vector<StateClass> stateClasses;       // in the order in which states have them
  std::vector<CollectiveSummary> collectives; // sorted by axes, kind, layer
  std::vector<QueueSummary> queues;
  std::vector<std::pair<std::string, uint64_t>> instructionCounts; // by kind and name, sorted
};

struct PlanSummary {
  std::string producer, target, task, dtype;
  std::string modelClass = "custom"; // as models of no class have it
  int64_t batch = 0, seq = 0;
  uint64_t parameters = 0, activeParameters = 0, tensorsExpected = 0, tensorsFound = 0;
  std::vector<std::pair<std::string, uint32_t>> mesh;
  uint64_t ranks = 1, fileBytes = 0, kernels = 0, sectionBytes = 0;
  std::vector<ProgramSummary> programs;

  /// The program that the mesh runs (not the reference).
  const ProgramSummary *main() const;
};

PlanSummary summarize(const PlanFile &file);

/// At most 25 lines: what moe-opt prints after every compile.
std::string reportText(const PlanSummary &summary);
/// The whole summary as text, one section a topic.
std::string summaryText(const PlanSummary &summary);
/// The whole summary as JSON (indented, keys in a fixed order).
std::string summaryJson(const PlanSummary &summary);
/// The whole summary as one HTML page, without scripts and without anything from elsewhere.
std::string summaryHtml(const PlanSummary &summary);
/// What `b` has otherwise than `a`, one section a topic; empty if nothing.
std::string diffText(const PlanSummary &a, const PlanSummary &b);
/// The mesh's first program as a Graphviz graph: modules and exchanges, and the bytes that go from
/// one to the other on a rank.
std::string graphDot(const PlanFile &file);
/// What a rank sends in a collective at least, with an operand of so many bytes:
/// CollectiveSummary's ring lower bounds.
uint64_t ringBytes(fb::CollectiveKind kind, uint64_t bytes, uint64_t ranks);
/// The axes of a collective: "dp,ep".
std::string axesText(const fb::Plan &plan, const fb::Instr &instr);
/// "dp=2,ep=2", or "one rank".
std::string meshText(const PlanSummary &summary);
/// "1.5 MiB".
std::string bytesText(uint64_t bytes);

} // namespace moira::rt

#endif // MOIRA_RT_PLANSUMMARY_H
