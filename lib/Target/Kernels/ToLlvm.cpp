//===- ToLlvm.cpp - Row loops to the LLVM dialect -------------------------===//
//
// The two pass pipelines behind the row loops. No math function may stay a call: the host image
// imports nothing and PTX has no libdevice.
//
//===----------------------------------------------------------------------===//
#include "Lowering.h"
#include "mlir/Conversion/ArithToLLVM/ArithToLLVM.h"
#include "mlir/Conversion/ControlFlowToLLVM/ControlFlowToLLVM.h"
#include "mlir/Conversion/FuncToLLVM/ConvertFuncToLLVMPass.h"
#include "mlir/Conversion/GPUToNVVM/GPUToNVVMPass.h"
#include "mlir/Conversion/MathToLLVM/MathToLLVM.h"
#include "mlir/Conversion/MemRefToLLVM/MemRefToLLVM.h"
#include "mlir/Conversion/ReconcileUnrealizedCasts/ReconcileUnrealizedCasts.h"
#include "mlir/Conversion/SCFToControlFlow/SCFToControlFlow.h"
#include "mlir/Conversion/VectorToLLVM/ConvertVectorToLLVMPass.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Arith/Transforms/Passes.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlow.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Math/Transforms/Passes.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"

using namespace mlir;

namespace {

/// Calls an f32 intrinsic for each element of `x`.
Value callPerElement(OpBuilder &b, Location loc, StringRef intrinsic, Value x) {
  auto call = [&](Value element) -> Value {
    return LLVM::CallIntrinsicOp::create(b, loc, b.getF32Type(), b.getStringAttr(intrinsic),
                                         ValueRange{element})
        .getResult(0);
  };
  auto vector = dyn_cast<VectorType>(x.getType());
  if (!vector)
    return call(x);
  SmallVector<Value> elements;
  for (int64_t i = 0; i < vector.getNumElements(); ++i)
    elements.push_back(call(vector::ExtractOp::create(b, loc, x, i)));
  return vector::FromElementsOp::create(b, loc, vector, elements);
}

/// exp(x) = 2^(x log2 e) with the GPU's ex2.approx (2 ulp), one instruction an element.
struct ExpToEx2 : OpRewritePattern<math::ExpOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(math::ExpOp op, PatternRewriter &rewriter) const override {
    Location loc = op.getLoc();
    TypedAttr log2e = rewriter.getF32FloatAttr(1.4426950408889634f);
    if (auto vector = dyn_cast<VectorType>(op.getType()))
      log2e = DenseElementsAttr::get(vector, cast<Attribute>(log2e));
    Value exponent = arith::MulFOp::create(rewriter, loc, op.getOperand(),
                                           arith::ConstantOp::create(rewriter, loc, log2e));
    rewriter.replaceOp(op, callPerElement(rewriter, loc, "llvm.nvvm.ex2.approx.ftz.f", exponent));
    return success();
  }
};

/// The correctly rounded square root, which is an instruction.
struct SqrtToNvvm : OpRewritePattern<math::SqrtOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(math::SqrtOp op, PatternRewriter &rewriter) const override {
    rewriter.replaceOp(
        op, callPerElement(rewriter, op.getLoc(), "llvm.nvvm.sqrt.rn.f", op.getOperand()));
    return success();
  }
};

/// The multiply-add of the approximations, which would become a libdevice call.
struct FmaToLlvm : OpRewritePattern<math::FmaOp> {
  using OpRewritePattern::OpRewritePattern;

  LogicalResult matchAndRewrite(math::FmaOp op, PatternRewriter &rewriter) const override {
    rewriter.replaceOpWithNewOp<LLVM::FMAOp>(op, op.getA(), op.getB(), op.getC());
    return success();
  }
};

} // namespace

void moira::kernels::registerKernelConversions(DialectRegistry &registry) {
  arith::registerConvertArithToLLVMInterface(registry);
  cf::registerConvertControlFlowToLLVMInterface(registry);
  registerConvertMemRefToLLVMInterface(registry);
}

LogicalResult moira::kernels::lowerHostToLlvm(ModuleOp module) {
  MLIRContext *context = module.getContext();
  RewritePatternSet patterns(context);
  populateMathPolynomialApproximationPatterns(
      patterns, [](StringRef name) { return name == "math.exp" || name == "math.erf"; });
  // LLVM would call compiler-rt to round to bf16.
  arith::populateExpandBFloat16Patterns(patterns);
  if (failed(applyPatternsGreedily(module, std::move(patterns))))
    return failure();

  PassManager pm(context);
  pm.addPass(createSCFToControlFlowPass());
  pm.addPass(createConvertVectorToLLVMPass());
  pm.addPass(createConvertMathToLLVMPass());
  pm.addPass(createArithToLLVMConversionPass());
  pm.addPass(createConvertControlFlowToLLVMPass());
  pm.addPass(createConvertFuncToLLVMPass());
  pm.addPass(createReconcileUnrealizedCastsPass());
  return pm.run(module);
}

LogicalResult moira::kernels::lowerGpuToNvvm(ModuleOp module) {
  MLIRContext *context = module.getContext();
  RewritePatternSet patterns(context);
  populateMathPolynomialApproximationPatterns(patterns,
                                              [](StringRef name) { return name == "math.erf"; });
  patterns.add<ExpToEx2, SqrtToNvvm, FmaToLlvm>(context);
  if (failed(applyPatternsGreedily(module, std::move(patterns))))
    return failure();

  PassManager pm(context);
  pm.addPass(createSCFToControlFlowPass());
  pm.addPass(createConvertVectorToLLVMPass());
  pm.addNestedPass<gpu::GPUModuleOp>(createConvertGpuOpsToNVVMOps());
  pm.addPass(createReconcileUnrealizedCastsPass());
  return pm.run(module);
}
