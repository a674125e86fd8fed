//===- DiagnosticCollector.h - MLIR diagnostics as user errors --*- C++ -*-===//
#ifndef MOIRA_DRIVER_DIAGNOSTICCOLLECTOR_H
#define MOIRA_DRIVER_DIAGNOSTICCOLLECTOR_H

#include "mlir/IR/Diagnostics.h"
#include "moira/rt/Status.h"

namespace moira {

/// While it lives, errors of the context become entries of a Status and warnings go to stderr. A
/// message that starts with "MOE-0104: " keeps its id, any other one gets the id of the work at
/// hand (InvalidIR for the user's text, Internal for our passes).
class DiagnosticCollector {
public:
  explicit DiagnosticCollector(mlir::MLIRContext &context);
  /// Id of errors that name none.
  void setFallback(rt::ErrorId id) { fallback = id; }
  /// What was collected, the collector being empty afterwards.
  rt::Status take();

private:
  mlir::ScopedDiagnosticHandler handler;
  rt::ErrorId fallback = rt::ErrorId::Internal;
  rt::Status errors;
};

} // namespace moira

#endif // MOIRA_DRIVER_DIAGNOSTICCOLLECTOR_H
