//===- PlanPipeline.cpp - the phase `plan` --------------------------------===//
// Which passes make a plan out of a localized module, in which order, and why.
//===----------------------------------------------------------------------===//
#include "moira/Conversion/PlanPipeline.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Pass/PassManager.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"

using namespace mlir;
using namespace moira;

/// What every program goes through once it is instructions.
static void addPlanPasses(OpPassManager &passes, bool reference = false) {
  OpPassManager &plans = passes.nest<plan::PlanOp>();
  // While instructions may still be moved freely: no addresses, no events.
  plans.addPass(createPlanSchedulePass());
  // Behind the schedule, which begins updates with the first sum of squares.
  if (!reference)
    plans.addPass(createPlanFuseSquaresPass());
  // The order is fixed now; only what crosses queues needs an event.
  plans.addPass(createPlanInsertEventsPass());
  // Last, because memory is reused only where order and events allow it.
  plans.addPass(createPlanAllocatePass());
}

/// Where functions say that they are the reference's (moe.reference), the others are not.
static void keepReference(ModuleOp module) {
  auto isMarked = [](func::FuncOp function) { return function->hasAttr("moe.reference"); };
  if (llvm::any_of(module.getOps<func::FuncOp>(), isMarked))
    for (auto function : llvm::make_early_inc_range(module.getOps<func::FuncOp>()))
      if (!isMarked(function))
        function.erase();
}

/// Runs the passes that `build` adds on a clone of `module`; null if one fails.
static OwningOpRef<ModuleOp> runOnClone(ModuleOp module,
                                        llvm::function_ref<void(OpPassManager &)> build) {
  OwningOpRef<ModuleOp> clone = module.clone();
  PassManager passes(module.getContext());
  // It fails where the program has not registered MLIR's debugging options; there are none to apply
  // then.
  (void)applyPassManagerCLOptions(passes);
  build(passes);
  if (failed(passes.run(*clone)))
    return {};
  return clone;
}

/// Up to where addresses are known.
static void addProgramPasses(OpPassManager &passes, const PlanOptions &options) {
  // First, as what is moved is no part of a kernel. On the host everything is in its memory.
  if (options.target != "host" && options.offload != "none")
    passes.addPass(createPlanOffloadPass(options.offload));
  // What a product makes is no kernel's. Of gradients first, which then read fewer rows.
  if (options.target != "host") {
    passes.nest<func::FuncOp>().addPass(createPlanFuseGluGradPass());
    passes.nest<func::FuncOp>().addPass(createPlanFuseGluPass());
  }
  // Before kernels, which may do it beside what they do.
  passes.nest<func::FuncOp>().addPass(createPlanRoundCotangentsPass());
  // On tensors, where producers and consumers are one step apart.
  passes.nest<func::FuncOp>().addPass(createPlanFuseKernelsPass());
  passes.addPass(createPlanLowerPass(options));
  // On instructions, which say what they wait for; before these are scheduled one by one.
  passes.nest<plan::PlanOp>().addPass(createPlanMergeCallsPass());
  addPlanPasses(passes);
}

FailureOr<std::vector<ArenaBytes>> moira::measurePlan(ModuleOp localized,
                                                      const PlanOptions &options) {
  OwningOpRef<ModuleOp> planned =
      runOnClone(localized, [&](OpPassManager &passes) { addProgramPasses(passes, options); });
  if (!planned)
    return failure();
  // Programs run one after another: arena i of all is the same memory.
  std::vector<ArenaBytes> arenas;
  for (auto program : plan::getPlan(*planned).getOps<plan::ProgramOp>()) {
    uint64_t bound = program.getBound() ? (*program.getBound())[0] : 0;
    for (auto [i, arena] : llvm::enumerate(program.getOps<plan::ArenaOp>())) {
      if (i == arenas.size())
        arenas.push_back({arena.getName().str(), 0});
      if (arena.getSpace() != plan::Space::host)
        arenas[i].bytes = std::max(arenas[i].bytes, arena.getBytes() + arena.getPerBound() * bound);
    }
  }
  return arenas;
}

LogicalResult moira::buildPlan(ModuleOp localized, ModuleOp global, const PlanOptions &options,
                               OwningOpRef<ModuleOp> &planModule) {
  planModule = runOnClone(localized, [&](OpPassManager &passes) {
    addProgramPasses(passes, options);
    // Independent of all the rest; here because a plan is complete without the writer.
    passes.nest<plan::PlanOp>().addPass(createPlanBuildKernelsPass(options));
  });
  if (!planModule)
    return failure();
  if (!global)
    return success();
  // No fusion: the reference is library calls only, so that it checks the kernels too.
  OwningOpRef<ModuleOp> source = global.clone();
  keepReference(*source);
  OwningOpRef<ModuleOp> reference = runOnClone(*source, [&](OpPassManager &passes) {
    passes.addPass(createPlanLowerPass(options, /*reference=*/true));
    addPlanPasses(passes, /*reference=*/true);
  });
  if (!reference)
    return failure();
  Block &body = plan::getPlan(*planModule).getBody().front();
  for (auto program :
       llvm::make_early_inc_range(plan::getPlan(*reference).getOps<plan::ProgramOp>()))
    program->moveBefore(&body, body.end());
  return success();
}

void moira::registerPlanPasses() {
  registerPass([] { return createPlanOffloadPass(); });
  registerPass([] { return createPlanFuseGluGradPass(); });
  registerPass([] { return createPlanFuseGluPass(); });
  registerPass([] { return createPlanRoundCotangentsPass(); });
  registerPass([] { return createPlanFuseKernelsPass(); });
  registerPass([] { return createPlanLowerPass(); });
  registerPass([] { return createPlanMergeCallsPass(); });
  registerPass([] { return createPlanSchedulePass(); });
  registerPass([] { return createPlanFuseSquaresPass(); });
  registerPass([] { return createPlanInsertEventsPass(); });
  registerPass([] { return createPlanAllocatePass(); });
  registerPass([] { return createPlanBuildKernelsPass(); });
}
