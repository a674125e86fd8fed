//===- KernelGroups.cpp - row ops as one generated kernel -----------------===//
#include "KernelGroups.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;
using kernels::KernelSpec;
using kernels::ScalarType;

static RankedTensorType tensorOf(Value v) { return cast<RankedTensorType>(v.getType()); }
static int64_t rankOf(Value v) { return tensorOf(v).getRank(); }

static std::optional<ScalarType> scalarType(Type type) {
  if (type.isF32())
    return ScalarType::F32;
  if (type.isBF16())
    return ScalarType::BF16;
  if (type.isF16())
    return ScalarType::F16;
  return std::nullopt;
}

bool moira::isRowOp(Operation *op) {
  if (auto rope = dyn_cast<moe::RopeOp>(op)) // kernels rotate halves of heads
    return !rope.getInterleaved() && rankOf(rope.getX()) == 4;
  return isa<moe::RmsNormOp, moe::LayerNormOp, moe::SumSquaresOp, moe::RmsApplyOp, moe::AddOp,
             moe::ScaleOp, moe::ClampOp, moe::ActOp, moe::GluOp, moe::SigmoidGateOp>(op);
}

/// How many leading dimensions of the op's first operand may be rows.
static int64_t maxLeading(Operation *op) {
  return llvm::TypeSwitch<Operation *, int64_t>(op)
      .Case<moe::RmsNormOp, moe::LayerNormOp, moe::RmsApplyOp>(
          [](auto norm) { return rankOf(norm.getX()) - rankOf(norm.getW()); })
      .Case<moe::SumSquaresOp>(
          [](auto sum) { return rankOf(sum.getX()) - static_cast<int64_t>(sum.getNormDims()); })
      .Case<moe::AddOp>([](auto add) {
        bool same = rankOf(add.getA()) == rankOf(add.getB());
        return std::max<int64_t>(0, rankOf(add.getA()) - (same ? 1 : rankOf(add.getB())));
      })
      .Case<moe::GluOp>([](auto glu) { return rankOf(glu.getX()) - 2; })
      .Case<moe::RopeOp>([](auto) { return 1; })
      .Default(
          [](Operation *other) { return std::max<int64_t>(0, rankOf(other->getOperand(0)) - 1); });
}

/// The operands that are the same for all rows.
static bool isSharedOperand(OpOperand &operand) {
  Operation *op = operand.getOwner();
  unsigned i = operand.getOperandNumber();
  if (isa<moe::RmsNormOp, moe::LayerNormOp, moe::RopeOp>(op))
    return i > 0;
  if (isa<moe::RmsApplyOp>(op))
    return i == 2;
  return isa<moe::AddOp>(op) && i == 1 && rankOf(op->getOperand(0)) != rankOf(op->getOperand(1));
}

namespace {

/// One attempt to describe a group.
class SpecBuilder {
public:
  explicit SpecBuilder(int64_t leading) : leading(leading) {}

  /// Declares an input operand of the kernel.
  bool addInput(Value value, bool shared);
  /// Adds the op as a step; its operands are known values.
  void addStep(Operation *op);
  /// Notes the rows of a rowwise value; false if they differ from those seen before.
  bool fitsRows(RankedTensorType type);

  GroupKernel kernel;
  llvm::DenseMap<Value, unsigned> numbers;

private:
  unsigned number(Value v) { return numbers.lookup(v); }
  /// The number of the value that `norm` rounds, if this kernel has the same norm in f32.
  std::optional<unsigned> exactNorm(moe::RmsNormOp norm);

  int64_t leading;
  std::optional<SmallVector<int64_t>> rowShape;
};

bool SpecBuilder::fitsRows(RankedTensorType type) {
  ArrayRef<int64_t> shape = type.getShape();
  if (static_cast<int64_t>(shape.size()) < leading)
    return false;
  SmallVector<int64_t> rows(shape.take_front(leading));
  bool bounded = false;
  if (auto encoding = dyn_cast_if_present<dist::RowsAttr>(type.getEncoding())) {
    if (encoding.getDim() >= leading)
      return false;
    rows[encoding.getDim()] = encoding.getScale();
    bounded = true;
  }
  if (rowShape)
    return *rowShape == rows && kernel.bounded == bounded;
  rowShape = rows;
  kernel.bounded = bounded;
  for (int64_t size : rows)
    kernel.rows *= size;
  return true;
}

bool SpecBuilder::addInput(Value value, bool shared) {
  RankedTensorType type = tensorOf(value);
  std::optional<ScalarType> scalar = scalarType(type.getElementType());
  if (!scalar)
    return false;
  if (shared) {
    if (isa_and_present<dist::RowsAttr>(type.getEncoding()))
      return false;
    numbers[value] = kernel.spec.shared(*scalar, type.getShape());
    return true;
  }
  if (!fitsRows(type))
    return false;
  numbers[value] = kernel.spec.input(*scalar, type.getShape().drop_front(leading));
  return true;
}

std::optional<unsigned> SpecBuilder::exactNorm(moe::RmsNormOp norm) {
  for (Operation *user : norm.getX().getUsers())
    if (auto other = dyn_cast<moe::RmsNormOp>(user);
        other && other != norm && other.getX() == norm.getX() && other.getW() == norm.getW() &&
        other.getEpsAttr() == norm.getEpsAttr() &&
        tensorOf(other.getResult()).getElementType().isF32())
      if (auto it = numbers.find(other.getResult()); it != numbers.end())
        return it->second;
  return std::nullopt;
}

void SpecBuilder::addStep(Operation *op) {
  KernelSpec &spec = kernel.spec;
  Value first = op->getOperand(0);
  unsigned x = number(first), result = 0;
  llvm::TypeSwitch<Operation *>(op)
      .Case<moe::RmsNormOp>([&](auto norm) {
        std::optional<unsigned> exact = exactNorm(norm);
        result = exact ? spec.cast(*exact, ScalarType::F32)
                       : spec.rmsNorm(x, number(norm.getW()), norm.getEps().convertToDouble());
      })
      .Case<moe::LayerNormOp>([&](auto norm) {
        std::optional<unsigned> bias;
        if (norm.getB())
          bias = number(norm.getB());
        result = spec.layerNorm(x, number(norm.getW()), bias, norm.getEps().convertToDouble());
      })
      .Case<moe::SumSquaresOp>(
          [&](auto sum) { result = spec.sumSquares(x, static_cast<unsigned>(sum.getNormDims())); })
      .Case<moe::RmsApplyOp>([&](auto apply) {
        result = spec.rmsApply(x, number(apply.getSs()), number(apply.getW()),
                               apply.getEps().convertToDouble(), apply.getCount());
      })
      .Case<moe::AddOp>([&](auto add) { result = spec.add(x, number(add.getB())); })
      .Case<moe::ClampOp>([&](auto clamp) {
        result = spec.clamp(x, clamp.getLo().convertToDouble(), clamp.getHi().convertToDouble());
      })
      .Case<moe::ScaleOp>(
          [&](auto scale) { result = spec.scale(x, scale.getFactor().convertToDouble()); })
      .Case<moe::ActOp>([&](auto act) {
        result = spec.act(x, static_cast<kernels::Activation>(act.getActivation()));
      })
      .Case<moe::GluOp>([&](auto glu) {
        result = spec.glu(x, static_cast<kernels::Activation>(glu.getActivation()));
        if (glu.getLimit())
          spec.back().limit = glu.getLimit()->convertToDouble();
        if (glu.getAlpha())
          spec.back().alpha = glu.getAlpha()->convertToDouble();
        if (glu.getUpShift())
          spec.back().upShift = glu.getUpShift()->convertToDouble();
      })
      .Case<moe::SigmoidGateOp>(
          [&](auto gate) { result = spec.sigmoidGate(x, number(gate.getG())); })
      .Case<moe::RopeOp>(
          [&](auto rope) { result = spec.rope(x, number(rope.getCos()), number(rope.getSin())); });
  Value value = op->getResult(0);
  if (std::optional<ScalarType> type = scalarType(tensorOf(value).getElementType()))
    spec.back().type = *type;
  numbers[value] = result;
}

} // namespace

std::optional<GroupKernel> moira::makeGroupKernel(ArrayRef<Operation *> members,
                                                  ArrayRef<Value> inputs, ArrayRef<Value> results) {
  int64_t leading = std::numeric_limits<int64_t>::max();
  llvm::DenseMap<Value, bool> shared;
  for (Operation *op : members) {
    leading = std::min(leading, maxLeading(op));
    for (OpOperand &operand : op->getOpOperands()) {
      auto [use, fresh] = shared.try_emplace(operand.get(), isSharedOperand(operand));
      if (!fresh && use->second != isSharedOperand(operand))
        return std::nullopt;
    }
  }
  if (leading < 0)
    return std::nullopt;
  SpecBuilder builder(leading);
  for (Value input : inputs)
    if (!builder.addInput(input, shared.lookup(input)))
      return std::nullopt;
  for (Operation *op : members) {
    Value result = op->getResult(0);
    if (shared.lookup(result) || !scalarType(tensorOf(result).getElementType()) ||
        !builder.fitsRows(tensorOf(result)))
      return std::nullopt;
    builder.addStep(op);
  }
  for (Value result : results)
    builder.kernel.spec.output(builder.numbers.lookup(result));
  llvm::Expected<std::vector<kernels::RowValue>> values = builder.kernel.spec.infer();
  if (!values) {
    llvm::consumeError(values.takeError());
    return std::nullopt;
  }
  return std::move(builder.kernel);
}
