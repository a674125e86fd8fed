//===- Binding.h - from plan instructions to addresses ----------*- C++ -*-===//
// What every device's executor does first: views, parameters, offsets and groups of one rank at the
// present ragged bound. Where the memory lies and how instructions run is the executor's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_BINDING_H
#define MOIRA_RT_BINDING_H

#include "moira/rt/Collectives.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/PlanFile.h"

#include <functional>
#include <map>

namespace moira::rt {

/// Most operands that a generated kernel may have.
inline constexpr size_t kMaxOperands = 16;

/// Bytes of the arenas that these programs share on each rank, at their initial bounds: arena i of
/// every program is the same memory, as large as the largest.
uint64_t plannedBytes(std::span<const fb::Program *const> programs, bool f64);

/// One instruction with its addresses. Only the fields of its kind count.
struct BoundInstr {
  fb::InstrKind kind = fb::InstrKind::record;
  uint16_t queue = 0;
  std::vector<TensorRef> in, out;
  // launch
  void *kernel = nullptr;
  std::vector<void *> operands;
  std::vector<int64_t> rowBytes; // from a row of each operand to the next; 0: all rows share it
  int64_t rows = 0;
  // call
  std::string_view call;
  CallParams params;
  bool isRoute = false;
  // collective
  CollectiveSpec collective;
  const Group *group = nullptr;
  // copy: the box of the input that the output is
  Box box;
  // fill
  double fill = 0;
  // record, wait
  uint32_t event = 0;
};

/// One program on one rank. Everything pointed to outlives it.
class Binding {
public:
  /// f64: a reference program whose floats are 8 bytes wide.
  Binding(const fb::Plan &plan, const fb::Program &program, int rank, bool f64);

  const MeshPosition &position() const { return place; }
  uint64_t bound() const { return boundNow; }
  size_t arenaCount() const { return bases.size(); }
  /// Bytes of an arena at the present bound.
  uint64_t arenaBytes(size_t arena) const;
  /// "arena ragged of rank 2 with a bound of 12 rows": what its memory is called in errors.
  std::string arenaText(size_t arena) const;
  bool grows(size_t arena) const { return program.arenas()->Get(arena)->bytes_per_bound() > 0; }
  /// Tells where an arena lies.
  void placeArena(size_t arena, char *base) { bases[arena] = base; }

  /// A view at the present bound.
  TensorRef view(uint32_t index) const;
  TensorRef input(size_t index) const { return view(program.inputs()->Get(index)->view()); }
  TensorRef output(size_t index) const { return view(program.outputs()->Get(index)->view()); }
  fb::DType stateType(const fb::State &state) const;
  char *stateData(const fb::State &state) const;

  /// Binds every instruction. `kernelOf` gives a kernel's code, or null where the device has none.
  /// BadRun, PlanBounds and PlanShape for what the plan verifier cannot see; all problems at once.
  Status bind(const std::function<void *(uint32_t)> &kernelOf, std::vector<BoundInstr> &instrs);

  /// Raises the bound so that slots hold `need` rows; arenas that grow must then be placed and
  /// everything bound again. BoundOverflow if the plan does not allow it.
  Status grow(int64_t need);

  /// "instruction 12 (linear) at model.layers.0.self_attn"
  std::string describe(size_t instr) const;

private:
  Status bindInstr(size_t index, const std::function<void *(uint32_t)> &kernelOf, BoundInstr &to);

  const fb::Plan &plan;
  const fb::Program &program;
  MeshPosition place;
  bool f64;
  uint64_t scale; // of every offset and size; 1, or more in an f64 run
  uint64_t boundNow;
  std::vector<char *> bases;
  std::map<std::vector<uint8_t>, Group> groups;
};

/// Makes `sizes` large enough for this program's arenas too.
void mergeArenaSizes(const Binding &binding, std::vector<uint64_t> &sizes);

} // namespace moira::rt

#endif // MOIRA_RT_BINDING_H
