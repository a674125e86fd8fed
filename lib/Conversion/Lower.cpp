//===- Lower.cpp - --plan-lower -------------------------------------------===//
// A module of functions becomes a module with one plan.plan: programs and kernels, without queues'
// events, addresses or code.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Conversion/PlanPipeline.h"
#include "moira/rt/PlanFile.h"
#include "llvm/ADT/StringMap.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

static Type elementType(kernels::ScalarType type, Builder &builder) {
  switch (type) {
  case kernels::ScalarType::F32:
    return builder.getF32Type();
  case kernels::ScalarType::BF16:
    return builder.getBF16Type();
  case kernels::ScalarType::F16:
    return builder.getF16Type();
  case kernels::ScalarType::I32:
    return builder.getI32Type();
  }
  return {};
}

/// plan.kernel ops, before the programs that launch them.
static void addKernels(PlanOp plan, const kernels::KernelTable &kernels) {
  OpBuilder builder = OpBuilder::atBlockBegin(&plan.getBody().front());
  for (const kernels::KernelSpec &spec : kernels.kernels()) {
    SmallVector<Attribute> operands;
    for (const kernels::KernelOperand &operand : spec.operands)
      operands.push_back(OperandAttr::get(builder.getContext(), operand.output, operand.rowwise,
                                          operand.inner, elementType(operand.type, builder)));
    KernelOp::create(builder, plan.getLoc(), spec.name, FlatSymbolRefAttr(),
                     builder.getArrayAttr(operands), builder.getStringAttr(spec.key()));
  }
}

InfoAttr moira::infoOf(ModuleOp module) {
  if (auto info = module->getAttrOfType<InfoAttr>("plan.info"))
    return info;
  Type dtype = Float32Type::get(module.getContext());
  for (auto state : module.getOps<moe::StateOp>()) {
    dtype = state.getTensorType().getElementType();
    break;
  }
  return InfoAttr::get(module.getContext(), "custom", "forward", dtype, 0, 0, 0, 0, 0, 0,
                       ArrayAttr(), StringAttr());
}

/// An error for what cannot be the name of something in a plan. `op` is what has it.
static LogicalResult checkName(Operation *op, StringRef name, const Twine &what) {
  if (rt::isName(name))
    return success();
  return op->emitError("MOE-0601: the name of ")
         << what << " must be 1 to 512 bytes of UTF-8 without control characters";
}

/// Names of arguments, or of results: each once. Those that lack one are reported where they are
/// lowered.
template <typename NameOf>
static LogicalResult checkPorts(func::FuncOp function, unsigned count, const char *what,
                                NameOf nameOf) {
  llvm::StringMap<unsigned> first;
  for (unsigned i = 0; i < count; ++i) {
    StringAttr name = nameOf(i);
    if (!name)
      continue;
    if (failed(checkName(function, name, what + Twine(" ") + Twine(i))))
      return failure();
    auto [before, isNew] = first.try_emplace(name, i);
    if (!isNew)
      return function.emitError("MOE-0601: ") << what << "s " << before->second << " and " << i
                                              << " are both called '" << name.getValue() << "'";
  }
  return success();
}

/// What would make a plan that no runtime opens.
static LogicalResult checkNames(ModuleOp module) {
  for (auto state : module.getOps<moe::StateOp>()) {
    if (failed(checkName(state, state.getSymName(), "a state")))
      return failure();
    if (moe::SourceAttr source = state.getSourceAttr())
      for (auto name : source.getNames().getAsRange<StringAttr>())
        if (failed(checkName(state, name, "a state's tensor")))
          return failure();
  }
  for (auto function : module.getOps<func::FuncOp>()) {
    if (failed(checkName(function, function.getName(), "a program")) ||
        failed(checkPorts(
            function, function.getNumArguments(), "argument",
            [&](unsigned i) { return function.getArgAttrOfType<StringAttr>(i, "moe.name"); })) ||
        failed(checkPorts(function, function.getNumResults(), "result", [&](unsigned i) {
          return function.getResultAttrOfType<StringAttr>(i, "moe.name");
        })))
      return failure();
  }
  return success();
}

namespace {

struct LowerPass : PassWrapper<LowerPass, OperationPass<ModuleOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(LowerPass)
  LowerPass() = default;
  LowerPass(const LowerPass &other) : PassWrapper(other) {}
  LowerPass(const PlanOptions &options, bool isReference) {
    target = options.target;
    producer = options.producer;
    fastest = options.attentionGrad == "fastest";
    reference = isReference;
  }
  StringRef getArgument() const final { return "plan-lower"; }
  StringRef getDescription() const final { return "Turn functions into programs of a plan"; }
  void getDependentDialects(DialectRegistry &registry) const final {
    registry.insert<PlanDialect>();
  }
  void runOnOperation() final;

  Option<std::string> target{*this, "target", llvm::cl::desc("host, or a GPU such as sm_90"),
                             llvm::cl::init("host")};
  Option<std::string> producer{*this, "producer", llvm::cl::desc("what the file says made it"),
                               llvm::cl::init("moira 0.1.0")};
  Option<bool> fastest{*this, "fastest-attention-grad",
                       llvm::cl::desc("gradients of attention may have other last bits each run"),
                       llvm::cl::init(false)};
  Option<bool> reference{
      *this, "reference",
      llvm::cl::desc("global functions become one-rank programs of library calls"),
      llvm::cl::init(false)};
};

void LowerPass::runOnOperation() {
  ModuleOp module = getOperation();
  if (failed(checkNames(module)))
    return signalPassFailure();
  MeshInfo mesh = reference ? MeshInfo() : dist::getMesh(module);
  OpBuilder builder = OpBuilder::atBlockEnd(module.getBody());
  SmallVector<StringRef> axes;
  for (StringAttr name : mesh.names)
    axes.push_back(name);
  auto plan =
      PlanOp::create(builder, module.getLoc(), builder.getStringAttr(target.getValue()),
                     builder.getStrArrayAttr(axes), builder.getDenseI64ArrayAttr(mesh.sizes),
                     builder.getStringAttr(producer.getValue()), infoOf(module));
  builder.createBlock(&plan.getBody());
  kernels::KernelTable kernels;
  SmallVector<func::FuncOp> functions(module.getOps<func::FuncOp>());
  StatePlaces shared;
  if (!reference) {
    OpBuilder inPlan = OpBuilder::atBlockEnd(&plan.getBody().front());
    shared = addStates(module, plan, false, [](moe::StateOp) { return true; }, inPlan);
  }
  for (func::FuncOp function : functions)
    if (failed(ProgramBuilder(plan, function, reference ? nullptr : &shared, kernels, fastest)
                   .build()))
      return signalPassFailure();
  addKernels(plan, kernels);
  for (Operation &op : llvm::make_early_inc_range(*module.getBody()))
    if (&op != plan.getOperation())
      op.erase();
  module->removeAttr("plan.info");
}

} // namespace

std::unique_ptr<Pass> moira::createPlanLowerPass(const PlanOptions &options, bool reference) {
  return std::make_unique<LowerPass>(options, reference);
}
