//===- Registration.cpp - every dialect and pass that moe-opt knows -------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Transforms/Passes.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/Driver/Compiler.h"
#include "moira/Transforms/Passes.h"

void moira::registerMoiraDialects(mlir::DialectRegistry &registry) {
  registry.insert<mlir::func::FuncDialect, moe::MoeDialect, dist::DistDialect, plan::PlanDialect>();
}

void moira::registerMoiraPasses() {
  mlir::registerTransformsPasses();
  registerPartitionPasses();
  registerPlanPasses();
}
