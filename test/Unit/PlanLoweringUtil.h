//===- PlanLoweringUtil.h - small plans for the tests of the plan phase -*- C++ -*-===//
#ifndef MOIRA_TEST_UNIT_PLANLOWERINGUTIL_H
#define MOIRA_TEST_UNIT_PLANLOWERINGUTIL_H

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/Target/Plan/PlanFileIO.h"
#include <cstdlib>
#include <random>

namespace moira::test {

/// A context with every dialect that the plan phase meets.
struct Context : mlir::MLIRContext {
  Context() : mlir::MLIRContext(Threading::DISABLED) {
    loadDialect<mlir::func::FuncDialect, moe::MoeDialect, dist::DistDialect, plan::PlanDialect>();
  }
};

inline mlir::OwningOpRef<mlir::ModuleOp> parse(mlir::MLIRContext &context, llvm::StringRef text) {
  return mlir::parseSourceString<mlir::ModuleOp>(text, &context);
}

inline std::string print(mlir::ModuleOp module) {
  std::string text;
  llvm::raw_string_ostream out(text);
  module.print(out);
  return text;
}

/// MOIRA_SEED, or a fixed one; printed by the tests that use it.
inline unsigned seed() {
  const char *text = std::getenv("MOIRA_SEED");
  return text ? std::strtoul(text, nullptr, 10) : 20240;
}

/// One MoE block after `localize` on dp=2,ep=2: norm, router, exchange of rows, experts, shared
/// expert, and a residual.
inline const char *kLocalizedBlock = R"mlir(
module {
  dist.mesh @mesh ["dp", "ep"] = [2, 2]
  moe.state @norm : tensor<8xf32> from #moe.source<names = ["norm"], disk_shape = [8]>
  moe.state @gate : tensor<4x8xf32> from #moe.source<names = ["gate"], disk_shape = [4, 8]> layer 0
  moe.state @"layers.0.up" : tensor<4x2x6x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>>
      from #moe.source<names = ["e{e}.w1", "e{e}.w3"], per_expert = true, disk_shape = [6, 8]>
  moe.state @"layers.0.down" : tensor<4x8x6xf32, #dist.sharding<[{ep}, {}, {}]>>
      from #moe.source<names = ["e{e}.w2"], per_expert = true, disk_shape = [8, 6]>
  moe.state @shared_up : tensor<2x6x8xf32> from #moe.source<names = ["s1", "s3"], disk_shape = [6, 8]>
  moe.state @shared_down : tensor<8x6xf32> from #moe.source<names = ["s2"], disk_shape = [8, 6]>
  func.func @forward(%x: tensor<1x6x8xf32> {moe.name = "x", dist.global = tensor<4x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}]>>})
      -> (tensor<1x6x8xf32> {moe.name = "y", dist.global = tensor<4x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}]>>}) {
    %norm = moe.param @norm : tensor<8xf32>
    %gate = moe.param @gate : tensor<4x8xf32>
    %up = moe.param @"layers.0.up" : tensor<2x2x6x8xf32>
    %down = moe.param @"layers.0.down" : tensor<2x8x6xf32>
    %sup = moe.param @shared_up : tensor<2x6x8xf32>
    %sdown = moe.param @shared_down : tensor<8x6xf32>
    %n = moe.rms_norm %x, %norm eps 1.0e-5 : (tensor<1x6x8xf32>, tensor<8xf32>) -> tensor<1x6x8xf32> loc("layers.0.norm")
    %logits = moe.linear %n, %gate contract 1 : (tensor<1x6x8xf32>, tensor<4x8xf32>) -> tensor<1x6x4xf32> loc("layers.0.mlp.gate")
    %r = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %logits
        : (tensor<1x6x4xf32>) -> !moe.routing<1x6, experts = 4, k = 2> loc("layers.0.mlp.gate")
    %need0 = dist.zero_need : tensor<1xi32>
    %slots, %counts, %pos, %need1 = dist.pack %n, %r need %need0 segments 1
        : (tensor<1x6x8xf32>, !moe.routing<1x6, experts = 4, k = 2>, tensor<1xi32>)
        -> (tensor<1x2x7x8xf32, #dist.rows<2, 1>>, tensor<1x2x2xi32>, tensor<1x6x2xi32>, tensor<1xi32>) loc("layers.0.mlp.experts")
    %slots2 = dist.all_to_all %slots from 0 to 1 over ["ep"]
        : tensor<1x2x7x8xf32, #dist.rows<2, 1>> -> tensor<2x1x7x8xf32, #dist.rows<2, 1>> loc("layers.0.mlp.experts")
    %counts2 = dist.all_to_all %counts from 0 to 1 over ["ep"] : tensor<1x2x2xi32> -> tensor<2x1x2xi32> loc("layers.0.mlp.experts")
    %rows, %groups = dist.regroup %slots2, %counts2 segments 1
        : (tensor<2x1x7x8xf32, #dist.rows<2, 1>>, tensor<2x1x2xi32>) -> (tensor<14x8xf32, #dist.rows<0, 2>>, tensor<1x2xi32>) loc("layers.0.mlp.experts")
    %h = moe.grouped_matmul %rows by %groups, %up contract 1
        : (tensor<14x8xf32, #dist.rows<0, 2>>, tensor<1x2xi32>, tensor<2x2x6x8xf32>) -> tensor<14x2x6xf32, #dist.rows<0, 2>> loc("layers.0.mlp.experts")
    %a = moe.glu silu %h : (tensor<14x2x6xf32, #dist.rows<0, 2>>) -> tensor<14x6xf32, #dist.rows<0, 2>> loc("layers.0.mlp.experts")
    %o = moe.grouped_matmul %a by %groups, %down contract 1
        : (tensor<14x6xf32, #dist.rows<0, 2>>, tensor<1x2xi32>, tensor<2x8x6xf32>) -> tensor<14x8xf32, #dist.rows<0, 2>> loc("layers.0.mlp.experts")
    %back = dist.ungroup %o, %counts2 segments 1
        : (tensor<14x8xf32, #dist.rows<0, 2>>, tensor<2x1x2xi32>) -> tensor<2x1x7x8xf32, #dist.rows<2, 1>> loc("layers.0.mlp.experts")
    %slots3 = dist.all_to_all %back from 1 to 0 over ["ep"]
        : tensor<2x1x7x8xf32, #dist.rows<2, 1>> -> tensor<1x2x7x8xf32, #dist.rows<2, 1>> loc("layers.0.mlp.experts")
    %y = dist.unpack %slots3, %pos, %r
        : (tensor<1x2x7x8xf32, #dist.rows<2, 1>>, tensor<1x6x2xi32>, !moe.routing<1x6, experts = 4, k = 2>) -> tensor<1x6x8xf32> loc("layers.0.mlp.experts")
    %sh = moe.linear %n, %sup contract 1 : (tensor<1x6x8xf32>, tensor<2x6x8xf32>) -> tensor<1x6x2x6xf32> loc("layers.0.mlp.shared")
    %sa = moe.glu silu %sh : (tensor<1x6x2x6xf32>) -> tensor<1x6x6xf32> loc("layers.0.mlp.shared")
    %so = moe.linear %sa, %sdown contract 1 : (tensor<1x6x6xf32>, tensor<8x6xf32>) -> tensor<1x6x8xf32> loc("layers.0.mlp.shared")
    %both = moe.add %y, %so : (tensor<1x6x8xf32>, tensor<1x6x8xf32>) -> tensor<1x6x8xf32> loc("layers.0.mlp")
    %res = moe.add %x, %both : (tensor<1x6x8xf32>, tensor<1x6x8xf32>) -> tensor<1x6x8xf32> loc("layers.0")
    %need2 = dist.all_reduce max %need1 over ["dp", "ep"] : tensor<1xi32> -> tensor<1xi32>
    dist.require_bound %need2 initial 7 worst 12 : tensor<1xi32>
    return %res : tensor<1x6x8xf32>
  }
}
)mlir";

/// The same block at the phase `import`.
inline const char *kGlobalBlock = R"mlir(
module {
  moe.state @norm : tensor<8xbf16> from #moe.source<names = ["norm"], disk_shape = [8]>
  moe.state @gate : tensor<4x8xbf16> from #moe.source<names = ["gate"], disk_shape = [4, 8]>
  moe.state @up : tensor<4x2x6x8xbf16> from #moe.source<names = ["e{e}.w1", "e{e}.w3"], per_expert = true, disk_shape = [6, 8]>
  moe.state @down : tensor<4x8x6xbf16> from #moe.source<names = ["e{e}.w2"], per_expert = true, disk_shape = [8, 6]>
  func.func @forward(%x: tensor<4x6x8xbf16> {moe.name = "x"}) -> (tensor<4x6x8xbf16> {moe.name = "y"}) {
    %norm = moe.param @norm : tensor<8xbf16>
    %gate = moe.param @gate : tensor<4x8xbf16>
    %up = moe.param @up : tensor<4x2x6x8xbf16>
    %down = moe.param @down : tensor<4x8x6xbf16>
    %n = moe.rms_norm %x, %norm eps 1.0e-5 : (tensor<4x6x8xbf16>, tensor<8xbf16>) -> tensor<4x6x8xbf16>
    %logits = moe.linear %n, %gate contract 1 : (tensor<4x6x8xbf16>, tensor<4x8xbf16>) -> tensor<4x6x4xbf16>
    %r = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %logits
        : (tensor<4x6x4xbf16>) -> !moe.routing<4x6, experts = 4, k = 2>
    %rows = moe.dispatch %n, %r : (tensor<4x6x8xbf16>, !moe.routing<4x6, experts = 4, k = 2>) -> tensor<48x8xbf16>
    %h = moe.grouped_matmul %rows by %r, %up contract 1
        : (tensor<48x8xbf16>, !moe.routing<4x6, experts = 4, k = 2>, tensor<4x2x6x8xbf16>) -> tensor<48x2x6xbf16>
    %a = moe.glu silu %h : (tensor<48x2x6xbf16>) -> tensor<48x6xbf16>
    %o = moe.grouped_matmul %a by %r, %down contract 1
        : (tensor<48x6xbf16>, !moe.routing<4x6, experts = 4, k = 2>, tensor<4x8x6xbf16>) -> tensor<48x8xbf16>
    %y = moe.combine %o, %r : (tensor<48x8xbf16>, !moe.routing<4x6, experts = 4, k = 2>) -> tensor<4x6x8xbf16>
    return %y : tensor<4x6x8xbf16>
  }
}
)mlir";

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_PLANLOWERINGUTIL_H
