//===- MoeVJPExperts.cpp - gradients of routing and expert ops ------------===//
// A routing is saved, never made again; its cotangent is that of its weights. Dispatch and combine
// are each other's transposes, so rows go back the way that they came.
//===----------------------------------------------------------------------===//
#include "MoeVJP.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;

using Grads = MutableArrayRef<Value>;

/// Whether the weights of a routing multiply what experts get.
static bool weighsInputs(Value routing) {
  RouterAttr router = firstRouterOf(routing);
  return router && router.getApply() == RouteApply::input;
}

static RankedTensorType weightsType(RoutingType routing) {
  SmallVector<int64_t> shape(routing.getTokens());
  shape.push_back(routing.getK());
  return RankedTensorType::get(shape, Float32Type::get(routing.getContext()));
}

//===----------------------------------------------------------------------===//
// Gates
//===----------------------------------------------------------------------===//

LogicalResult RouteOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = RouteGradOp::create(b, getLoc(), cotangentType(getLogits()), dy[0], getLogits(),
                                    getResult(), getRouter());
  return success();
}

LogicalResult RouteToOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = RouteGradOp::create(b, getLoc(), cotangentType(getLogits()), dy[0], getLogits(),
                                    getResult(), getRouter());
  return success();
}

LogicalResult LimitOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  if (dy[0])
    operands[0] = LimitGradOp::create(b, getLoc(), weightsType(getRouting().getType()), dy[0],
                                      getRouting(), getResult(), getCapacity());
  return success();
}

LogicalResult RedirectOp::buildVJP(OpBuilder &, ValueRange dy, Grads operands) {
  operands[0] = dy[0];
  return success();
}

//===----------------------------------------------------------------------===//
// Rows
//===----------------------------------------------------------------------===//

LogicalResult DispatchOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  if (getWeighted())
    return emitOpError("MOE-0601: a weighted dispatch is a gradient and has none itself");
  operands[0] = CombineOp::create(b, getLoc(), cotangentType(getX()), dy[0], getRouting(),
                                  /*unit=*/true);
  if (weighsInputs(getRouting()))
    operands[1] = ChoiceDotsOp::create(b, getLoc(), weightsType(getRouting().getType()), dy[0],
                                       getX(), getRouting());
  return success();
}

LogicalResult CombineOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  if (getUnit())
    return emitOpError("MOE-0601: a combine without weights is a gradient and has none itself");
  Value rounded = toElement(b, dy[0], tensorOf(getRows()).getElementType());
  operands[0] = DispatchOp::create(b, getLoc(), cotangentType(getRows(), rounded), rounded,
                                   getRouting(), ArrayAttr(), IntegerAttr(), /*weighted=*/true);
  if (!weighsInputs(getRouting()))
    operands[1] = ChoiceDotsOp::create(b, getLoc(), weightsType(getRouting().getType()), getRows(),
                                       dy[0], getRouting());
  return success();
}

LogicalResult GroupedMatmulOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = GroupedInputGradOp::create(b, getLoc(), cotangentType(getRows(), dy[0]), dy[0],
                                           getGroups(), getW(), getContractAttr());
  operands[2] = GroupedWeightGradOp::create(b, getLoc(), cotangentType(getW()), dy[0], getGroups(),
                                            getRows(), Value(), getContractAttr());
  return success();
}

LogicalResult GroupedBiasOp::buildVJP(OpBuilder &b, ValueRange dy, Grads operands) {
  operands[0] = dy[0];
  operands[2] =
      GroupedBiasGradOp::create(b, getLoc(), cotangentType(getB()), dy[0], getGroups(), Value());
  return success();
}
