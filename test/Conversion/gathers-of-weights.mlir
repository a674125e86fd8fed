// An exchange that takes only states could start at any time. It waits for what stands sixteen instructions before it on the compute queue, so that memory is
// known to be free for what it makes: here the third weight is gathered to where the first was. With less before it, it waits for nothing.
// RUN: moe-opt %s --plan-insert-events --plan-allocate | FileCheck %s

#info = #plan.info<model_class = "m", task = "train", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["dp"] = [2] by "t" info #info {
  plan.program @train ranks 2 queues ["compute", "comm"] {
    plan.arena "state" state on device bytes 1536 per_bound 0
    plan.arena "activations" activations on device bytes 0 per_bound 0
    %w1 = plan.view "state" at 0 : !plan.view<32x4xf32>
    %w2 = plan.view "state" at 512 : !plan.view<32x4xf32>
    %w3 = plan.view "state" at 1024 : !plan.view<32x4xf32>
    %g1 = plan.view "activations" : !plan.view<64x4xf32>
    %g2 = plan.view "activations" : !plan.view<64x4xf32>
    %g3 = plan.view "activations" : !plan.view<64x4xf32>
    %s1 = plan.view "activations" : !plan.view<1xf32>
    %s2 = plan.view "activations" : !plan.view<1xf32>
    %s3 = plan.view "activations" : !plan.view<1xf32>
    %s4 = plan.view "activations" : !plan.view<1xf32>
    %s5 = plan.view "activations" : !plan.view<1xf32>
    %s6 = plan.view "activations" : !plan.view<1xf32>
    %s7 = plan.view "activations" : !plan.view<1xf32>
    %s8 = plan.view "activations" : !plan.view<1xf32>
    %s9 = plan.view "activations" : !plan.view<1xf32>
    %s10 = plan.view "activations" : !plan.view<1xf32>
    %s11 = plan.view "activations" : !plan.view<1xf32>
    %s12 = plan.view "activations" : !plan.view<1xf32>
    %s13 = plan.view "activations" : !plan.view<1xf32>
    %s14 = plan.view "activations" : !plan.view<1xf32>
    %s15 = plan.view "activations" : !plan.view<1xf32>
    %s16 = plan.view "activations" : !plan.view<1xf32>
    %s17 = plan.view "activations" : !plan.view<1xf32>
    // CHECK: %[[FIRST:.*]] = plan.view "activations" at [[#AT:]] : <64x4xf32>
    // CHECK: %[[THIRD:.*]] = plan.view "activations" at [[#AT]] : <64x4xf32>
    // CHECK-NOT: plan.wait
    // CHECK: plan.collective all_gather({{.*}}) -> (%[[FIRST]])
    // CHECK-NOT: plan.wait
    // CHECK: plan.collective all_gather
    plan.collective all_gather(%w1) -> (%g1) over ["dp"] {dim = 0 : i64} on "comm" at "first" : (!plan.view<32x4xf32>) -> !plan.view<64x4xf32>
    plan.collective all_gather(%w2) -> (%g2) over ["dp"] {dim = 0 : i64} on "comm" at "second" : (!plan.view<32x4xf32>) -> !plan.view<64x4xf32>
    // CHECK: plan.call "squares"(%[[FIRST]])
    // CHECK-NEXT: %[[USED:.*]] = plan.record on "compute"
    plan.call "squares"(%g1) -> (%s1) {keep = 0 : i64, tail = 0 : i64} on "compute" at "first" : (!plan.view<64x4xf32>) -> !plan.view<1xf32>
    plan.call "squares"(%g2) -> (%s2) {keep = 0 : i64, tail = 0 : i64} on "compute" at "second" : (!plan.view<64x4xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s1, %s2) -> (%s3) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s2, %s3) -> (%s4) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s3, %s4) -> (%s5) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s4, %s5) -> (%s6) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s5, %s6) -> (%s7) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s6, %s7) -> (%s8) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s7, %s8) -> (%s9) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s8, %s9) -> (%s10) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s9, %s10) -> (%s11) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s10, %s11) -> (%s12) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s11, %s12) -> (%s13) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s12, %s13) -> (%s14) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s13, %s14) -> (%s15) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    plan.call "add"(%s14, %s15) -> (%s16) {} on "compute" at "work" : (!plan.view<1xf32>, !plan.view<1xf32>) -> !plan.view<1xf32>
    // CHECK: plan.wait %[[USED]] on "comm"
    // CHECK-NEXT: plan.collective all_gather({{.*}}) -> (%[[THIRD]])
    plan.collective all_gather(%w3) -> (%g3) over ["dp"] {dim = 0 : i64} on "comm" at "third" : (!plan.view<32x4xf32>) -> !plan.view<64x4xf32>
    plan.call "squares"(%g3) -> (%s17) {keep = 0 : i64, tail = 0 : i64} on "compute" at "third" : (!plan.view<64x4xf32>) -> !plan.view<1xf32>
    plan.output "norm" %s17 : tensor<1xf32> : !plan.view<1xf32>
  }
}
