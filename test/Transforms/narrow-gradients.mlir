// What a product of bf16, or attention, gives as a weight's gradient becomes bf16; a gradient that something else reads or makes, and products of f32, stay.
// RUN: moe-opt %s --moe-narrow-gradients | FileCheck %s
// RUN: moe-opt %s --moe-narrow-gradients --moe-micro-batches="parts=2" | FileCheck %s --check-prefix=PARTS

moe.state @w : tensor<4x8xbf16> from #moe.source<names = ["w"], disk_shape = [4, 8]>
moe.state @tied : tensor<4x8xbf16> from #moe.source<names = ["tied"], disk_shape = [4, 8]>
moe.state @router : tensor<4x8xf32> from #moe.source<names = ["router"], disk_shape = [4, 8]>
moe.state @experts : tensor<4x8x3xbf16> from #moe.source<names = ["experts"], disk_shape = [4, 8, 3]>

// CHECK: func.func @train
// CHECK-SAME: -> (tensor<4x8xbf16> {moe.gradient_of = @w, moe.name = "grad.w"}, tensor<4x8xf32> {moe.gradient_of = @tied, {{.*}}}, tensor<4x8xf32> {moe.gradient_of = @router, {{.*}}}, tensor<4x8x3xbf16> {moe.gradient_of = @experts
func.func @train(%dy: tensor<6x4xf32>, %x: tensor<6x8xbf16>, %wide: tensor<6x8xf32>, %dz: tensor<24x8xbf16>, %rows: tensor<24x3xbf16>, %r: !moe.routing<2x6, experts = 4, k = 2>)
    -> (tensor<4x8xf32> {moe.gradient_of = @w, moe.name = "grad.w"}, tensor<4x8xf32> {moe.gradient_of = @tied, moe.name = "grad.tied"},
        tensor<4x8xf32> {moe.gradient_of = @router, moe.name = "grad.router"}, tensor<4x8x3xf32> {moe.gradient_of = @experts, moe.name = "grad.experts"}) {
  // CHECK: moe.linear_weight_grad {{.*}} -> tensor<4x8xbf16>
  %w = moe.linear_weight_grad %dy, %x contract 1 : (tensor<6x4xf32>, tensor<6x8xbf16>) -> tensor<4x8xf32>
  // CHECK: moe.linear_weight_grad {{.*}} -> tensor<4x8xf32>
  %one = moe.linear_weight_grad %dy, %x contract 1 : (tensor<6x4xf32>, tensor<6x8xbf16>) -> tensor<4x8xf32>
  %tied = moe.add %one, %one : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
  // CHECK: moe.linear_weight_grad {{.*}} -> tensor<4x8xf32>
  %router = moe.linear_weight_grad %dy, %wide contract 1 : (tensor<6x4xf32>, tensor<6x8xf32>) -> tensor<4x8xf32>
  // CHECK: moe.grouped_weight_grad {{.*}} -> tensor<4x8x3xbf16>
  %experts = moe.grouped_weight_grad %dz by %r, %rows contract 1 : (tensor<24x8xbf16>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xbf16>) -> tensor<4x8x3xf32>
  return %w, %tied, %router, %experts : tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8x3xf32>
}

// Micro-batches are added up in f32.
// PARTS: moe.state @w.accumulated : tensor<4x8xf32>
// PARTS: moe.accumulate %{{.*}} by %{{.*}} at %{{.*}} : (tensor<4x8xf32>, tensor<4x8xbf16>, tensor<1xi32>) -> ()

// CHECK: func.func @attention
// CHECK-SAME: -> (tensor<1x4x2x8xbf16>, tensor<1x4x1x8xf32>, tensor<1x4x1x8xbf16>, tensor<2xf32>)
func.func @attention(%dy: tensor<1x4x2x8xf32>, %q: tensor<1x4x2x8xbf16>, %k: tensor<1x4x1x8xf32>, %v: tensor<1x4x1x8xbf16>, %at: tensor<4xi32>, %mask: tensor<1x4xi32>, %sinks: tensor<2xf32>)
    -> (tensor<1x4x2x8xf32>, tensor<1x4x1x8xf32>, tensor<1x4x1x8xf32>, tensor<2xf32>) {
  // CHECK: -> (tensor<1x4x2x8xbf16>, tensor<1x4x1x8xf32>, tensor<1x4x1x8xbf16>, tensor<2xf32>)
  %dq, %dk, %dv, %dsinks = moe.attention_grad %dy, %q, %k, %v at %at, %at mask %mask sinks %sinks heads 2 over 1 scale 0.25 window 0
    : (tensor<1x4x2x8xf32>, tensor<1x4x2x8xbf16>, tensor<1x4x1x8xf32>, tensor<1x4x1x8xbf16>, tensor<4xi32>, tensor<4xi32>, tensor<1x4xi32>, tensor<2xf32>) -> (tensor<1x4x2x8xf32>, tensor<1x4x1x8xf32>, tensor<1x4x1x8xf32>, tensor<2xf32>)
  return %dq, %dk, %dv, %dsinks : tensor<1x4x2x8xf32>, tensor<1x4x1x8xf32>, tensor<1x4x1x8xf32>, tensor<2xf32>
}
