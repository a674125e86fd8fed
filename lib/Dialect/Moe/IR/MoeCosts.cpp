//===- MoeCosts.cpp - the arithmetic of products and attention ------------===//
// CostInterface for the operations that do more than one operation an element. A product's
// gradients have the loops of the product.
//===----------------------------------------------------------------------===//
#include "moira/Dialect/Moe/IR/MoeOps.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;

static double elements(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return tensor ? double(tensor.getNumElements()) : 0;
}
static double elements(Value value) { return elements(value.getType()); }

/// Elements of the last `count` dimensions.
static double inner(Value value, int64_t count) {
  double product = 1;
  for (int64_t size : cast<RankedTensorType>(value.getType()).getShape().take_back(count))
    product *= size;
  return product;
}

double moira::elementsMoved(Operation *op) {
  double sum = 0;
  for (Type type : op->getOperandTypes())
    sum += elements(type);
  for (Type type : op->getResultTypes())
    sum += elements(type);
  return sum;
}

#include "Moe/CostInterface.cpp.inc"

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

double LinearOp::getFlops() { return 2 * elements(getResult()) * inner(getW(), getContract()); }
double LinearInputGradOp::getFlops() {
  return 2 * elements(getDy()) * inner(getW(), getContract());
}
double LinearWeightGradOp::getFlops() {
  return 2 * elements(getDy()) * inner(getX(), getContract());
}
double HeadLinearOp::getFlops() { return 2 * elements(getResult()) * inner(getX(), 1); }
double HeadWeightGradOp::getFlops() { return 2 * elements(getDy()) * inner(getX(), 1); }
double GroupedMatmulOp::getFlops() {
  return 2 * elements(getResult()) * inner(getW(), getContract());
}
double GroupedInputGradOp::getFlops() {
  return 2 * elements(getDy()) * inner(getW(), getContract());
}
double GroupedWeightGradOp::getFlops() {
  return 2 * elements(getDy()) * inner(getRows(), getContract());
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

/// Of one product of queries and keys, as if every query saw every key, with heads of width
/// `width`.
static double scoreFlops(Value q, Value kpos, double width) {
  return 2 * elements(q) / inner(q, 1) * elements(kpos) * width;
}

double AttentionOp::getFlops() {
  double width = inner(getQ(), 1) + inner(getV(), 1) + (getQ2() ? inner(getQ2(), 1) : 0);
  return scoreFlops(getQ(), getKpos(), width);
}

/// The scores again, and two products for each of the forward ones.
double AttentionGradOp::getFlops() {
  double keys = inner(getQ(), 1) + (getQ2() ? inner(getQ2(), 1) : 0);
  return scoreFlops(getQ(), getKpos(), 3 * keys + 2 * inner(getV(), 1));
}
