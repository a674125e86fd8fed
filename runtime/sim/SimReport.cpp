//===- SimReport.cpp - what a simulation has found ------------------------===//
// As text, as JSON, and as the trace that real runs write too.
//===----------------------------------------------------------------------===//
#include "moira/rt/PlanSummary.h"
#include "moira/rt/Profile.h"
#include "moira/rt/Simulate.h"

#include <nlohmann/json.hpp>

namespace moira::rt {
namespace {

using Json = nlohmann::ordered_json;

std::string timeText(double seconds) {
  if (seconds >= 1)
    return format("%.3f s", seconds);
  return seconds >= 1e-3 ? format("%.3f ms", seconds * 1e3) : format("%.1f us", seconds * 1e6);
}

/// Part of what devices can do at most, by the plan's compute type.
double peakOf(const PlanFile &file, const SimCluster &cluster) {
  return file.plan().info()->dtype() == fb::DType::bf16 ? cluster.flopsBf16 : cluster.flopsF32;
}

double flopsOf(const SimResult &result) {
  double flops = 0;
  for (const SimProgram &program : result.programs)
    flops += double(program.repeats) * program.flops;
  return flops;
}

bool generates(const PlanFile &file) {
  const flatbuffers::String *task = file.plan().info()->task();
  return task && task->string_view() == "generate";
}

} // namespace

std::string simulationText(const PlanFile &file, const SimOptions &options,
                           const SimResult &result) {
  const SimCluster &c = options.cluster;
  PlanSummary summary = summarize(file);
  std::string text =
      format("simulated      %s on %llu %s, %d a node: a model's times, nothing was run\n",
             meshText(summary).c_str(), (unsigned long long)summary.ranks, c.name.c_str(),
             c.devicesPerNode);
  text += format("memory a rank  %s of %s%s\n", bytesText(result.deviceBytes).c_str(),
                 bytesText(uint64_t(c.memoryBytes)).c_str(),
                 double(result.deviceBytes) > c.memoryBytes ? ": does not fit" : "");
  double rate = result.stepSeconds > 0 ? result.tokensPerStep / result.stepSeconds : 0;
  text += format("a step         %s, %.0f tokens/s", timeText(result.stepSeconds).c_str(), rate);
  if (!generates(file) && result.stepSeconds > 0)
    text += format(", %.1f TFLOP/s a rank (%.1f %% of the peak)",
                   flopsOf(result) / result.stepSeconds / 1e12,
                   100 * flopsOf(result) / result.stepSeconds / peakOf(file, c));
  text += "\n";
  for (const SimProgram &p : result.programs) {
    text += format(
        "\nprogram %s: %s%s\n", p.name.c_str(), timeText(p.seconds).c_str(),
        p.repeats > 1 ? format(", %llu times a step", (unsigned long long)p.repeats).c_str() : "");
    text += format("  kernels run %.1f %% of it, exchanges and copies are alone %.1f %%\n",
                   p.seconds > 0 ? 100 * p.busy / p.seconds : 0,
                   p.seconds > 0 ? 100 * p.exposed / p.seconds : 0);
    text += "  what                            how often         time      exposed         sent\n";
    for (const SimShare &s : p.shares)
      text += format("  %-30s %10llu %12s %12s %12s\n", s.what.c_str(), (unsigned long long)s.count,
                     timeText(s.seconds).c_str(), s.bytes > 0 ? timeText(s.exposed).c_str() : "",
                     s.bytes > 0 ? bytesText(uint64_t(s.bytes)).c_str() : "");
  }
  return text;
}

std::string simulationJson(const PlanFile &file, const SimOptions &options,
                           const SimResult &result) {
  const SimCluster &c = options.cluster;
  Json out{
      {"cluster", c.name},
      {"devices_per_node", c.devicesPerNode},
      {"mesh", meshText(summarize(file))},
      {"expert_load", options.expertLoad},
      {"memory_bytes", result.deviceBytes},
      {"memory_bytes_of_device", uint64_t(c.memoryBytes)},
      {"fits", double(result.deviceBytes) <= c.memoryBytes},
      {"step_seconds", result.stepSeconds},
      {"tokens_per_s", result.stepSeconds > 0 ? result.tokensPerStep / result.stepSeconds : 0.0},
      {"flops", flopsOf(result)},
      {"programs", Json::array()}};
  for (const SimProgram &p : result.programs) {
    Json program{{"name", p.name},           {"repeats", p.repeats}, {"seconds", p.seconds},
                 {"kernel_seconds", p.busy}, {"flops", p.flops},     {"exposed_seconds", p.exposed},
                 {"shares", Json::array()}};
    for (const SimShare &s : p.shares)
      program["shares"].push_back({{"what", s.what},
                                   {"count", s.count},
                                   {"seconds", s.seconds},
                                   {"exposed_seconds", s.exposed},
                                   {"sent_bytes", s.bytes}});
    out["programs"].push_back(std::move(program));
  }
  return out.dump(2) + "\n";
}

Status writeSimulation(const std::string &path, const PlanFile &file, const SimResult &result) {
  RankProfile profile;
  std::vector<const fb::Program *> programs;
  double start = 0;
  for (const SimProgram &p : result.programs) {
    auto which = uint32_t(programs.size());
    for (const fb::Program *program : *file.plan().programs())
      if (program->name()->string_view() == p.name)
        programs.push_back(program);
    for (const SimEvent &event : p.events)
      profile.events.push_back(
          {which, event.instr, 0, (start + event.start) * 1e6, event.duration * 1e6});
    profile.spans.push_back({RankProfile::Span::program, which, 0, start * 1e6, p.seconds * 1e6});
    start += p.seconds;
  }
  return writeProfile(path, file.plan(), programs, {profile});
}

} // namespace moira::rt
