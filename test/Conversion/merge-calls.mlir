// Calls that are independent become one. Products of the same few rows do so at the place of the first; not those of other rows, of many,
// with a weight that is made later, contracted otherwise, or behind an exchange. A call takes four weights.
// RUN: moe-opt %s --plan-merge-calls | FileCheck %s

#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["ep"] = [2] by "t" info #info {
  // CHECK-LABEL: plan.program @decode
  // CHECK: plan.input "x" %[[X:[0-9]+]] :
  // CHECK: plan.call "linears"(%[[X]], %[[Q:[0-9]+]], %[[K:[0-9]+]], %[[V:[0-9]+]]) -> (%[[QO:[0-9]+]], %[[KO:[0-9]+]], %[[VO:[0-9]+]]) {contract = 1 : i64} on "compute" at "layers.3.attn" layer 3 :
  // CHECK-SAME: -> (!plan.view<2x1x2x4xf32>, !plan.view<2x1x4xf32>, !plan.view<2x1x6xf32>)
  // CHECK: plan.call "act"(%[[KO]]) -> (%[[MADE:[0-9]+]])
  // CHECK: plan.call "linear"(%[[X]], %{{[0-9]+}}) -> (%{{[0-9]+}}) {contract = 2 : i64}
  // CHECK: plan.call "linear"(%[[MADE]], %{{[0-9]+}})
  // CHECK: plan.call "scale"(%{{[0-9]+}}) -> (%[[W:[0-9]+]])
  // CHECK: plan.call "linear"(%[[X]], %[[W]])
  // CHECK-NOT: plan.call
  plan.program @decode ranks 2 queues ["compute", "comm"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    plan.arena "state" state on device bytes 0 per_bound 0
    %x = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.input "x" %x : tensor<2x1x4xf32> : !plan.view<2x1x4xf32>
    %q = plan.view "state" : !plan.view<2x4x4xf32>
    %qo = plan.view "activations" : !plan.view<2x1x2x4xf32>
    plan.call "linear"(%x, %q) -> (%qo) {contract = 1 : i64} on "compute" at "layers.3.attn.q" layer 3 : (!plan.view<2x1x4xf32>, !plan.view<2x4x4xf32>) -> !plan.view<2x1x2x4xf32>
    %k = plan.view "state" : !plan.view<4x4xf32>
    %ko = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.call "linear"(%x, %k) -> (%ko) {contract = 1 : i64} on "compute" at "layers.3.attn.k" layer 3 : (!plan.view<2x1x4xf32>, !plan.view<4x4xf32>) -> !plan.view<2x1x4xf32>
    %made = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.call "act"(%ko) -> (%made) {activation = "relu"} on "compute" : (!plan.view<2x1x4xf32>) -> !plan.view<2x1x4xf32>
    %v = plan.view "state" : !plan.view<6x4xf32>
    %vo = plan.view "activations" : !plan.view<2x1x6xf32>
    plan.call "linear"(%x, %v) -> (%vo) {contract = 1 : i64} on "compute" at "layers.3.attn.v" layer 3 : (!plan.view<2x1x4xf32>, !plan.view<6x4xf32>) -> !plan.view<2x1x6xf32>
    %flat = plan.view "state" : !plan.view<3x1x4xf32>
    %fo = plan.view "activations" : !plan.view<2x3xf32>
    plan.call "linear"(%x, %flat) -> (%fo) {contract = 2 : i64} on "compute" at "layers.3.attn.o" layer 3 : (!plan.view<2x1x4xf32>, !plan.view<3x1x4xf32>) -> !plan.view<2x3xf32>
    %oo = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.call "linear"(%made, %k) -> (%oo) {contract = 1 : i64} on "compute" at "layers.3.attn.o" layer 3 : (!plan.view<2x1x4xf32>, !plan.view<4x4xf32>) -> !plan.view<2x1x4xf32>
    %w = plan.view "activations" : !plan.view<4x4xf32>
    plan.call "scale"(%k) -> (%w) {factor = 2.0 : f64} on "compute" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
    %wo = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.call "linear"(%x, %w) -> (%wo) {contract = 1 : i64} on "compute" at "layers.3.mlp" layer 3 : (!plan.view<2x1x4xf32>, !plan.view<4x4xf32>) -> !plan.view<2x1x4xf32>
  }

  // Five weights are a call and a product; 17 rows stay as they are.
  // CHECK-LABEL: plan.program @more
  // CHECK: plan.call "linears"(%[[X:[0-9]+]], %[[W:[0-9]+]], %[[W]], %[[W]], %[[W]]) -> {{.*}} {contract = 1 : i64} on "compute" :
  // CHECK: plan.call "linear"(%[[X]], %[[W]])
  // CHECK: plan.call "linear"(%[[MANY:[0-9]+]], %[[W]])
  // CHECK: plan.call "linear"(%[[MANY]], %[[W]])
  // CHECK-NOT: plan.call
  plan.program @more ranks 2 queues ["compute", "comm"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    plan.arena "state" state on device bytes 0 per_bound 0
    %x = plan.view "activations" : !plan.view<16x4xf32>
    plan.input "x" %x : tensor<16x4xf32> : !plan.view<16x4xf32>
    %many = plan.view "activations" : !plan.view<17x4xf32>
    plan.input "many" %many : tensor<17x4xf32> : !plan.view<17x4xf32>
    %w = plan.view "state" : !plan.view<4x4xf32>
    %y0 = plan.view "activations" : !plan.view<16x4xf32>
    plan.call "linear"(%x, %w) -> (%y0) {contract = 1 : i64} on "compute" at "b" : (!plan.view<16x4xf32>, !plan.view<4x4xf32>) -> !plan.view<16x4xf32>
    %y1 = plan.view "activations" : !plan.view<16x4xf32>
    plan.call "linear"(%x, %w) -> (%y1) {contract = 1 : i64} on "compute" at "a" : (!plan.view<16x4xf32>, !plan.view<4x4xf32>) -> !plan.view<16x4xf32>
    %y2 = plan.view "activations" : !plan.view<16x4xf32>
    plan.call "linear"(%x, %w) -> (%y2) {contract = 1 : i64} on "compute" at "b" : (!plan.view<16x4xf32>, !plan.view<4x4xf32>) -> !plan.view<16x4xf32>
    %y3 = plan.view "activations" : !plan.view<16x4xf32>
    plan.call "linear"(%x, %w) -> (%y3) {contract = 1 : i64} on "compute" at "a" : (!plan.view<16x4xf32>, !plan.view<4x4xf32>) -> !plan.view<16x4xf32>
    %y4 = plan.view "activations" : !plan.view<16x4xf32>
    plan.call "linear"(%x, %w) -> (%y4) {contract = 1 : i64} on "compute" at "b" : (!plan.view<16x4xf32>, !plan.view<4x4xf32>) -> !plan.view<16x4xf32>
    %z0 = plan.view "activations" : !plan.view<17x4xf32>
    plan.call "linear"(%many, %w) -> (%z0) {contract = 1 : i64} on "compute" : (!plan.view<17x4xf32>, !plan.view<4x4xf32>) -> !plan.view<17x4xf32>
    %z1 = plan.view "activations" : !plan.view<17x4xf32>
    plan.call "linear"(%many, %w) -> (%z1) {contract = 1 : i64} on "compute" : (!plan.view<17x4xf32>, !plan.view<4x4xf32>) -> !plan.view<17x4xf32>
  }

  // What stands behind an exchange is what it hides behind.
  // CHECK-LABEL: plan.program @hidden
  // CHECK: plan.call "linear"
  // CHECK: plan.collective
  // CHECK: plan.call "linears"
  // CHECK-NOT: plan.call
  plan.program @hidden ranks 2 queues ["compute", "comm"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    plan.arena "state" state on device bytes 0 per_bound 0
    %x = plan.view "activations" : !plan.view<2x4xf32>
    plan.input "x" %x : tensor<2x4xf32> : !plan.view<2x4xf32>
    %w = plan.view "state" : !plan.view<4x4xf32>
    %y = plan.view "activations" : !plan.view<2x4xf32>
    plan.call "linear"(%x, %w) -> (%y) {contract = 1 : i64} on "compute" : (!plan.view<2x4xf32>, !plan.view<4x4xf32>) -> !plan.view<2x4xf32>
    %sum = plan.view "activations" : !plan.view<2x4xf32>
    plan.collective all_reduce(%y) -> (%sum) over ["ep"] {op = 0 : i64} on "comm" : (!plan.view<2x4xf32>) -> !plan.view<2x4xf32>
    %a = plan.view "activations" : !plan.view<2x4xf32>
    plan.call "linear"(%x, %w) -> (%a) {contract = 1 : i64} on "compute" : (!plan.view<2x4xf32>, !plan.view<4x4xf32>) -> !plan.view<2x4xf32>
    %b = plan.view "activations" : !plan.view<2x4xf32>
    plan.call "linear"(%x, %w) -> (%b) {contract = 1 : i64} on "compute" : (!plan.view<2x4xf32>, !plan.view<4x4xf32>) -> !plan.view<2x4xf32>
  }

  // Keys and values are written in one call; not what is made of what was read there, at another place, or a mask of other elements.
  // CHECK-LABEL: plan.program @caches
  // CHECK: plan.call "write_rows"(%[[M:[0-9]+]], %[[AT:[0-9]+]]) -> (%{{[0-9]+}}) {} on "compute" :
  // CHECK: plan.call "write_rows"(%[[K:[0-9]+]], %[[AT]], %[[V:[0-9]+]]) -> (%[[KS:[0-9]+]], %[[VS:[0-9]+]]) {} on "compute" at "layers.0.attn" layer 0 :
  // CHECK-SAME: (!plan.view<2x1x4xf32>, !plan.view<1xi32>, !plan.view<2x1x2x3xf32>) -> (!plan.view<2x8x4xf32>, !plan.view<2x8x2x3xf32>)
  // CHECK: plan.call "scale"(%[[KS]]) -> (%[[ALL:[0-9]+]])
  // CHECK: plan.call "write_rows"(%[[K]], %[[AT]]) -> (%{{[0-9]+}})
  // CHECK: plan.call "slot"(%[[ALL]], %[[AT]]) -> (%[[LATE:[0-9]+]])
  // CHECK: plan.call "write_rows"(%[[LATE]], %[[AT]]) -> (%{{[0-9]+}})
  // CHECK: plan.call "write_rows"(%[[K]], %{{[0-9]+}}) -> (%{{[0-9]+}})
  // CHECK: plan.call "write_rows"(%[[K]]) -> (%{{[0-9]+}})
  // CHECK-NOT: plan.call
  plan.program @caches ranks 2 queues ["compute", "comm"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    plan.arena "state" state on device bytes 0 per_bound 0
    %at = plan.view "activations" : !plan.view<1xi32>
    plan.input "position" %at : tensor<1xi32> : !plan.view<1xi32>
    %other = plan.view "activations" : !plan.view<1xi32>
    plan.input "other" %other : tensor<1xi32> : !plan.view<1xi32>
    %m = plan.view "activations" : !plan.view<2x1x4xi32>
    plan.input "m" %m : tensor<2x1x4xi32> : !plan.view<2x1x4xi32>
    %k = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.input "k" %k : tensor<2x1x4xf32> : !plan.view<2x1x4xf32>
    %v = plan.view "activations" : !plan.view<2x1x2x3xf32>
    plan.input "v" %v : tensor<2x1x2x3xf32> : !plan.view<2x1x2x3xf32>
    %ms = plan.view "state" : !plan.view<2x8x4xi32>
    plan.call "write_rows"(%m, %at) -> (%ms) {} on "compute" : (!plan.view<2x1x4xi32>, !plan.view<1xi32>) -> !plan.view<2x8x4xi32>
    %ks = plan.view "state" : !plan.view<2x8x4xf32>
    plan.call "write_rows"(%k, %at) -> (%ks) {} on "compute" at "layers.0.attn.k" layer 0 : (!plan.view<2x1x4xf32>, !plan.view<1xi32>) -> !plan.view<2x8x4xf32>
    %all = plan.view "activations" : !plan.view<2x8x4xf32>
    plan.call "scale"(%ks) -> (%all) {factor = 2.0 : f64} on "compute" : (!plan.view<2x8x4xf32>) -> !plan.view<2x8x4xf32>
    %vs = plan.view "state" : !plan.view<2x8x2x3xf32>
    plan.call "write_rows"(%v, %at) -> (%vs) {} on "compute" at "layers.0.attn.v" layer 0 : (!plan.view<2x1x2x3xf32>, !plan.view<1xi32>) -> !plan.view<2x8x2x3xf32>
    %third = plan.view "state" : !plan.view<2x8x4xf32>
    plan.call "write_rows"(%k, %at) -> (%third) {} on "compute" : (!plan.view<2x1x4xf32>, !plan.view<1xi32>) -> !plan.view<2x8x4xf32>
    %late = plan.view "activations" : !plan.view<2x1x4xf32>
    plan.call "slot"(%all, %at) -> (%late) {index = 0 : i64, start = #dist.offset<{} * 0>} on "compute" : (!plan.view<2x8x4xf32>, !plan.view<1xi32>) -> !plan.view<2x1x4xf32>
    %ls = plan.view "state" : !plan.view<2x8x4xf32>
    plan.call "write_rows"(%late, %at) -> (%ls) {} on "compute" : (!plan.view<2x1x4xf32>, !plan.view<1xi32>) -> !plan.view<2x8x4xf32>
    %os = plan.view "state" : !plan.view<2x8x4xf32>
    plan.call "write_rows"(%k, %other) -> (%os) {} on "compute" : (!plan.view<2x1x4xf32>, !plan.view<1xi32>) -> !plan.view<2x8x4xf32>
    %ns = plan.view "state" : !plan.view<2x8x4xf32>
    plan.call "write_rows"(%k) -> (%ns) {} on "compute" : (!plan.view<2x1x4xf32>) -> !plan.view<2x8x4xf32>
  }
}
