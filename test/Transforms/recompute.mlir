// --dist-recompute: what the backward program reads of the forward one is made again before its first use. `selective` repeats what is cheap where that keeps fewer bytes (norms and
// activations, whose operands are kept for their own gradients), never a product; `full` keeps what goes from layer to layer and repeats the rest, a routing never.
// RUN: moe-opt %s --moe-autodiff --dist-recompute=remark=true 2>&1 | FileCheck %s --check-prefix=NONE
// RUN: moe-opt %s --moe-autodiff --dist-recompute="policy=selective remark=true" 2>&1 | FileCheck %s --check-prefix=SELECTIVE
// RUN: moe-opt %s --moe-autodiff --dist-recompute="policy=full remark=true" 2>&1 | FileCheck %s --check-prefix=FULL
// RUN: not moe-opt %s --dist-recompute=policy=some 2>&1 | FileCheck %s --check-prefix=UNKNOWN

// UNKNOWN: policy 'some' is none of none, selective and full

moe.state @table : tensor<9x16xf32>
moe.state @norm : tensor<16xf32>
moe.state @router : tensor<4x16xf32>
moe.state @up : tensor<4x32x16xf32>
moe.state @down : tensor<4x16x32xf32>
moe.state @head : tensor<9x16xf32>

// Of 6 tokens and 12 rows: h and h2 384 each, x 384, rows 768, a and g 1536 each, d 768, the router's logits 96, and of the loss 216 + 24 + 72 + 4.
// NONE: keeps 6172 bytes for the backward pass, repeats 0 operations
// NONE-NOT: dist.recomputed

// All but x, rows and g.
// SELECTIVE: keeps 3484 bytes for the backward pass, repeats 3 operations
// SELECTIVE: %[[H:.*]] = moe.embedding
// SELECTIVE: %[[R:.*]] = moe.route
// SELECTIVE: %[[A:.*]] = moe.grouped_matmul
// SELECTIVE: moe.full 1.000000e+00 {moe.backward}
// SELECTIVE-NOT: dist.recomputed
// SELECTIVE: moe.grouped_input_grad
// SELECTIVE-NEXT: %[[G:.*]] = moe.act silu %[[A]] {dist.recomputed}
// SELECTIVE-NEXT: moe.grouped_weight_grad {{.*}}, %[[G]]
// SELECTIVE-NEXT: moe.act_grad silu {{.*}}, %[[A]]
// SELECTIVE-NEXT: moe.grouped_input_grad
// SELECTIVE-NEXT: %[[X:.*]] = moe.rms_norm %[[H]], {{.*}} {dist.recomputed}
// SELECTIVE-NEXT: %[[ROWS:.*]] = moe.dispatch %[[X]], %[[R]] {dist.recomputed}
// SELECTIVE-NEXT: moe.grouped_weight_grad {{.*}}, %[[ROWS]]
// SELECTIVE-NOT: dist.recomputed
// SELECTIVE: moe.linear_weight_grad {{.*}}, %[[X]]

// h, h2 and the loss; not the routing, but its logits.
// FULL: keeps 1084 bytes for the backward pass, repeats 6 operations
// FULL: %[[H:.*]] = moe.embedding
// FULL: %[[R:.*]] = moe.route
// FULL: moe.full 1.000000e+00 {moe.backward}
// FULL-NOT: moe.route <
// FULL: moe.dispatch {{.*}}, %[[R]] weighted
// FULL-NEXT: %[[X:.*]] = moe.rms_norm %[[H]], {{.*}} {dist.recomputed}
// FULL-NEXT: %[[ROWS:.*]] = moe.dispatch %[[X]], %[[R]] {dist.recomputed}
// FULL-NEXT: %[[A:.*]] = moe.grouped_matmul %[[ROWS]] by %[[R]], {{.*}} {dist.recomputed}
// FULL-NEXT: %[[G:.*]] = moe.act silu %[[A]] {dist.recomputed}
// FULL-NEXT: %[[D:.*]] = moe.grouped_matmul %[[G]] by %[[R]], {{.*}} {dist.recomputed}
// FULL-NEXT: moe.choice_dots %[[D]],
// FULL: %[[LOGITS:.*]] = moe.linear %[[X]], {{.*}} {dist.recomputed}
// FULL-NEXT: moe.route_grad {{.*}}, %[[LOGITS]]
func.func @grad(%ids: tensor<6xi32> {moe.name = "input_ids"}) -> (tensor<1xf32> {moe.loss_weight = 1.0 : f64, moe.name = "loss"}) {
  %table = moe.param @table : tensor<9x16xf32>
  %h = moe.embedding %ids, %table : (tensor<6xi32>, tensor<9x16xf32>) -> tensor<6x16xf32>
  %norm = moe.param @norm : tensor<16xf32>
  %x = moe.rms_norm %h, %norm eps 1.0e-5 : (tensor<6x16xf32>, tensor<16xf32>) -> tensor<6x16xf32> loc("model.layers.0.norm")
  %router = moe.param @router : tensor<4x16xf32>
  %logits = moe.linear %x, %router contract 1 : (tensor<6x16xf32>, tensor<4x16xf32>) -> tensor<6x4xf32> loc("model.layers.0.gate")
  %r = moe.route <k = 2> of %logits : (tensor<6x4xf32>) -> !moe.routing<6, experts = 4, k = 2> loc("model.layers.0.gate")
  %rows = moe.dispatch %x, %r : (tensor<6x16xf32>, !moe.routing<6, experts = 4, k = 2>) -> tensor<12x16xf32> loc("model.layers.0.experts")
  %up = moe.param @up : tensor<4x32x16xf32>
  %a = moe.grouped_matmul %rows by %r, %up contract 1 : (tensor<12x16xf32>, !moe.routing<6, experts = 4, k = 2>, tensor<4x32x16xf32>) -> tensor<12x32xf32> loc("model.layers.0.experts")
  %g = moe.act silu %a : (tensor<12x32xf32>) -> tensor<12x32xf32> loc("model.layers.0.experts")
  %down = moe.param @down : tensor<4x16x32xf32>
  %d = moe.grouped_matmul %g by %r, %down contract 1 : (tensor<12x32xf32>, !moe.routing<6, experts = 4, k = 2>, tensor<4x16x32xf32>) -> tensor<12x16xf32> loc("model.layers.0.experts")
  %y = moe.combine %d, %r : (tensor<12x16xf32>, !moe.routing<6, experts = 4, k = 2>) -> tensor<6x16xf32> loc("model.layers.0.experts")
  %h2 = moe.add %h, %y : (tensor<6x16xf32>, tensor<6x16xf32>) -> tensor<6x16xf32> loc("model.layers.0")
  %head = moe.param @head : tensor<9x16xf32>
  %scores = moe.linear %h2, %head contract 1 : (tensor<6x16xf32>, tensor<9x16xf32>) -> tensor<6x9xf32>
  %max = moe.row_max %scores classes 9 : (tensor<6x9xf32>) -> tensor<6xf32>
  %stats = moe.cross_entropy_stats %scores, %max, %ids classes 9 : (tensor<6x9xf32>, tensor<6xf32>, tensor<6xi32>) -> tensor<6x3xf32>
  %sum, %count = moe.cross_entropy %stats, %ids classes 9 smoothing 0.0 : (tensor<6x3xf32>, tensor<6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  %loss = moe.ratio %sum over %count : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
  return %loss : tensor<1xf32>
}
