//===- PlanFileIO.h - plan IR to plan files and back ------------*- C++ -*-===//
// The bytes of runtime/schema/plan.fbs. Writing what was read gives the same bytes.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TARGET_PLAN_PLANFILEIO_H
#define MOIRA_TARGET_PLAN_PLANFILEIO_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "moira/rt/PlanFile.h"
#include <cstdint>
#include <vector>

namespace moira {

/// The file of a plan module (buildPlan or readPlan made it, or it was parsed from text). Every
/// view must have an address and every kernel a section. The result was accepted by
/// rt::PlanFile::fromBytes; if that refuses it, each broken rule is a diagnostic with MOE-0699 (the
/// runtime's own id stands in its text). Equal IR gives equal bytes.
mlir::FailureOr<std::vector<uint8_t>> writePlan(mlir::ModuleOp planModule);

/// The IR of an accepted plan file, or null and a diagnostic with MOE-0405 if the plan, though safe
/// to run, has no IR (for example one that records an event twice). The plan file may go away
/// afterwards.
mlir::OwningOpRef<mlir::ModuleOp> readPlan(const rt::PlanFile &file, mlir::MLIRContext *context);

} // namespace moira

#endif // MOIRA_TARGET_PLAN_PLANFILEIO_H
