//===- RuntimePlanBuilder.h - small plans for the runtime's tests *- C++ -*-===//
// Builds plan files by hand: every tensor gets memory of its own, all instructions are on one
// queue. Only sound plans; hostile ones are the plan verifier's tests' business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_RUNTIMEPLANBUILDER_H
#define MOIRA_TEST_UNIT_RUNTIMEPLANBUILDER_H

#include "moira/rt/Box.h"
#include "moira/rt/PlanFile.h"

#include <deque>
#include <map>
#include <string>
#include <vector>

namespace moira::test {

namespace fb = moira::fb;
using Shape = std::vector<int64_t>;
using Axes = std::vector<uint8_t>;

/// One dimension's sharding.
struct DimSpec {
  Axes axes;
  uint32_t pad = 0;
};

struct ParamSpec {
  std::string name;
  fb::ParamKind kind = fb::ParamKind::integer;
  int64_t i = 0;
  double r = 0;
  std::string s;
  Axes axes;
};
inline ParamSpec integer(const std::string &name, int64_t value) {
  return {name, fb::ParamKind::integer, value, 0, "", {}};
}
inline ParamSpec real(const std::string &name, double value) {
  return {name, fb::ParamKind::real, 0, value, "", {}};
}
inline ParamSpec text(const std::string &name, const std::string &value) {
  return {name, fb::ParamKind::text, 0, 0, value, {}};
}
inline ParamSpec offset(const std::string &name, int64_t stride, Axes axes) {
  return {name, fb::ParamKind::offset, stride, 0, "", std::move(axes)};
}

struct SourceSpec {
  std::vector<std::string> names;
  bool perExpert = false;
  Shape disk;
  std::vector<uint8_t> permute = {}; // empty: none
  Shape slice = {};                  // empty: none
};

struct InputRange {
  bool optional = false;
  double fill = 0;
  int64_t minimum = 0, maximum = 0;
};

class PlanBuilder {
public:
  using Buffer = flatbuffers::FlatBufferBuilder;
  struct Mesh {
    std::vector<std::pair<std::string, uint32_t>> axes;
  };

  class Program {
  public:
    /// A view of an activation of its own.
    uint32_t tensor(fb::DType type, const Shape &shape) {
      uint32_t v = addView(1, activationBytes, 0, type, shape, -1);
      activationBytes += padded(type, shape);
      return v;
    }
    /// A view whose dimension `dim` is shape[dim] * bound.
    uint32_t ragged(fb::DType type, const Shape &shape, int dim) {
      uint32_t v = addView(2, 0, raggedBytes, type, shape, dim);
      raggedBytes += padded(type, shape);
      return v;
    }
    /// A state tensor and a view of this rank's part of it. Those of mesh programs are the
    /// plan's.
    uint32_t state(const std::string &name, fb::DType type, const Shape &shape,
                   const std::vector<DimSpec> &dims, const SourceSpec &source) {
      Shape local = localShape(shape, dims);
      states.push_back(fb::CreateState(
          b(), b().CreateString(name), type, b().CreateVector(shape), owner->dims(dims), 0,
          stateBytes,
          fb::CreateSource(b(), b().CreateVectorOfStrings(source.names), source.perExpert,
                           b().CreateVector(source.disk),
                           source.permute.empty() ? 0 : b().CreateVector(source.permute),
                           source.slice.empty() ? 0 : b().CreateVector(source.slice)),
          -1));
      uint32_t v = addView(0, stateBytes, 0, type, local, -1);
      stateBytes += padded(type, local);
      return v;
    }
    uint32_t input(const std::string &name, fb::DType type, const Shape &shape,
                   const std::vector<DimSpec> &dims, InputRange range = {}) {
      uint32_t v = tensor(type, localShape(shape, dims));
      inputs.push_back(fb::CreateInput(b(), b().CreateString(name), type, b().CreateVector(shape),
                                       owner->dims(dims), v, range.optional, range.fill,
                                       range.minimum, range.maximum));
      return v;
    }
    void output(const std::string &name, fb::DType type, const Shape &shape,
                const std::vector<DimSpec> &dims, uint32_t view) {
      outputs.push_back(fb::CreateOutput(b(), b().CreateString(name), type, b().CreateVector(shape),
                                         owner->dims(dims), view));
    }
    void trace(const std::string &name, fb::DType type, const Shape &shape,
               const std::vector<DimSpec> &dims, uint32_t view) {
      traces.push_back(fb::CreateTrace(b(), b().CreateString(name), type, b().CreateVector(shape),
                                       owner->dims(dims), view));
    }
    void call(const std::string &name, const std::vector<uint32_t> &in,
              const std::vector<uint32_t> &out, const std::vector<ParamSpec> &params = {},
              int layer = -1) {
      instr(fb::InstrKind::call, owner->callIndex(name), in, out, params, {}, layer);
    }
    void collective(fb::CollectiveKind kind, uint32_t in, uint32_t out, const Axes &axes,
                    const std::vector<ParamSpec> &params) {
      instr(fb::InstrKind::collective, static_cast<uint32_t>(kind), {in}, {out}, params, axes);
    }
    void instr(fb::InstrKind kind, uint32_t target, const std::vector<uint32_t> &in,
               const std::vector<uint32_t> &out, const std::vector<ParamSpec> &params,
               const Axes &axes = {}, int layer = -1) {
      std::vector<flatbuffers::Offset<fb::Param>> list;
      for (const ParamSpec &p : params)
        list.push_back(fb::CreateParam(b(), b().CreateString(p.name), p.kind, p.i, p.r,
                                       p.kind == fb::ParamKind::text ? b().CreateString(p.s) : 0, 0,
                                       p.axes.empty() ? 0 : b().CreateVector(p.axes)));
      instrs.push_back(fb::CreateInstr(b(), kind, target, 0, b().CreateVector(in),
                                       b().CreateVector(out), b().CreateVector(list),
                                       b().CreateVector(axes), layer, 0));
    }

    uint64_t stateBytes = 0, activationBytes = 0, raggedBytes = 0;

  private:
    friend class PlanBuilder;
    Buffer &b() { return owner->buffer; }
    static uint64_t padded(fb::DType type, const Shape &shape) {
      uint64_t bytes = rt::bytesOf(type);
      for (int64_t d : shape)
        bytes *= static_cast<uint64_t>(d);
      return (bytes + 63) / 64 * 64;
    }
    Shape localShape(const Shape &shape, const std::vector<DimSpec> &dims) {
      Shape local;
      for (size_t d = 0; d < shape.size(); ++d) {
        int64_t parts = 1;
        for (uint8_t a : dims[d].axes)
          parts *= owner->mesh.axes[a].second;
        local.push_back((shape[d] + dims[d].pad) / parts);
      }
      return local;
    }
    uint32_t addView(uint16_t arena, uint64_t offset, uint64_t perBound, fb::DType type,
                     const Shape &shape, int dim) {
      views.push_back(
          fb::CreateView(b(), arena, offset, perBound, type, b().CreateVector(shape), dim));
      return static_cast<uint32_t>(views.size() - 1);
    }

    PlanBuilder *owner;
    std::string name;
    uint32_t ranks;
    bool reference;
    uint64_t boundInitial, boundMax;
    std::vector<flatbuffers::Offset<fb::View>> views;
    std::vector<flatbuffers::Offset<fb::Instr>> instrs;
    std::vector<flatbuffers::Offset<fb::Input>> inputs;
    std::vector<flatbuffers::Offset<fb::Output>> outputs;
    std::vector<flatbuffers::Offset<fb::Trace>> traces;
    std::vector<flatbuffers::Offset<fb::State>> states;
  };

  explicit PlanBuilder(Mesh mesh, std::string target = "host")
      : mesh(std::move(mesh)), target(std::move(target)) {}

  /// The mesh program "forward", or "reference".
  Program &program(bool reference, uint64_t boundInitial = 0, uint64_t boundMax = 0) {
    Program p;
    p.owner = this;
    p.name = reference ? "reference" : "forward";
    p.ranks = 1;
    if (!reference)
      for (auto &axis : mesh.axes)
        p.ranks *= axis.second;
    p.reference = reference;
    p.boundInitial = boundInitial;
    p.boundMax = boundMax;
    programs.push_back(std::move(p));
    return programs.back();
  }

  /// Adds a host object; `operands` of its one kernel.
  struct Operand {
    fb::DType type;
    Shape inner;
    bool rowwise, output;
  };
  uint32_t kernel(const std::string &name, const std::vector<Operand> &operands,
                  std::vector<uint8_t> object, const std::string &features) {
    std::vector<flatbuffers::Offset<fb::KernelOperand>> list;
    for (const Operand &o : operands)
      list.push_back(fb::CreateKernelOperand(buffer, o.type, buffer.CreateVector(o.inner),
                                             o.rowwise, o.output));
    kernels.push_back(fb::CreateKernel(buffer, buffer.CreateString(name),
                                       static_cast<uint32_t>(sections.size()),
                                       buffer.CreateVector(list)));
    sections.push_back({std::move(object), features});
    return static_cast<uint32_t>(kernels.size() - 1);
  }

  /// The file's bytes. The builder is used up.
  std::vector<uint8_t> finish() {
    std::vector<flatbuffers::Offset<fb::Program>> list;
    std::vector<flatbuffers::Offset<fb::State>> shared;
    for (Program &p : programs) {
      std::vector<flatbuffers::Offset<fb::Queue>> queues = {
          fb::CreateQueue(buffer, buffer.CreateString("compute"))};
      auto arena = [&](const char *name, fb::ArenaRole role, uint64_t bytes, uint64_t perBound) {
        return fb::CreateArena(buffer, buffer.CreateString(name), fb::Space::device, role, bytes,
                               perBound);
      };
      std::vector<flatbuffers::Offset<fb::Arena>> arenas = {
          arena("state", fb::ArenaRole::state, p.stateBytes, 0),
          arena("activations", fb::ArenaRole::activations, p.activationBytes, 0)};
      if (p.raggedBytes)
        arenas.push_back(arena("ragged", fb::ArenaRole::ragged, 0, p.raggedBytes));
      if (!p.reference)
        shared.insert(shared.end(), p.states.begin(), p.states.end());
      list.push_back(fb::CreateProgram(
          buffer, buffer.CreateString(p.name), p.ranks, p.reference, buffer.CreateVector(queues), 0,
          buffer.CreateVector(p.views), buffer.CreateVector(p.instrs),
          buffer.CreateVector(p.inputs), buffer.CreateVector(p.outputs),
          buffer.CreateVector(p.reference ? p.states
                                          : std::vector<flatbuffers::Offset<fb::State>>()),
          buffer.CreateVector(arenas), p.boundInitial, p.boundMax, buffer.CreateVector(p.traces)));
    }
    std::vector<flatbuffers::Offset<fb::Axis>> axes;
    for (auto &[name, size] : mesh.axes)
      axes.push_back(fb::CreateAxis(buffer, buffer.CreateString(name), size));
    std::vector<flatbuffers::Offset<fb::Section>> table;
    std::vector<std::vector<uint8_t>> bytes;
    for (auto &[object, features] : sections) {
      // Offset and checksum must be there to be filled in when the file is put together.
      table.push_back(fb::CreateSection(buffer, fb::SectionKind::host_object,
                                        buffer.CreateString("x86_64-unknown-linux-gnu"),
                                        buffer.CreateString(features), 1, object.size(), 1));
      bytes.push_back(object);
    }
    std::vector<std::string> calls(callNames.size());
    for (auto &[name, index] : callNames)
      calls[index] = name;
    auto info = fb::CreateModelInfo(buffer, buffer.CreateString("test"),
                                    buffer.CreateString("forward"), fb::DType::f32, 1, 1);
    fb::FinishPlanBuffer(
        buffer, fb::CreatePlan(buffer, buffer.CreateString("test"), buffer.CreateString(target),
                               buffer.CreateVector(axes), buffer.CreateVectorOfStrings(calls),
                               buffer.CreateVectorOfStrings({"model.layers.0"}),
                               buffer.CreateVector(kernels), buffer.CreateVector(table),
                               buffer.CreateVector(list), info, buffer.CreateVector(shared)));
    return rt::assemblePlanFile(
        {buffer.GetBufferPointer(), buffer.GetBufferPointer() + buffer.GetSize()}, bytes);
  }

private:
  uint32_t callIndex(const std::string &name) {
    return callNames.try_emplace(name, static_cast<uint32_t>(callNames.size())).first->second;
  }
  flatbuffers::Offset<flatbuffers::Vector<flatbuffers::Offset<fb::DimSharding>>>
  dims(const std::vector<DimSpec> &specs) {
    std::vector<flatbuffers::Offset<fb::DimSharding>> list;
    for (const DimSpec &d : specs)
      list.push_back(fb::CreateDimSharding(buffer, buffer.CreateVector(d.axes), d.pad));
    return buffer.CreateVector(list);
  }

  Buffer buffer;
  Mesh mesh;
  std::string target;
  std::deque<Program> programs;
  std::map<std::string, uint32_t> callNames;
  std::vector<flatbuffers::Offset<fb::Kernel>> kernels;
  std::vector<std::pair<std::vector<uint8_t>, std::string>> sections;
};

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_RUNTIMEPLANBUILDER_H
