// Every op, type and attribute of the plan dialect prints and parses back to itself, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

// CHECK: plan.plan "host" mesh ["dp", "ep"] = [2, 2] by "moira" info <model_class = "mixtral", task = "forward", dtype = f32, batch = 4, seq = 12,
plan.plan "host" mesh ["dp", "ep"] = [2, 2] by "moira" info #plan.info<model_class = "mixtral", task = "forward", dtype = f32, batch = 4,
    seq = 12, parameters = 64, active_parameters = 64, tensors_expected = 1, tensors_found = 0> {
  // CHECK: plan.section @section0 host_object for "x86_64" features "avx2" = dense_resource<section0> : tensor<4xi8>
  plan.section @section0 host_object for "x86_64" features "avx2" = dense_resource<section0> : tensor<4xi8>
  // CHECK: plan.kernel @rms_norm in @section0 takes [#plan.operand<in row 64xf32>, #plan.operand<in shared 64xf32>, #plan.operand<out row 64xf32>]
  plan.kernel @rms_norm in @section0 takes [#plan.operand<in row 64xf32>, #plan.operand<in shared 64xf32>, #plan.operand<out row 64xf32>]
  // CHECK: plan.kernel @unbuilt computes "in f32[64]; v1 = clamp v0" takes
  plan.kernel @unbuilt computes "in f32[64]; v1 = clamp v0" takes [#plan.operand<in row 64xf32>, #plan.operand<out row 64xf32>]
  // CHECK: plan.state "norm.weight" : tensor<64xf32> in "state" at 0 from #moe.source<names = ["norm.weight"], disk_shape = [64]> layer 3
  plan.state "norm.weight" : tensor<64xf32> in "state" at 0 from #moe.source<names = ["norm.weight"], disk_shape = [64]> layer 3
  // CHECK: plan.program @forward ranks 4 queues ["compute", "comm"] bound [2, 4] {
  plan.program @forward ranks 4 queues ["compute", "comm"] bound [2, 4] {
    // CHECK: plan.arena "state" state on device bytes 256 per_bound 0
    plan.arena "state" state on device bytes 256 per_bound 0
    plan.arena "activations" activations on device bytes 9216 per_bound 0
    // CHECK: plan.arena "ragged" ragged on host bytes 0 per_bound 2048
    plan.arena "ragged" ragged on host bytes 0 per_bound 2048
    // CHECK: %[[X:.*]] = plan.view "activations" at 0 : <2x6x64xf32>
    %x = plan.view "activations" at 0 : !plan.view<2x6x64xf32>
    // CHECK: plan.input "x" %[[X]] : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> optional fill 1.000000e+00 : <2x6x64xf32>
    plan.input "x" %x : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> optional fill 1.0 : !plan.view<2x6x64xf32>
    %n = plan.view "activations" at 9152 : !plan.view<1xi32>
    // CHECK: plan.input "n" %{{.*}} : tensor<1xi32> range [0, 255] : <1xi32>
    plan.input "n" %n : tensor<1xi32> range [0, 255] : !plan.view<1xi32>
    %w = plan.view "state" at 0 : !plan.view<64xf32>
    %y = plan.view "activations" at 3072 : !plan.view<2x6x64xf32>
    // CHECK: plan.launch @rms_norm(%[[X]], %{{.*}}) -> (%{{.*}}) rows 12 on "compute" at "model.norm" layer 3 : (!plan.view<2x6x64xf32>, !plan.view<64xf32>) -> !plan.view<2x6x64xf32>
    plan.launch @rms_norm(%x, %w) -> (%y) rows 12 on "compute" at "model.norm" layer 3 : (!plan.view<2x6x64xf32>, !plan.view<64xf32>) -> !plan.view<2x6x64xf32>
    // CHECK: %[[E:.*]] = plan.record on "compute"
    %e = plan.record on "compute"
    // CHECK: plan.wait %[[E]] on "comm" at "model.norm"
    plan.wait %e on "comm" at "model.norm"
    %z = plan.view "activations" at 6144 : !plan.view<2x6x64xf32>
    // CHECK: plan.collective all_reduce(%{{.*}}) -> (%{{.*}}) over ["ep"] {op = 0 : i64} on "comm"
    plan.collective all_reduce(%y) -> (%z) over ["ep"] {op = 0 : i64} on "comm" : (!plan.view<2x6x64xf32>) -> !plan.view<2x6x64xf32>
    // CHECK: plan.call "clamp"(%{{.*}}) -> (%{{.*}}) {max = 1.000000e+00 : f64, min = 0.000000e+00 : f64} on "comm"
    plan.call "clamp"(%z) -> (%y) {max = 1.0, min = 0.0} on "comm" : (!plan.view<2x6x64xf32>) -> !plan.view<2x6x64xf32>
    // CHECK: plan.view "ragged" at 0 per_bound 512 : <2x64xf32, bound = 0>
    %r = plan.view "ragged" at 0 per_bound 512 : !plan.view<2x64xf32, bound = 0>
    // CHECK: plan.fill %{{.*}} with 0.000000e+00 on "compute" : <2x64xf32, bound = 0>
    plan.fill %r with 0.0 on "compute" : !plan.view<2x64xf32, bound = 0>
    %q = plan.view "ragged" at 0 per_bound 1024 : !plan.view<2x64xf32, bound = 0>
    // CHECK: plan.launch @rms_norm(%{{.*}}, %{{.*}}) -> (%{{.*}}) rows 2 bounded on "compute"
    plan.launch @rms_norm(%r, %w) -> (%q) rows 2 bounded on "compute" : (!plan.view<2x64xf32, bound = 0>, !plan.view<64xf32>) -> !plan.view<2x64xf32, bound = 0>
    // CHECK: plan.copy(%{{.*}}) -> (%{{.*}}) {dim = 0 : i64, offset = #dist.offset<{dp} * 1>, start = 0 : i64} on "compute"
    %half = plan.view "activations" at 6144 : !plan.view<1x6x64xf32>
    plan.copy(%x) -> (%half) {dim = 0 : i64, offset = #dist.offset<{dp} * 1>, start = 0 : i64} on "compute" : (!plan.view<2x6x64xf32>) -> !plan.view<1x6x64xf32>
    // CHECK: plan.require_bound %{{.*}} on "compute" : <1xi32>
    plan.require_bound %n on "compute" : !plan.view<1xi32>
    // CHECK: plan.output "y" %{{.*}} : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> : <2x6x64xf32>
    plan.output "y" %y : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> : !plan.view<2x6x64xf32>
    // CHECK: plan.output "grad.y" %{{.*}} : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> : <2x6x64xf32> as #moe.source<names = ["grad.y"], disk_shape = [48, 64]>
    plan.output "grad.y" %y : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> : !plan.view<2x6x64xf32> as #moe.source<names = ["grad.y"], disk_shape = [48, 64]>
    // CHECK: plan.trace "inside" %{{.*}} : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> : <2x6x64xf32>
    plan.trace "inside" %z : tensor<4x12x64xf32, #dist.sharding<[{dp}, {ep}, {}]>> : !plan.view<2x6x64xf32>
  }
  // CHECK: plan.program @reference ranks 1 reference queues ["compute"] {
  plan.program @reference ranks 1 reference queues ["compute"] {
    plan.arena "activations" activations on device bytes 0 per_bound 0
    // Without an address yet.
    // CHECK: plan.view "activations" : <4xf32>
    %x = plan.view "activations" : !plan.view<4xf32>
    plan.call "add"(%x, %x) -> (%x) {} on "compute" : (!plan.view<4xf32>, !plan.view<4xf32>) -> !plan.view<4xf32>
  }
}

// CHECK-LABEL: func.func @gradient_of_gated_rows
func.func @gradient_of_gated_rows(%dy: tensor<80x16xbf16>, %g: tensor<1x2xi32>, %pos: tensor<40x2xi32>, %r: !moe.routing<40, experts = 2, k = 2>, %w: tensor<2x16x8xbf16>, %z: tensor<80x2x8xbf16>) {
  // CHECK: plan.grouped_glu_grad silu %{{.*}} by %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} limit 7.0{{.*}} alpha 1.7{{.*}} up_shift 1.0
  %0:3 = plan.grouped_glu_grad silu %dy by %g, %pos, %r, %w, %z limit 7.0 alpha 1.7 up_shift 1.0 : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, !moe.routing<40, experts = 2, k = 2>, tensor<2x16x8xbf16>, tensor<80x2x8xbf16>) -> (tensor<80x2x8xbf16>, tensor<80x8xbf16>, tensor<40x2xf32>)
  return
}

// CHECK-LABEL: func.func @group
func.func @group(%a: tensor<2x64xf32>, %b: tensor<2x64xf32>) -> tensor<2x64xf32> {
  // CHECK: plan.move %{{.*}} to host : tensor<2x64xf32>
  %moved = plan.move %a to host : tensor<2x64xf32>
  // CHECK: plan.fused(%{{.*}}, %{{.*}}) : (tensor<2x64xf32>, tensor<2x64xf32>) -> tensor<2x64xf32> {
  %0 = plan.fused(%a, %b) : (tensor<2x64xf32>, tensor<2x64xf32>) -> tensor<2x64xf32> {
  ^bb0(%x: tensor<2x64xf32>, %y: tensor<2x64xf32>):
    %1 = moe.add %x, %y : (tensor<2x64xf32>, tensor<2x64xf32>) -> tensor<2x64xf32>
    // CHECK: plan.yield %{{.*}} : tensor<2x64xf32>
    plan.yield %1 : tensor<2x64xf32>
  }
  return %0 : tensor<2x64xf32>
}

{-#
  dialect_resources: { builtin: { section0: "0x0400000001020304" } }
#-}
