// A cotangent in f32 that products of bf16 take is rounded once: by the product that makes it, where nobody wants it wider, or by an operation of its own.
// RUN: moe-opt %s --plan-round-cotangents | FileCheck %s
// The rounding is a second result of the kernel that makes the sum.
// RUN: moe-opt %s --plan-round-cotangents --plan-fuse-kernels | FileCheck %s --check-prefix=FUSED

// CHECK-LABEL: func.func @sum
// FUSED-LABEL: func.func @sum
func.func @sum(%a: tensor<6x16xf32>, %b: tensor<6x16xf32>, %w: tensor<16x8xbf16>, %x: tensor<6x8xbf16>) -> (tensor<6x8xf32>, tensor<16x8xf32>, tensor<6x16xf32>) {
  // CHECK: %[[SUM:.*]] = moe.add
  // CHECK-NEXT: %[[ROUNDED:.*]] = moe.scale %[[SUM]] by 1.000000e+00 : (tensor<6x16xf32>) -> tensor<6x16xbf16>
  // FUSED: %[[BOTH:.*]]:2 = plan.fused
  %sum = moe.add %a, %b : (tensor<6x16xf32>, tensor<6x16xf32>) -> tensor<6x16xf32>
  // CHECK: moe.linear_input_grad %[[ROUNDED]], %{{.*}} : (tensor<6x16xbf16>
  // FUSED: moe.linear_input_grad %[[BOTH]]#1
  %dx = moe.linear_input_grad %sum, %w contract 1 : (tensor<6x16xf32>, tensor<16x8xbf16>) -> tensor<6x8xf32>
  // CHECK: moe.linear_weight_grad %[[ROUNDED]], %{{.*}} : (tensor<6x16xbf16>
  // FUSED: moe.linear_weight_grad %[[BOTH]]#1
  %dw = moe.linear_weight_grad %sum, %x contract 1 : (tensor<6x16xf32>, tensor<6x8xbf16>) -> tensor<16x8xf32>
  // CHECK: return %{{.*}}, %{{.*}}, %[[SUM]]
  return %dx, %dw, %sum : tensor<6x8xf32>, tensor<16x8xf32>, tensor<6x16xf32>
}

// CHECK-LABEL: func.func @product
func.func @product(%dy: tensor<6x16xbf16>, %w: tensor<16x8xbf16>, %v: tensor<8x4xbf16>, %x: tensor<6x4xbf16>) -> (tensor<6x4xf32>, tensor<8x4xbf16>) {
  // CHECK: %[[MADE:.*]] = moe.linear_input_grad %{{.*}} -> tensor<6x8xbf16>
  // CHECK-NOT: moe.scale
  %made = moe.linear_input_grad %dy, %w contract 1 : (tensor<6x16xbf16>, tensor<16x8xbf16>) -> tensor<6x8xf32>
  // CHECK: moe.linear_input_grad %[[MADE]]
  %dx = moe.linear_input_grad %made, %v contract 1 : (tensor<6x8xf32>, tensor<8x4xbf16>) -> tensor<6x4xf32>
  %dw = moe.linear_weight_grad %made, %x contract 1 : (tensor<6x8xf32>, tensor<6x4xbf16>) -> tensor<8x4xbf16>
  return %dx, %dw : tensor<6x4xf32>, tensor<8x4xbf16>
}

// Products of f32, a router's, take it as it is.
// CHECK-LABEL: func.func @wide
// CHECK-NOT: moe.scale
// CHECK: return
func.func @wide(%a: tensor<6x16xf32>, %w: tensor<16x8xf32>, %x: tensor<6x8xf32>) -> (tensor<6x8xf32>, tensor<16x8xf32>) {
  %sum = moe.add %a, %a : (tensor<6x16xf32>, tensor<6x16xf32>) -> tensor<6x16xf32>
  %dx = moe.linear_input_grad %sum, %w contract 1 : (tensor<6x16xf32>, tensor<16x8xf32>) -> tensor<6x8xf32>
  %dw = moe.linear_weight_grad %sum, %x contract 1 : (tensor<6x16xf32>, tensor<6x8xf32>) -> tensor<16x8xf32>
  return %dx, %dw : tensor<6x8xf32>, tensor<16x8xf32>
}
