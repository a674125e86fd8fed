//===- BuildKernels.cpp - --plan-build-kernels ----------------------------===//
// Compiles what the kernels' specs say into one section: an ELF image for the host, PTX for a GPU.
// How is lib/Target/Kernels' business.
//===----------------------------------------------------------------------===//
#include "mlir/IR/DialectResourceBlobManager.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/Target/Kernels/KernelImage.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

/// The bytes of a section and what they are for.
struct Code {
  SectionKind kind;
  std::string target, features, bytes;
};

struct BuildKernelsPass : PassWrapper<BuildKernelsPass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(BuildKernelsPass)
  BuildKernelsPass() = default;
  BuildKernelsPass(const BuildKernelsPass &other) : PassWrapper(other) {}
  explicit BuildKernelsPass(const PlanOptions &options) { hostCpu = options.hostCpu; }
  StringRef getArgument() const final { return "plan-build-kernels"; }
  StringRef getDescription() const final { return "Compile the kernels of a plan"; }
  void runOnOperation() final;
  llvm::Expected<Code> compile(ArrayRef<kernels::KernelSpec> specs);

  Option<std::string> hostCpu{*this, "host-cpu", llvm::cl::desc("instruction set of host kernels"),
                              llvm::cl::init("x86-64-v3")};
  Statistic numBytes{this, "bytes", "bytes of code"};
};

llvm::Expected<Code> BuildKernelsPass::compile(ArrayRef<kernels::KernelSpec> specs) {
  std::string target = getOperation().getTarget().str();
  if (target != "host") {
    llvm::Expected<std::string> ptx = kernels::buildPtx(specs, target);
    if (!ptx)
      return ptx.takeError();
    return Code{SectionKind::ptx, target, "", std::move(*ptx)};
  }
  llvm::Expected<kernels::HostImage> image = kernels::buildHostImage(specs, {hostCpu});
  if (!image)
    return image.takeError();
  return Code{SectionKind::host_object, image->target, image->features, std::move(image->bytes)};
}

void BuildKernelsPass::runOnOperation() {
  PlanOp plan = getOperation();
  SmallVector<KernelOp> kernels;
  std::vector<kernels::KernelSpec> specs;
  int64_t sections = llvm::range_size(plan.getOps<SectionOp>());
  for (auto kernel : plan.getOps<KernelOp>()) {
    if (!kernel.getSpec())
      continue;
    llvm::Expected<kernels::KernelSpec> spec = kernels::parseKernelSpec(*kernel.getSpec());
    if (!spec) {
      kernel.emitOpError("MOE-0601: ") << llvm::toString(spec.takeError());
      return signalPassFailure();
    }
    spec->name = kernel.getSymName().str();
    specs.push_back(std::move(*spec));
    kernels.push_back(kernel);
  }
  if (kernels.empty())
    return;
  llvm::Expected<Code> code = compile(specs);
  if (!code) {
    // Without an id of its own it is a defect.
    std::string problem = llvm::toString(code.takeError());
    plan.emitOpError(StringRef(problem).starts_with("MOE-") ? "" : "MOE-0699: ") << problem;
    return signalPassFailure();
  }
  // readPlan names sections by their number too.
  std::string name = "section" + std::to_string(sections);
  OpBuilder builder(*plan.getOps<KernelOp>().begin()); // sections stand before kernels
  auto type =
      RankedTensorType::get({static_cast<int64_t>(code->bytes.size())}, builder.getI8Type());
  auto bytes = DenseResourceElementsAttr::get(
      type, name,
      HeapAsmResourceBlob::allocateAndCopyWithAlign(
          ArrayRef(code->bytes.data(), code->bytes.size()), kAlignment));
  auto section = SectionOp::create(builder, plan.getLoc(), name, code->kind, code->target,
                                   code->features, bytes);
  for (KernelOp kernel : kernels) {
    kernel.setSectionAttr(FlatSymbolRefAttr::get(section.getSymNameAttr()));
    kernel.removeSpecAttr();
  }
  numBytes += code->bytes.size();
}

} // namespace

std::unique_ptr<Pass> moira::createPlanBuildKernelsPass(const PlanOptions &options) {
  return std::make_unique<BuildKernelsPass>(options);
}
