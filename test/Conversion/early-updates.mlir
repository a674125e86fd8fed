// Updates, which a program has behind everything else, come as soon as what they take is there, and behind the last use of the weight that they change: not
// all gradients are alive at once. A part of what an update takes that depends on nothing stands where it is used.
// RUN: moe-opt %s --plan-schedule | FileCheck %s

#info = #plan.info<model_class = "m", task = "train", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["ep"] = [2] by "t" info #info {
  plan.program @train ranks 2 queues ["compute"] bound [4, 8] {
    plan.arena "state" state on device bytes 0 per_bound 0
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %x = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "x" %x : tensor<2x4xf32> : !plan.view<2x4xf32>
    %lr = plan.view "activations" : !plan.view<1xf32>
    plan.input "lr" %lr : tensor<1xf32> : !plan.view<1xf32>
    %need = plan.view "activations" : !plan.view<1xi32>
    plan.input "need" %need : tensor<1xi32> : !plan.view<1xi32>
    %w = plan.view "state" : !plan.view<2x4xf32>
    %v = plan.view "state" : !plan.view<2x4xf32>
    %g1 = plan.view "activations" : !plan.view<2x4xf32>
    %g2 = plan.view "activations" : !plan.view<2x4xf32>
    %g3 = plan.view "activations" : !plan.view<2x4xf32>
    %s1 = plan.view "activations" : !plan.view<1xf32>
    %s2 = plan.view "activations" : !plan.view<1xf32>
    // CHECK: plan.call "add"({{.*}} at "first"
    plan.call "add"(%x, %x) -> (%g1) {} on "compute" at "first" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    // CHECK: plan.call "squares"({{.*}} at "norm1"
    // CHECK: plan.require_bound
    // CHECK: plan.call "sgd"({{.*}} at "update1"
    // CHECK: plan.call "add"({{.*}} at "second"
    plan.call "add"(%x, %v) -> (%g2) {} on "compute" at "second" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    // CHECK: plan.call "squares"({{.*}} at "norm2"
    // It reads the weight that the second update changes, which so comes behind it.
    // CHECK: plan.call "add"({{.*}} at "third"
    plan.call "add"(%x, %v) -> (%g3) {} on "compute" at "third" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    // CHECK: plan.call "sgd"({{.*}} at "update2"
    // CHECK-NOT: plan.call
    plan.call "squares"(%g1) -> (%s1) {keep = 0 : i64, tail = 0 : i64} on "compute" at "norm1" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    plan.call "squares"(%g2) -> (%s2) {keep = 0 : i64, tail = 0 : i64} on "compute" at "norm2" : (!plan.view<2x4xf32>) -> !plan.view<1xf32>
    plan.require_bound %need on "compute" : !plan.view<1xi32>
    plan.call "sgd"(%g1, %lr) -> (%w) {momentum = 0.0 : f64, nesterov = 0 : i64, weight_decay = 0.0 : f64} on "compute" at "update1" : (!plan.view<2x4xf32>, !plan.view<1xf32>) -> !plan.view<2x4xf32>
    plan.call "sgd"(%g2, %lr) -> (%v) {momentum = 0.0 : f64, nesterov = 0 : i64, weight_decay = 0.0 : f64} on "compute" at "update2" : (!plan.view<2x4xf32>, !plan.view<1xf32>) -> !plan.view<2x4xf32>
    plan.output "y" %g3 : tensor<2x4xf32> : !plan.view<2x4xf32>
  }
}
