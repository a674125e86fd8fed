//===- AddLoads.cpp - --moe-add-loads -------------------------------------===//
// Some updates need to know how many choices in a step went to each expert: those of experts that
// an optimizer passes over where they have no tokens, and those of selection biases that are moved
// to even out the load. A program that gives gradients gives these loads too, as results whose
// attribute `moe.load_of` names the states that are updated by them.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"
#include "llvm/ADT/SetVector.h"

namespace moira {
#define GEN_PASS_DEF_MOEADDLOADS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct AddLoads : moira::impl::MoeAddLoadsBase<AddLoads> {
  using MoeAddLoadsBase::MoeAddLoadsBase;

  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal() && givesGradients(func))
        addTo(func);
  }

private:
  using Routings = llvm::SetVector<Value>;

  static bool givesGradients(func::FuncOp func) {
    for (unsigned i = 0; i < func.getNumResults(); ++i)
      if (func.getResultAttr(i, "moe.gradient_of"))
        return true;
    return false;
  }

  /// The routings that choose among the experts whose weights these are.
  static Routings routingsOf(moe::ParamOp weights) {
    int64_t experts = cast<RankedTensorType>(weights.getType()).getDimSize(0);
    Routings routings;
    SmallVector<Operation *> readers(weights->getUsers());
    for (Operation *user : weights->getUsers())
      if (user->getNumResults() == 1 && moe::paramOf(user->getResult(0))) // rounds them
        llvm::append_range(readers, user->getUsers());
    for (Operation *user : readers)
      for (Value operand : user->getOperands())
        if (auto routing = dyn_cast<moe::RoutingType>(operand.getType());
            routing && routing.getExperts() == experts)
          routings.insert(operand);
    return routings;
  }

  /// The routings that are made with this bias.
  static Routings routingsBy(moe::ParamOp bias) {
    Routings routings;
    for (Operation *user : bias->getUsers())
      if (auto route = dyn_cast<moe::RouteOp>(user); route && route.getBias() == bias.getResult())
        routings.insert(route.getResult());
    return routings;
  }

  /// The choices by which an optimizer knows the experts that have a gradient. Where choices are
  /// redirected, the published implementation calls experts for dropped choices too, with weights
  /// of zero: the gradients are zeros then, but they are there.
  static Value called(OpBuilder &b, Value routing) {
    auto redirect = routing.getDefiningOp<moe::RedirectOp>();
    auto limit = redirect ? redirect.getRouting().getDefiningOp<moe::LimitOp>() : moe::LimitOp();
    if (!limit)
      return routing;
    return moe::RedirectOp::create(b, redirect.getLoc(), routing.getType(), limit->getOperand(0),
                                   redirect.getFirst(), redirect.getRest());
  }

  void addTo(func::FuncOp func) {
    // States of the same routings share their load, and several programs' parameters are one
    // state's: in program order.
    llvm::MapVector<Attribute, Routings> routings; // by state
    for (auto param : func.getOps<moe::ParamOp>()) {
      auto state = getOperation().lookupSymbol<moe::StateOp>(param.getState());
      Routings found;
      if (biases)
        found = routingsBy(param);
      if (experts && state && state.getSeparateExperts())
        found.insert_range(routingsOf(param));
      if (!found.empty())
        routings[param.getStateAttr()].insert_range(found);
    }
    OpBuilder b(func.front().getTerminator());
    llvm::MapVector<Value, SmallVector<Attribute>> statesOf;
    llvm::DenseMap<Value, Value> loadOf;
    for (auto &[state, all] : routings) {
      Value sum;
      for (Value routing : all) {
        auto type = cast<moe::RoutingType>(routing.getType());
        auto loadType = RankedTensorType::get({type.getExperts()}, b.getF32Type());
        Value &load = loadOf[routing];
        if (!load)
          load = moe::ExpertLoadOp::create(b, routing.getLoc(), loadType, called(b, routing));
        sum = sum ? moe::AddOp::create(b, routing.getLoc(), loadType, sum, load).getResult() : load;
      }
      statesOf[sum].push_back(state);
    }
    Operation *end = func.front().getTerminator();
    for (auto &[load, states] : statesOf) {
      std::string name = ("load." + cast<FlatSymbolRefAttr>(states.front()).getValue()).str();
      (void)func.insertResult(
          func.getNumResults(), load.getType(),
          b.getDictionaryAttr({b.getNamedAttr("moe.load_of", b.getArrayAttr(states)),
                               b.getNamedAttr("moe.name", b.getStringAttr(name))}));
      end->insertOperands(end->getNumOperands(), load);
      ++loads;
    }
  }
};
} // namespace
