//===- SummaryWords.cpp - a plan summary's numbers as words ---------------===//
// See SummaryWords.h.
//===----------------------------------------------------------------------===//
#include "SummaryWords.h"

#include <map>

using namespace moira::rt;

std::string moira::rt::countText(uint64_t n) {
  if (n >= 1'000'000'000'000)
    return format("%.2f T", n / 1e12);
  if (n >= 1'000'000'000)
    return format("%.2f B", n / 1e9);
  if (n >= 1'000'000)
    return format("%.2f M", n / 1e6);
  return n >= 10'000 ? format("%.1f K", n / 1e3) : std::to_string(n);
}

std::string moira::rt::shapeText(const std::vector<int64_t> &shape) {
  std::string text;
  for (int64_t size : shape)
    text += (text.empty() ? "" : "x") + std::to_string(size);
  return text.empty() ? "scalar" : text;
}

std::string moira::rt::shardingText(const ShardSummary &shard) {
  std::string text = "[";
  for (size_t i = 0; i < shard.axes.size(); ++i) {
    std::string dim;
    for (const std::string &axis : shard.axes[i])
      dim += (dim.empty() ? "" : ",") + axis;
    if (shard.pads[i])
      dim += format(" pad %lld", static_cast<long long>(shard.pads[i]));
    text += (i ? ", " : "") + (dim.empty() ? "-" : dim);
  }
  return text + "]";
}

uint64_t moira::rt::bytesOf(const ProgramSummary &program, const char *role) {
  uint64_t bytes = 0;
  for (const ArenaSummary &arena : program.arenas)
    if (arena.role == role && !arena.onHost)
      bytes += arena.bytes;
  return bytes;
}

std::vector<CollectiveSummary> moira::rt::totalCollectives(const ProgramSummary &program) {
  std::map<std::pair<std::string, std::string>, CollectiveSummary> totals;
  for (const CollectiveSummary &row : program.collectives) {
    CollectiveSummary &total = totals[{row.axes, row.kind}];
    total.axes = row.axes;
    total.kind = row.kind;
    total.count += row.count;
    total.payload += row.payload;
    total.padding += row.padding;
    total.message += row.message;
  }
  std::vector<CollectiveSummary> out;
  for (auto &[key, row] : totals)
    out.push_back(row);
  return out;
}

std::string moira::rt::bytesText(uint64_t bytes) {
  const char *units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = bytes;
  int unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? format("%llu B", (unsigned long long)bytes)
                   : format("%.1f %s", value, units[unit]);
}

std::string moira::rt::meshText(const PlanSummary &summary) {
  std::string text;
  for (const auto &[name, size] : summary.mesh)
    text += (text.empty() ? "" : ",") + name + "=" + std::to_string(size);
  return text.empty() ? "one rank" : text;
}
