//===- PlanOrder.cpp - the rules of a program's order -----------*- C++ -*-===//
// Events, the total order of collectives, freedom of data races between queues, and that every byte
// read was written before.
//
// Instructions of one queue run in list order; an event orders what its queue did before the record
// ahead of what another queue does after the wait. Vector clocks say which instructions of every
// queue are known to be finished. Memory is cut into segments at the ends of all views; each knows
// its last writer and the last reader of every queue. Cuts are linear in the bound and must keep
// their order from bound 1 to the largest, so one pass speaks for every bound.
//===----------------------------------------------------------------------===//
#include "PlanVerifierImpl.h"

#include <algorithm>
#include <array>
#include <unordered_map>

namespace moira::rt::verify {
namespace {

constexpr uint32_t kUnwritten = UINT32_MAX;
using Clock = std::array<uint32_t, kMaxQueues>; // per queue: how many of its instructions are done

struct Segment {
  uint32_t writer = kUnwritten; // position in writerQueue, counted from 1; 0: before the start
  uint8_t writerQueue = 0;
  Clock readers{}; // since the last write: last position in every queue, 0 for none
};

/// Where something begins or ends.
struct Cut {
  uint64_t atOne, atMax;
  bool operator==(const Cut &) const = default;
  auto operator<=>(const Cut &) const = default;
};

struct Range {
  uint32_t begin = 0, end = 0; // indices into the segments
  bool operator==(const Range &) const = default;
};

class OrderCheck {
public:
  explicit OrderCheck(ProgramContext &ctx)
      : ctx(ctx), budget((uint64_t(1) << 22) + 16 * ctx.parent.file.size()) {}

  void run() {
    if (!cutMemory())
      return;
    for (const fb::Input *input : *ctx.program.inputs()) {
      Range range = viewRange(input->view());
      if (!spend(range.end - range.begin))
        break;
      for (uint32_t s = range.begin; s < range.end; ++s)
        segments[s].writer = 0;
    }
    const auto &instrs = *ctx.program.instrs();
    for (size_t i = 0; i < instrs.size(); ++i)
      if (instrs[i]->kind() == fb::InstrKind::require_bound)
        lastRequire = i;
    for (size_t i = 0; i < instrs.size() && !exhausted; ++i)
      step(i);
    for (size_t i = 0; i < ctx.program.outputs()->size() && !exhausted; ++i) {
      Range range = viewRange((*ctx.program.outputs())[i]->view());
      if (!spend(range.end - range.begin))
        break;
      for (uint32_t s = range.begin; s < range.end; ++s)
        if (segments[s].writer == kUnwritten) {
          ctx.report.add(ErrorId::PlanOrder,
                         format("%s output %zu %s: nothing has written all of it",
                                ctx.where.c_str(), i,
                                quoted((*ctx.program.outputs())[i]->name()).c_str()));
          break;
        }
    }
    if (exhausted)
      ctx.report.add(ErrorId::PlanStructure,
                     ctx.where + ": its views overlap too much to be verified in linear time");
  }

private:
  Range viewRange(size_t view) const { return ranges[view]; }
  bool cutMemory();
  void step(size_t index);
  void checkOverlap(size_t index, const fb::Instr &instr);
  bool isWholeState(uint32_t view, const fb::State *&state) const;
  void checkRows(size_t index, const fb::Instr &instr);
  void checkUpdate(size_t index, size_t queue, const fb::Instr &instr);
  void checkWritten(size_t index, const fb::Instr &instr);
  bool mayBeInPlace(const fb::Instr &instr, size_t input, size_t output) const;
  void read(size_t index, size_t queue, uint32_t view);
  void write(size_t index, size_t queue, uint32_t view);
  bool spend(uint64_t steps) {
    exhausted |= steps > budget;
    budget -= std::min(steps, budget);
    return !exhausted;
  }
  void fail(size_t index, const std::string &message) {
    ctx.report.add(ErrorId::PlanOrder, ctx.describe(index) + ": " + message);
  }

  ProgramContext &ctx;
  uint64_t budget; // visits of segments
  bool exhausted = false;
  std::vector<Segment> segments;
  std::vector<Range> ranges;                                                // per view
  std::unordered_map<uint32_t, std::pair<Range, const fb::State *>> states; // by their begin
  std::array<Clock, kMaxQueues> clocks{};
  std::vector<std::pair<bool, Clock>> events = std::vector<std::pair<bool, Clock>>(
      ctx.program.events()); // recorded, and what was done by then
  uint8_t collectiveQueue = 0;
  uint32_t collectivePosition = 0;
  size_t collectiveIndex = 0;
  size_t lastRequire = 0; // the last instruction that may have the step repeated
};

bool OrderCheck::cutMemory() {
  ranges.resize(ctx.views.size());
  std::vector<std::vector<size_t>> viewsOf(ctx.program.arenas()->size()), statesOf = viewsOf;
  for (size_t i = 0; i < ctx.views.size(); ++i)
    viewsOf[ctx.views[i].arena].push_back(i);
  for (size_t i = 0; i < ctx.states().size(); ++i)
    statesOf[ctx.states()[i]->arena()].push_back(i);
  auto stateRange = [&](size_t index) {
    const fb::State *state = ctx.states()[index];
    uint64_t bytes = dtypeBytes(state->dtype());
    for (size_t d = 0; d < state->shape()->size(); ++d) {
      uint64_t parts = 1;
      const fb::DimSharding *sharding = (*state->dims())[d];
      for (size_t a = 0; a < sizeOf(sharding->axes()); ++a)
        parts *= ctx.axisSizes[sharding->axes()->Get(a)];
      bytes *= (uint64_t(state->shape()->Get(d)) + sharding->pad()) / parts;
    }
    return std::pair(Cut{state->offset(), state->offset()},
                     Cut{state->offset() + bytes, state->offset() + bytes});
  };
  std::vector<Cut> cuts;
  for (size_t arena = 0; arena < viewsOf.size(); ++arena) {
    cuts.clear();
    for (size_t i : viewsOf[arena]) {
      cuts.push_back({ctx.views[i].startAtOne, ctx.views[i].startAtMax});
      cuts.push_back({ctx.views[i].endAtOne, ctx.views[i].endAtMax});
    }
    for (size_t i : statesOf[arena]) {
      auto [begin, end] = stateRange(i);
      cuts.push_back(begin);
      cuts.push_back(end);
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    for (size_t i = 1; i < cuts.size(); ++i)
      if (cuts[i].atMax < cuts[i - 1].atMax) {
        ctx.report.add(
            ErrorId::PlanStructure,
            format("%s arena %zu: what lies at byte %llu with bound 1 moves past what lies at byte "
                   "%llu as the bound grows",
                   ctx.where.c_str(), arena, static_cast<unsigned long long>(cuts[i - 1].atOne),
                   static_cast<unsigned long long>(cuts[i].atOne)));
        return false;
      }
    auto first = static_cast<uint32_t>(segments.size());
    auto find = [&](Cut cut) {
      return first +
             static_cast<uint32_t>(std::lower_bound(cuts.begin(), cuts.end(), cut) - cuts.begin());
    };
    segments.resize(segments.size() + cuts.size());
    for (size_t i : viewsOf[arena])
      ranges[i] = {find({ctx.views[i].startAtOne, ctx.views[i].startAtMax}),
                   find({ctx.views[i].endAtOne, ctx.views[i].endAtMax})};
    for (size_t i : statesOf[arena]) {
      auto [begin, end] = stateRange(i);
      Range range{find(begin), find(end)};
      for (uint32_t s = range.begin; s < range.end; ++s)
        segments[s].writer = 0;
      states[range.begin] = {range, ctx.states()[i]};
    }
  }
  return true;
}

/// An output may be exactly the bytes of an input where every element is read before its place is
/// written: rowwise operands of a kernel, and all_reduce.
bool OrderCheck::mayBeInPlace(const fb::Instr &instr, size_t input, size_t output) const {
  if (instr.kind() == fb::InstrKind::collective)
    return instr.target() == uint32_t(fb::CollectiveKind::all_reduce);
  if (instr.kind() != fb::InstrKind::launch)
    return false;
  size_t seen = 0;
  for (const fb::KernelOperand *operand : *(*ctx.parent.plan.kernels())[instr.target()]->operands())
    if (!operand->output() && seen++ == input)
      return operand->rowwise();
  return false;
}

void OrderCheck::checkOverlap(size_t index, const fb::Instr &instr) {
  size_t inputs = sizeOf(instr.inputs()), outputs = sizeOf(instr.outputs());
  auto meet = [](Range a, Range b) { return a.begin < b.end && b.begin < a.end; };
  if (!spend(outputs * (inputs + outputs)))
    return;
  for (size_t o = 0; o < outputs; ++o) {
    Range written = viewRange(instr.outputs()->Get(o));
    for (size_t other = 0; other < o; ++other)
      if (meet(written, viewRange(instr.outputs()->Get(other))))
        fail(index, format("outputs %zu and %zu overlap", other, o));
    for (size_t i = 0; i < inputs; ++i) {
      Range readFrom = viewRange(instr.inputs()->Get(i));
      if (meet(written, readFrom) && !(written == readFrom && mayBeInPlace(instr, i, o)))
        fail(index, format("output %zu overlaps input %zu", o, i));
    }
  }
}

/// Whether a view is the whole of one state.
bool OrderCheck::isWholeState(uint32_t view, const fb::State *&state) const {
  Range range = viewRange(view);
  auto found = states.find(range.begin);
  if (!ctx.isState(view) || found == states.end() || found->second.first != range)
    return false;
  state = found->second.second;
  return true;
}

/// An update reads what it writes, whole states or other memory, but for a sum of squares.
void OrderCheck::checkUpdate(size_t index, size_t queue, const fb::Instr &instr) {
  const std::optional<size_t> squares = squaresOutput(*ctx.parent.calls[instr.target()]);
  for (size_t i = 0; i < sizeOf(instr.outputs()); ++i)
    if (i != squares)
      read(index, queue, instr.outputs()->Get(i));
  checkWritten(index, instr);
}

/// A state that has been given new values is not what a repeated step must find. So they are
/// written behind everything from which a step can be repeated. (Executors repeat a step at once
/// where the bound is too small.)
void OrderCheck::checkWritten(size_t index, const fb::Instr &instr) {
  for (uint32_t view : *instr.outputs()) {
    const fb::State *state = nullptr;
    if (!ctx.isState(view))
      continue;
    if (!isWholeState(view, state))
      return fail(index, "an output is not the whole of one state");
    if (index < lastRequire)
      return fail(index, format("instruction %zu may have the step repeated, which would find "
                                "other states",
                                lastRequire));
  }
}

/// A step may be repeated because the bound was too small, and must then find what it found at
/// first. So rows of a state may be written only where nothing of the program has read or written
/// the state before (then every attempt writes the rows anew before anybody reads them), at a place
/// that no instruction computes (then every attempt writes the same rows), and never over what a
/// checkpoint has filled.
void OrderCheck::checkRows(size_t index, const fb::Instr &instr) {
  for (uint32_t view : *instr.outputs()) {
    Range written = viewRange(view);
    const fb::State *state = nullptr;
    if (!isWholeState(view, state) || state->source())
      return fail(index, "its output is not the whole of one state without a source");
    if (!spend(written.end - written.begin))
      return;
    for (uint32_t s = written.begin; s < written.end; ++s)
      if (segments[s].writer != 0 || segments[s].readers != Clock{})
        return fail(index, "the state has been read or written before; a repeated step would read "
                           "what the first attempt has left");
  }
  if (sizeOf(instr.inputs()) < 2)
    return;
  Range place = viewRange(instr.inputs()->Get(1));
  for (uint32_t s = place.begin; s < place.end && spend(1); ++s)
    if (segments[s].writer != 0)
      return fail(index, "its position is not as the program was given it; a repeated step could "
                         "write other rows");
}

void OrderCheck::read(size_t index, size_t queue, uint32_t view) {
  Range range = viewRange(view);
  if (!spend(range.end - range.begin))
    return;
  const char *problem = nullptr;
  for (uint32_t s = range.begin; s < range.end; ++s) {
    Segment &segment = segments[s];
    if (segment.writer == kUnwritten)
      problem = "bytes that nothing has written";
    else if (clocks[queue][segment.writerQueue] < segment.writer)
      problem = "bytes that another queue may still be writing";
    segment.readers[queue] = clocks[queue][queue];
  }
  if (problem)
    fail(index, format("reads %s: view %u, arena %u", problem, view, ctx.views[view].arena));
}

void OrderCheck::write(size_t index, size_t queue, uint32_t view) {
  Range range = viewRange(view);
  if (!spend(range.end - range.begin))
    return;
  const char *problem = nullptr;
  for (uint32_t s = range.begin; s < range.end; ++s) {
    Segment &segment = segments[s];
    if (segment.writer != kUnwritten && clocks[queue][segment.writerQueue] < segment.writer)
      problem = "writing";
    for (size_t other = 0; other < kMaxQueues; ++other)
      if (clocks[queue][other] < segment.readers[other])
        problem = "reading";
    segment.writer = clocks[queue][queue];
    segment.writerQueue = static_cast<uint8_t>(queue);
    segment.readers = {};
  }
  if (problem)
    fail(index, format("writes bytes that another queue may still be %s: view %u, arena %u",
                       problem, view, ctx.views[view].arena));
}

void OrderCheck::step(size_t index) {
  const fb::Instr &instr = *(*ctx.program.instrs())[index];
  size_t queue = instr.queue();
  Clock &clock = clocks[queue];
  ++clock[queue];
  if (instr.kind() == fb::InstrKind::record) {
    auto &[recorded, when] = events[instr.target()];
    if (recorded)
      fail(index, format("event %u is recorded twice", instr.target()));
    recorded = true;
    when = clock;
    return;
  }
  if (instr.kind() == fb::InstrKind::wait) {
    const auto &[recorded, when] = events[instr.target()];
    if (!recorded)
      fail(index,
           format("waits for event %u, which no earlier instruction records", instr.target()));
    for (size_t q = 0; recorded && q < kMaxQueues; ++q)
      clock[q] = std::max(clock[q], when[q]);
    return;
  }
  if (instr.kind() == fb::InstrKind::collective) {
    if (clock[collectiveQueue] < collectivePosition)
      fail(index, format("is not ordered after the collective of instruction %zu on another queue; "
                         "ranks could start them in different orders",
                         collectiveIndex));
    collectiveQueue = static_cast<uint8_t>(queue);
    collectivePosition = clock[queue];
    collectiveIndex = index;
  }
  checkOverlap(index, instr);
  ProgramContext::StateChange change = ctx.changeOf(instr);
  if (change == ProgramContext::StateChange::rows)
    checkRows(index, instr);
  for (size_t i = 0; i < sizeOf(instr.inputs()); ++i)
    read(index, queue, instr.inputs()->Get(i));
  if (change == ProgramContext::StateChange::update)
    checkUpdate(index, queue, instr);
  if (change == ProgramContext::StateChange::whole)
    checkWritten(index, instr);
  for (size_t i = 0; i < sizeOf(instr.outputs()); ++i)
    write(index, queue, instr.outputs()->Get(i));
}

} // namespace

void verifyOrder(ProgramContext &ctx) { OrderCheck(ctx).run(); }

} // namespace moira::rt::verify
