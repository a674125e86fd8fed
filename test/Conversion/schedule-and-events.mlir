// An exchange starts as soon as it can, and what does not need its result runs before what does; events stand where a value crosses queues, once.
// RUN: moe-opt %s --plan-schedule --plan-insert-events | FileCheck %s

#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["ep"] = [2] by "t" info #info {
  plan.program @forward ranks 2 queues ["compute", "comm"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %x = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "x" %x : tensor<2x4xf32> : !plan.view<2x4xf32>
    %unused = plan.view "activations" : !plan.view<2x4xf32>
    %a = plan.view "activations" : !plan.view<2x4xf32>
    %b = plan.view "activations" : !plan.view<2x4xf32>
    %c = plan.view "activations" : !plan.view<2x4xf32>
    %d = plan.view "activations" : !plan.view<2x4xf32>
    %e = plan.view "activations" : !plan.view<2x4xf32>
    %f = plan.view "activations" : !plan.view<2x4xf32>
    // CHECK: plan.input "x" %[[X:[0-9]+]] :
    // CHECK: plan.call "add"(%[[X]], %[[X]]) -> (%[[A:[0-9]+]]) {} on "compute"
    // CHECK-NEXT: %[[MADE:.*]] = plan.record on "compute"
    // CHECK-NEXT: plan.wait %[[MADE]] on "comm"
    // CHECK-NEXT: plan.view
    // CHECK-NEXT: plan.collective all_reduce(%[[A]]) -> (%[[B:[0-9]+]]) over
    // CHECK-NEXT: %[[DONE:.*]] = plan.record on "comm"
    // The independent sum comes first although it was written last.
    // CHECK: plan.call "add"(%[[X]], %[[A]]) -> (%[[F:[0-9]+]]) {} on "compute"
    // CHECK-NEXT: plan.wait %[[DONE]] on "compute"
    // CHECK: plan.call "add"(%[[B]], %[[X]]) -> (%[[C:[0-9]+]]) {} on "compute"
    // What waited once need not wait again.
    // CHECK-NOT: plan.wait
    // CHECK: plan.call "add"(%[[B]], %[[C]]) -> (%[[D:[0-9]+]]) {} on "compute"
    // CHECK: plan.call "add"(%[[D]], %[[F]]) -> (%[[E:[0-9]+]]) {} on "compute"
    // CHECK: plan.output "y" %[[E]]
    plan.call "add"(%x, %x) -> (%a) {} on "compute" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    plan.collective all_reduce(%a) -> (%b) over ["ep"] {op = 0 : i64} on "comm" : (!plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    plan.call "add"(%b, %x) -> (%c) {} on "compute" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    plan.call "add"(%b, %c) -> (%d) {} on "compute" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    plan.call "add"(%x, %a) -> (%f) {} on "compute" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    plan.call "add"(%d, %f) -> (%e) {} on "compute" : (!plan.view<2x4xf32>, !plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    plan.output "y" %e : tensor<2x4xf32> : !plan.view<2x4xf32>
  }
}
