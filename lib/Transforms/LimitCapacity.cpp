//===- LimitCapacity.cpp - --moe-limit-capacity ---------------------------===//
// Capacities as the user asks for them: a moe.limit behind every gate, the model's own ones changed
// or taken away. Whatever limits the program has then, their drops are added up into one more
// output, so that nothing is dropped silently.
//===----------------------------------------------------------------------===//
#include "ProgramInputs.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

#include <cmath>

namespace moira {
#define GEN_PASS_DEF_MOELIMITCAPACITY
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct LimitCapacity : moira::impl::MoeLimitCapacityBase<LimitCapacity> {
  using MoeLimitCapacityBase::MoeLimitCapacityBase;

  void runOnOperation() override {
    if (failed(checkOptions()))
      return signalPassFailure();
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>()) {
      if (func.isExternal())
        continue;
      removeReport(func);
      if (policy == "none")
        dropLimits(func);
      else if ((factor >= 0 || !policy.empty()) && failed(limitAll(func)))
        return signalPassFailure();
      reportDrops(func);
    }
  }

private:
  moe::DropPolicy wanted = moe::DropPolicy::position;

  LogicalResult checkOptions() {
    std::optional<moe::DropPolicy> known = moe::symbolizeDropPolicy(policy);
    if (!policy.empty() && policy != "none" && !known)
      return emitError(getOperation().getLoc(), "MOE-0102: unknown drop policy ") << policy;
    if (policy == "none" && factor >= 0)
      return emitError(getOperation().getLoc(),
                       "MOE-0102: --capacity-factor has no meaning with --drop-policy=none");
    if (factor >= 0 && !std::isfinite(factor))
      return emitError(getOperation().getLoc(), "MOE-0102: the capacity factor is not finite");
    wanted = known.value_or(moe::DropPolicy::position);
    return success();
  }

  static void setGate(Value routing, const moe::RouterFields &fields) {
    auto attribute = moe::RouterAttr::get(routing.getContext(), fields);
    if (auto route = routing.getDefiningOp<moe::RouteOp>())
      route.setRouterAttr(attribute);
    else
      cast<moe::RouteToOp>(routing.getDefiningOp()).setRouterAttr(attribute);
  }

  //===--------------------------------------------------------------------===//
  // Adding and taking away
  //===--------------------------------------------------------------------===//

  LogicalResult limitAll(func::FuncOp func) {
    SmallVector<Operation *> gates;
    func.walk([&](Operation *op) {
      if (isa<moe::RouteOp, moe::RouteToOp>(op))
        gates.push_back(op);
    });
    int64_t layer = 0;
    for (Operation *gate : gates) {
      Value routing = gate->getResult(0);
      auto limit = routing.hasOneUse() ? dyn_cast<moe::LimitOp>(*routing.user_begin()) : nullptr;
      if (limit)
        change(func, limit, layer);
      else if (factor < 0)
        return gate->emitError("MOE-0102: --drop-policy=")
               << policy << " needs --capacity-factor: the model has no capacity of its own";
      else
        add(func, routing, layer);
      ++layer;
    }
    return success();
  }

  /// The limit's own capacity with what the options say about it.
  void change(func::FuncOp func, moe::LimitOp limit, int64_t layer) {
    moe::CapacityFields capacity = limit.getCapacity().getFields();
    if (factor >= 0) {
      capacity.rule = moe::CapacityRule::factor;
      capacity.value = factor;
      capacity.least = minimum;
    }
    if (!policy.empty())
      capacity.policy = wanted;
    set(func, limit, capacity, layer);
  }

  void add(func::FuncOp func, Value routing, int64_t layer) {
    moe::CapacityFields capacity;
    capacity.value = factor;
    capacity.least = minimum;
    capacity.policy = wanted;
    // Choices compete by the gate's own scores, so the sum comes afterwards. Kept choices weigh
    // what they would without a capacity.
    moe::RouterFields gate = moe::routerOf(routing).getFields();
    if (gate.renorm == moe::Renorm::sum) {
      capacity.renorm = moe::LimitRenorm::before;
      capacity.renormEpsilon = gate.renormEpsilon;
      capacity.renormClampMin = gate.renormClampMin;
      capacity.scale = gate.scale;
      gate.renorm = moe::Renorm::none;
      gate.renormEpsilon = gate.renormClampMin = 0;
      gate.scale = 1;
      setGate(routing, gate);
    }
    OpBuilder b(routing.getContext());
    b.setInsertionPointAfterValue(routing);
    auto dropped = RankedTensorType::get({2}, b.getF32Type());
    capacity.policy = moe::DropPolicy::position; // `set` brings the step that a draw needs
    auto limit =
        moe::LimitOp::create(b, routing.getLoc(), routing.getType(), dropped, routing, Value(),
                             moe::CapacityAttr::get(b.getContext(), capacity), dist::OffsetAttr());
    routing.replaceAllUsesExcept(limit.getResult(), limit);
    capacity.policy = wanted;
    set(func, limit, capacity, layer);
    ++limits;
  }

  void set(func::FuncOp func, moe::LimitOp limit, moe::CapacityFields capacity, int64_t layer) {
    bool random = capacity.policy == moe::DropPolicy::random;
    capacity.seed = random ? int64_t(seed) : 0;
    capacity.layer = layer;
    limit.setCapacityAttr(moe::CapacityAttr::get(&getContext(), capacity));
    limit.getStepMutable().clear();
    if (random)
      limit.getStepMutable().assign(stepOf(func));
  }

  /// The program's number of the step: an input that is 0 where a run does not give it.
  static Value stepOf(func::FuncOp func) {
    auto type = RankedTensorType::get({1}, IntegerType::get(func.getContext(), 32));
    return getInput(func, "step", type, 0, InputRange{0, INT32_MAX});
  }

  void dropLimits(func::FuncOp func) {
    SmallVector<moe::LimitOp> all(func.getOps<moe::LimitOp>());
    for (moe::LimitOp limit : all) {
      moe::CapacityFields capacity = limit.getCapacity().getFields();
      moe::RouterAttr router = moe::routerOf(limit.getRouting());
      bool weighs = capacity.renorm != moe::LimitRenorm::none || capacity.scale != 1;
      moe::RouterFields gate = router ? router.getFields() : moe::RouterFields();
      bool takesWeights =
          router && gate.renorm == moe::Renorm::none && gate.score != moe::Score::sparsemixer;
      if ((weighs && !takesWeights) || !limit.getDropped().use_empty()) {
        // What it does besides dropping stays; there is room for all.
        capacity.rule = moe::CapacityRule::fraction;
        capacity.value = 1;
        capacity.policy = moe::DropPolicy::position;
        set(func, limit, capacity, capacity.layer);
        continue;
      }
      if (weighs) {
        gate.renorm =
            capacity.renorm == moe::LimitRenorm::none ? moe::Renorm::none : moe::Renorm::sum;
        gate.renormEpsilon = capacity.renormEpsilon;
        gate.renormClampMin = capacity.renormClampMin;
        // Before a sum the gate's own scale divides itself away.
        gate.scale = capacity.renorm == moe::LimitRenorm::none ? gate.scale * capacity.scale
                                                               : capacity.scale;
        setGate(limit.getRouting(), gate);
      }
      limit.getResult().replaceAllUsesWith(limit.getRouting());
      limit.erase();
    }
  }

  //===--------------------------------------------------------------------===//
  // Reporting
  //===--------------------------------------------------------------------===//

  static constexpr StringLiteral kReport = "dropped_choices";

  /// What an earlier run of this pass, on text that was printed since, has left.
  static void removeReport(func::FuncOp func) {
    Operation *end = func.front().getTerminator();
    for (unsigned i = 0; i < func.getNumResults(); ++i) {
      auto name = func.getResultAttrOfType<StringAttr>(i, "moe.name");
      if (!name || name != kReport)
        continue;
      Value sum = end->getOperand(i);
      end->eraseOperand(i);
      (void)func.eraseResult(i);
      while (auto add = sum.getDefiningOp<moe::AddOp>()) {
        if (!sum.use_empty())
          break;
        sum = add.getA();
        add.erase();
      }
      return;
    }
  }

  void reportDrops(func::FuncOp func) {
    Value sum;
    OpBuilder b(func.getContext());
    Operation *end = func.front().getTerminator();
    b.setInsertionPoint(end);
    for (moe::LimitOp limit : func.getOps<moe::LimitOp>()) {
      Value dropped = limit.getDropped();
      sum = sum ? moe::AddOp::create(b, func.getLoc(), dropped.getType(), sum, dropped).getResult()
                : dropped;
    }
    if (!sum)
      return;
    NamedAttribute name = b.getNamedAttr("moe.name", b.getStringAttr(kReport));
    (void)func.insertResult(func.getNumResults(), sum.getType(), b.getDictionaryAttr(name));
    end->insertOperands(end->getNumOperands(), sum);
  }
};
} // namespace
