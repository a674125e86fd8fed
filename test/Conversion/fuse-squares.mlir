// An update that reads a gradient as it is adds up its squares, and what is made of these stands behind it, in the order that it had. Not where an update
// waits for the norm, of rows, on another queue, behind the update, or a second time.
// RUN: moe-opt %s --plan-fuse-squares | FileCheck %s

#info = #plan.info<model_class = "m", task = "train", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["ep"] = [2] by "t" info #info {
  // CHECK-LABEL: plan.program @train
  // CHECK: plan.input "g1" %[[G1:[0-9]+]]
  // CHECK: plan.input "g2" %[[G2:[0-9]+]]
  // CHECK-NOT: plan.call "squares"
  // CHECK: plan.call "adamw"(%[[G1]], %[[LR:[0-9]+]], %[[STEP:[0-9]+]]) -> (%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %[[S1:[0-9]+]]) {beta1 = {{.*}} on "compute" at "first" :
  // CHECK-SAME: -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<1xf32>)
  // CHECK-NEXT: plan.collective all_reduce(%[[S1]]) -> (%[[A1:[0-9]+]])
  // CHECK-NEXT: plan.call "adamw"(%[[G2]], %[[LR]], %[[STEP]]) -> (%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %[[S2:[0-9]+]])
  // CHECK-NEXT: plan.call "add"(%[[A1]], %[[S2]]) -> (%[[SUM:[0-9]+]])
  // CHECK-NEXT: plan.call "clip_factor"(%[[SUM]])
  // CHECK-NOT: plan.call
  plan.program @train ranks 2 queues ["compute", "comm", "host"] {
    plan.arena "state" state on device bytes 0 per_bound 0
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %g1 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g1" %g1 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %g2 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g2" %g2 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %lr = plan.view "activations" : !plan.view<1xf32>
    plan.input "lr" %lr : tensor<1xf32> : !plan.view<1xf32>
    %step = plan.view "activations" : !plan.view<1xi32>
    plan.input "step" %step : tensor<1xi32> : !plan.view<1xi32>
    %w1 = plan.view "state" : !plan.view<2x4xf32>
    %m1 = plan.view "state" : !plan.view<2x4xf32>
    %v1 = plan.view "state" : !plan.view<2x4xf32>
    %w2 = plan.view "state" : !plan.view<2x4xf32>
    %m2 = plan.view "state" : !plan.view<2x4xf32>
    %v2 = plan.view "state" : !plan.view<2x4xf32>
    %s1 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s1) {} on "compute" at "first" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    %a1 = plan.view "activations" : !plan.view<1xf32>
    plan.collective all_reduce(%s1) -> (%a1) over ["ep"] {op = 0 : i64} on "comm" : (!plan.view<1xf32>) -> !plan.view<1xf32>
    %s2 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g2) -> (%s2) {} on "compute" at "second" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    %sum = plan.view "activations" : !plan.view<1xf32>
    plan.call "add"(%a1, %s2) -> (%sum) {} on "compute" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    %norm = plan.view "activations" : !plan.view<1xf32>
    %factor = plan.view "activations" : !plan.view<1xf32>
    plan.call "clip_factor"(%sum) -> (%norm, %factor) {max_norm = 0.0 : f64} on "compute" : (!plan.view<1xf32>) -> (!plan.view<1xf32>, !plan.view<1xf32>)
    plan.output "grad_norm" %norm : tensor<1xf32> : !plan.view<1xf32>
    plan.call "adamw"(%g1, %lr, %step) -> (%w1, %m1, %v1) {beta1 = 0.9 : f64, beta2 = 0.99 : f64, eps = 1.0e-8 : f64, weight_decay = 0.0 : f64} on "compute" at "first" : (!plan.view<2x4xf32>, !plan.view<1xf32>, !plan.view<1xi32>) -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>)
    plan.call "adamw"(%g2, %lr, %step) -> (%w2, %m2, %v2) {beta1 = 0.9 : f64, beta2 = 0.99 : f64, eps = 1.0e-8 : f64, weight_decay = 0.0 : f64} on "compute" at "second" : (!plan.view<2x4xf32>, !plan.view<1xf32>, !plan.view<1xi32>) -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>)
  }

  // CHECK-LABEL: plan.program @clipped
  // CHECK: plan.call "squares"
  // CHECK: plan.call "clip_factor"
  // CHECK: plan.call "adamw"(%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}) -> (%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
  plan.program @clipped ranks 2 queues ["compute", "comm", "host"] {
    plan.arena "state" state on device bytes 0 per_bound 0
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %g1 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g1" %g1 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %lr = plan.view "activations" : !plan.view<1xf32>
    plan.input "lr" %lr : tensor<1xf32> : !plan.view<1xf32>
    %step = plan.view "activations" : !plan.view<1xi32>
    plan.input "step" %step : tensor<1xi32> : !plan.view<1xi32>
    %w1 = plan.view "state" : !plan.view<2x4xf32>
    %m1 = plan.view "state" : !plan.view<2x4xf32>
    %v1 = plan.view "state" : !plan.view<2x4xf32>
    %s1 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s1) {} on "compute" at "first" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    %norm = plan.view "activations" : !plan.view<1xf32>
    %factor = plan.view "activations" : !plan.view<1xf32>
    plan.call "clip_factor"(%s1) -> (%norm, %factor) {max_norm = 0.0 : f64} on "compute" : (!plan.view<1xf32>) -> (!plan.view<1xf32>, !plan.view<1xf32>)
    plan.output "grad_norm" %norm : tensor<1xf32> : !plan.view<1xf32>
    plan.call "adamw"(%g1, %lr, %step, %factor) -> (%w1, %m1, %v1) {beta1 = 0.9 : f64, beta2 = 0.99 : f64, eps = 1.0e-8 : f64, weight_decay = 0.0 : f64} on "compute" at "first" : (!plan.view<2x4xf32>, !plan.view<1xf32>, !plan.view<1xi32>, !plan.view<1xf32>) -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>)
  }

  // The first update has a rate that the norm has made.
  // CHECK-LABEL: plan.program @rate
  // CHECK: plan.call "squares"(%[[G1:[0-9]+]])
  // CHECK: plan.call "adamw"(%[[G1]], {{.*}} -> (%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}) {
  // CHECK: plan.call "adamw"({{.*}} -> (%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}) {
  plan.program @rate ranks 2 queues ["compute", "comm", "host"] {
    plan.arena "state" state on device bytes 0 per_bound 0
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %g1 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g1" %g1 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %g2 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g2" %g2 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %lr = plan.view "activations" : !plan.view<1xf32>
    plan.input "lr" %lr : tensor<1xf32> : !plan.view<1xf32>
    %step = plan.view "activations" : !plan.view<1xi32>
    plan.input "step" %step : tensor<1xi32> : !plan.view<1xi32>
    %w1 = plan.view "state" : !plan.view<2x4xf32>
    %m1 = plan.view "state" : !plan.view<2x4xf32>
    %v1 = plan.view "state" : !plan.view<2x4xf32>
    %w2 = plan.view "state" : !plan.view<2x4xf32>
    %m2 = plan.view "state" : !plan.view<2x4xf32>
    %v2 = plan.view "state" : !plan.view<2x4xf32>
    %s1 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s1) {} on "compute" at "first" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    plan.call "adamw"(%g1, %s1, %step) -> (%w1, %m1, %v1) {beta1 = 0.9 : f64, beta2 = 0.99 : f64, eps = 1.0e-8 : f64, weight_decay = 0.0 : f64} on "compute" at "first" : (!plan.view<2x4xf32>, !plan.view<1xf32>, !plan.view<1xi32>) -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>)
    %s2 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g2) -> (%s2) {} on "compute" at "second" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    plan.call "adamw"(%g2, %lr, %step) -> (%w2, %m2, %v2) {beta1 = 0.9 : f64, beta2 = 0.99 : f64, eps = 1.0e-8 : f64, weight_decay = 0.0 : f64} on "compute" at "second" : (!plan.view<2x4xf32>, !plan.view<1xf32>, !plan.view<1xi32>) -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>)
  }

  // CHECK-LABEL: plan.program @others
  // CHECK: plan.call "squares"{{.*}} {keep = 1 : i64, tail = 0 : i64}
  // CHECK: plan.call "squares"{{.*}} on "host" at "elsewhere"
  // CHECK: plan.call "squares"{{.*}} at "other"
  // CHECK-NOT: at "taken"
  // CHECK: plan.call "squares"{{.*}} at "again"
  // CHECK: plan.call "adamw"({{.*}} -> (%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}) {
  // CHECK: plan.call "squares"{{.*}} at "late"
  plan.program @others ranks 2 queues ["compute", "comm", "host"] {
    plan.arena "state" state on device bytes 0 per_bound 0
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %g1 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g1" %g1 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %g2 = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "g2" %g2 : tensor<2x4xf32> : !plan.view<2x4xf32>
    %lr = plan.view "activations" : !plan.view<1xf32>
    plan.input "lr" %lr : tensor<1xf32> : !plan.view<1xf32>
    %step = plan.view "activations" : !plan.view<1xi32>
    plan.input "step" %step : tensor<1xi32> : !plan.view<1xi32>
    %w1 = plan.view "state" : !plan.view<2x4xf32>
    %m1 = plan.view "state" : !plan.view<2x4xf32>
    %v1 = plan.view "state" : !plan.view<2x4xf32>
    %w2 = plan.view "state" : !plan.view<2x4xf32>
    %m2 = plan.view "state" : !plan.view<2x4xf32>
    %v2 = plan.view "state" : !plan.view<2x4xf32>
    %s1 = plan.view "activations" : !plan.view<2xf32>
    plan.call "squares"(%g1) -> (%s1) {keep = 1 : i64, tail = 0 : i64} on "compute" at "rows" : (!plan.view<2x4xf32>) -> !plan.view<2xf32>
    %s2 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s2) {} on "host" at "elsewhere" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    %s3 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g2) -> (%s3) {} on "compute" at "other" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    %s5 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s5) {} on "compute" at "taken" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    %s6 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s6) {} on "compute" at "again" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    plan.call "adamw"(%g1, %lr, %step) -> (%w1, %m1, %v1) {beta1 = 0.9 : f64, beta2 = 0.99 : f64, eps = 1.0e-8 : f64, weight_decay = 0.0 : f64} on "compute" at "first" : (!plan.view<2x4xf32>, !plan.view<1xf32>, !plan.view<1xi32>) -> (!plan.view<2x4xf32>, !plan.view<2x4xf32>, !plan.view<2x4xf32>)
    %s4 = plan.view "activations" : !plan.view<1xf32>
    plan.call "squares"(%g1) -> (%s4) {} on "compute" at "late" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
  }
}
