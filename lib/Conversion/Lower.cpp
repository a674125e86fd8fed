//===- Lower.cpp - --plan-lower -------------------------------------------===//
// A module of functions becomes a module with one plan.plan: programs and kernels, without queues'
// events, addresses or code.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Conversion/PlanPipeline.h"

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
