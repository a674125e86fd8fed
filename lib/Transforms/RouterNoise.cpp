//===- RouterNoise.cpp - --moe-router-noise -------------------------------===//
// The noise that a model's gates have in training: a moe.jitter on what each gate's product reads,
// and on what its experts read where the model's code has it there as well; and a step for gates
// that draw their choices (SparseMixer). Gates are numbered through the program, so that each has
// draws of its own; the step, and the part of the batch where it is taken in parts, are inputs.
//===----------------------------------------------------------------------===//
#include "ProgramInputs.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOEROUTERNOISE
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct RouterNoise : moira::impl::MoeRouterNoiseBase<RouterNoise> {
  using MoeRouterNoiseBase::MoeRouterNoiseBase;

  void runOnOperation() override {
    auto noise = getOperation()->getAttrOfType<DictionaryAttr>("moe.router_noise");
    if (!noise || noise.empty()) {
      emitError(getOperation().getLoc(),
                "MOE-0102: --router-noise=on: this model's gates have no noise; classes that have "
                "one are mixtral and switch_transformers, if router_jitter_noise in their "
                "config.json is above 0, and phimoe");
      return signalPassFailure();
    }
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal() && failed(addNoise(func, noise)))
        return signalPassFailure();
  }

private:
  /// The product that a gate's logits come from; a bias may have been added to it.
  static moe::LinearOp productOf(Value logits) {
    while (auto add = logits.getDefiningOp<moe::AddOp>())
      logits = add.getA();
    return logits.getDefiningOp<moe::LinearOp>();
  }

  LogicalResult addNoise(func::FuncOp func, DictionaryAttr noise) {
    auto eps = noise.getAs<FloatAttr>("eps");
    bool experts = noise.contains("experts"), sampled = noise.contains("sampled");
    SmallVector<Operation *> all;
    func.walk([&](Operation *op) {
      if (isa<moe::RouteOp, moe::RouteToOp>(op))
        all.push_back(op);
    });
    auto one = RankedTensorType::get({1}, IntegerType::get(&getContext(), 32));
    int64_t layer = 0;
    for (Operation *gate : all) {
      moe::LinearOp product = productOf(gate->getOperand(0));
      if (!product)
        return gate->emitError("MOE-0601: noise is for gates whose logits are a product's");
      Value step = getInput(func, "step", one, 0, InputRange{0, INT32_MAX}), part;
      // The reference program takes the batch as a whole.
      if (microBatches > 1 && !func->hasAttr("moe.reference"))
        part = getInput(func, "micro_batch", one, 0, InputRange{0, microBatches - 1});
      if (sampled) {
        auto route = dyn_cast<moe::RouteOp>(gate);
        if (!route)
          return gate->emitError("MOE-0601: only a gate that chooses can draw");
        route.getStepMutable().assign(step);
        if (part)
          route.getPartMutable().assign(part);
        route.setLayer(layer);
        route.setSeed(seed);
      }
      ++gates;
      int64_t number = layer++;
      if (!eps)
        continue;
      OpBuilder b(product);
      auto jitter = [&](Value x) -> Value {
        return moe::JitterOp::create(b, product.getLoc(), x.getType(), x, step, part,
                                     eps.getValue(), number, seed, IntegerAttr(), IntegerAttr(),
                                     Attribute(), Attribute());
      };
      Value x = product.getX(), noisy = jitter(x);
      product.getXMutable().assign(noisy);
      if (experts)
        forDispatches(gate->getResult(0), [&](moe::DispatchOp dispatch) {
          b.setInsertionPoint(dispatch);
          dispatch.getXMutable().assign(dispatch.getX() == x ? noisy : jitter(dispatch.getX()));
        });
    }
    return success();
  }

  /// What is dispatched by this routing, or by one that was made of it.
  static void forDispatches(Value routing, llvm::function_ref<void(moe::DispatchOp)> then) {
    for (Operation *user : llvm::to_vector(routing.getUsers())) {
      if (auto dispatch = dyn_cast<moe::DispatchOp>(user))
        then(dispatch);
      else if (isa<moe::LimitOp, moe::RedirectOp>(user))
        forDispatches(user->getResult(0), then);
    }
  }
};
} // namespace
