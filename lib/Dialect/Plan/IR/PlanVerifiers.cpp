//===- PlanVerifiers.cpp - constraints of plans, programs and memory ------===//
// One function an op; constraint numbers are those of PlanStructureOps.td and PlanFusedOps.td.
// Instructions are in InstrVerifiers.cpp. What only whole files have to fear (races, order of
// collectives) is the plan verifier's, which writePlan asks.
//===----------------------------------------------------------------------===//
#include "mlir/IR/DialectResourceBlobManager.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

#define GET_OP_CLASSES
#include "Plan/PlanOps.cpp.inc"

/// Every name once and none empty.
static bool areNames(ArrayAttr names) {
  llvm::StringSet<> seen;
  return llvm::all_of(names.getAsRange<StringAttr>(), [&](StringAttr name) {
    return !name.empty() && seen.insert(name.getValue()).second;
  });
}

static bool isAligned(int64_t bytes) { return bytes >= 0 && bytes % kAlignment == 0; }

static ArenaOp findArena(Operation *op, StringRef name) {
  for (auto arena : cast<ProgramOp>(op->getParentOp()).getOps<ArenaOp>())
    if (arena.getName() == name)
      return arena;
  return {};
}

//===----------------------------------------------------------------------===//
// Plans
//===----------------------------------------------------------------------===//

LogicalResult PlanOp::verify() {
  if (getAxes().size() != getSizes().size())
    return emitOpError("C1: ") << getAxes().size() << " axes and " << getSizes().size() << " sizes";
  if (!areNames(getAxes()))
    return emitOpError("C2: axis names must be unique and not empty");
  for (int64_t size : getSizes())
    if (size < 1)
      return emitOpError("C3: an axis has size ") << size;
  for (Operation &op : *getBody().begin())
    if (!isa<SectionOp, KernelOp, StateOp, ProgramOp>(op))
      return op.emitOpError("C4: a plan holds only sections, kernels, states and programs");
  if (auto module = dyn_cast<ModuleOp>((*this)->getParentOp()))
    if (getPlan(module) != *this)
      return emitOpError("C5: a module holds one plan");
  return success();
}

int64_t PlanOp::numRanks() { return getMesh(*this).ranks(); }

int64_t PlanOp::indexOfAxis(StringRef name) {
  for (auto [i, axis] : llvm::enumerate(getAxes().getAsRange<StringAttr>()))
    if (axis.getValue() == name)
      return i;
  return -1;
}

LogicalResult SectionOp::verify() {
  auto type = dyn_cast<RankedTensorType>(getBytes().getType());
  if (!type || type.getRank() != 1 || !type.getElementType().isSignlessInteger(8) ||
      !isa<DenseResourceElementsAttr>(getBytes()))
    return emitOpError("C1: the bytes must be a dense_resource of type tensor<Nxi8>");
  return success();
}

ArrayRef<char> SectionOp::getData() {
  AsmResourceBlob *blob = cast<DenseResourceElementsAttr>(getBytes()).getRawHandle().getBlob();
  return blob ? blob->getData() : ArrayRef<char>();
}

LogicalResult KernelOp::verify() {
  if (auto section = getSectionAttr())
    if (!isa_and_present<SectionOp>(
            SymbolTable::lookupSymbolIn((*this)->getParentOp(), section.getAttr())))
      return emitOpError("C1: ") << section << " is not a plan.section";
  if (!getSection() == !getSpec())
    return emitOpError("C2: a kernel has a section or a spec");
  if (llvm::none_of(getTakes().getAsRange<OperandAttr>(),
                    [](OperandAttr operand) { return operand.getOutput(); }))
    return emitOpError("C3: no operand is written");
  return success();
}

//===----------------------------------------------------------------------===//
// Programs
//===----------------------------------------------------------------------===//

LogicalResult ProgramOp::verify() {
  int64_t ranks = cast<PlanOp>((*this)->getParentOp()).numRanks();
  if (getRanks() != 1 && static_cast<int64_t>(getRanks()) != ranks)
    return emitOpError("C1: ") << getRanks() << " ranks, the mesh has " << ranks;
  if (!areNames(getQueues()) || getQueues().empty())
    return emitOpError("C2: queue names must be unique and not empty");
  if (getBound()) {
    ArrayRef<int64_t> bound = *getBound();
    if (bound.size() != 2 || bound[0] < 1 || bound[0] > bound[1])
      return emitOpError("C4: the bound must be [initial, largest] with 1 <= initial <= largest");
  }
  llvm::StringSet<> queues;
  for (auto queue : getQueues().getAsRange<StringAttr>())
    queues.insert(queue.getValue());
  for (Operation &op : *getBody().begin()) {
    if (auto instr = dyn_cast<InstructionInterface>(op)) {
      if (!queues.contains(instr.getQueue()))
        return op.emitOpError("C3: the program has no queue '") << instr.getQueue() << "'";
    } else if (!isa<ArenaOp, StateOp, ViewOp, InputOp, OutputOp, TraceOp>(op)) {
      return op.emitOpError("C7: not a part of a program");
    }
    if (auto view = dyn_cast<ViewOp>(op); view && view.getType().isBounded() && !getBound())
      return op.emitOpError("C5: a bounded view in a program without a bound");
    if (getReference() && isa<LaunchOp>(op))
      return op.emitOpError("C6: a reference program launches no kernel");
  }
  return success();
}

LogicalResult ArenaOp::verify() {
  if (findArena(*this, getName()) != *this)
    return emitOpError("C1: a second arena '") << getName() << "'";
  if (!isAligned(getBytes()) || !isAligned(getPerBound()))
    return emitOpError("C2: sizes must be multiples of ") << kAlignment;
  if (getPerBound() && getRole() != ArenaRole::ragged)
    return emitOpError("C3: only a ragged arena grows with B");
  return success();
}

/// The arena of a state: of its reference program, or of the first mesh program.
static ArenaOp findStateArena(StateOp state) {
  auto find = [&](ProgramOp program) -> ArenaOp {
    for (auto arena : program.getOps<ArenaOp>())
      if (arena.getName() == state.getArena())
        return arena;
    return {};
  };
  if (auto program = dyn_cast<ProgramOp>(state->getParentOp()))
    return find(program);
  for (auto program : cast<PlanOp>(state->getParentOp()).getOps<ProgramOp>())
    if (!program.getReference())
      return find(program);
  return {};
}

LogicalResult StateOp::verify() {
  if (auto program = dyn_cast<ProgramOp>((*this)->getParentOp());
      program && !program.getReference())
    return emitOpError("C5: a mesh program has the plan's states, none of its own");
  ArenaOp arena = findStateArena(*this);
  if (!arena || arena.getRole() != ArenaRole::state)
    return emitOpError("C1: '") << getArena() << "' is not an arena with the role state";
  if (!isAligned(getOffset()))
    return emitOpError("C2: the offset must be a multiple of ") << kAlignment;
  auto type = dyn_cast<RankedTensorType>(getType());
  if (!type || !elementBytes(type.getElementType()))
    return emitOpError("C3: not a tensor type that memory can hold: ") << getType();
  uint64_t bytes = elementBytes(type.getElementType());
  for (int64_t size : shardShape(type, getMesh((*this)->getParentOfType<PlanOp>()))) {
    if (size < 1)
      return emitOpError("C3: the sharding does not divide ") << type;
    bytes *= size;
  }
  if (getTransient() && getSource())
    return emitOpError("C6: what holds nothing between steps has no source");
  if (getOffset() + bytes > arena.getBytes())
    return emitOpError("C4: bytes ") << getOffset() << " to " << getOffset() + bytes
                                     << " do not lie in an arena of " << arena.getBytes();
  return success();
}

LogicalResult ViewOp::verify() {
  ArenaOp arena = findArena(*this, getArena());
  if (!arena)
    return emitOpError("C1: no arena '") << getArena() << "'";
  if (!getOffset())
    return success();
  if (!isAligned(*getOffset()) || !isAligned(getPerBound().value_or(0)))
    return emitOpError("C2: offsets must be multiples of ") << kAlignment;
  // Linear in B on both sides: true for all B if it is for the smallest and the largest.
  ViewType type = getType();
  auto program = cast<ProgramOp>((*this)->getParentOp());
  for (int64_t bound : {std::min<int64_t>(1, program.boundMax()), program.boundMax()}) {
    uint64_t end = *getOffset() + getPerBound().value_or(0) * bound +
                   type.numBytes() * (type.isBounded() ? bound : 1);
    uint64_t size = arena.getBytes() + arena.getPerBound() * bound;
    if (end > size)
      return emitOpError("C3: ends at byte ")
             << end << " of an arena of " << size << " (B = " << bound << ")";
  }
  return success();
}

/// The view holds this rank's shard of a tensor of the global type.
static LogicalResult verifyShard(Operation *op, Type global, ViewType view) {
  auto type = dyn_cast<RankedTensorType>(global);
  if (!type || type.getElementType() != view.getElementType() || view.isBounded() ||
      ArrayRef(shardShape(type, getMesh(op->getParentOfType<PlanOp>()))) != view.getShape())
    return op->emitOpError("C1: ") << view << " does not hold a shard of " << global;
  return success();
}

LogicalResult InputOp::verify() {
  if (failed(verifyShard(*this, getType(), getView().getType())))
    return failure();
  if (getRange() && (getRange()->size() != 2 || (*getRange())[0] > (*getRange())[1] ||
                     !getView().getType().getElementType().isInteger()))
    return emitOpError("C2: a range is [least, largest] and belongs to integers");
  return success();
}

LogicalResult OutputOp::verify() {
  if (failed(verifyShard(*this, getType(), getView().getType())))
    return failure();
  if (!getSourceAttr())
    return success();
  auto source = dyn_cast<moe::SourceAttr>(getSourceAttr());
  if (!source)
    return emitOpError("C2: not a source: ") << getSourceAttr();
  return moe::verifySource(*this, source, cast<RankedTensorType>(getType()));
}

LogicalResult TraceOp::verify() {
  if (failed(verifyShard(*this, getType(), getView().getType())))
    return failure();
  int64_t writers = 0;
  for (OpOperand &use : getView().getUses())
    if (auto instr = dyn_cast<InstructionInterface>(use.getOwner())) {
      OperandRange writes = instr.getWrites();
      if (writes.empty())
        continue;
      unsigned first = writes.getBeginOperandIndex(), at = use.getOperandNumber();
      writers += at >= first && at < first + writes.size();
    }
  if (writers != 1)
    return emitOpError("C2: ") << writers << " instructions write the view";
  return success();
}

//===----------------------------------------------------------------------===//
// On tensors
//===----------------------------------------------------------------------===//

LogicalResult MoveOp::verify() {
  if (getTo() != Space::device && getTo() != Space::host)
    return emitOpError("C1: goes to device or host");
  auto type = cast<RankedTensorType>(getType());
  if (!type.hasStaticShape() || type.getEncoding())
    return emitOpError("C2: not a whole tensor of one rank: ") << type;
  return success();
}

LogicalResult GroupedGluGradOp::verify() {
  auto shapeOf = [](Value v) { return cast<RankedTensorType>(v.getType()).getShape(); };
  ArrayRef<int64_t> dy = shapeOf(getDy()), w = shapeOf(getW());
  if (w.size() != 3 || dy.size() != 2 || w[1] != dy[1])
    return emitOpError("C1: w is not [E,D,F], or dy not [R,D]");
  if (shapeOf(getZ()) != ArrayRef<int64_t>{dy[0], 2, w[2]} ||
      shapeOf(getGroups()) != ArrayRef<int64_t>{1, w[0]})
    return emitOpError("C2: z is not [R,2,F], or groups are not [1,E]");
  if (getDz().getType() != getZ().getType() ||
      shapeOf(getAct()) != ArrayRef<int64_t>{dy[0], w[2]} ||
      shapeOf(getDots()) != shapeOf(getPos()) ||
      !cast<RankedTensorType>(getDots().getType()).getElementType().isF32())
    return emitOpError(
        "C3: dz has not z's type, or act is not [R,F], or dots are not f32 in pos' shape");
  return success();
}

LogicalResult FusedOp::verify() {
  Block &block = getBody().front();
  if (block.getArgumentTypes() != getInputs().getTypes())
    return emitOpError("C1: the body's arguments do not have the operands' types");
  auto yield = block.empty() ? YieldOp() : dyn_cast<YieldOp>(block.back());
  if (!yield || yield.getValues().getTypes() != getResultTypes())
    return emitOpError("C2: the body must yield the results' types");
  if (llvm::hasSingleElement(block))
    return emitOpError("C3: the body is empty");
  return success();
}
