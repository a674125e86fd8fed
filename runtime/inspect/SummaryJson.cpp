//===- SummaryJson.cpp - a plan summary for programs ----------------------===//
// The fields are those of PlanSummary.h under the same names, in snake case; docs/inspecting.md
// lists them.
//===----------------------------------------------------------------------===//
#include "moira/rt/PlanSummary.h"

#include <nlohmann/json.hpp>

using namespace moira::rt;
using Json = nlohmann::ordered_json;

static Json toJson(const ProgramSummary &p) {
  Json out{{"name", p.name},
           {"reference", p.reference},
           {"ranks", p.ranks},
           {"bound_initial", p.boundInitial},
           {"bound_max", p.boundMax},
           {"memory_per_rank",
            {{"total_bytes", p.totalBytes},
             {"total_bytes_at_max_bound", p.totalBytesAtMax},
             {"host_bytes", p.hostBytes},
             {"peak_live_bytes", p.peakLiveBytes},
             {"kept_for_backward_bytes", p.keptBytes},
             {"peak_instruction", p.peakInstruction},
             {"peak_location", p.peakLocation},
             {"arenas", Json::array()},
             {"states", Json::array()}}},
           {"moves", {{"to_host_bytes", p.bytesToHost}, {"to_device_bytes", p.bytesToDevice}}},
           {"queues", Json::array()},
           {"collectives", Json::array()},
           {"weights", Json::array()},
           {"instructions", Json::object()}};
  for (const ArenaSummary &a : p.arenas)
    out["memory_per_rank"]["arenas"].push_back({{"name", a.name},
                                                {"role", a.role},
                                                {"space", a.onHost ? "host" : "device"},
                                                {"bytes", a.bytes},
                                                {"bytes_at_max_bound", a.bytesAtMax}});
  for (const StateClass &c : p.stateClasses)
    out["memory_per_rank"]["states"].push_back({{"role", c.role},
                                                {"bytes", c.bytes},
                                                {"host_bytes", c.hostBytes},
                                                {"whole_bytes", c.wholeBytes}});
  for (const QueueSummary &q : p.queues)
    out["queues"].push_back({{"name", q.name},
                             {"instructions", q.instructions},
                             {"records", q.records},
                             {"waits", q.waits}});
  for (const CollectiveSummary &c : p.collectives)
    out["collectives"].push_back({{"axes", c.axes},
                                  {"kind", c.kind},
                                  {"layer", c.layer},
                                  {"count", c.count},
                                  {"payload_bytes", c.payload},
                                  {"padding_bytes", c.padding},
                                  {"message_bytes", c.message}});
  for (const ShardSummary &s : p.shards)
    out["weights"].push_back({{"name", s.name},
                              {"dtype", s.dtype},
                              {"role", s.role},
                              {"layer", s.layer},
                              {"shape", s.shape},
                              {"local_shape", s.localShape},
                              {"axes", s.axes},
                              {"pads", s.pads},
                              {"local_bytes", s.localBytes}});
  for (const auto &[name, count] : p.instructionCounts)
    out["instructions"][name] = count;
  return out;
}

std::string moira::rt::summaryJson(const PlanSummary &s) {
  Json mesh = Json::object();
  for (const auto &[name, size] : s.mesh)
    mesh[name] = size;
  Json out{{"producer", s.producer},
           {"target", s.target},
           {"model_class", s.modelClass},
           {"task", s.task},
           {"dtype", s.dtype},
           {"batch", s.batch},
           {"seq", s.seq},
           {"parameters", s.parameters},
           {"active_parameters", s.activeParameters},
           {"tensors_expected", s.tensorsExpected},
           {"tensors_found", s.tensorsFound},
           {"mesh", mesh},
           {"ranks", s.ranks},
           {"file_bytes", s.fileBytes},
           {"section_bytes", s.sectionBytes},
           {"kernels", s.kernels},
           {"programs", Json::array()}};
  for (const ProgramSummary &p : s.programs)
    out["programs"].push_back(toJson(p));
  // Of words that are no names nobody has said that they are UTF-8.
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}
