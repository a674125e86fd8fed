//===- RouteTrace.cpp - seeing and forcing expert choices -----------------===//
// See RouteTrace.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/RouteTrace.h"

#include "moira/rt/Box.h"
#include "moira/rt/SafeTensorsWriter.h"

#include <cstring>
#include <set>

namespace moira::rt {
namespace {

std::vector<int64_t> shapeOf(const fb::Program &program, uint32_t view) {
  const auto &shape = *program.views()->Get(view)->shape();
  return {shape.begin(), shape.end()};
}

bool isRoute(const fb::Plan &plan, const fb::Instr &instr) {
  return instr.kind() == fb::InstrKind::call &&
         plan.calls()->Get(instr.target())->string_view() == "route";
}

template <typename T> std::span<const uint8_t> bytesOfVector(const std::vector<T> &v) {
  return {reinterpret_cast<const uint8_t *>(v.data()), v.size() * sizeof(T)};
}

} // namespace

Expected<RouteTrace> RouteTrace::create(const fb::Plan &plan, const fb::Program &program, bool dump,
                                        const std::string &forceFrom) {
  const char *flag = dump ? "--dump-routing" : "--route-from";
  if (program.ranks() != 1)
    return Status(ErrorId::BadRun,
                  format("%s needs a program of one rank, this plan has %u ranks; add --reference, "
                         "or compile without --mesh",
                         flag, program.ranks()));
  RouteTrace trace;
  trace.dump = dump;
  std::set<int> layers;
  bool byLayer = true;
  for (size_t i = 0; i < program.instrs()->size(); ++i) {
    const fb::Instr &instr = *program.instrs()->Get(i);
    if (!isRoute(plan, instr))
      continue;
    trace.sites[i].shape = shapeOf(program, instr.outputs()->Get(0));
    byLayer &= instr.layer() >= 0 && layers.insert(instr.layer()).second;
  }
  if (trace.sites.empty())
    return Status(ErrorId::BadRun, format("%s: the plan's model has no router", flag));
  int number = 0;
  for (auto &[index, site] : trace.sites) {
    int layer = program.instrs()->Get(index)->layer();
    site.name = "layers." + std::to_string(byLayer ? layer : number);
    ++number;
  }
  if (!forceFrom.empty())
    if (Status status = trace.readForced(forceFrom, plan, program); !status)
      return status;
  return trace;
}

Status RouteTrace::readForced(const std::string &path, const fb::Plan &plan,
                              const fb::Program &program) {
  Expected<SafeTensorsFile> file = SafeTensorsFile::open(path);
  if (!file)
    return file.takeStatus();
  Status problems;
  for (auto &[index, site] : sites) {
    std::string name = site.name + ".ids";
    const TensorInfo *info = file->find(name);
    if (!info) {
      problems.add(ErrorId::BadInput, format("%s: tensor %s %s is missing", path.c_str(),
                                             name.c_str(), shapeText(site.shape).c_str()));
      continue;
    }
    if (info->type != TensorType::i32 || info->shape != site.shape) {
      problems.add(ErrorId::BadInput,
                   format("%s: %s is %s %s, the plan needs I32 %s", path.c_str(), name.c_str(),
                          nameOf(info->type), shapeText(info->shape).c_str(),
                          shapeText(site.shape).c_str()));
      continue;
    }
    site.forced.resize(info->elements());
    std::memcpy(site.forced.data(), file->data(*info).data(), info->bytes);
    int64_t experts = shapeOf(program, program.instrs()->Get(index)->inputs()->Get(0)).back();
    for (size_t i = 0; i < site.forced.size(); ++i)
      if (site.forced[i] < 0 || site.forced[i] >= experts) {
        problems.add(ErrorId::BadInput,
                     format("%s: %s has expert %d at position %zu, out of range 0..%lld",
                            path.c_str(), name.c_str(), site.forced[i], i,
                            static_cast<long long>(experts - 1)));
        break;
      }
  }
  return problems;
}

RouteHooks RouteTrace::before(size_t instr) {
  Site &site = sites.at(instr);
  site.gaps.clear();
  return {site.forced, dump ? &site.gaps : nullptr};
}

void RouteTrace::after(size_t instr, const TensorRef &ids, const TensorRef &weights) {
  if (!dump)
    return;
  Site &site = sites.at(instr);
  site.ids.resize(ids.elements());
  std::memcpy(site.ids.data(), ids.data, site.ids.size() * sizeof(int32_t));
  site.weights.resize(weights.elements());
  convertRun(site.weights.data(), fb::DType::f32, weights.data, weights.dtype, site.weights.size());
}

Status RouteTrace::write(const std::string &path) const {
  std::vector<TensorSpec> specs;
  std::vector<std::span<const uint8_t>> data;
  for (auto &[index, site] : sites) {
    std::vector<int64_t> tokens(site.shape.begin(), site.shape.end() - 1);
    specs.push_back({site.name + ".ids", TensorType::i32, site.shape});
    data.push_back(bytesOfVector(site.ids));
    specs.push_back({site.name + ".weights", TensorType::f32, site.shape});
    data.push_back(bytesOfVector(site.weights));
    if (site.gaps.empty())
      continue; // every expert is chosen, so there is no next one
    specs.push_back({site.name + ".gaps", TensorType::f32, tokens});
    data.push_back(bytesOfVector(site.gaps));
  }
  return writeSafeTensors(path, specs, data);
}

} // namespace moira::rt
