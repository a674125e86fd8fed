//===- PlanInterpreter.cpp --------------------------------------*- C++ -*-===//
// Resolution of views and parameters written anew, so that it does not share the verifier's errors.
//===----------------------------------------------------------------------===//
#include "PlanInterpreter.h"

#include "moira/rt/Device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace moira::rt::test {
namespace {

constexpr uint64_t kMaxArena = 1 << 20;
constexpr int64_t kMaxElements = 1024;
constexpr unsigned kBytes[] = {4, 2, 2, 8, 4, 8, 1};

void require(bool holds) {
  if (!holds)
    std::abort();
}

/// One rank of one program at one bound.
class Interpreter {
public:
  Interpreter(const PlanFile &file, const fb::Program &program, uint64_t bound, uint64_t rank,
              uint64_t seed)
      : plan(file.plan()), program(program), bound(bound), state(seed | 1) {
    for (const fb::Axis *axis : *plan.axes())
      sizes.push_back(program.reference() ? 1 : axis->size());
    coordinates.resize(sizes.size());
    for (size_t a = sizes.size(); a-- > 0; rank /= sizes[a])
      coordinates[a] = rank % sizes[a];
  }

  void run() {
    for (const fb::Arena *arena : *program.arenas()) {
      uint64_t bytes = arena->bytes() + bound * arena->bytes_per_bound();
      if (bytes > kMaxArena)
        return;
      arenas.emplace_back(bytes);
      fill(arenas.back());
    }
    // Mutated plans may repeat an instruction endlessly often; a few hundred say enough.
    size_t count = std::min<size_t>(program.instrs()->size(), 256);
    for (size_t i = 0; i < count; ++i) {
      const fb::Instr &instr = *(*program.instrs())[i];
      if (instr.kind() == fb::InstrKind::call)
        call(instr);
      else if (instr.kind() == fb::InstrKind::copy)
        copy(instr);
    }
  }

private:
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  }
  /// Mostly small integers and floats: index tensors shall often be valid.
  void fill(std::vector<uint8_t> &bytes) {
    for (size_t at = 0; at + 4 <= bytes.size(); at += 4) {
      uint64_t r = next();
      int32_t small = static_cast<int32_t>(r >> 8) % 5;
      float real = static_cast<float>(small) / 4;
      switch (r % 8) {
      case 0:
        std::memcpy(&bytes[at], &r, 4);
        break;
      case 1:
      case 2:
        std::memcpy(&bytes[at], &real, 4);
        break;
      default:
        small = std::abs(small);
        std::memcpy(&bytes[at], &small, 4);
      }
    }
  }

  std::vector<int64_t> shapeOf(const fb::View &view) const {
    std::vector<int64_t> shape(view.shape()->begin(), view.shape()->end());
    if (view.bound_dim() >= 0)
      shape[view.bound_dim()] *= bound;
    return shape;
  }
  int64_t offsetOf(const fb::Param &param) const {
    int64_t index = 0;
    for (size_t a = 0; param.axes() && a < param.axes()->size(); ++a)
      index = index * sizes.at(param.axes()->Get(a)) + coordinates.at(param.axes()->Get(a));
    return param.i() * index;
  }

  /// A view's bytes in their own allocation; false if there are too many.
  bool load(uint32_t index, TensorRef &tensor, std::vector<uint8_t> &bytes) const {
    const fb::View &view = *(*program.views())[index];
    tensor.dtype = view.dtype();
    tensor.shape = shapeOf(view);
    int64_t elements = 1;
    for (int64_t d : tensor.shape) {
      require(d >= 1);
      if (elements > kMaxElements / d)
        return false;
      elements *= d;
    }
    size_t size = elements * kBytes[static_cast<int>(view.dtype())];
    uint64_t start = view.offset() + bound * view.offset_per_bound();
    const std::vector<uint8_t> &arena = arenas.at(view.arena());
    require(start <= arena.size() && size <= arena.size() - start);
    bytes.assign(arena.begin() + start, arena.begin() + start + size);
    tensor.data = bytes.data();
    return true;
  }
  void store(uint32_t index, const std::vector<uint8_t> &bytes) {
    const fb::View &view = *(*program.views())[index];
    std::copy(bytes.begin(), bytes.end(),
              arenas.at(view.arena()).begin() + view.offset() + bound * view.offset_per_bound());
  }

  void call(const fb::Instr &instr) {
    size_t inputs = instr.inputs() ? instr.inputs()->size() : 0;
    size_t outputs = instr.outputs() ? instr.outputs()->size() : 0;
    std::vector<TensorRef> refs(inputs + outputs);
    std::vector<std::vector<uint8_t>> bytes(inputs + outputs);
    for (size_t i = 0; i < refs.size(); ++i)
      if (!load(i < inputs ? instr.inputs()->Get(i) : instr.outputs()->Get(i - inputs), refs[i],
                bytes[i]))
        return;
    CallParams params;
    for (size_t i = 0; instr.params() && i < instr.params()->size(); ++i) {
      const fb::Param &p = *instr.params()->Get(i);
      if (p.kind() == fb::ParamKind::integer)
        params.integers[p.name()->str()] = p.i();
      else if (p.kind() == fb::ParamKind::real)
        params.reals[p.name()->str()] = p.r();
      else if (p.kind() == fb::ParamKind::text)
        params.texts[p.name()->str()] = p.s() ? p.s()->str() : "";
      else if (p.kind() == fb::ParamKind::reals && p.reals())
        params.realLists[p.name()->str()].assign(p.reals()->begin(), p.reals()->end());
      else if (p.kind() == fb::ParamKind::offset)
        params.integers[p.name()->str()] = offsetOf(p);
    }
    std::span<const TensorRef> all(refs);
    CallFlavor flavor = next() % 32 == 0 ? CallFlavor::fast : CallFlavor::reference;
    Status status = runHostCall(plan.calls()->Get(instr.target())->string_view(), flavor,
                                all.first(inputs), all.subspan(inputs), params);
    for (size_t i = 0; status.ok() && i < outputs; ++i)
      store(instr.outputs()->Get(i), bytes[inputs + i]);
  }

  void copy(const fb::Instr &instr) const {
    std::vector<int64_t> from = shapeOf(*(*program.views())[instr.inputs()->Get(0)]);
    std::vector<int64_t> to = shapeOf(*(*program.views())[instr.outputs()->Get(0)]);
    int64_t dim = 0, start = 0;
    for (const fb::Param *p : *instr.params()) {
      if (p->name()->string_view() == "dim")
        dim = p->i();
      if (p->name()->string_view() == "start")
        start += p->i();
      if (p->name()->string_view() == "offset")
        start += offsetOf(*p);
    }
    require(from.size() == to.size() && dim >= 0 && dim < static_cast<int64_t>(from.size()));
    for (size_t i = 0; i < from.size(); ++i)
      require(i == static_cast<size_t>(dim) ? start >= 0 && start + to[i] <= from[i]
                                            : from[i] == to[i]);
  }

  const fb::Plan &plan;
  const fb::Program &program;
  uint64_t bound, state;
  std::vector<int64_t> sizes, coordinates;
  std::vector<std::vector<uint8_t>> arenas;
};

} // namespace

void interpret(const PlanFile &file, uint64_t seed) {
  for (const fb::Program *program : *file.plan().programs()) {
    uint64_t last = program->ranks() - 1;
    std::vector<uint64_t> bounds = {1, program->bound_initial(), program->bound_max()};
    if (program->bound_max() == 0)
      bounds = {0};
    for (uint64_t bound : bounds)
      for (uint64_t rank : {uint64_t(0), last})
        Interpreter(file, *program, bound, rank, seed + bound).run();
  }
}

} // namespace moira::rt::test
