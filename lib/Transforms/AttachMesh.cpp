//===- AttachMesh.cpp - --dist-attach-mesh --------------------------------===//
// The mesh becomes part of the module, so that every later pass, and whoever reads or edits a
// phase's IR, finds it there and nowhere else.
//===----------------------------------------------------------------------===//
#include "mlir/IR/Builders.h"
#include "moira/Analysis/Mesh.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTATTACHMESH
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct AttachMesh : moira::impl::DistAttachMeshBase<AttachMesh> {
  using DistAttachMeshBase::DistAttachMeshBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    SmallVector<std::string> problems;
    std::optional<MeshInfo> wanted = parseMesh(&getContext(), mesh, problems);
    for (const std::string &problem : problems)
      emitError(module.getLoc()) << problem;
    if (!wanted)
      return signalPassFailure();
    MeshInfo present = dist::getMesh(module);
    if (!mesh.empty() && !present.names.empty() &&
        (present.names != wanted->names || present.sizes != wanted->sizes)) {
      emitError(module.getLoc(), "MOE-0103: --mesh=")
          << mesh << ", but the module has the mesh " << formatMesh(present)
          << " already; leave out --mesh";
      return signalPassFailure();
    }
    if (present.names.empty() && !wanted->names.empty()) {
      OpBuilder b = OpBuilder::atBlockBegin(module.getBody());
      SmallVector<Attribute> names(wanted->names.begin(), wanted->names.end());
      dist::MeshOp::create(b, module.getLoc(), "mesh", b.getArrayAttr(names),
                           b.getDenseI64ArrayAttr(wanted->sizes));
      present = *wanted;
    }
    ranks = present.ranks();
  }
};
} // namespace
