// What a norm, a product and a split embedding become: weights are views of the state arena at fixed offsets, kernels are described once,
// and what depends on the rank is a parameter.
// RUN: moe-opt %s --plan-fuse-kernels --plan-lower | FileCheck %s
// RUN: moe-opt %s --plan-lower=target=sm_90 | FileCheck %s --check-prefix=CALLS

// CHECK: plan.plan "host" mesh ["tp"] = [2] by "moira 0.1.0" info <model_class = "custom"
// CHECK: plan.kernel @rms_norm computes "{{.*}}rms_norm{{.*}}" takes [#plan.operand<in row 8xf32>, #plan.operand<in shared 8xf32>, #plan.operand<out row 8xf32>]
// CHECK-NOT: plan.kernel
// CHECK: plan.state "table" : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>> in "state" at 0 from #moe.source<names = ["t"], disk_shape = [7, 8]>
// CHECK-NEXT: plan.state "layers.4.norm" : tensor<8xf32> in "state" at 128 layer 4
// CHECK-NEXT: plan.state "w" : tensor<8x8xf32> in "state" at 192
// CHECK: plan.program @forward ranks 2 queues ["compute", "comm"] {
// CHECK: plan.arena "state" state on device bytes 448 per_bound 0
// CHECK-NEXT: plan.arena "activations" activations on device bytes 0 per_bound 0
// CHECK: plan.input "ids" %[[IDS:.*]] : tensor<3xi32> range [0, 6] : <3xi32>
// CHECK: %[[T:.*]] = plan.view "state" at 0 : <4x8xf32>
// CHECK: plan.call "embedding"(%[[IDS]], %[[T]]) -> (%[[PART:.*]]) {row_offset = #dist.offset<{tp} * 4>} on "compute"
// CHECK: plan.collective all_reduce(%[[PART]]) -> (%[[X:.*]]) over ["tp"] {op = 0 : i64} on "comm"
// CHECK: plan.launch @rms_norm(%[[X]], %{{.*}}) -> (%[[N:.*]]) rows 3 on "compute" at "layers.4.norm" layer 4
// CHECK: plan.call "linear"(%[[N]], %{{.*}}) -> (%[[Y:.*]]) {contract = 1 : i64} on "compute"
// The second norm is the same kernel.
// CHECK: plan.launch @rms_norm(
// CHECK: plan.copy(%{{.*}}) -> (%{{.*}}) {dim = 1 : i64, offset = #dist.offset<{tp} * 4>, start = 0 : i64} on "compute"
// CHECK: plan.output "y" %{{.*}} : tensor<3x8xf32, #dist.sharding<[{}, {tp}]>> : <3x4xf32>

// Without groups the same ops are library calls.
// CALLS: plan.plan "sm_90"
// CALLS-NOT: plan.kernel
// CALLS: plan.call "rms_norm"(%{{.*}}, %{{.*}}) -> (%{{.*}}) {eps = 1.000000e-05 : f64, norm_dims = 1 : i64} on "compute" at "layers.4.norm" layer 4

dist.mesh @mesh ["tp"] = [2]
moe.state @table : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>> from #moe.source<names = ["t"], disk_shape = [7, 8]>
moe.state @layers.4.norm : tensor<8xf32, #dist.sharding<[{}]>>
moe.state @w : tensor<8x8xf32>
func.func @forward(%ids: tensor<3xi32> {moe.name = "ids", moe.range = array<i64: 0, 6>, dist.global = tensor<3xi32>})
    -> (tensor<3x4xf32> {moe.name = "y", dist.global = tensor<3x8xf32, #dist.sharding<[{}, {tp}]>>}) {
  %table = moe.param @table : tensor<4x8xf32>
  %norm = moe.param @layers.4.norm : tensor<8xf32>
  %w = moe.param @w : tensor<8x8xf32>
  %0 = moe.embedding %ids, %table {row_offset = #dist.offset<{tp} * 4>} : (tensor<3xi32>, tensor<4x8xf32>) -> tensor<3x8xf32>
  %1 = dist.all_reduce sum %0 over ["tp"] : tensor<3x8xf32> -> tensor<3x8xf32>
  %2 = moe.rms_norm %1, %norm eps 1.0e-5 : (tensor<3x8xf32>, tensor<8xf32>) -> tensor<3x8xf32> loc("layers.4.norm")
  %3 = moe.linear %2, %w contract 1 : (tensor<3x8xf32>, tensor<8x8xf32>) -> tensor<3x8xf32>
  %4 = moe.rms_norm %3, %norm eps 1.0e-5 : (tensor<3x8xf32>, tensor<8xf32>) -> tensor<3x8xf32>
  %5 = dist.slice %4 dim 1 over ["tp"] {start = #dist.offset<{tp} * 4>} : tensor<3x8xf32> -> tensor<3x4xf32>
  return %5 : tensor<3x4xf32>
}
