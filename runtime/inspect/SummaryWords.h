//===- SummaryWords.h - a plan summary's numbers as words -------*- C++ -*-===//
// What the report, moe-inspect's text, its page and its comparisons say alike.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_INSPECT_SUMMARYWORDS_H
#define MOIRA_RT_INSPECT_SUMMARYWORDS_H

#include "moira/rt/PlanSummary.h"

namespace moira::rt {

/// "30.53 B".
std::string countText(uint64_t n);
/// "128x2048"; "scalar" without dimensions.
std::string shapeText(const std::vector<int64_t> &shape);
/// What cuts each dimension: "[ep, -, tp pad 2]".
std::string shardingText(const ShardSummary &shard);
/// Bytes of the arenas of a role: state, activations, ragged.
uint64_t bytesOf(const ProgramSummary &program, const char *role);
/// Totals over layers for each axes × kind.
std::vector<CollectiveSummary> totalCollectives(const ProgramSummary &program);

} // namespace moira::rt

#endif // MOIRA_RT_INSPECT_SUMMARYWORDS_H
