//===- RouteTrace.cpp - seeing and forcing expert choices -----------------===//
// See RouteTrace.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/RouteTrace.h"

#include "moira/rt/Box.h"
#include "moira/rt/CallRegistry.h"
#include "moira/rt/Io.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>

namespace moira::rt {
namespace {

constexpr std::string_view kIds = ".ids";

bool isRoute(const fb::Plan &plan, const fb::Instr &instr) {
  return instr.kind() == fb::InstrKind::call &&
         choosesExperts(plan.calls()->Get(instr.target())->string_view());
}

const fb::Trace *traceOf(const fb::Program &program, uint32_t view) {
  for (size_t i = 0; program.traces() && i < program.traces()->size(); ++i)
    if (program.traces()->Get(i)->view() == view)
      return program.traces()->Get(i);
  return nullptr;
}

/// Counts what is wrong and keeps the first of it.
struct Wrong {
  size_t count = 0;
  std::string first;
  template <typename Text> void add(Text text) {
    if (count++ == 0)
      first = text();
  }
  void report(const std::string &path, const char *others, Status &problems) const {
    if (count > 1)
      problems.add(ErrorId::BadInput, path + ": " + first + format(others, count - 1));
    else if (count == 1)
      problems.add(ErrorId::BadInput, path + ": " + first);
  }
};

} // namespace

Expected<RouteTrace> RouteTrace::create(const fb::Plan &plan, const fb::Program &program, bool dump,
                                        const std::string &forceFrom) {
  const char *flag = dump ? "--dump-routing" : "--route-from";
  RouteTrace trace;
  trace.dump = dump;
  for (size_t i = 0; i < program.instrs()->size(); ++i) {
    const fb::Instr &instr = *program.instrs()->Get(i);
    if (!isRoute(plan, instr))
      continue;
    Site &site = trace.sites[i];
    site.ids = traceOf(program, instr.outputs()->Get(0));
    site.weights = traceOf(program, instr.outputs()->Get(1));
    const auto &logits = *program.views()->Get(instr.inputs()->Get(0))->shape();
    site.experts = logits.Get(logits.size() - 1);
    std::string_view name = site.ids ? site.ids->name()->string_view() : std::string_view();
    // All choices of a token are on one rank, or nobody could compare them with a file.
    bool whole = site.ids && site.weights && name.ends_with(kIds) &&
                 axesOf(site.ids->dims()->Get(site.ids->dims()->size() - 1)->axes()).empty();
    if (!whole)
      return Status(ErrorId::BadRun,
                    format("%s: the plan does not say how the choices of instruction %zu (route) "
                           "are cut over its ranks; compile the model anew, or add --reference",
                           flag, i));
    site.name = name.substr(0, name.size() - kIds.size());
  }
  if (trace.sites.empty())
    return Status(ErrorId::BadRun, format("%s: the plan's model has no router", flag));
  if (!forceFrom.empty())
    if (Status status = trace.readForced(forceFrom); !status)
      return status;
  return trace;
}

Status RouteTrace::readForced(const std::string &path) {
  Expected<SafeTensorsFile> file = SafeTensorsFile::open(path);
  if (!file)
    return file.takeStatus();
  Status problems;
  std::set<std::string> known;
  for (auto &[index, site] : sites) {
    std::string name = site.name + std::string(kIds);
    known.insert(name);
    std::vector<int64_t> shape = site.shape();
    const TensorInfo *info = file->find(name);
    if (!info) {
      problems.add(ErrorId::BadInput, format("%s: tensor %s %s is missing", path.c_str(),
                                             name.c_str(), shapeText(shape).c_str()));
      continue;
    }
    if (info->type != TensorType::i32 || info->shape != shape) {
      problems.add(ErrorId::BadInput,
                   format("%s: %s is %s %s, the plan needs I32 %s", path.c_str(), name.c_str(),
                          nameOf(info->type), shapeText(info->shape).c_str(),
                          shapeText(shape).c_str()));
      continue;
    }
    site.forced.resize(info->elements());
    std::memcpy(site.forced.data(), file->data(*info).data(), info->bytes);
    int64_t k = shape.back();
    std::vector<int64_t> tokens(shape.begin(), shape.end() - 1);
    Wrong outside, twice;
    std::vector<int32_t> sorted;
    for (size_t at = 0; at < site.forced.size(); at += static_cast<size_t>(k)) {
      std::span<const int32_t> chosen(&site.forced[at], static_cast<size_t>(k));
      for (size_t j = 0; j < chosen.size(); ++j)
        if (chosen[j] < 0 || chosen[j] >= site.experts)
          outside.add([&] {
            return format("%s%s = %d is out of range 0..%lld", name.c_str(),
                          indexText(shape, static_cast<int64_t>(at + j)).c_str(), chosen[j],
                          static_cast<long long>(site.experts - 1));
          });
      sorted.assign(chosen.begin(), chosen.end());
      std::sort(sorted.begin(), sorted.end());
      if (auto same = std::adjacent_find(sorted.begin(), sorted.end()); same != sorted.end())
        twice.add([&] {
          return format("%s%s names expert %d twice", name.c_str(),
                        indexText(tokens, static_cast<int64_t>(at) / k).c_str(), *same);
        });
    }
    outside.report(path, ", and so are %zu other values", problems);
    twice.report(path, ", and so do %zu other tokens", problems);
  }
  for (const TensorInfo &info : file->tensors())
    if (std::string_view(info.name).ends_with(kIds) && !known.count(info.name))
      problems.add(ErrorId::BadInput,
                   format("%s: %s is of no router of this plan, which has %s to %s", path.c_str(),
                          quoteName(info.name).c_str(), sites.begin()->second.name.c_str(),
                          sites.rbegin()->second.name.c_str()));
  return problems;
}

RankRoutes::RankRoutes(const RouteTrace &trace, const MeshPosition &position) : trace(trace) {
  for (auto &[index, global] : trace.sites) {
    Site &site = sites[index];
    site.shard = position.shard(*global.ids->shape(), *global.ids->dims());
    if (global.forced.empty())
      continue;
    int64_t elements = 1;
    for (int64_t size : site.shard.local)
      elements *= size;
    site.forced.resize(static_cast<size_t>(elements)); // pads go to expert 0
    copyBox(site.shard.inLocal(), site.forced.data(), site.shard.inGlobal(), global.forced.data(),
            sizeof(int32_t));
  }
}

RouteHooks RankRoutes::before(size_t instr) {
  Site &site = sites.at(instr);
  bool gaps = isRecording() && trace.sites.at(instr).hasGaps();
  return {site.forced, gaps ? &site.gaps : nullptr};
}

void RankRoutes::after(size_t instr, const TensorRef &ids, const TensorRef &weights) {
  if (!isRecording())
    return;
  Site &site = sites.at(instr);
  site.ids.resize(static_cast<size_t>(ids.elements()));
  std::memcpy(site.ids.data(), ids.data, site.ids.size() * sizeof(int32_t));
  site.weights.resize(static_cast<size_t>(weights.elements()));
  convertRun(site.weights.data(), fb::DType::f32, weights.data, weights.dtype, weights.elements());
}

void RankRoutes::addLoads() {
  size_t next = 0;
  for (auto &[index, site] : sites) {
    size_t first = next;
    next += static_cast<size_t>(trace.sites.at(index).experts);
    loads.resize(std::max(loads.size(), next));
    if (!site.shard.owner || site.ids.empty())
      continue;
    Box valid = site.shard.inLocal();
    forEachRun(valid, valid, [&](int64_t at, int64_t, int64_t n) {
      for (int64_t i = at; i < at + n; ++i)
        if (int32_t expert = site.ids[static_cast<size_t>(i)]; expert >= 0)
          ++loads[first + static_cast<size_t>(expert)];
    });
  }
}

Expected<double> RankRoutes::largestLoad(Communicator &communicator) {
  std::vector<int32_t> counts = std::move(loads);
  loads.clear();
  size_t all = 0;
  for (auto &[index, site] : trace.sites)
    all += static_cast<size_t>(site.experts);
  counts.resize(all);
  if (Status status =
          communicator.allReduce(worldGroup(communicator), counts.data(), counts.data(),
                                 counts.size(), fb::DType::i32, fb::Reduce::sum, "expert loads");
      !status)
    return status;
  double largest = 1;
  size_t first = 0;
  for (auto &[index, site] : trace.sites) {
    std::span<const int32_t> layer(&counts[first], static_cast<size_t>(site.experts));
    first += layer.size();
    double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    if (sum > 0)
      largest = std::max(largest, *std::max_element(layer.begin(), layer.end()) *
                                      double(layer.size()) / sum);
  }
  return largest;
}

Status RankRoutes::write(const std::string &path, Communicator &communicator) {
  std::vector<ShardToWrite> shards;
  for (auto &[index, site] : sites) {
    const RouteTrace::Site &global = trace.sites.at(index);
    auto add = [&](const char *what, TensorType type, fb::DType dtype, void *data,
                   const Shard &shard) {
      shards.push_back(
          {{global.name + what, type, shard.global}, shard, {data, dtype, shard.local}});
    };
    add(".ids", TensorType::i32, fb::DType::i32, site.ids.data(), site.shard);
    add(".weights", TensorType::f32, fb::DType::f32, site.weights.data(), site.shard);
    if (!global.hasGaps())
      continue;
    Shard tokens = site.shard; // the choices of a token are not cut
    for (std::vector<int64_t> *sizes :
         {&tokens.global, &tokens.local, &tokens.start, &tokens.valid})
      sizes->pop_back();
    add(".gaps", TensorType::f32, fb::DType::f32, site.gaps.data(), tokens);
  }
  return writeShards(path, shards, communicator);
}

} // namespace moira::rt
