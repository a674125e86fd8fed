//===- FuseSquares.cpp - --plan-fuse-squares ------------------------------===//
// An update that reads a gradient as it is adds up its squares too, so that the norm of all
// gradients, which most programs only report, reads none of them once more. What is made of a sum
// then stands behind the update. Where the norm decides how far updates go (--clip-norm), sums stay
// as they are.
//===----------------------------------------------------------------------===//
#include "QueueClocks.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/rt/CallRegistry.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

/// An update without a factor, its last input, and without a sum yet.
bool mayAddUp(CallOp call) {
  const rt::CallDesc &desc = *rt::findCall(std::string_view(call.getCallee()));
  return call.getOutputs().size() == rt::squaresOutput(desc) &&
         call.getInputs().size() < desc.inputs.size();
}

/// A sum over all elements.
bool addsUpAll(CallOp call) {
  auto isZero = [](NamedAttribute param) { return cast<IntegerAttr>(param.getValue()) == 0; };
  return call.getCallee() == "squares" && llvm::all_of(call.getParams(), isZero);
}

/// One call of both, where the update stands.
CallOp addUp(CallOp update, CallOp sum) {
  SmallVector<Value> outputs{update.getOutputs()};
  outputs.push_back(sum.getOutputs()[0]);
  OpBuilder builder(update);
  auto both = CallOp::create(builder, update.getLoc(), update.getCallee(), update.getInputs(),
                             outputs, update.getParams(), update.getQueueAttr(),
                             update.getPlaceAttr(), update.getLayerAttr());
  update.erase();
  sum.erase();
  return both;
}

struct FuseSquaresPass : PassWrapper<FuseSquaresPass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(FuseSquaresPass)
  StringRef getArgument() const final { return "plan-fuse-squares"; }
  StringRef getDescription() const final {
    return "Let updates add up the squares of the gradients that they read";
  }
  void runOnOperation() final {
    for (auto program : getOperation().getOps<ProgramOp>())
      fuse(program);
  }
  void fuse(ProgramOp program);

  Statistic numFused{this, "fused", "sums of squares that updates make"};
};

void FuseSquaresPass::fuse(ProgramOp program) {
  SmallVector<InstructionInterface> instrs = instructionsOf(program);
  const unsigned end = instrs.size();
  llvm::DenseMap<Value, unsigned> updates; // by gradient
  for (unsigned i = 0; i < end; ++i)
    if (auto call = dyn_cast<CallOp>(instrs[i].getOperation()); call && mayAddUp(call))
      updates[call.getInputs()[0]] = i;
  if (updates.empty())
    return;
  std::vector<SmallVector<unsigned, 4>> needs(end);
  forEachDependence(instrs, [&](unsigned i, unsigned earlier) { needs[i].push_back(earlier); });
  // A sum that one of these updates waits for stays where it is.
  std::vector<bool> isNeeded(end);
  for (auto [gradient, i] : updates)
    isNeeded[i] = true;
  for (unsigned i = end; i-- > 0;)
    if (isNeeded[i])
      for (unsigned earlier : needs[i])
        isNeeded[earlier] = true;
  llvm::DenseMap<unsigned, unsigned> sums; // by update
  std::vector<bool> stands(end);           // but for sums to come and what waits for them
  SmallVector<unsigned> waiting;
  for (unsigned i = 0; i < end; ++i) {
    auto call = dyn_cast<CallOp>(instrs[i].getOperation());
    if (call && !isNeeded[i] && addsUpAll(call))
      if (auto found = updates.find(call.getInputs()[0]);
          found != updates.end() && found->second > i &&
          instrs[found->second].getQueue() == instrs[i].getQueue() &&
          sums.try_emplace(found->second, i).second)
        continue;
    auto isReady = [&](unsigned j) {
      return llvm::all_of(needs[j], [&](unsigned earlier) { return stands[earlier]; });
    };
    if (!isReady(i)) {
      waiting.push_back(i);
      continue;
    }
    stands[i] = true;
    auto sum = sums.find(i);
    if (sum == sums.end())
      continue;
    Operation *behind = addUp(call, cast<CallOp>(instrs[sum->second].getOperation()));
    stands[sum->second] = true;
    ++numFused;
    SmallVector<unsigned> left;
    for (unsigned j : waiting) {
      if (!isReady(j)) {
        left.push_back(j);
        continue;
      }
      stands[j] = true;
      instrs[j]->moveAfter(behind);
      behind = instrs[j];
    }
    waiting = std::move(left);
  }
}

} // namespace

std::unique_ptr<Pass> moira::createPlanFuseSquaresPass() {
  return std::make_unique<FuseSquaresPass>();
}
