//===- Mesh.h - mesh text and the token split -------------------*- C++ -*-===//
// What users write as --mesh, and the one decision that follows from a mesh alone: how tokens are
// cut. Whether a model fits a mesh is in MeshCheck.h.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_ANALYSIS_MESH_H
#define MOIRA_ANALYSIS_MESH_H

#include "mlir/IR/MLIRContext.h"
#include "moira/Analysis/FactorRule.h"
#include <optional>
#include <string>

namespace moira {

/// The axes that Moira knows. What each of them cuts is in describeAxes().
inline constexpr llvm::StringLiteral kDataAxis = "dp", kExpertAxis = "ep", kTensorAxis = "tp";

/// "dp=2,ep=4" → the axes in that order, major to minor; axes of size 1 vanish, "" is one rank.
/// Every problem found is added to `problems` (texts that start with MOE-0103) and the result is
/// empty if there is any.
///
///     "dp=2,ep=4"   dp 2, ep 4
///     "tp=1"        (one rank)
///     "dp=2,dp=2"   axis dp stands twice
///     "eq=4"        unknown axis eq; did you mean ep?
std::optional<MeshInfo> parseMesh(mlir::MLIRContext *context, llvm::StringRef text,
                                  llvm::SmallVectorImpl<std::string> &problems);

/// The inverse of parseMesh: "dp=2,ep=4"; "" for one rank.
std::string formatMesh(const MeshInfo &mesh);

/// The axis if the mesh has it, else nothing: axes of size 1 vanish.
llvm::SmallVector<mlir::StringAttr> axisIfPresent(const MeshInfo &mesh, llvm::StringRef axis);

/// How the tokens of a stack [batch, sequence] are cut outside of attention's keys and values.
struct TokenSplit {
  llvm::SmallVector<mlir::StringAttr> batch, sequence;
};

/// Batch over dp, and over ep too if it divides what is left; else the sequence over ep if it
/// divides; else tokens are replicated over ep.
///
///     mesh       batch  sequence   →  batch     sequence
///     dp=2,ep=2  4      24            {dp, ep}  {}
///     dp=2,ep=2  2      24            {dp}      {ep}
///     ep=8       1      30            {}        {}
TokenSplit decideTokenSplit(const MeshInfo &mesh, int64_t batch, int64_t sequence);

} // namespace moira

#endif // MOIRA_ANALYSIS_MESH_H
