//===- SummaryText.cpp - a plan summary for people ------------------------===//
// The compile report (at most 25 lines) and moe-inspect's text. Numbers come from PlanSummary.cpp
// only.
//===----------------------------------------------------------------------===//
#include "SummaryWords.h"

#include <algorithm>

using namespace moira::rt;

namespace {

std::string header(const PlanSummary &s) {
  std::string text = format("model          %s, --task=%s, %s", s.modelClass.c_str(),
                            s.task.c_str(), s.dtype.c_str());
  if (s.batch) // a program that was written by hand does not say which of its sizes that is
    text += format(", batch %lld x sequence %lld", static_cast<long long>(s.batch),
                   static_cast<long long>(s.seq));
  text += ", target " + s.target + "\n";
  if (s.parameters)
    text += "parameters     " + countText(s.parameters) + " total, " +
            countText(s.activeParameters) + " active for a token\n";
  if (s.tensorsFound)
    text += format("weights        imported %llu of %llu tensors\n",
                   (unsigned long long)s.tensorsFound, (unsigned long long)s.tensorsExpected);
  else if (s.tensorsExpected)
    text += format("weights        planned without weights: none of %llu tensors was seen\n",
                   (unsigned long long)s.tensorsExpected);
  return text + format("mesh           %s (%llu rank%s)\n", meshText(s).c_str(),
                       (unsigned long long)s.ranks, s.ranks == 1 ? "" : "s");
}

/// What kinds of states take on a rank, in the device's memory or in its host's, and how often all
/// ranks together hold them.
std::string statesText(const ProgramSummary &p, bool onHost) {
  std::string text;
  for (const StateClass &c : p.stateClasses)
    if (uint64_t bytes = onHost ? c.hostBytes : c.bytes - c.hostBytes)
      text +=
          (text.empty() ? "" : ", ") + c.role + " " + bytesText(bytes) +
          (p.ranks > 1 ? format(" (held %.2f times)", double(bytes) * p.ranks / c.wholeBytes) : "");
  return text.empty() ? "no states of its own" : text;
}

std::string memoryText(const ProgramSummary &p) {
  std::string text = "memory a rank  " + bytesText(p.totalBytes) + ": " + statesText(p, false) +
                     ", activations " + bytesText(bytesOf(p, "activations"));
  // Programs share their memory: one that exchanges nothing has that of the others too.
  if (uint64_t exchange = bytesOf(p, "ragged"); exchange || p.boundMax)
    text += ", expert exchange " + bytesText(exchange);
  if (p.boundMax)
    text += format(" (bound %llu rows a slot, worst case %llu)", (unsigned long long)p.boundInitial,
                   (unsigned long long)p.boundMax);
  text += "\n";
  if (p.hostBytes)
    text += "on its host    " + bytesText(p.hostBytes) + ": " + statesText(p, true) +
            "; a run of " + p.name + " moves " + bytesText(p.bytesToHost) + " there and " +
            bytesText(p.bytesToDevice) + " back\n";
  if (p.keptBytes)
    text += "               kept for the backward pass " + bytesText(p.keptBytes) + "\n";
  if (!p.peakInstruction.empty())
    text += "               most live values (" + bytesText(p.peakLiveBytes) + ") at " +
            p.peakInstruction + (p.peakLocation.empty() ? "" : " of " + p.peakLocation) + "\n";
  return text;
}

} // namespace

std::string moira::rt::reportText(const PlanSummary &summary) {
  std::string text = header(summary);
  const ProgramSummary *program = summary.main();
  if (!program)
    return text;
  text += memoryText(*program);
  std::vector<CollectiveSummary> totals = totalCollectives(*program);
  if (totals.empty()) {
    text += "communication  none\n";
  } else {
    text += "communication  a rank sends in one step\n               axes        kind            "
            "calls      payload      padding\n";
    for (size_t i = 0; i < totals.size() && i < 12; ++i)
      text += format("               %-11s %-14s %6llu %12s %12s\n", totals[i].axes.c_str(),
                     totals[i].kind.c_str(), (unsigned long long)totals[i].count,
                     bytesText(totals[i].payload).c_str(), bytesText(totals[i].padding).c_str());
    if (totals.size() > 12)
      text += format("               and %zu more rows, see moe-inspect\n", totals.size() - 12);
  }
  uint64_t instructions = 0;
  for (const QueueSummary &queue : program->queues)
    instructions += queue.instructions;
  text += format("plan           %s: %llu instructions, %llu kernels\n",
                 bytesText(summary.fileBytes).c_str(), (unsigned long long)instructions,
                 (unsigned long long)summary.kernels);
  return text;
}

std::string moira::rt::summaryText(const PlanSummary &summary) {
  std::string text = header(summary);
  text += format("plan           %s, %llu kernels in %s, by %s\n",
                 bytesText(summary.fileBytes).c_str(), (unsigned long long)summary.kernels,
                 bytesText(summary.sectionBytes).c_str(), summary.producer.c_str());
  for (const ProgramSummary &p : summary.programs) {
    text += format("\nprogram %s (%llu rank%s%s)\n", p.name.c_str(), (unsigned long long)p.ranks,
                   p.ranks == 1 ? "" : "s", p.reference ? ", unfused reference ops" : "");
    text += memoryText(p);
    text += "\n  arenas                      bytes  at the largest bound\n";
    for (const ArenaSummary &a : p.arenas)
      text += format("  %-16s %16llu %21llu\n", a.name.c_str(), (unsigned long long)a.bytes,
                     (unsigned long long)a.bytesAtMax);
    text += "\n  queues          instructions  records  waits\n";
    for (const QueueSummary &q : p.queues)
      text +=
          format("  %-16s %11llu %8llu %6llu\n", q.name.c_str(), (unsigned long long)q.instructions,
                 (unsigned long long)q.records, (unsigned long long)q.waits);
    if (!p.collectives.empty()) {
      text += "\n  communication, bytes that a rank sends (payload and padding apart)\n  axes      "
              "  kind            layer  calls          payload          padding\n";
      for (const CollectiveSummary &c : p.collectives)
        text +=
            format("  %-11s %-14s %6s %6llu %16llu %16llu\n", c.axes.c_str(), c.kind.c_str(),
                   c.layer < 0 ? "-" : std::to_string(c.layer).c_str(), (unsigned long long)c.count,
                   (unsigned long long)c.payload, (unsigned long long)c.padding);
    }
    if (!p.reference) {
      size_t width = 6;
      for (const ShardSummary &s : p.shards)
        width = std::max(width, s.name.size());
      text += format("\n  %-*s  %-6s %-18s %-18s %s\n", int(width), "weight", "dtype", "global",
                     "on a rank", "cut over");
      for (const ShardSummary &s : p.shards)
        text += format("  %-*s  %-6s %-18s %-18s %s\n", int(width), s.name.c_str(), s.dtype.c_str(),
                       shapeText(s.shape).c_str(), shapeText(s.localShape).c_str(),
                       shardingText(s).c_str());
    }
    text += "\n  instructions\n";
    for (const auto &[name, count] : p.instructionCounts)
      text += format("  %8llu  %s\n", (unsigned long long)count, name.c_str());
  }
  return text;
}
