//===- CallBridge.h - plan.call and the runtime's call registry -*- C++ -*-===//
// Plan IR in the terms of moira/rt/CallRegistry.h and plan.fbs.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_DIALECT_PLAN_CALLBRIDGE_H
#define MOIRA_DIALECT_PLAN_CALLBRIDGE_H

#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/rt/CallRegistry.h"

namespace moira::plan {
/// f32 → fb::DType::f32 and so on; `type` is one that views have.
fb::DType toDType(mlir::Type type);
/// The inverse; null for a value that is no DType.
mlir::Type fromDType(fb::DType dtype, mlir::MLIRContext *context);
/// rt::checkCall on a plan.call.
rt::Status checkCallOp(CallOp op, const rt::CallDesc &call);
} // namespace moira::plan

#endif // MOIRA_DIALECT_PLAN_CALLBRIDGE_H
