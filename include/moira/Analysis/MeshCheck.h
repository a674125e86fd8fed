//===- MeshCheck.h - does a model fit a mesh? -------------------*- C++ -*-===//
// What each axis must divide, every violation of a mesh at once, and which meshes would do instead.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_ANALYSIS_MESHCHECK_H
#define MOIRA_ANALYSIS_MESHCHECK_H

#include "mlir/IR/BuiltinOps.h"
#include "moira/Analysis/Mesh.h"
#include <set>
#include <string>
#include <vector>

namespace moira {

/// A size that an axis must divide: dp the batch, tp the query heads and the widths, ep the
/// experts. (Vocabularies are padded, key/value heads are replicated where tp does not divide them,
/// sequences are replicated: none of them is a constraint.)
struct MeshConstraint {
  llvm::StringRef axis;
  std::string what; ///< "experts", "query heads", "the experts' width", …
  int64_t size;
  std::string field;        ///< config field that gave the size, "--batch", or empty if unknown
  std::set<int64_t> layers; ///< where it is used; empty: everywhere
  mlir::Location loc;       ///< of its first use
};

struct MeshViolation {
  std::string text; ///< what, where, the numbers and which sizes of the axis would do
  std::string hint; ///< "; try --mesh=…", the same for all violations of a mesh, or empty
  mlir::Location loc;
};

/// The constraints of a module at the import phase, equal ones of several layers as one.
std::vector<MeshConstraint> collectMeshConstraints(mlir::ModuleOp module);

/// Meshes (dp, ep, tp) of `ranks` ranks that violate no constraint, nearest to `wanted` first:
/// least total change of the axes' sizes, counted in doublings. deterministic:
/// only those that --deterministic takes.
std::vector<MeshInfo> suggestMeshes(mlir::MLIRContext *context,
                                    llvm::ArrayRef<MeshConstraint> constraints, int64_t ranks,
                                    const MeshInfo &wanted, size_t limit = 3,
                                    bool deterministic = false);

/// The same for as many ranks as `wanted` has or, if no mesh of these fits, the nearest one of the
/// most ranks below. Never empty: one rank always fits.
std::vector<MeshInfo> nearestMeshes(mlir::MLIRContext *context,
                                    llvm::ArrayRef<MeshConstraint> constraints,
                                    const MeshInfo &wanted, size_t limit = 3,
                                    bool deterministic = false);

/// All violations of a mesh, none if the model fits.
std::vector<MeshViolation> checkMesh(mlir::ModuleOp module, const MeshInfo &mesh);

} // namespace moira

#endif // MOIRA_ANALYSIS_MESHCHECK_H
