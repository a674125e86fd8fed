//===- PlanTestBuilder.cpp --------------------------------------*- C++ -*-===//
// Serialisation of the structs of PlanTestBuilder.h, the valid plans, and the test's own address
// arithmetic.
//===----------------------------------------------------------------------===//
#include "PlanTestBuilder.h"

#include <cstring>

namespace moira::rt::test {
namespace {

using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;

template <typename Spec, typename Make>
auto all(FlatBufferBuilder &b, const std::vector<Spec> &specs, Make make) {
  std::vector<decltype(make(specs[0]))> tables;
  for (const Spec &spec : specs)
    tables.push_back(make(spec));
  return b.CreateVector(tables);
}

auto dimsOf(FlatBufferBuilder &b, const std::vector<DimSpec> &dims) {
  return all(b, dims, [&](const DimSpec &d) {
    return fb::CreateDimSharding(b, b.CreateVector(d.axes), d.pad);
  });
}

Offset<fb::Instr> instrOf(FlatBufferBuilder &b, const InstrSpec &i) {
  auto inputs = b.CreateVector(i.inputs), outputs = b.CreateVector(i.outputs);
  auto params = all(b, i.params, [&](const ParamSpec &p) {
    return fb::CreateParam(b, b.CreateString(p.name), p.kind, p.i, p.r, b.CreateString(p.s), 0,
                           b.CreateVector(p.axes), p.reals.empty() ? 0 : b.CreateVector(p.reals));
  });
  return fb::CreateInstr(b, i.kind, i.target, i.queue, inputs, outputs, params,
                         b.CreateVector(i.axes), i.layer, i.location);
}

Offset<fb::State> stateOf(FlatBufferBuilder &b, const StateSpec &s) {
  Offset<fb::Source> source = 0;
  if (!s.sources.empty())
    source = fb::CreateSource(b, b.CreateVectorOfStrings(s.sources), s.perExpert,
                              b.CreateVector(s.diskShape),
                              s.permute.empty() ? 0 : b.CreateVector(s.permute),
                              s.slice.empty() ? 0 : b.CreateVector(s.slice));
  return fb::CreateState(b, b.CreateString(s.name), s.dtype, b.CreateVector(s.shape),
                         dimsOf(b, s.dims), s.arena, s.offset, source, -1, s.transient);
}

/// `owns`: whether its states are its own, not the plan's.
Offset<fb::Program> programOf(FlatBufferBuilder &b, const ProgramSpec &p, bool owns) {
  auto queues =
      all(b, p.queues, [&](const std::string &q) { return fb::CreateQueue(b, b.CreateString(q)); });
  auto views = all(b, p.views, [&](const ViewSpec &v) {
    return fb::CreateView(b, v.arena, v.offset, v.offsetPerBound, v.dtype, b.CreateVector(v.shape),
                          v.boundDim);
  });
  auto instrs = all(b, p.instrs, [&](const InstrSpec &i) { return instrOf(b, i); });
  auto inputs = all(b, p.inputs, [&](const PortSpec &i) {
    return fb::CreateInput(b, b.CreateString(i.name), i.dtype, b.CreateVector(i.shape),
                           dimsOf(b, i.dims), i.view, false, 0, i.minimum, i.maximum);
  });
  auto outputs = all(b, p.outputs, [&](const PortSpec &o) {
    Offset<fb::Source> source = 0;
    if (!o.sources.empty())
      source = fb::CreateSource(b, b.CreateVectorOfStrings(o.sources), false,
                                b.CreateVector(o.diskShape));
    return fb::CreateOutput(b, b.CreateString(o.name), o.dtype, b.CreateVector(o.shape),
                            dimsOf(b, o.dims), o.view, source);
  });
  auto states = all(b, owns ? p.states : std::vector<StateSpec>(),
                    [&](const StateSpec &s) { return stateOf(b, s); });
  auto arenas = all(b, p.arenas, [&](const ArenaSpec &a) {
    return fb::CreateArena(b, b.CreateString(a.name), a.space, a.role, a.bytes, a.bytesPerBound);
  });
  auto traces = all(b, p.traces, [&](const PortSpec &t) {
    return fb::CreateTrace(b, b.CreateString(t.name), t.dtype, b.CreateVector(t.shape),
                           dimsOf(b, t.dims), t.view);
  });
  return fb::CreateProgram(b, b.CreateString(p.name), p.ranks, p.reference, queues, p.events, views,
                           instrs, inputs, outputs, states, arenas, p.boundInitial, p.boundMax,
                           traces);
}

} // namespace

std::vector<uint8_t> PlanSpec::build() const {
  FlatBufferBuilder b;
  auto axisTables = all(b, axes, [&](const AxisSpec &a) {
    return fb::CreateAxis(b, b.CreateString(a.name), a.size);
  });
  auto kernelTables = all(b, kernels, [&](const KernelSpec &k) {
    auto operands = all(b, k.operands, [&](const OperandSpec &o) {
      return fb::CreateKernelOperand(b, o.dtype, b.CreateVector(o.inner), o.rowwise, o.output);
    });
    return fb::CreateKernel(b, b.CreateString(k.name), k.section, operands);
  });
  auto sectionTables = all(b, sections, [&](const SectionSpec &s) {
    return fb::CreateSection(b, s.kind, b.CreateString("x86-64-v3"), 0, 1, 1, 1);
  });
  std::vector<std::vector<uint8_t>> contents;
  for (const SectionSpec &s : sections)
    contents.push_back(s.bytes);
  const ProgramSpec *first = nullptr;
  for (const ProgramSpec &p : programs)
    if (!p.reference && !first)
      first = &p;
  auto programTables =
      all(b, programs, [&](const ProgramSpec &p) { return programOf(b, p, &p != first); });
  auto states =
      all(b, first ? first->states : orphans, [&](const StateSpec &s) { return stateOf(b, s); });
  auto info = fb::CreateModelInfo(b, b.CreateString("test"), b.CreateString("forward"), dtype);
  b.Finish(fb::CreatePlan(b, b.CreateString("test"), b.CreateString(target), axisTables,
                          b.CreateVectorOfStrings(calls), b.CreateVectorOfStrings(locations),
                          kernelTables, sectionTables, programTables, info, states));
  return assemblePlanFile({b.GetBufferPointer(), b.GetBufferPointer() + b.GetSize()}, contents);
}

void reseal(std::vector<uint8_t> &file) {
  if (file.size() < sizeof(PlanHeader))
    return;
  PlanHeader header{
      {'M', 'O', 'I', 'R', 'A', 'P', 'L', 'N'}, kPlanVersion, 0, kSchemaHash, file.size()};
  header.crc32c = crc32c(std::span<const uint8_t>(file).subspan(sizeof(header)));
  std::memcpy(file.data(), &header, sizeof(header));
}

PlanSpec expertPlan() {
  using fb::ArenaRole, fb::CollectiveKind, fb::DType, fb::InstrKind;
  PlanSpec plan;
  plan.axes = {{"dp", 2}, {"ep", 2}};
  plan.calls = {"embedding", "linear",         "route",   "pack",     "regroup",
                "ungroup",   "grouped_matmul", "combine", "rms_norm", "select"};
  enum : uint32_t {
    kEmbedding,
    kLinear,
    kRoute,
    kPack,
    kRegroup,
    kUngroup,
    kGrouped,
    kCombine,
    kNorm,
    kSelect
  };
  plan.locations = {"model", "model.layers.0.mlp"};
  plan.sections = {{fb::SectionKind::host_object, std::vector<uint8_t>(100, 0x5a)}};
  plan.kernels = {{"k_norm", 0, {{DType::f32, {16}, true, false}, {DType::f32, {16}, true, true}}},
                  {"k_scale",
                   0,
                   {{DType::f32, {16}, true, false},
                    {DType::f32, {4, 16}, false, false},
                    {DType::f32, {16}, true, true}}}};

  // Four ranks; every rank has one row of four tokens, D = 16, four experts of which two are here.
  ProgramSpec p;
  p.name = "forward";
  p.ranks = 4;
  p.queues = {"compute", "comm"};
  p.events = 4;
  p.boundInitial = 4;
  p.boundMax = 16;
  p.arenas = {{"state", ArenaRole::state, 4608, 0},
              {"activations", ArenaRole::activations, 1920, 0},
              {"ragged", ArenaRole::ragged, 0, 768}};
  p.states = {{"embed", {32, 16}, {{}, {}}, 0, 0, {"embed.weight"}, false, {32, 16}},
              {"gate", {4, 16}, {{}, {}}, 0, 2048, {"gate.weight"}, false, {64}},
              {"experts", {4, 16, 16}, {{{1}}, {}, {}}, 0, 2304, {"experts.{e}.w"}, true, {16, 16}},
              {"odd", {5}, {{{1}, 1}}, 0, 4352, {"odd"}, false, {5}}};
  p.views = {
      {1, 0, 0, DType::i32, {1, 4}},             // ids
      {0, 0, 0, DType::f32, {32, 16}},           // table
      {1, 64, 0, DType::f32, {1, 4, 16}},        // x
      {1, 320, 0, DType::f32, {1, 4, 16}},       // y
      {0, 2048, 0, DType::f32, {4, 16}},         // gate
      {1, 576, 0, DType::f32, {1, 4, 4}},        // logits
      {1, 640, 0, DType::i32, {1, 4, 2}},        // experts
      {1, 704, 0, DType::f32, {1, 4, 2}},        // weights
      {1, 768, 0, DType::i32, {1}},              // need0
      {2, 0, 0, DType::f32, {1, 2, 1, 16}, 2},   // slots
      {1, 832, 0, DType::i32, {1, 2, 2}},        // counts
      {1, 896, 0, DType::i32, {1, 4, 2}},        // pos
      {1, 960, 0, DType::i32, {1}},              // need1
      {2, 0, 128, DType::f32, {2, 1, 1, 16}, 2}, // slots2
      {1, 1024, 0, DType::i32, {2, 1, 2}},       // counts2
      {2, 0, 256, DType::f32, {2, 16}, 0},       // rows
      {1, 1088, 0, DType::i32, {1, 2}},          // groups
      {0, 2304, 0, DType::f32, {2, 16, 16}},     // w
      {2, 0, 384, DType::f32, {2, 16}, 0},       // rows2
      {2, 0, 512, DType::f32, {2, 1, 1, 16}, 2}, // back
      {2, 0, 640, DType::f32, {1, 2, 1, 16}, 2}, // slots3
      {1, 1152, 0, DType::f32, {1, 4, 16}},      // out
      {1, 1408, 0, DType::f32, {1, 4, 8}},       // half
  };
  p.inputs = {{"input_ids", DType::i32, {4, 4}, {{{0, 1}}, {}}, view::ids, 0, 31}};
  p.outputs = {{"hidden", DType::f32, {4, 4, 16}, {{{0, 1}}, {}, {}}, view::out},
               {"half", DType::f32, {4, 4, 8}, {{{0, 1}}, {}, {}}, view::half}};
  p.traces = {{"layers.0.ids", DType::i32, {4, 4, 2}, {{{0, 1}}, {}, {}}, view::experts},
              {"layers.0.weights", DType::f32, {4, 4, 2}, {{{0, 1}}, {}, {}}, view::weights}};
  auto call = [](uint32_t target, std::vector<uint32_t> in, std::vector<uint32_t> out,
                 std::vector<ParamSpec> params) {
    return InstrSpec{InstrKind::call,   target, 0, std::move(in), std::move(out),
                     std::move(params), {},     1};
  };
  auto event = [](InstrKind kind, uint32_t event, uint16_t queue) {
    return InstrSpec{kind, event, queue};
  };
  auto exchange = [](uint32_t in, uint32_t out, int64_t split, int64_t concat) {
    return InstrSpec{InstrKind::collective,
                     uint32_t(CollectiveKind::all_to_all),
                     1,
                     {in},
                     {out},
                     {integerParam("split_dim", split), integerParam("concat_dim", concat)},
                     {1}};
  };
  p.instrs = {
      call(kEmbedding, {view::ids, view::table}, {view::x}, {offsetParam("row_offset", 0, {})}),
      {InstrKind::launch, 0, 0, {view::x}, {view::y}, {integerParam("rows", 4)}},
      call(kLinear, {view::y, view::gate}, {view::logits}, {integerParam("contract", 1)}),
      call(kRoute, {view::logits}, {view::experts, view::weights},
           {textParam("score", "softmax"), textParam("order", "score_topk"),
            textParam("renorm", "sum"), realParam("scale", 1)}),
      {InstrKind::fill, 0, 0, {}, {view::need0}, {realParam("value", 0)}},
      call(kPack, {view::y, view::experts, view::need0},
           {view::slots, view::counts, view::pos, view::need1},
           {integerParam("experts", 4), integerParam("segments", 1)}),
      event(InstrKind::record, 0, 0),
      event(InstrKind::wait, 0, 1),
      exchange(view::slots, view::slots2, 1, 0),
      exchange(view::counts, view::counts2, 1, 0),
      event(InstrKind::record, 1, 1),
      event(InstrKind::wait, 1, 0),
      call(kRegroup, {view::slots2, view::counts2}, {view::rows, view::groups},
           {integerParam("segments", 1)}),
      call(kGrouped, {view::rows, view::groups, view::w}, {view::rows2},
           {integerParam("contract", 1)}),
      {InstrKind::launch,
       1,
       0,
       {view::rows2, view::gate},
       {view::rows2},
       {integerParam("rows", 2), integerParam("rows_scale_bound", 1)}},
      call(kUngroup, {view::rows2, view::counts2}, {view::back}, {integerParam("segments", 1)}),
      event(InstrKind::record, 2, 0),
      event(InstrKind::wait, 2, 1),
      exchange(view::back, view::slots3, 0, 1),
      {InstrKind::collective,
       uint32_t(CollectiveKind::all_reduce),
       1,
       {view::need1},
       {view::need1},
       {integerParam("op", int64_t(fb::Reduce::max))},
       {0, 1}},
      event(InstrKind::record, 3, 1),
      event(InstrKind::wait, 3, 0),
      call(kCombine, {view::slots3, view::pos, view::weights}, {view::out}, {}),
      {InstrKind::copy,
       0,
       0,
       {view::out},
       {view::half},
       {integerParam("dim", 2), integerParam("start", 8)}},
      {InstrKind::require_bound, 0, 0, {view::need1}, {}, {}},
  };

  // The same model on one rank: 16 tokens, all experts, 32 rows.
  ProgramSpec r;
  r.name = "reference";
  r.reference = true;
  r.queues = {"compute"};
  r.arenas = {{"state", ArenaRole::state, 6464, 0},
              {"activations", ArenaRole::activations, 8192, 0}};
  r.states = {{"embed", {32, 16}, {{}, {}}, 0, 0, {"embed.weight"}, false, {32, 16}},
              {"gate", {4, 16}, {{}, {}}, 0, 2048, {"gate.weight"}, false, {4, 16}},
              {"experts", {4, 16, 16}, {{}, {}, {}}, 0, 2304, {"experts.{e}.w"}, true, {256}},
              {"norm", {16}, {{}}, 0, 6400, {"norm.weight"}, false, {16}}};
  enum : uint32_t {
    rIds,
    rTable,
    rX,
    rNorm,
    rY,
    rGate,
    rLogits,
    rExperts,
    rWeights,
    rNeed0,
    rRows,
    rGroups,
    rPos,
    rNeed1,
    rW,
    rRows2,
    rOut
  };
  r.views = {
      {1, 0, 0, DType::i32, {4, 4}},         {0, 0, 0, DType::f32, {32, 16}},
      {1, 64, 0, DType::f32, {4, 4, 16}},    {0, 6400, 0, DType::f32, {16}},
      {1, 1088, 0, DType::f32, {4, 4, 16}},  {0, 2048, 0, DType::f32, {4, 16}},
      {1, 2112, 0, DType::f32, {4, 4, 4}},   {1, 2368, 0, DType::i32, {4, 4, 2}},
      {1, 2496, 0, DType::f32, {4, 4, 2}},   {1, 2624, 0, DType::i32, {1}},
      {1, 2688, 0, DType::f32, {32, 16}},    {1, 4736, 0, DType::i32, {1, 4}},
      {1, 4800, 0, DType::i32, {4, 4, 2}},   {1, 4928, 0, DType::i32, {1}},
      {0, 2304, 0, DType::f32, {4, 16, 16}}, {1, 4992, 0, DType::f32, {32, 16}},
      {1, 7040, 0, DType::f32, {4, 4, 16}},
  };
  r.inputs = {{"input_ids", DType::i32, {4, 4}, {{}, {}}, rIds, 0, 31}};
  r.outputs = {{"hidden", DType::f32, {4, 4, 16}, {{}, {}, {}}, rOut}};
  r.instrs = {
      call(kEmbedding, {rIds, rTable}, {rX}, {offsetParam("row_offset", 0, {})}),
      call(kNorm, {rX, rNorm}, {rY}, {realParam("eps", 1e-5), integerParam("norm_dims", 1)}),
      call(kLinear, {rY, rGate}, {rLogits}, {integerParam("contract", 1)}),
      call(kRoute, {rLogits}, {rExperts, rWeights},
           {textParam("score", "softmax"), textParam("order", "score_topk"),
            textParam("renorm", "sum"), realParam("scale", 1)}),
      {InstrKind::fill, 0, 0, {}, {rNeed0}, {realParam("value", 0)}},
      call(kSelect, {rY, rExperts, rNeed0}, {rRows, rGroups, rPos, rNeed1},
           {integerParam("experts", 4), offsetParam("expert_offset", 0, {})}),
      call(kGrouped, {rRows, rGroups, rW}, {rRows2}, {integerParam("contract", 1)}),
      call(kCombine, {rRows2, rPos, rWeights}, {rOut}, {}),
  };
  plan.programs = {p, r};
  return plan;
}

PlanSpec tinyPlan() {
  PlanSpec plan;
  plan.calls = {"clamp"};
  ProgramSpec p;
  p.name = "f";
  p.queues = {"q"};
  p.arenas = {{"a", fb::ArenaRole::activations, 128, 0}};
  p.views = {{0, 0, 0, fb::DType::f32, {4}}, {0, 64, 0, fb::DType::f32, {4}}};
  p.instrs = {{fb::InstrKind::call, 0, 0, {0}, {1}, {realParam("min", 0), realParam("max", 1)}}};
  p.inputs = {{"x", fb::DType::f32, {4}, {{}}, 0}};
  p.outputs = {{"y", fb::DType::f32, {4}, {{}}, 1}};
  plan.programs = {p};
  return plan;
}

PlanSpec cachePlan() {
  using fb::DType;
  PlanSpec plan;
  plan.calls = {"write_rows", "scale"};
  std::vector<ArenaSpec> arenas = {{"state", fb::ArenaRole::state, 320, 0},
                                   {"activations", fb::ArenaRole::activations, 128, 0}};
  ProgramSpec p;
  p.name = "prefill";
  p.queues = {"q"};
  p.arenas = arenas;
  p.states = {{.name = "w", .shape = {4}, .dims = {{}}, .sources = {"w"}, .diskShape = {4}},
              {.name = "cache", .shape = {2, 8, 4}, .dims = {{}, {}, {}}, .offset = 64}};
  p.views = {{1, 0, 0, DType::f32, {2, 3, 4}}, {0, 64, 0, DType::f32, {2, 8, 4}}};
  p.inputs = {{"rows", DType::f32, {2, 3, 4}, {{}, {}, {}}, 0}};
  p.outputs = {{"rows", DType::f32, {2, 3, 4}, {{}, {}, {}}, 0}};
  p.instrs = {{fb::InstrKind::call, 0, 0, {0}, {1}}};
  ProgramSpec d;
  d.name = "decode";
  d.queues = {"q"};
  d.arenas = arenas;
  d.arenas[1].bytes = 384;
  d.views = {{1, 0, 0, DType::f32, {2, 1, 4}},
             {1, 64, 0, DType::i32, {1}},
             {0, 64, 0, DType::f32, {2, 8, 4}},
             {1, 128, 0, DType::f32, {2, 8, 4}}};
  d.inputs = {{"row", DType::f32, {2, 1, 4}, {{}, {}, {}}, 0},
              {"position", DType::i32, {1}, {{}}, 1, 0, 7}};
  d.outputs = {{"all", DType::f32, {2, 8, 4}, {{}, {}, {}}, 3}};
  d.instrs = {{fb::InstrKind::call, 0, 0, {0, 1}, {2}},
              {fb::InstrKind::call, 1, 0, {2}, {3}, {realParam("factor", 2)}}};
  plan.programs = {p, d};
  return plan;
}

bool viewsInsideArenas(const PlanFile &file) {
  for (const fb::Program *p : *file.plan().programs())
    for (uint64_t bound : {uint64_t(1), p->bound_initial(), p->bound_max(), p->bound_max() / 3}) {
      if (bound == 0 && p->bound_max() != 0)
        continue;
      for (const fb::View *v : *p->views()) {
        const fb::Arena *a = (*p->arenas())[v->arena()];
        static constexpr int kBytes[] = {4, 2, 2, 8, 4, 8, 1};
        __int128 bytes = kBytes[static_cast<int>(v->dtype())];
        for (flatbuffers::uoffset_t d = 0; d < v->shape()->size(); ++d)
          bytes *= __int128(v->shape()->Get(d)) *
                   (v->bound_dim() == static_cast<int>(d) ? bound : uint64_t(1));
        __int128 start = __int128(v->offset_per_bound()) * bound + v->offset();
        __int128 size = __int128(a->bytes_per_bound()) * bound + a->bytes();
        if (bytes <= 0 || start + bytes > size)
          return false;
      }
    }
  return true;
}

} // namespace moira::rt::test
