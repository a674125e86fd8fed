//===- PlanSummary.cpp - deriving numbers from a plan ---------------------===//
// One pass a topic over a verified plan. How the numbers are shown is in SummaryText.cpp and
// SummaryJson.cpp.
//===----------------------------------------------------------------------===//
#include "moira/rt/PlanSummary.h"
#include "moira/rt/CallRegistry.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

using namespace moira;
using namespace moira::rt;

namespace {

/// A program with what every topic needs at hand.
struct Reader {
  const fb::Plan &plan;
  const fb::Program &program;

  uint64_t viewBytes(uint32_t index) const {
    const fb::View *view = program.views()->Get(index);
    uint64_t bytes = dtypeBytes(view->dtype());
    for (int64_t size : *view->shape())
      bytes *= size;
    return view->bound_dim() >= 0 ? bytes * program.bound_initial() : bytes;
  }

  uint64_t groupSize(const fb::Instr &instr) const {
    uint64_t size = 1;
    for (uint8_t axis : *instr.axes())
      size *= plan.axes()->Get(axis)->size();
    return size;
  }

  std::string instrName(const fb::Instr &instr) const {
    std::string kind = fb::EnumNameInstrKind(instr.kind());
    switch (instr.kind()) {
    case fb::InstrKind::call:
      return kind + " " + plan.calls()->Get(instr.target())->str();
    case fb::InstrKind::launch:
      return kind + " " + plan.kernels()->Get(instr.target())->name()->str();
    case fb::InstrKind::collective:
      return kind + " " +
             fb::EnumNameCollectiveKind(static_cast<fb::CollectiveKind>(instr.target()));
    default:
      return kind;
    }
  }

  const fb::Arena &arenaOf(uint32_t view) const {
    return *program.arenas()->Get(program.views()->Get(view)->arena());
  }

  bool isOnHost(uint32_t view) const { return arenaOf(view).space() == fb::Space::host; }

  bool isCall(const fb::Instr &instr, const char *name) const {
    return instr.kind() == fb::InstrKind::call && plan.calls()->Get(instr.target())->str() == name;
  }
};

ArenaSummary summarizeArena(const fb::Arena &arena, const fb::Program &program) {
  ArenaSummary out;
  out.name = arena.name()->str();
  out.role = fb::EnumNameArenaRole(arena.role());
  out.onHost = arena.space() == fb::Space::host;
  out.bytes = arena.bytes() + arena.bytes_per_bound() * program.bound_initial();
  out.bytesAtMax = arena.bytes() + arena.bytes_per_bound() * program.bound_max();
  return out;
}

/// What a checkpoint fills are weights.
const char *roleOf(const fb::State &state, const fb::Plan &plan) {
  if (state.source())
    return "weights";
  const flatbuffers::String *task = plan.info()->task();
  return task && task->string_view() == "generate" ? "caches" : "optimizer";
}

ShardSummary summarizeState(const fb::State &state, const fb::Plan &plan) {
  ShardSummary out;
  out.name = state.name()->str();
  out.role = roleOf(state, plan);
  out.dtype = fb::EnumNameDType(state.dtype());
  out.layer = state.layer();
  out.localBytes = dtypeBytes(state.dtype());
  for (size_t i = 0; i < state.shape()->size(); ++i) {
    const fb::DimSharding *dim = state.dims()->Get(i);
    std::vector<std::string> names;
    uint64_t parts = 1;
    if (dim->axes())
      for (uint8_t axis : *dim->axes()) {
        names.push_back(plan.axes()->Get(axis)->name()->str());
        parts *= plan.axes()->Get(axis)->size();
      }
    int64_t size = state.shape()->Get(i);
    out.shape.push_back(size);
    out.localShape.push_back((size + dim->pad()) / parts);
    out.axes.push_back(std::move(names));
    out.pads.push_back(dim->pad());
    out.localBytes *= out.localShape.back();
  }
  return out;
}

void addToClass(const ShardSummary &shard, const fb::State &state, bool onHost,
                std::vector<StateClass> &classes) {
  auto found = std::find_if(classes.begin(), classes.end(),
                            [&](const StateClass &c) { return c.role == shard.role; });
  if (found == classes.end())
    found = classes.insert(classes.end(), {shard.role, 0, 0, 0});
  uint64_t whole = dtypeBytes(state.dtype());
  for (int64_t size : shard.shape)
    whole *= size;
  found->bytes += shard.localBytes;
  found->hostBytes += onHost ? shard.localBytes : 0;
  found->wholeBytes += whole;
}

/// Tokens·k of the routing that an all_to_all of rows belongs to: the producer is the pack that
/// filled the slots, or the consumer is the combine that reads them. Nothing for other exchanges
/// (counts).
std::vector<std::optional<uint64_t>> routedRows(const Reader &reader) {
  const auto &instrs = *reader.program.instrs();
  std::vector<std::optional<uint64_t>> rows(instrs.size());
  auto positions = [&](uint32_t view) {
    uint64_t n = 1;
    for (int64_t size : *reader.program.views()->Get(view)->shape())
      n *= size;
    return n;
  };
  std::map<uint32_t, uint64_t> filledBy;             // slots view -> tokens·k
  std::map<uint32_t, std::vector<size_t>> exchanged; // all_to_all result view -> its instructions
  for (size_t i = 0; i < instrs.size(); ++i) {
    const fb::Instr &instr = *instrs.Get(i);
    if (reader.isCall(instr, "pack"))
      filledBy[instr.outputs()->Get(0)] = positions(instr.outputs()->Get(2));
    if (instr.kind() == fb::InstrKind::collective &&
        instr.target() == uint32_t(fb::CollectiveKind::all_to_all)) {
      if (auto it = filledBy.find(instr.inputs()->Get(0)); it != filledBy.end())
        rows[i] = it->second;
      exchanged[instr.outputs()->Get(0)].push_back(i);
    }
    if (reader.isCall(instr, "combine"))
      for (size_t user : exchanged[instr.inputs()->Get(0)])
        rows[user] = positions(instr.inputs()->Get(1));
  }
  return rows;
}

std::vector<CollectiveSummary> summarizeCollectives(const Reader &reader) {
  std::map<std::tuple<std::string, std::string, int>, CollectiveSummary> table;
  std::vector<std::optional<uint64_t>> rows = routedRows(reader);
  for (size_t i = 0; i < reader.program.instrs()->size(); ++i) {
    const fb::Instr &instr = *reader.program.instrs()->Get(i);
    if (instr.kind() != fb::InstrKind::collective)
      continue;
    auto kind = static_cast<fb::CollectiveKind>(instr.target());
    std::string axes = axesText(reader.plan, instr),
                name = std::string(fb::EnumNameCollectiveKind(kind));
    CollectiveSummary &row = table[{axes, name, instr.layer()}];
    row.axes = axes;
    row.kind = name;
    row.layer = instr.layer();
    uint64_t n = reader.viewBytes(instr.inputs()->Get(0)), p = reader.groupSize(instr),
             sent = ringBytes(kind, n, p), needed = sent;
    if (kind == fb::CollectiveKind::all_to_all && rows[i]) {
      const fb::View *view = reader.program.views()->Get(instr.inputs()->Get(0));
      uint64_t rowBytes = dtypeBytes(view->dtype()) * view->shape()->Get(view->shape()->size() - 1);
      needed = std::min(sent, *rows[i] * rowBytes * (p - 1) / p);
    }
    row.count += 1;
    row.message += n;
    row.payload += needed;
    row.padding += sent - needed;
  }
  std::vector<CollectiveSummary> out;
  for (auto &[key, row] : table)
    out.push_back(row);
  return out;
}

/// Live values over the instruction list: a buffer (arena, offset) lives from the first to the last
/// instruction that names it.
void findPeak(const Reader &reader, ProgramSummary &out) {
  struct Life {
    size_t first, last;
    uint64_t bytes;
  };
  const auto &instrs = *reader.program.instrs();
  std::vector<Life> lives;
  std::map<std::tuple<uint16_t, uint64_t, uint64_t>, size_t> current; // buffer -> its latest life
  auto keyOf = [&](uint32_t index) {
    const fb::View *v = reader.program.views()->Get(index);
    return std::make_tuple(v->arena(), v->offset(), v->offset_per_bound());
  };
  auto start = [&](uint32_t view, size_t when) {
    if (reader.arenaOf(view).role() == fb::ArenaRole::state || reader.isOnHost(view))
      return;
    current[keyOf(view)] = lives.size();
    lives.push_back({when, when, reader.viewBytes(view)});
  };
  auto touch = [&](uint32_t view, size_t when) {
    if (auto it = current.find(keyOf(view)); it != current.end())
      lives[it->second].last = when;
  };
  for (const fb::Input *input : *reader.program.inputs())
    start(input->view(), 0);
  for (size_t i = 0; i < instrs.size(); ++i) {
    if (instrs.Get(i)->inputs())
      for (uint32_t view : *instrs.Get(i)->inputs())
        touch(view, i);
    if (instrs.Get(i)->outputs())
      for (uint32_t view : *instrs.Get(i)->outputs())
        start(view, i);
  }
  for (const fb::Output *output : *reader.program.outputs())
    touch(output->view(), instrs.size());
  std::vector<int64_t> change(instrs.size() + 2, 0);
  for (const Life &life : lives) {
    change[life.first] += life.bytes;
    change[life.last + 1] -= life.bytes;
  }
  // The forward pass ends with its loss.
  for (size_t loss = 0; loss < instrs.size() && !out.keptBytes; ++loss)
    if (reader.isCall(*instrs.Get(loss), "cross_entropy"))
      for (const Life &life : lives)
        if (life.first < loss && life.last > loss)
          out.keptBytes += life.bytes;
  int64_t live = 0;
  for (size_t i = 0; i < instrs.size(); ++i) {
    live += change[i];
    if (uint64_t(live) <= out.peakLiveBytes)
      continue;
    out.peakLiveBytes = live;
    out.peakInstruction = reader.instrName(*instrs.Get(i));
    uint32_t location = instrs.Get(i)->location();
    out.peakLocation = location < reader.plan.locations()->size()
                           ? reader.plan.locations()->Get(location)->str()
                           : "";
  }
}

/// What goes from one memory to the other.
void summarizeMoves(const Reader &reader, ProgramSummary &out) {
  for (const fb::Instr *instr : *reader.program.instrs()) {
    if (instr->kind() != fb::InstrKind::copy)
      continue;
    uint32_t to = instr->outputs()->Get(0);
    if (reader.isOnHost(instr->inputs()->Get(0)) != reader.isOnHost(to))
      (reader.isOnHost(to) ? out.bytesToHost : out.bytesToDevice) += reader.viewBytes(to);
  }
}

void summarizeQueues(const Reader &reader, ProgramSummary &out) {
  std::map<std::string, uint64_t> counts;
  for (const fb::Queue *queue : *reader.program.queues())
    out.queues.push_back({queue->name()->str(), 0, 0, 0});
  for (const fb::Instr *instr : *reader.program.instrs()) {
    QueueSummary &queue = out.queues[instr->queue()];
    if (instr->kind() == fb::InstrKind::record)
      ++queue.records;
    else if (instr->kind() == fb::InstrKind::wait)
      ++queue.waits;
    else
      ++queue.instructions;
    ++counts[reader.instrName(*instr)];
  }
  out.instructionCounts.assign(counts.begin(), counts.end());
}

/// A rank's memory, the device's and the host's.
void addUp(ProgramSummary &program) {
  program.totalBytes = program.totalBytesAtMax = program.hostBytes = 0;
  for (const ArenaSummary &arena : program.arenas) {
    (arena.onHost ? program.hostBytes : program.totalBytes) += arena.bytes;
    program.totalBytesAtMax += arena.onHost ? 0 : arena.bytesAtMax;
  }
}

ProgramSummary summarizeProgram(const fb::Plan &plan, const fb::Program &program) {
  Reader reader{plan, program};
  ProgramSummary out;
  out.name = program.name()->str();
  out.reference = program.reference();
  out.ranks = program.ranks();
  out.boundInitial = program.bound_initial();
  out.boundMax = program.bound_max();
  for (const fb::Arena *arena : *program.arenas())
    out.arenas.push_back(summarizeArena(*arena, program));
  addUp(out);
  for (const fb::State *state : statesOf(plan, program)) {
    out.shards.push_back(summarizeState(*state, plan));
    addToClass(out.shards.back(), *state, out.arenas[state->arena()].onHost, out.stateClasses);
  }
  out.collectives = summarizeCollectives(reader);
  findPeak(reader, out);
  summarizeMoves(reader, out);
  summarizeQueues(reader, out);
  return out;
}

/// Arena i of every mesh program is the same memory, as large as the largest.
void shareArenas(std::vector<ProgramSummary> &programs) {
  std::vector<ArenaSummary> shared;
  for (const ProgramSummary &program : programs)
    for (size_t i = 0; i < program.arenas.size() && !program.reference; ++i) {
      if (i == shared.size())
        shared.push_back(program.arenas[i]);
      shared[i].bytes = std::max(shared[i].bytes, program.arenas[i].bytes);
      shared[i].bytesAtMax = std::max(shared[i].bytesAtMax, program.arenas[i].bytesAtMax);
    }
  for (ProgramSummary &program : programs) {
    if (program.reference)
      continue;
    program.arenas = shared;
    addUp(program);
  }
}

} // namespace

uint64_t moira::rt::ringBytes(fb::CollectiveKind kind, uint64_t bytes, uint64_t ranks) {
  switch (kind) {
  case fb::CollectiveKind::all_reduce:
    return 2 * (ranks - 1) * bytes / ranks;
  case fb::CollectiveKind::all_gather:
    return (ranks - 1) * bytes;
  case fb::CollectiveKind::reduce_scatter:
  case fb::CollectiveKind::all_to_all:
    break;
  }
  return (ranks - 1) * bytes / ranks;
}

std::string moira::rt::axesText(const fb::Plan &plan, const fb::Instr &instr) {
  std::string text;
  for (uint8_t axis : *instr.axes())
    text += (text.empty() ? "" : ",") + plan.axes()->Get(axis)->name()->str();
  return text;
}

const ProgramSummary *PlanSummary::main() const {
  for (const ProgramSummary &program : programs)
    if (!program.reference)
      return &program;
  return programs.empty() ? nullptr : &programs.front();
}

PlanSummary moira::rt::summarize(const PlanFile &file) {
  const fb::Plan &plan = file.plan();
  PlanSummary out;
  out.fileBytes = file.fileSize();
  out.producer = plan.producer() ? plan.producer()->str() : "";
  out.target = plan.target()->str();
  out.kernels = plan.kernels()->size();
  for (const fb::Section *section : *plan.sections())
    out.sectionBytes += section->length();
  for (const fb::Axis *axis : *plan.axes()) {
    out.mesh.emplace_back(axis->name()->str(), axis->size());
    out.ranks *= axis->size();
  }
  const fb::ModelInfo &info = *plan.info();
  if (info.model_class() && info.model_class()->size() > 0)
    out.modelClass = info.model_class()->str();
  out.task = info.task() ? info.task()->str() : "";
  out.dtype = fb::EnumNameDType(info.dtype());
  out.batch = info.batch();
  out.seq = info.seq();
  out.parameters = info.parameters();
  out.activeParameters = info.active_parameters();
  out.tensorsExpected = info.tensors_expected();
  out.tensorsFound = info.tensors_found();
  for (const fb::Program *program : *plan.programs())
    out.programs.push_back(summarizeProgram(plan, *program));
  shareArenas(out.programs);
  return out;
}
