//===- Simulate.cpp - a plan's steps on a described cluster ---------------===//
// See Simulate.h. One pass over a program's list: each queue has a clock, an instruction starts
// where its queue is and takes its time, a record keeps the clock, a wait moves the clock on to it.
// That is what streams and events do; the verifier has proven that records stand in front of their
// waits.
//===----------------------------------------------------------------------===//
#include "moira/rt/Simulate.h"

#include "ExchangeCost.h"
#include "KernelCost.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/PlanSummary.h"

#include <algorithm>
#include <map>

namespace moira::rt {
namespace {

double secondsOf(const Work &work, const SimCluster &cluster) {
  if (work.kind == Work::move)
    return work.bytes / cluster.hostLinkRate;
  if (work.onHost)
    return work.bytes / cluster.hostMemoryRate;
  double efficiency =
      work.kind == Work::attention ? cluster.attentionEfficiency : cluster.productEfficiency;
  double rate = (work.narrow ? cluster.flopsBf16 : cluster.flopsF32) * efficiency;
  return cluster.launchSeconds +
         std::max(work.flops / rate, work.bytes / (cluster.memoryRate * cluster.memoryEfficiency));
}

const char *kindName(const Work &work) {
  if (work.onHost)
    return "updates on the host";
  switch (work.kind) {
  case Work::product:
    return "products";
  case Work::attention:
    return "attention";
  case Work::move:
    return "copies to and from the host";
  case Work::other:
  case Work::nothing:
    break;
  }
  return "other kernels";
}

struct Interval {
  double begin, end;
};

/// Sorted and without overlaps.
std::vector<Interval> united(std::vector<Interval> all) {
  std::sort(all.begin(), all.end(),
            [](const Interval &a, const Interval &b) { return a.begin < b.begin; });
  std::vector<Interval> out;
  for (const Interval &one : all)
    if (!out.empty() && one.begin <= out.back().end)
      out.back().end = std::max(out.back().end, one.end);
    else
      out.push_back(one);
  return out;
}

double length(const std::vector<Interval> &intervals) {
  double sum = 0;
  for (const Interval &one : intervals)
    sum += one.end - one.begin;
  return sum;
}

/// The part of `one` that is in none of `others`.
double outside(const Interval &one, const std::vector<Interval> &others) {
  double rest = one.end - one.begin;
  auto at = std::upper_bound(others.begin(), others.end(), one.begin,
                             [](double begin, const Interval &o) { return begin < o.end; });
  for (; at != others.end() && at->begin < one.end; ++at)
    rest -= std::min(one.end, at->end) - std::max(one.begin, at->begin);
  return std::max(rest, 0.0);
}

class ProgramSimulation {
public:
  ProgramSimulation(const fb::Plan &plan, const fb::Program &program, const SimOptions &options)
      : plan(plan), program(program), options(options), reader(plan, program, options.expertLoad),
        clocks(program.queues()->size()), events(program.events()) {}

  SimProgram run() {
    out.name = program.name()->str();
    for (unsigned i = 0; i < program.instrs()->size(); ++i)
      step(i, *program.instrs()->Get(i));
    out.seconds = *std::max_element(clocks.begin(), clocks.end());
    std::vector<Interval> busy = united(kernels), anything = kernels;
    for (const Waiting &one : waiting) {
      shares[one.share].exposed += outside(one.when, busy);
      anything.push_back(one.when);
    }
    out.busy = length(busy);
    out.exposed = length(united(std::move(anything))) - out.busy;
    for (const std::string &name : order)
      out.shares.push_back(shares[name]);
    return std::move(out);
  }

private:
  /// An exchange or a copy, which kernels may hide.
  struct Waiting {
    Interval when;
    std::string share;
  };

  void step(uint32_t index, const fb::Instr &instr) {
    double &clock = clocks[instr.queue()];
    switch (instr.kind()) {
    case fb::InstrKind::record:
      events[instr.target()] = clock;
      return;
    case fb::InstrKind::wait:
      clock = std::max(clock, events[instr.target()]);
      return;
    case fb::InstrKind::require_bound:
      return;
    case fb::InstrKind::collective:
      return exchange(index, instr);
    default:
      break;
    }
    Work work = reader.read(instr);
    double seconds = secondsOf(work, options.cluster);
    take(index, clock, seconds, kindName(work), work.kind == Work::move || work.onHost, 0);
    out.flops += work.flops;
  }

  void exchange(uint32_t index, const fb::Instr &instr) {
    std::string axes = axesText(plan, instr);
    auto place = places.find(axes);
    if (place == places.end())
      place = places
                  .emplace(axes, placeOf(plan, program, axesOf(instr.axes()),
                                         options.cluster.devicesPerNode))
                  .first;
    auto kind = static_cast<fb::CollectiveKind>(instr.target());
    double bytes = reader.bytesOf(instr.inputs()->Get(0));
    take(index, clocks[instr.queue()], exchangeSeconds(kind, bytes, place->second, options.cluster),
         axes + " " + fb::EnumNameCollectiveKind(kind), true,
         double(ringBytes(kind, uint64_t(bytes), uint64_t(place->second.ranks))));
  }

  void take(uint32_t index, double &clock, double seconds, const std::string &name, bool waits,
            double bytes) {
    SimShare &share = shares[name];
    if (share.count++ == 0) {
      share.what = name;
      order.push_back(name);
    }
    share.seconds += seconds;
    share.bytes += bytes;
    Interval when{clock, clock + seconds};
    if (waits)
      waiting.push_back({when, name});
    else
      kernels.push_back(when);
    out.events.push_back({index, clock, seconds});
    clock += seconds;
  }

  const fb::Plan &plan;
  const fb::Program &program;
  const SimOptions &options;
  WorkReader reader;
  std::vector<double> clocks, events;
  std::map<std::string, GroupPlace> places; // by axes
  std::map<std::string, SimShare> shares;
  std::vector<std::string> order; // of the shares, as they were met
  std::vector<Interval> kernels;
  std::vector<Waiting> waiting;
  SimProgram out;
};

/// How often a step runs the program: a batch is taken in parts where a program takes fewer rows.
uint64_t repeatsOf(const fb::Plan &plan, const fb::Program &program) {
  if (program.name()->string_view() != "accumulate")
    return 1;
  for (const fb::Input *input : *program.inputs())
    if (input->name()->string_view() == "input_ids" && input->shape()->size() > 0 &&
        input->shape()->Get(0) > 0)
      return std::max<int64_t>(1, plan.info()->batch() / input->shape()->Get(0));
  return 1;
}

} // namespace

SimResult simulate(const PlanFile &file, const SimOptions &options) {
  const fb::Plan &plan = file.plan();
  SimResult result;
  bool onlyReference = true;
  for (const fb::Program *program : *plan.programs())
    onlyReference &= program->reference();
  for (const fb::Program *program : *plan.programs()) {
    if (program->reference() && !onlyReference)
      continue;
    result.programs.push_back(ProgramSimulation(plan, *program, options).run());
    result.programs.back().repeats = repeatsOf(plan, *program);
  }
  // Generating is one step of the last program after another; else a step is all of them.
  const fb::ModelInfo &info = *plan.info();
  bool generates = info.task() && info.task()->string_view() == "generate";
  for (const SimProgram &program : result.programs)
    result.stepSeconds =
        (generates ? 0 : result.stepSeconds) + double(program.repeats) * program.seconds;
  result.tokensPerStep = double(info.batch()) * (generates ? 1 : double(info.seq()));
  PlanSummary summary = summarize(file);
  if (const ProgramSummary *main = summary.main())
    result.deviceBytes = main->totalBytes;
  return result;
}

} // namespace moira::rt
