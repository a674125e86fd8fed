//===- CheckDivisibility.cpp - --dist-check-divisibility ------------------===//
// Nothing is ever truncated: a mesh that does not divide a model is refused before any sharding is
// made, with everything that is wrong at once and what would do instead.
//===----------------------------------------------------------------------===//
#include "moira/Analysis/MeshCheck.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTCHECKDIVISIBILITY
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct CheckDivisibility : moira::impl::DistCheckDivisibilityBase<CheckDivisibility> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    MeshInfo mesh = dist::getMesh(module);
    constraints = collectMeshConstraints(module).size();
    std::vector<MeshViolation> violations = checkMesh(module, mesh);
    for (const MeshViolation &violation : violations)
      emitError(violation.loc) << "MOE-0104: " << violation.text << violation.hint;
    if (!violations.empty())
      signalPassFailure();
  }
};
} // namespace
