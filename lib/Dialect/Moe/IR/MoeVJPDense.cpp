//===- MoeVJPDense.cpp - gradients of dense ops, attention and losses -----===//
// One buildVJP an op. Which ops need none of their own kind is worth a look: a rotation is undone
// by the opposite one, a gate's x by the gate, a bias by a sum.
//===----------------------------------------------------------------------===//
#include "MoeVJP.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;

#include "Moe/DifferentiableOpInterface.cpp.inc"

using Grads = MutableArrayRef<Value>;

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

LogicalResult EmbeddingOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[1] = EmbeddingGradOp::create(b, getLoc(), cotangentType(getTable()), getIds(), dy[0],
                                        getTable(), Attribute(), getPadAttr());
  return success();
}

LogicalResult LinearOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = LinearInputGradOp::create(b, getLoc(), cotangentType(getX()), dy[0], getW(),
                                          getContractAttr());
  operands[1] = LinearWeightGradOp::create(b, getLoc(), cotangentType(getW()), dy[0], getX(),
                                           getContractAttr());
  return success();
}

LogicalResult HeadLinearOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  // The product rounds its operand itself where w is bf16.
  Value rounded = toElement(b, dy[0], tensorOf(getW()).getElementType());
  Value dx = HeadLinearOp::create(b, getLoc(), cotangentType(getX(), rounded), rounded, getW(),
                                  !getTransposed());
  operands[0] = toElement(b, dx, b.getF32Type());
  Value outer = dy[0], inner = getX();
  if (getTransposed())
    std::swap(outer, inner);
  operands[1] = HeadWeightGradOp::create(b, getLoc(), cotangentType(getW()), outer, inner);
  return success();
}

//===----------------------------------------------------------------------===//
// Row-wise and element-wise ops
//===----------------------------------------------------------------------===//

LogicalResult RmsNormOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  int64_t count = tensorOf(getW()).getNumElements();
  auto grad = RmsNormGradOp::create(b, getLoc(), cotangentType(getX()), cotangentType(getW()),
                                    dy[0], getX(), getW(), Value(), Value(), getEpsAttr(),
                                    b.getI64IntegerAttr(count));
  operands[0] = grad.getDx();
  operands[1] = grad.getDw();
  return success();
}

LogicalResult LayerNormOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  Type weight = cotangentType(getW());
  auto grad = LayerNormGradOp::create(b, getLoc(), cotangentType(getX()), weight, weight, dy[0],
                                      getX(), getW(), getEpsAttr());
  operands[0] = grad.getDx();
  operands[1] = grad.getDw();
  if (getB())
    operands[2] = grad.getDb();
  return success();
}

LogicalResult AddOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = dy[0];
  operands[1] = tensorOf(getB()).getRank() == tensorOf(getA()).getRank()
                    ? dy[0]
                    : SumRowsOp::create(b, getLoc(), cotangentType(getB()), dy[0]).getResult();
  return success();
}

LogicalResult ScaleOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = ScaleOp::create(b, getLoc(), dy[0].getType(), dy[0], getFactorAttr());
  return success();
}

LogicalResult ClampOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] =
      ClampGradOp::create(b, getLoc(), dy[0].getType(), dy[0], getX(), getLoAttr(), getHiAttr());
  return success();
}

LogicalResult ActOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = ActGradOp::create(b, getLoc(), dy[0].getType(), dy[0], getX(), getActivationAttr());
  return success();
}

LogicalResult GluOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] =
      GluGradOp::create(b, getLoc(), cotangentType(getX(), dy[0]), dy[0], getX(),
                        getActivationAttr(), getLimitAttr(), getAlphaAttr(), getUpShiftAttr());
  return success();
}

LogicalResult JitterOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = JitterOp::create(b, getLoc(), dy[0].getType(), dy[0], getStep(), getPart(),
                                 getEpsAttr(), getLayerAttr(), getSeedAttr(), IntegerAttr(),
                                 IntegerAttr(), Attribute(), Attribute());
  return success();
}

LogicalResult SigmoidGateOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = SigmoidGateOp::create(b, getLoc(), dy[0].getType(), dy[0], getG());
  operands[1] =
      SigmoidGateGradOp::create(b, getLoc(), cotangentType(getG()), getX(), dy[0], getG());
  return success();
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

LogicalResult WholeOp::buildVJP(OpBuilder &, ValueRange dy, Grads operands) {
  operands[0] = dy[0];
  return success();
}

LogicalResult RopeOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  Value back = ScaleOp::create(b, getLoc(), getSin().getType(), getSin(), llvm::APFloat(-1.0));
  operands[0] =
      RopeOp::create(b, getLoc(), dy[0].getType(), dy[0], getCos(), back, getInterleavedAttr());
  return success();
}

LogicalResult RelativeBiasOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = RelativeBiasGradOp::create(b, getLoc(), cotangentType(getTable()), dy[0], getQpos(),
                                           getKpos(), getTable(), getMaxDistanceAttr(),
                                           getBidirectionalAttr());
  return success();
}

LogicalResult AttentionOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  // The operands that have gradients, by their numbers.
  SmallVector<unsigned> numbers{0, 1, 2};
  for (unsigned i = 6; i < getNumOperands(); ++i)
    numbers.push_back(i);
  SmallVector<Type> types;
  for (unsigned i : numbers)
    types.push_back(cotangentType(getOperand(i)));
  auto grad = AttentionGradOp::create(
      b, getLoc(), types, dy[0], getQ(), getK(), getV(), getQpos(), getKpos(), getKmask(), getQ2(),
      getK2(), getBias(), getSinks(), getScaleAttr(), getWindowAttr(), getQHeadsAttr(),
      getKvHeadsAttr(), getBidirectionalAttr(), Attribute(), Attribute());
  for (auto [i, value] : llvm::zip(numbers, grad.getGrads()))
    operands[i] = value;
  return success();
}

//===----------------------------------------------------------------------===//
// Losses
//===----------------------------------------------------------------------===//

LogicalResult CrossEntropyStatsOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] =
      CrossEntropyStatsGradOp::create(b, getLoc(), cotangentType(getX(), getX()), dy[0], getX(),
                                      getMax(), getLabels(), getClassesAttr(), Attribute());
  return success();
}

LogicalResult CrossEntropyOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  if (dy[0])
    operands[0] =
        CrossEntropyGradOp::create(b, getLoc(), cotangentType(getStats()), dy[0], getStats(),
                                   getLabels(), getClassesAttr(), getSmoothingAttr());
  return success();
}

LogicalResult RatioOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = RatioOp::create(b, getLoc(), dy[0].getType(), dy[0], getB());
  return success();
}

LogicalResult ExpertProbsOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] =
      ExpertProbsGradOp::create(b, getLoc(), cotangentType(getLogits()), dy[0], getLogits());
  return success();
}

LogicalResult BalanceOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[1] = BalanceGradOp::create(b, getLoc(), cotangentType(getProbs()), dy[0], getLoad(),
                                      getTokensAttr());
  return success();
}

LogicalResult SequenceBalanceOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[1] = SequenceBalanceGradOp::create(b, getLoc(), cotangentType(getLogits()), dy[0],
                                              getRouting(), getLogits(), getSequencesAttr());
  return success();
}

LogicalResult RouterZOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = RouterZGradOp::create(b, getLoc(), cotangentType(getLogits()), dy[0], getLogits(),
                                      getTokensAttr());
  return success();
}
