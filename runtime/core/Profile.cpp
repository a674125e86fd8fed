//===- Profile.cpp - where a step's time went -----------------------------===//
// The trace event format: complete events ("ph": "X") with times in microseconds.
//===----------------------------------------------------------------------===//
#include "moira/rt/Profile.h"

#include "moira/rt/OutputFile.h"

#include <cstdio>
#include <nlohmann/json.hpp>

namespace moira::rt {

std::string instrName(const fb::Plan &plan, const fb::Instr &instr) {
  switch (instr.kind()) {
  case fb::InstrKind::launch:
    return "kernel " + plan.kernels()->Get(instr.target())->name()->str();
  case fb::InstrKind::call:
    return plan.calls()->Get(instr.target())->str();
  case fb::InstrKind::collective:
    return fb::EnumNameCollectiveKind(static_cast<fb::CollectiveKind>(instr.target()));
  default:
    return fb::EnumNameInstrKind(instr.kind());
  }
}

std::string instrLocation(const fb::Plan &plan, const fb::Instr &instr) {
  return instr.location() < plan.locations()->size()
             ? plan.locations()->Get(instr.location())->str()
             : std::string();
}

static std::string spanName(const RankProfile::Span &span, const fb::Program &program) {
  switch (span.kind) {
  case RankProfile::Span::input:
    return "reading a batch";
  case RankProfile::Span::save:
    return "saving";
  case RankProfile::Span::program:
    return program.name()->str() + " " + std::to_string(span.number);
  case RankProfile::Span::step:
    break;
  }
  return "step " + std::to_string(span.number);
}

Status writeProfile(const std::string &path, const fb::Plan &plan,
                    std::span<const fb::Program *const> programs,
                    const std::vector<RankProfile> &ranks) {
  Expected<OutputFile> output = OutputFile::create(path);
  if (!output)
    return output.takeStatus();
  std::FILE *file = output->stream();
  // Written piece by piece: long runs have more events than one JSON value should hold.
  const char *separator = "{\"traceEvents\":[\n";
  auto put = [&](const nlohmann::json &event) {
    std::fputs(separator, file);
    std::fputs(event.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).c_str(), file);
    separator = ",\n";
  };
  for (const RankProfile &rank : ranks) {
    put({{"ph", "M"},
         {"pid", rank.rank},
         {"name", "process_name"},
         {"args", {{"name", "rank " + std::to_string(rank.rank)}}}});
    // All mesh programs have the same queues. The steps come first.
    size_t queues = programs[0]->queues()->size();
    for (size_t q = 0; q <= queues; ++q) {
      put({{"ph", "M"},
           {"pid", rank.rank},
           {"tid", q},
           {"name", "thread_name"},
           {"args",
            {{"name", q < queues ? programs[0]->queues()->Get(q)->name()->str() : "steps"}}}});
      put({{"ph", "M"},
           {"pid", rank.rank},
           {"tid", q},
           {"name", "thread_sort_index"},
           {"args", {{"sort_index", q < queues ? q + 1 : 0}}}});
    }
    for (const RankProfile::Span &span : rank.spans)
      put({{"ph", "X"},
           {"pid", rank.rank},
           {"tid", queues},
           {"ts", span.start},
           {"dur", span.duration},
           {"name", spanName(span, *programs[span.which])},
           {"args", {{"number", span.number}}}});
    for (const RankProfile::Event &event : rank.events) {
      const fb::Program &program = *programs[event.program];
      const fb::Instr &instr = *program.instrs()->Get(event.instr);
      put({{"ph", "X"},
           {"pid", rank.rank},
           {"tid", instr.queue()},
           {"ts", event.start},
           {"dur", event.duration},
           {"name", instrName(plan, instr)},
           {"args",
            {{"program", program.name()->str()},
             {"location", instrLocation(plan, instr)},
             {"instruction", event.instr},
             {"attempt", event.attempt}}}});
    }
  }
  std::fputs(*separator == '{' ? "{\"traceEvents\":[]}\n" : "\n]}\n", file);
  return output->commit();
}

} // namespace moira::rt
