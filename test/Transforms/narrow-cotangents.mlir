// The cotangent of a bf16 result comes in bf16: who rounded it takes it as it is, others get it widened. Gradients of bf16 arguments leave in bf16; what belongs to f32 stays.
// RUN: moe-opt %s --moe-narrow-cotangents | FileCheck %s

// CHECK: func.func @forward
// CHECK-SAME: %[[DY:[a-z0-9]+]]: tensor<6x4xbf16> {moe.name = "d.y"}, %[[DZ:[a-z0-9]+]]: tensor<6x8xf32> {moe.name = "d.z"}
// CHECK-SAME: -> (tensor<6x4xbf16> {moe.name = "y"}, tensor<6x8xf32> {moe.name = "z"}, tensor<6x8xbf16> {moe.name = "grad.x"}, tensor<4x8xf32> {moe.name = "grad.w"})
func.func @forward(%x: tensor<6x8xbf16> {moe.name = "x"}, %w: tensor<4x8xf32> {moe.name = "w"}, %dy: tensor<6x4xf32> {moe.name = "d.y"}, %dz: tensor<6x8xf32> {moe.name = "d.z"})
    -> (tensor<6x4xbf16> {moe.name = "y"}, tensor<6x8xf32> {moe.name = "z"}, tensor<6x8xf32> {moe.name = "grad.x"}, tensor<4x8xf32> {moe.name = "grad.w"}) {
  // CHECK: %[[WIDE:.*]] = moe.scale %[[DY]] by 1.{{0+}}e+00 : (tensor<6x4xbf16>) -> tensor<6x4xf32>
  %narrow = moe.scale %w by 1.0 : (tensor<4x8xf32>) -> tensor<4x8xbf16>
  %y = moe.linear %x, %narrow contract 1 : (tensor<6x8xbf16>, tensor<4x8xbf16>) -> tensor<6x4xbf16>
  %z = moe.scale %x by 2.0 : (tensor<6x8xbf16>) -> tensor<6x8xf32>
  // CHECK-NOT: moe.scale %[[DY]]
  %rounded = moe.scale %dy by 1.0 : (tensor<6x4xf32>) -> tensor<6x4xbf16>
  // CHECK: moe.linear_input_grad %[[DY]]
  %dx = moe.linear_input_grad %rounded, %narrow contract 1 : (tensor<6x4xbf16>, tensor<4x8xbf16>) -> tensor<6x8xf32>
  %twice = moe.scale %dz by 2.0 : (tensor<6x8xf32>) -> tensor<6x8xf32>
  // CHECK: %[[SUM:.*]] = moe.add
  %sum = moe.add %dx, %twice : (tensor<6x8xf32>, tensor<6x8xf32>) -> tensor<6x8xf32>
  // CHECK: moe.linear_weight_grad %[[WIDE]]
  %dw = moe.linear_weight_grad %dy, %x contract 1 : (tensor<6x4xf32>, tensor<6x8xbf16>) -> tensor<4x8xf32>
  // CHECK: %[[DX:.*]] = moe.scale %[[SUM]] by 1.{{0+}}e+00 : (tensor<6x8xf32>) -> tensor<6x8xbf16>
  // CHECK: return %{{.*}}, %{{.*}}, %[[DX]], %{{.*}}
  return %y, %z, %sum, %dw : tensor<6x4xbf16>, tensor<6x8xf32>, tensor<6x8xf32>, tensor<4x8xf32>
}
