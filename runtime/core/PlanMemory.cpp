//===- PlanMemory.cpp - the rules of a program's memory ---------*- C++ -*-===//
// Arenas, views, state tensors, inputs and outputs: that every byte range lies in its arena for
// every bound and that global shapes and their shardings give the local ones.
//===----------------------------------------------------------------------===//
#include "PlanVerifierImpl.h"

#include <algorithm>
#include <unordered_set>

namespace moira::rt::verify {

std::optional<uint64_t> axesProduct(const ProgramContext &ctx,
                                    const flatbuffers::Vector<uint8_t> *axes,
                                    std::vector<bool> &seen, const std::string &where) {
  uint64_t product = 1;
  if (sizeOf(axes) > ctx.axisSizes.size()) {
    ctx.report.add(ErrorId::PlanIndex, format("%s: names %zu axes of %zu", where.c_str(),
                                              sizeOf(axes), ctx.axisSizes.size()));
    return std::nullopt;
  }
  for (size_t i = 0; i < sizeOf(axes); ++i) {
    uint8_t axis = axes->Get(i);
    if (axis >= ctx.axisSizes.size()) {
      ctx.report.add(ErrorId::PlanIndex,
                     format("%s: axis %u of %zu", where.c_str(), axis, ctx.axisSizes.size()));
      return std::nullopt;
    }
    if (seen[axis]) {
      ctx.report.add(ErrorId::PlanStructure,
                     format("%s: axis %u is named twice", where.c_str(), axis));
      return std::nullopt;
    }
    seen[axis] = true;
    product *= ctx.axisSizes[axis];
  }
  return product;
}

std::vector<Dim> ProgramContext::shapeOf(size_t view) const {
  const fb::View *v = (*program.views())[view];
  std::vector<Dim> shape;
  for (size_t i = 0; i < v->shape()->size(); ++i)
    shape.push_back({v->shape()->Get(i), v->bound_dim() == static_cast<int64_t>(i)});
  return shape;
}

namespace {

/// a + bound * perBound if it is at most 2^47.
std::optional<uint64_t> linear(uint64_t a, uint64_t perBound, uint64_t bound) {
  uint64_t value;
  if (__builtin_mul_overflow(perBound, bound, &value) || __builtin_add_overflow(value, a, &value) ||
      value > kMaxBytes)
    return std::nullopt;
  return value;
}

unsigned long long ull(uint64_t n) { return n; }

void verifyArenas(ProgramContext &ctx) {
  std::unordered_set<std::string_view> names;
  for (size_t i = 0; i < ctx.program.arenas()->size(); ++i) {
    const fb::Arena *arena = (*ctx.program.arenas())[i];
    std::string where = format("%s arena %zu", ctx.where.c_str(), i);
    if (checkName(arena->name(), where, ctx.report) &&
        !names.insert(arena->name()->string_view()).second)
      ctx.report.add(ErrorId::PlanStructure,
                     where + ": the name " + quoted(arena->name()) + " is used twice");
    if (arena->space() > fb::Space::MAX || arena->role() > fb::ArenaRole::MAX)
      ctx.report.add(ErrorId::PlanStructure,
                     format("%s: unknown space %d or role %d", where.c_str(),
                            static_cast<int>(arena->space()), static_cast<int>(arena->role())));
    else if (arena->space() != fb::Space::device && arena->space() != fb::Space::host)
      ctx.report.add(ErrorId::PlanStructure, where + ": is neither a device's nor its host's");
    if (arena->bytes_per_bound() != 0 &&
        (arena->role() != fb::ArenaRole::ragged || ctx.boundMax == 0))
      ctx.report.add(ErrorId::PlanStructure,
                     where + ": grows with the bound, but it is not ragged or there is no bound");
    if (!linear(arena->bytes(), arena->bytes_per_bound(), ctx.boundMax))
      ctx.report.add(ErrorId::PlanBounds,
                     format("%s: %llu + %llu * %llu bytes pass 2^47", where.c_str(),
                            ull(arena->bytes()), ull(arena->bytes_per_bound()), ull(ctx.boundMax)));
  }
}

/// Arena i of a mesh program is the memory that arena i of every other one is.
void verifySharedArenas(ProgramContext &ctx) {
  const auto &first = *ctx.parent.firstOfMesh->arenas(), &mine = *ctx.program.arenas();
  for (size_t i = 0; i < std::min(first.size(), mine.size()); ++i) {
    const fb::Arena *a = first[i], *b = mine[i];
    bool state = a->role() == fb::ArenaRole::state;
    if (a->name()->string_view() != b->name()->string_view() || a->space() != b->space() ||
        a->role() != b->role() || (state && a->bytes() != b->bytes()))
      ctx.report.add(ErrorId::PlanStructure,
                     format("%s arena %zu %s is another one than %s of program %s; they share it",
                            ctx.where.c_str(), i, quoted(b->name()).c_str(),
                            quoted(a->name()).c_str(),
                            quoted(ctx.parent.firstOfMesh->name()).c_str()));
  }
}

void verifyView(ProgramContext &ctx, size_t index, ViewInfo &info) {
  const fb::View *view = (*ctx.program.views())[index];
  auto fail = [&](ErrorId id, const std::string &message) {
    ctx.report.add(id, format("%s view %zu: ", ctx.where.c_str(), index) + message);
  };
  if (view->arena() >= ctx.program.arenas()->size())
    return fail(ErrorId::PlanIndex,
                format("arena %u of %u", view->arena(), ctx.program.arenas()->size()));
  if (dtypeBytes(view->dtype()) == 0)
    return fail(ErrorId::PlanStructure, "unknown " + dtypeText(view->dtype()));
  if (view->shape()->size() > kMaxDims)
    return fail(ErrorId::PlanShape,
                format("%u dimensions, more than %zu", view->shape()->size(), kMaxDims));
  if (view->bound_dim() < -1 || view->bound_dim() >= static_cast<int64_t>(view->shape()->size()))
    return fail(ErrorId::PlanIndex,
                format("bound_dim %d of %u dimensions", view->bound_dim(), view->shape()->size()));
  if ((view->bound_dim() >= 0 || view->offset_per_bound() != 0) && ctx.boundMax == 0)
    return fail(ErrorId::PlanStructure, "depends on the bound, but the program has none");
  if (view->offset() % kAlignment != 0 || view->offset_per_bound() % kAlignment != 0)
    return fail(ErrorId::PlanStructure, format("offset %llu + %llu * bound is not a multiple of 64",
                                               ull(view->offset()), ull(view->offset_per_bound())));
  std::optional<Dim> elements = elementsOf(ctx.shapeOf(index), ctx.boundMax);
  if (!elements)
    return fail(ErrorId::PlanShape,
                format("impossible shape %s (sizes under 1, or over 2^47 elements)",
                       shapeText(ctx.shapeOf(index)).c_str()));
  const fb::Arena *arena = (*ctx.program.arenas())[view->arena()];
  info.dtype = view->dtype();
  info.arena = view->arena();
  info.elements = *elements;
  // Both sides are linear in the bound: what holds for 1 and for the largest holds between them.
  auto fits = [&](uint64_t bound, uint64_t &start, uint64_t &end) {
    std::optional<uint64_t> at = linear(view->offset(), view->offset_per_bound(), bound);
    uint64_t bytes = uint64_t(elements->scale) * (elements->ragged ? bound : 1); // <= 2^47
    if (__builtin_mul_overflow(bytes, uint64_t(dtypeBytes(view->dtype())), &bytes) || !at ||
        bytes > kMaxBytes)
      return false;
    std::optional<uint64_t> size = linear(arena->bytes(), arena->bytes_per_bound(), bound);
    start = *at;
    end = *at + bytes;
    return size && end <= *size;
  };
  uint64_t start, end;
  for (uint64_t bound : {ctx.boundLeast, ctx.boundMax}) {
    if (!fits(bound, start, end))
      return fail(ErrorId::PlanBounds,
                  format("%s of %s at %llu + %llu * bound leaves arena %s of %llu + %llu * bound "
                         "bytes for bound %llu",
                         shapeText(ctx.shapeOf(index)).c_str(), dtypeText(view->dtype()).c_str(),
                         ull(view->offset()), ull(view->offset_per_bound()),
                         quoted(arena->name()).c_str(), ull(arena->bytes()),
                         ull(arena->bytes_per_bound()), ull(bound)));
    (bound == ctx.boundLeast ? info.startAtOne : info.startAtMax) = start;
    (bound == ctx.boundLeast ? info.endAtOne : info.endAtMax) = end;
    if (ctx.boundLeast == ctx.boundMax) {
      info.startAtMax = start;
      info.endAtMax = end;
    }
  }
  info.sound = true;
}

using Sizes = flatbuffers::Vector<int64_t>;
using Shardings = flatbuffers::Vector<flatbuffers::Offset<fb::DimSharding>>;

/// The shape of one shard; nullopt after a report.
std::optional<std::vector<Dim>> localShape(ProgramContext &ctx, const Sizes &shape,
                                           const Shardings &dims, const std::string &where) {
  if (shape.size() > kMaxDims || dims.size() != shape.size()) {
    ctx.report.add(ErrorId::PlanShape,
                   format("%s: %u dimensions with %u shardings; wanted one each, at most %zu",
                          where.c_str(), shape.size(), dims.size(), kMaxDims));
    return std::nullopt;
  }
  std::vector<bool> seen(ctx.axisSizes.size());
  std::vector<Dim> local, global;
  for (size_t i = 0; i < shape.size(); ++i) {
    std::string at = format("%s dimension %zu", where.c_str(), i);
    std::optional<uint64_t> parts = axesProduct(ctx, dims[i]->axes(), seen, at);
    if (!parts)
      return std::nullopt;
    int64_t size = shape[i];
    if (size < 1 || size > static_cast<int64_t>(kMaxBytes)) {
      ctx.report.add(ErrorId::PlanShape,
                     format("%s: impossible size %lld", at.c_str(), static_cast<long long>(size)));
      return std::nullopt;
    }
    uint64_t padded = uint64_t(size) + dims[i]->pad();
    if (padded % *parts != 0) {
      ctx.report.add(ErrorId::PlanShape,
                     format("%s: %lld elements with %u of padding do not divide into %llu parts",
                            at.c_str(), static_cast<long long>(size), dims[i]->pad(), ull(*parts)));
      return std::nullopt;
    }
    local.push_back({static_cast<int64_t>(padded / *parts), false});
    global.push_back({static_cast<int64_t>(padded), false});
  }
  if (!elementsOf(global, 0)) {
    ctx.report.add(ErrorId::PlanShape,
                   where + ": shape " + shapeText(global) + " has over 2^47 elements");
    return std::nullopt;
  }
  return local;
}

/// Of a state or an output of this global shape.
void verifySource(ProgramContext &ctx, const fb::Source &source, const Sizes &shape,
                  const std::string &where) {
  const Sizes &disk = *source.disk_shape();
  auto fail = [&](const std::string &message) {
    ctx.report.add(ErrorId::PlanShape, where + ": " + message);
  };
  size_t names = source.names()->size(), leading = source.per_expert() + (names > 1);
  if (names == 0)
    return fail("its source names no tensor");
  for (size_t i = 0; i < names; ++i) {
    const flatbuffers::String *name = source.names()->Get(i);
    if (!checkName(name, where + " source", ctx.report))
      return;
    if (source.per_expert() && name->string_view().find("{e}") == std::string_view::npos)
      return fail("its source is per expert, but the name " + quoted(name) + " has no {e}");
  }
  if (shape.size() < leading || (names > 1 && shape[leading - 1] != static_cast<int64_t>(names)))
    return fail(format("its source's %zu names%s do not match the leading dimensions", names,
                       source.per_expert() ? " per expert" : ""));
  std::vector<Dim> block, stored;
  for (size_t i = leading; i < shape.size(); ++i)
    block.push_back({shape[i], false});
  if (const auto *slice = source.slice()) {
    size_t dim = 0;
    bool sound = slice->size() == 3 && slice->Get(0) >= 0 &&
                 slice->Get(0) < static_cast<int64_t>(block.size()) && slice->Get(1) >= 0 &&
                 slice->Get(1) < slice->Get(2);
    if (sound) {
      dim = static_cast<size_t>(slice->Get(0));
      sound = block[dim].scale <= slice->Get(2) - slice->Get(1);
    }
    if (!sound)
      return fail("its source's slice is not within the dimensions of a block " + shapeText(block));
    block[dim].scale = slice->Get(2);
  }
  for (size_t i = 0; i < std::min<size_t>(disk.size(), kMaxDims + 1); ++i)
    stored.push_back({disk[i], false});
  std::optional<Dim> have = elementsOf(stored, 0), want = elementsOf(block, 0);
  if (stored.size() > kMaxDims || !have || !want || have->scale != want->scale)
    fail("its source's disk shape " + shapeText(stored) + " has not the elements of a block " +
         shapeText(block));
  if (!source.permute())
    return;
  std::vector<bool> seen(block.size());
  bool permutes = source.permute()->size() == block.size();
  for (size_t i = 0; permutes && i < block.size(); ++i) {
    size_t dim = source.permute()->Get(i);
    permutes = dim < block.size() && !seen[dim];
    if (permutes)
      seen[dim] = true;
  }
  if (!permutes)
    fail(format("its source's permute is no permutation of the %zu dimensions of a block",
                block.size()));
}

/// Those of a reference program, or those that the mesh programs share, where the first of these
/// has its arenas.
void verifyStates(ProgramContext &ctx) {
  struct Range {
    uint64_t begin, end;
    uint16_t arena;
    uint32_t state;
  };
  std::vector<Range> ranges;
  std::unordered_set<std::string_view> names;
  for (size_t i = 0; i < ctx.states().size(); ++i) {
    const fb::State *state = ctx.states()[i];
    std::string where =
        format("%s state %zu %s", ctx.where.c_str(), i, quoted(state->name()).c_str());
    if (checkName(state->name(), where, ctx.report) &&
        !names.insert(state->name()->string_view()).second)
      ctx.report.add(ErrorId::PlanStructure, where + ": the name is used twice");
    if (dtypeBytes(state->dtype()) == 0)
      ctx.report.add(ErrorId::PlanStructure, where + ": unknown " + dtypeText(state->dtype()));
    if (state->layer() < -1)
      ctx.report.add(ErrorId::PlanStructure, where + ": layer under -1");
    std::optional<std::vector<Dim>> local = localShape(ctx, *state->shape(), *state->dims(), where);
    if (local && state->source())
      verifySource(ctx, *state->source(), *state->shape(), where);
    if (state->transient() && state->source())
      ctx.report.add(ErrorId::PlanStructure, where + ": is transient and has a source");
    if (state->arena() >= ctx.program.arenas()->size()) {
      ctx.report.add(ErrorId::PlanIndex, format("%s: arena %u of %u", where.c_str(), state->arena(),
                                                ctx.program.arenas()->size()));
      continue;
    }
    const fb::Arena *arena = (*ctx.program.arenas())[state->arena()];
    if (arena->role() != fb::ArenaRole::state)
      ctx.report.add(ErrorId::PlanStructure,
                     where + ": arena " + quoted(arena->name()) + " is not the state arena");
    if (state->offset() % kAlignment != 0)
      ctx.report.add(ErrorId::PlanStructure, format("%s: offset %llu is not a multiple of 64",
                                                    where.c_str(), ull(state->offset())));
    if (!local)
      continue;
    uint64_t bytes = uint64_t(elementsOf(*local, 0)->scale) * dtypeBytes(state->dtype());
    if (bytes > arena->bytes() || state->offset() > arena->bytes() - bytes) {
      ctx.report.add(ErrorId::PlanBounds,
                     format("%s: %llu bytes at %llu leave arena %s of %llu bytes", where.c_str(),
                            ull(bytes), ull(state->offset()), quoted(arena->name()).c_str(),
                            ull(arena->bytes())));
      continue;
    }
    ranges.push_back(
        {state->offset(), state->offset() + bytes, state->arena(), static_cast<uint32_t>(i)});
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range &a, const Range &b) {
    return std::tuple(a.arena, a.begin, a.state) < std::tuple(b.arena, b.begin, b.state);
  });
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].arena == ranges[i - 1].arena && ranges[i].begin < ranges[i - 1].end)
      ctx.report.add(ErrorId::PlanBounds,
                     format("%s: states %u and %u overlap at byte %llu", ctx.where.c_str(),
                            ranges[i - 1].state, ranges[i].state, ull(ranges[i].begin)));
}

/// What inputs, outputs and traces share. Whether its shape is sound.
template <typename T>
bool verifyPort(ProgramContext &ctx, const T &port, const std::string &where,
                std::unordered_set<std::string_view> &names) {
  if (checkName(port.name(), where, ctx.report) && !names.insert(port.name()->string_view()).second)
    ctx.report.add(ErrorId::PlanStructure, where + ": the name is used twice");
  if (port.view() >= ctx.views.size()) {
    ctx.report.add(ErrorId::PlanIndex,
                   format("%s: view %u of %zu", where.c_str(), port.view(), ctx.views.size()));
    return false;
  }
  const ViewInfo &view = ctx.views[port.view()];
  std::optional<std::vector<Dim>> local = localShape(ctx, *port.shape(), *port.dims(), where);
  if (!view.sound || !local)
    return local.has_value();
  std::vector<Dim> shape = ctx.shapeOf(port.view());
  if (port.dtype() != view.dtype || shape != *local)
    ctx.report.add(ErrorId::PlanShape,
                   format("%s: a shard is %s of %s, view %u is %s of %s", where.c_str(),
                          shapeText(*local).c_str(), dtypeText(port.dtype()).c_str(), port.view(),
                          shapeText(shape).c_str(), dtypeText(view.dtype).c_str()));
  if ((*ctx.program.arenas())[view.arena]->role() != fb::ArenaRole::activations)
    ctx.report.add(ErrorId::PlanStructure, format("%s: view %u is not in an activations arena",
                                                  where.c_str(), port.view()));
  if (ctx.isOnHost(port.view()))
    ctx.report.add(ErrorId::PlanStructure,
                   format("%s: view %u is not in the device's memory", where.c_str(), port.view()));
  return true;
}

void verifyPorts(ProgramContext &ctx) {
  std::unordered_set<std::string_view> inputs, outputs, traces;
  for (size_t i = 0; i < ctx.program.inputs()->size(); ++i) {
    const fb::Input *input = (*ctx.program.inputs())[i];
    std::string where =
        format("%s input %zu %s", ctx.where.c_str(), i, quoted(input->name()).c_str());
    verifyPort(ctx, *input, where, inputs);
    if (input->minimum() > input->maximum())
      ctx.report.add(ErrorId::PlanStructure, where + ": its minimum is over its maximum");
  }
  for (size_t i = 0; i < ctx.program.outputs()->size(); ++i) {
    const fb::Output *output = (*ctx.program.outputs())[i];
    std::string where =
        format("%s output %zu %s", ctx.where.c_str(), i, quoted(output->name()).c_str());
    if (verifyPort(ctx, *output, where, outputs) && output->source())
      verifySource(ctx, *output->source(), *output->shape(), where);
  }
  for (size_t i = 0; i < sizeOf(ctx.program.traces()); ++i) {
    const fb::Trace *trace = ctx.program.traces()->Get(i);
    verifyPort(ctx, *trace,
               format("%s trace %zu %s", ctx.where.c_str(), i, quoted(trace->name()).c_str()),
               traces);
  }
}

} // namespace

void verifyMemory(ProgramContext &ctx) {
  verifyArenas(ctx);
  ctx.views.resize(ctx.program.views()->size());
  for (size_t i = 0; i < ctx.views.size(); ++i)
    verifyView(ctx, i, ctx.views[i]);
  size_t before = ctx.report.count();
  if (ctx.program.reference()) {
    verifyStates(ctx);
  } else {
    if (ctx.program.states()->size() != 0)
      ctx.report.add(ErrorId::PlanStructure,
                     ctx.where + ": has states of its own; a mesh program has the plan's");
    if (&ctx.program == ctx.parent.firstOfMesh)
      verifyStates(ctx);
    else
      verifySharedArenas(ctx);
    // A state may lie where only the first program has an arena.
    for (const fb::State *state : ctx.states())
      if (state->arena() >= ctx.program.arenas()->size()) {
        ctx.report.add(ErrorId::PlanStructure,
                       ctx.where + ": lacks an arena in which states of the plan lie");
        break;
      }
    ctx.parent.statesSound &= ctx.report.count() == before;
  }
  verifyPorts(ctx);
}

} // namespace moira::rt::verify
