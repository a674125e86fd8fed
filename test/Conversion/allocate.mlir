// Addresses: inputs and outputs keep theirs for the whole program, the rest share; memory that another queue may still be using is not shared; rows that
// grow with B lie in an arena of their own, where every offset is a multiple of B.
// RUN: moe-opt %s --plan-allocate | FileCheck %s
// RUN: moe-opt %s --plan-allocate=remark-peak=1 2>&1 >/dev/null | FileCheck %s --check-prefix=PEAK

#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["ep"] = [2] by "t" info #info {
  // CHECK-LABEL: plan.program @chain
  plan.program @chain ranks 2 queues ["compute"] bound [1, 8] {
    // CHECK: plan.arena "activations" activations on device bytes 256 per_bound 0
    // CHECK: plan.arena "ragged" ragged on device bytes 0 per_bound 256
    plan.arena "activations" activations on device bytes 0 per_bound 0
    plan.arena "ragged" ragged on device bytes 0 per_bound 0
    // CHECK: %[[X:.*]] = plan.view "activations" at 0 :
    %x = plan.view "activations" : !plan.view<16xf32>
    plan.input "x" %x : tensor<16xf32> : !plan.view<16xf32>
    // CHECK: plan.view "activations" at 128 :
    %a = plan.view "activations" : !plan.view<16xf32>
    plan.call "add"(%x, %x) -> (%a) {} on "compute" : (!plan.view<16xf32>, !plan.view<16xf32>) -> !plan.view<16xf32>
    // CHECK: plan.view "activations" at 192 :
    %b = plan.view "activations" : !plan.view<16xf32>
    plan.call "add"(%a, %x) -> (%b) {} on "compute" : (!plan.view<16xf32>, !plan.view<16xf32>) -> !plan.view<16xf32>
    // The first sum is done: its place is free again.
    // CHECK: plan.view "activations" at 128 :
    %c = plan.view "activations" : !plan.view<16xf32>
    plan.call "add"(%b, %x) -> (%c) {} on "compute" : (!plan.view<16xf32>, !plan.view<16xf32>) -> !plan.view<16xf32>
    // CHECK: plan.view "activations" at 64 :
    %y = plan.view "activations" : !plan.view<16xf32>
    plan.call "add"(%c, %x) -> (%y) {} on "compute" : (!plan.view<16xf32>, !plan.view<16xf32>) -> !plan.view<16xf32>
    // CHECK: plan.view "ragged" at 0 per_bound 0 :
    %r = plan.view "ragged" : !plan.view<2x16xf32, bound = 0>
    plan.fill %r with 0.0 on "compute" : !plan.view<2x16xf32, bound = 0>
    // CHECK: plan.view "ragged" at 0 per_bound 128 :
    %s = plan.view "ragged" : !plan.view<2x16xf32, bound = 0>
    // PEAK: remark: most of arena 'ragged' is alive here: 256 of 256 bytes a row of B
    plan.call "add"(%r, %r) -> (%s) {} on "compute" : (!plan.view<2x16xf32, bound = 0>, !plan.view<2x16xf32, bound = 0>) -> !plan.view<2x16xf32, bound = 0>
    plan.output "y" %y : tensor<16xf32> : !plan.view<16xf32>
  }

  // CHECK-LABEL: plan.program @queues
  plan.program @queues ranks 2 queues ["compute", "comm"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    // CHECK: %[[A:.*]] = plan.view "activations" at [[A_AT:[0-9]+]] :
    %a = plan.view "activations" : !plan.view<16xf32>
    plan.fill %a with 1.0 on "compute" : !plan.view<16xf32>
    %e = plan.record on "compute"
    plan.wait %e on "comm"
    // CHECK: plan.view "activations" at [[B_AT:[0-9]+]] :
    %b = plan.view "activations" : !plan.view<16xf32>
    plan.collective all_reduce(%a) -> (%b) over ["ep"] {op = 0 : i64} on "comm" : (!plan.view<16xf32>) -> !plan.view<16xf32>
    %done = plan.record on "comm"
    // The exchange may still be reading %a: this fill, which did not wait, gets other memory.
    // CHECK-NOT: at [[A_AT]] :
    // CHECK: plan.view "activations" at {{[0-9]+}} :
    %c = plan.view "activations" : !plan.view<16xf32>
    plan.fill %c with 2.0 on "compute" : !plan.view<16xf32>
    // CHECK: plan.wait
    plan.wait %done on "compute"
    // Now it is known to be done.
    // CHECK: plan.view "activations" at [[A_AT]] :
    %d = plan.view "activations" : !plan.view<16xf32>
    plan.call "add"(%b, %c) -> (%d) {} on "compute" : (!plan.view<16xf32>, !plan.view<16xf32>) -> !plan.view<16xf32>
  }
}
