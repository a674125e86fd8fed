// A program with a loss gets the gradient of every state; what nobody needs is not computed; cotangents of one value are added in reverse program order.
// RUN: moe-opt %s --moe-autodiff --split-input-file | FileCheck %s

moe.state @table : tensor<9x4xf32>
moe.state @w : tensor<4x4xf32>
moe.state @unread : tensor<3xf32>
moe.state @hash : tensor<9x1xi32>

// CHECK-LABEL: func.func @grad(
// CHECK-SAME: -> (tensor<1xf32> {moe.loss_weight = 1.000000e+00 : f64, moe.name = "loss"}, tensor<9x4xf32> {moe.gradient_of = @table, moe.name = "grad.table"},
// CHECK-SAME: tensor<4x4xf32> {moe.gradient_of = @w, moe.name = "grad.w"}, tensor<3xf32> {moe.gradient_of = @unread, moe.name = "grad.unread"})
func.func @grad(%ids: tensor<6xi32> {moe.name = "input_ids"}, %labels: tensor<6xi32> {moe.name = "labels"}) -> (tensor<1xf32> {moe.loss_weight = 1.0 : f64, moe.name = "loss"}) {
  // CHECK: %[[TABLE:.*]] = moe.param @table
  %table = moe.param @table : tensor<9x4xf32>
  // CHECK: %[[W:.*]] = moe.param @w
  %w = moe.param @w : tensor<4x4xf32>
  // CHECK: %[[X:.*]] = moe.embedding
  %x = moe.embedding %ids, %table {pad = 1 : i64} : (tensor<6xi32>, tensor<9x4xf32>) -> tensor<6x4xf32>
  // CHECK: %[[H:.*]] = moe.linear %[[X]], %[[W]]
  %h = moe.linear %x, %w contract 1 : (tensor<6x4xf32>, tensor<4x4xf32>) -> tensor<6x4xf32>
  // CHECK: %[[Y:.*]] = moe.add %[[X]], %[[H]]
  %y = moe.add %x, %h : (tensor<6x4xf32>, tensor<6x4xf32>) -> tensor<6x4xf32>
  // The head is the embedding's table.
  // CHECK: %[[LOGITS:.*]] = moe.linear %[[Y]], %[[TABLE]]
  %logits = moe.linear %y, %table contract 1 : (tensor<6x4xf32>, tensor<9x4xf32>) -> tensor<6x9xf32>
  %max = moe.row_max %logits classes 9 : (tensor<6x9xf32>) -> tensor<6xf32>
  %stats = moe.cross_entropy_stats %logits, %max, %labels classes 9 : (tensor<6x9xf32>, tensor<6xf32>, tensor<6xi32>) -> tensor<6x3xf32>
  %sum, %count = moe.cross_entropy %stats, %labels classes 9 smoothing 0.0 : (tensor<6x3xf32>, tensor<6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  // CHECK: %[[LOSS:.*]] = moe.ratio
  %loss = moe.ratio %sum over %count : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
  // CHECK: %[[ONE:.*]] = moe.full 1.0
  // CHECK: %[[DSUM:.*]] = moe.ratio %[[ONE]]
  // CHECK: %[[DSTATS:.*]] = moe.cross_entropy_grad %[[DSUM]]
  // CHECK: %[[DLOGITS:.*]] = moe.cross_entropy_stats_grad %[[DSTATS]], %[[LOGITS]]
  // CHECK: %[[DY:.*]] = moe.linear_input_grad %[[DLOGITS]], %[[TABLE]]
  // CHECK: %[[DHEAD:.*]] = moe.linear_weight_grad %[[DLOGITS]], %[[Y]]
  // CHECK: %[[DXH:.*]] = moe.linear_input_grad %[[DY]], %[[W]]
  // CHECK: %[[DW:.*]] = moe.linear_weight_grad %[[DY]], %[[X]]
  // CHECK: %[[DX:.*]] = moe.add %[[DY]], %[[DXH]]
  // CHECK: %[[DEMBEDDING:.*]] = moe.embedding_grad %{{.*}}, %[[DX]] like %[[TABLE]] {pad = 1 : i64}
  // CHECK: %[[DTABLE:.*]] = moe.add %[[DHEAD]], %[[DEMBEDDING]]
  // CHECK: %[[ZERO:.*]] = moe.full 0.0
  // CHECK: return %[[LOSS]], %[[DTABLE]], %[[DW]], %[[ZERO]]
  return %loss : tensor<1xf32>
}

// -----

// Experts: rows go back as they came, the routing's weights have a cotangent, its choice has none.
moe.state @router : tensor<4x8xf32>
moe.state @experts : tensor<4x8x8xf32>

// CHECK-LABEL: func.func @grad
func.func @grad(%ids: tensor<6xi32> {moe.name = "input_ids"}) -> (tensor<1xf32> {moe.loss_weight = 1.0 : f64, moe.name = "loss"}) {
  %router = moe.param @router : tensor<4x8xf32>
  %w = moe.param @experts : tensor<4x8x8xf32>
  %x = moe.full 1.0 : tensor<6x8xf32>
  %logits = moe.linear %x, %router contract 1 : (tensor<6x8xf32>, tensor<4x8xf32>) -> tensor<6x4xf32>
  // CHECK: %[[R:.*]] = moe.route
  %r = moe.route <k = 2> of %logits : (tensor<6x4xf32>) -> !moe.routing<6, experts = 4, k = 2>
  // CHECK: %[[ROWS:.*]] = moe.dispatch
  %rows = moe.dispatch %x, %r : (tensor<6x8xf32>, !moe.routing<6, experts = 4, k = 2>) -> tensor<12x8xf32>
  // CHECK: %[[OUT:.*]] = moe.grouped_matmul
  %out = moe.grouped_matmul %rows by %r, %w contract 1 : (tensor<12x8xf32>, !moe.routing<6, experts = 4, k = 2>, tensor<4x8x8xf32>) -> tensor<12x8xf32>
  %y = moe.combine %out, %r : (tensor<12x8xf32>, !moe.routing<6, experts = 4, k = 2>) -> tensor<6x8xf32>
  %max = moe.row_max %y classes 8 : (tensor<6x8xf32>) -> tensor<6xf32>
  %stats = moe.cross_entropy_stats %y, %max, %ids classes 8 : (tensor<6x8xf32>, tensor<6xf32>, tensor<6xi32>) -> tensor<6x3xf32>
  %sum, %count = moe.cross_entropy %stats, %ids classes 8 smoothing 0.0 : (tensor<6x3xf32>, tensor<6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  %loss = moe.ratio %sum over %count : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
  // CHECK: %[[DY:.*]] = moe.cross_entropy_stats_grad
  // CHECK: %[[DOUT:.*]] = moe.dispatch %[[DY]], %[[R]] weighted
  // CHECK: %[[DWEIGHTS:.*]] = moe.choice_dots %[[OUT]], %[[DY]], %[[R]]
  // CHECK: %[[DEXPERTS:.*]] = moe.grouped_weight_grad %[[DOUT]] by %[[R]], %[[ROWS]]
  // CHECK: %[[DLOGITS:.*]] = moe.route_grad <k = 2> of %[[DWEIGHTS]], %{{.*}} by %[[R]]
  // CHECK: %[[DROUTER:.*]] = moe.linear_weight_grad %[[DLOGITS]]
  // CHECK-NOT: moe.combine
  // CHECK: return %{{.*}}, %[[DROUTER]], %[[DEXPERTS]]
  return %loss : tensor<1xf32>
}
