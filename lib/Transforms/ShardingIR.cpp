//===- ShardingIR.cpp - reading and writing shardings in IR ---------------===//
#include "ShardingIR.h"

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

ShardingAttr moira::shardingOf(Value value) { return dist::getSharding(value.getType()); }

SmallVector<ShardingAttr> moira::shardingsOf(ValueRange values) {
  return llvm::map_to_vector(values, [](Value v) { return shardingOf(v); });
}

void moira::setSharding(Value value, ShardingAttr sharding) {
  value.setType(dist::withSharding(value.getType(), sharding));
}

bool moira::isPartOfWeight(Value value) {
  auto elementOf = [](Value v) { return cast<RankedTensorType>(v.getType()).getElementType(); };
  if (auto scale = value.getDefiningOp<moe::ScaleOp>();
      scale && elementOf(scale.getX()) != elementOf(scale) && scale.getFactor().isExactlyValue(1.0))
    value = scale.getX();
  return value.getDefiningOp<moe::ParamOp>() != nullptr;
}

bool moira::isShardable(Type type) { return isa<RankedTensorType, moe::RoutingType>(type); }

ArrayRef<int64_t> moira::shardableShape(Type type) {
  if (auto routing = dyn_cast<moe::RoutingType>(type))
    return routing.getTokens();
  return cast<RankedTensorType>(type).getShape();
}

int64_t moira::shardableRank(Type type) { return shardableShape(type).size(); }

void moira::updateFunctionType(func::FuncOp func) {
  if (func.isExternal())
    return;
  Block &body = func.front();
  func.setFunctionType(FunctionType::get(func.getContext(), body.getArgumentTypes(),
                                         body.getTerminator()->getOperandTypes()));
}

StateTable::StateTable(ModuleOp module) {
  for (moe::StateOp state : module.getOps<moe::StateOp>())
    states[state.getSymNameAttr()] = state;
  module.walk([&](moe::ParamOp param) {
    if (moe::StateOp state = states.lookup(param.getStateAttr().getAttr()))
      params[state].push_back(param);
  });
}

moe::StateOp StateTable::stateOf(Value value) const {
  moe::ParamOp param = moe::paramOf(value);
  return param ? states.lookup(param.getStateAttr().getAttr()) : moe::StateOp();
}

ArrayRef<moe::ParamOp> StateTable::paramsOf(moe::StateOp state) const {
  auto found = params.find(state);
  return found == params.end() ? ArrayRef<moe::ParamOp>() : found->second;
}

ShardingAttr StateTable::getSharding(moe::StateOp state) const {
  return dist::getSharding(state.getTensorType());
}

void StateTable::setSharding(moe::StateOp state, ShardingAttr sharding) const {
  Type type = dist::withSharding(state.getTensorType(), sharding);
  state.setType(type);
  for (moe::ParamOp param : params.lookup(state)) {
    param.getResult().setType(cast<RankedTensorType>(type));
    for (Operation *user : param->getUsers())
      if (user->getNumResults() == 1 && moe::paramOf(user->getResult(0)) == param)
        moira::setSharding(user->getResult(0), sharding);
  }
}

LogicalResult StateTable::cutDim(moe::StateOp state, int64_t dim, DimShardingAttr cut) const {
  ShardingAttr sharding = getSharding(state);
  if (!sharding)
    sharding = ShardingAttr::replicated(state.getContext(), state.getTensorType().getRank());
  DimShardingAttr old = sharding.getDims()[dim];
  if (old == cut)
    return success();
  SmallVector<StringAttr> used = sharding.usedAxes();
  if (!old.isReplicated() ||
      llvm::any_of(cut.getAxes(), [&](StringAttr axis) { return llvm::is_contained(used, axis); }))
    return emitError(state.getLoc(), "MOE-0601: dimension ")
           << dim << " of state @" << state.getSymName() << " is to be cut as " << cut
           << ", but its sharding is " << sharding << " already; its uses disagree";
  setSharding(state, sharding.withDim(dim, cut));
  return success();
}
