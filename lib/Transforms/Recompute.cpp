//===- Recompute.cpp - --dist-recompute -----------------------------------===//
// Values of the forward program that the backward one reads are kept from the one to the other, or
// made again where they are first read. Which, is a minimum cut (as Jain et al., Checkmate, 2020,
// arXiv:1910.02653, state the problem and PyTorch's partitioner solves it): every value can be kept
// at the cost of its bytes on a rank; what may be made again needs its operands instead. Of the
// cheapest cuts the one is taken that makes the least again.
//
// After partitioning, because only there stand the collectives, and what a rank holds of a value.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Analysis/MinCut.h"
#include "moira/Support/Place.h"
#include "moira/Transforms/Passes.h"
#include "llvm/ADT/StringSwitch.h"

namespace moira {
#define GEN_PASS_DEF_DISTRECOMPUTE
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {

enum class Policy { none, selective, full };

/// Arithmetic that is worth a byte of memory: about what a processor does while it reads one, so
/// that making such a value again takes no longer than reading it back. Norms, activations and
/// moves of rows need less, products far more.
constexpr double kFlopsPerByte = 4;

/// One program, whose losses are made before its gradients.
class Program {
public:
  Program(func::FuncOp func, const MeshInfo &mesh, Policy policy)
      : block(func.front()), mesh(mesh), policy(policy) {
    for (auto [i, op] : llvm::enumerate(block)) {
      order[&op] = i;
      if (op.hasAttr(kBackwardAttr))
        forwardEnd = i;
    }
  }

  /// Decides what is kept; its bytes on a rank.
  int64_t choose();
  /// Makes the rest again; how many operations that takes.
  unsigned rewrite();

private:
  bool isForward(Operation *op) const { return order.lookup(op) < forwardEnd; }
  /// Whether this is a value of the forward program that is kept only if the backward one needs
  /// it. Others are there anyway: inputs, weights, and what a routing is made of.
  bool isOptional(Value value) const;
  bool mayRepeat(Operation *op) const;
  int64_t bytesOf(Value value) const;
  static StringRef layerOf(Operation *op) { return layerPlaceOf(placeOf(op->getLoc())); }
  bool crossesLayers(Value value) const;
  Value again(Value value, OpBuilder &b);

  Block &block;
  const MeshInfo &mesh;
  Policy policy;
  llvm::DenseMap<Operation *, int64_t> order;
  int64_t forwardEnd = 0; ///< position of the first operation of the backward program
  llvm::DenseSet<Value> repeated;
  llvm::DenseMap<Value, Value> made;
};

bool Program::crossesLayers(Value value) const {
  StringRef own = layerOf(value.getDefiningOp());
  return llvm::any_of(value.getUsers(),
                      [&](Operation *user) { return isForward(user) && layerOf(user) != own; });
}

bool Program::isOptional(Value value) const {
  Operation *op = value.getDefiningOp();
  if (!op || !isForward(op) || isa<moe::ParamOp>(op))
    return false;
  auto tensor = dyn_cast<RankedTensorType>(value.getType());
  return tensor && isa<FloatType>(tensor.getElementType());
}

bool Program::mayRepeat(Operation *op) const {
  // What stands outside of the layers is needed at once, or small. And what one layer gives to
  // another one ends a chain: made again it would ask for the layer before, and so on, all at once.
  if (policy == Policy::none || !isPure(op) || layerOf(op).empty() ||
      llvm::any_of(op->getResultTypes(), llvm::IsaPred<moe::RoutingType>) ||
      llvm::any_of(op->getResults(),
                   [&](Value result) { return isOptional(result) && crossesLayers(result); }))
    return false;
  if (policy == Policy::full)
    return true;
  auto cost = dyn_cast<CostInterface>(op);
  double bytes = 0; // of all ranks, as the arithmetic is
  for (Type result : op->getResultTypes())
    if (auto tensor = dyn_cast<RankedTensorType>(result))
      bytes += double(tensor.getNumElements()) * tensor.getElementTypeBitWidth() / 8;
  return cost && cost.getFlops() <= kFlopsPerByte * bytes;
}

int64_t Program::bytesOf(Value value) const {
  auto type = cast<RankedTensorType>(value.getType());
  SmallVector<int64_t> shape(type.getShape());
  if (dist::ShardingAttr sharding = shardingOf(value))
    shape = dist::localShape(shape, sharding, mesh);
  int64_t bytes = type.getElementTypeBitWidth() / 8;
  for (int64_t size : shape)
    bytes *= size;
  return bytes;
}

int64_t Program::choose() {
  SmallVector<Value> values;
  llvm::DenseMap<Value, unsigned> numbers;
  for (Operation &op : block)
    for (Value result : op.getResults())
      if (isOptional(result)) {
        numbers[result] = values.size();
        values.push_back(result);
      }
  // Of each value two nodes: it is made, and it is there for the backward program.
  constexpr unsigned kSource = 0, kSink = 1;
  auto madeNode = [](unsigned i) { return 2 + 2 * i; };
  auto thereNode = [](unsigned i) { return 3 + 2 * i; };
  FlowNetwork network(2 + 2 * values.size());
  for (auto [i, value] : llvm::enumerate(values)) {
    network.addEdge(madeNode(i), thereNode(i), bytesOf(value));
    Operation *op = value.getDefiningOp();
    if (!mayRepeat(op)) {
      network.addEdge(kSource, madeNode(i), FlowNetwork::kInfinite);
      continue;
    }
    for (Value operand : op->getOperands())
      if (auto from = numbers.find(operand); from != numbers.end())
        network.addEdge(thereNode(from->second), madeNode(i), FlowNetwork::kInfinite);
  }
  llvm::DenseSet<Value> read;
  for (Operation &op : block.without_terminator())
    if (!isForward(&op))
      for (Value operand : op.getOperands())
        if (auto from = numbers.find(operand); from != numbers.end() && read.insert(operand).second)
          network.addEdge(thereNode(from->second), kSink, FlowNetwork::kInfinite);
  FlowNetwork::Cut cut = network.minCut(kSource, kSink);
  for (auto [i, value] : llvm::enumerate(values))
    if (cut.sinkSide[madeNode(i)])
      repeated.insert(value);
  return cut.capacity;
}

/// `value` made once more, before the first operation that wants it.
Value Program::again(Value value, OpBuilder &b) {
  if (!repeated.contains(value))
    return value;
  if (Value known = made.lookup(value))
    return known;
  Operation *op = value.getDefiningOp();
  SmallVector<Value> operands;
  for (Value operand : op->getOperands())
    operands.push_back(again(operand, b));
  Operation *copy = b.clone(*op);
  copy->setOperands(operands);
  copy->setAttr(dist::kRecomputedAttr, b.getUnitAttr());
  for (auto [old, fresh] : llvm::zip(op->getResults(), copy->getResults()))
    made[old] = fresh;
  return made.lookup(value);
}

unsigned Program::rewrite() {
  SmallVector<Operation *> backward;
  for (Operation &op : block.without_terminator())
    if (!isForward(&op))
      backward.push_back(&op);
  unsigned before = block.getOperations().size();
  for (Operation *op : backward) {
    OpBuilder b(op);
    for (OpOperand &operand : op->getOpOperands())
      operand.set(again(operand.get(), b));
  }
  return block.getOperations().size() - before;
}

struct Recompute : moira::impl::DistRecomputeBase<Recompute> {
  using DistRecomputeBase::DistRecomputeBase;

  void runOnOperation() override {
    auto known = llvm::StringSwitch<std::optional<Policy>>(policy.getValue())
                     .Case("none", Policy::none)
                     .Case("selective", Policy::selective)
                     .Case("full", Policy::full)
                     .Default(std::nullopt);
    if (!known) {
      emitError(getOperation().getLoc(), "MOE-0601: dist-recompute: policy '")
          << policy.getValue() << "' is none of none, selective and full";
      return signalPassFailure();
    }
    MeshInfo mesh = dist::getMesh(getOperation());
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>()) {
      if (func.isExternal())
        continue;
      Program program(func, mesh, *known);
      int64_t kept = program.choose();
      unsigned repeated = program.rewrite();
      keptBytes += kept;
      recomputed += repeated;
      if (remark)
        emitRemark(func.getLoc()) << "keeps " << kept << " bytes for the backward pass, repeats "
                                  << repeated << " operations";
    }
  }
};

} // namespace
