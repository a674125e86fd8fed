// Which row ops become one kernel: producers join their consumers, intermediates that others need become further results, and what would
// have to move before its operands stays alone.
// RUN: moe-opt %s --plan-fuse-kernels | FileCheck %s

moe.state @w : tensor<8xf32>
moe.state @bias : tensor<2x4xf32>

// The residual is needed later, so the group has two results.
// CHECK-LABEL: func.func @residual_norm
// CHECK: %[[F:.*]]:2 = plan.fused(%{{.*}}, %{{.*}}, %{{.*}}) : (tensor<3x8xf32>, tensor<3x8xf32>, tensor<8xf32>) -> (tensor<3x8xf32>, tensor<3x8xf32>) {
// CHECK: %[[A:.*]] = moe.add
// CHECK: %[[N:.*]] = moe.rms_norm %[[A]]
// CHECK: plan.yield %[[A]], %[[N]]
// CHECK: return %[[F]]#0, %[[F]]#1
func.func @residual_norm(%x: tensor<3x8xf32>, %y: tensor<3x8xf32>) -> (tensor<3x8xf32>, tensor<3x8xf32>) {
  %0 = moe.add %x, %y : (tensor<3x8xf32>, tensor<3x8xf32>) -> tensor<3x8xf32>
  %w = moe.param @w : tensor<8xf32>
  %1 = moe.rms_norm %0, %w eps 1.0e-5 : (tensor<3x8xf32>, tensor<8xf32>) -> tensor<3x8xf32>
  return %0, %1 : tensor<3x8xf32>, tensor<3x8xf32>
}

// A bias and the rotation after it: one kernel over batch rows, cos and sin shared.
// CHECK-LABEL: func.func @bias_rope
// CHECK: plan.fused(%{{.*}}, %{{.*}}, %{{.*}}, %{{.*}}) : (tensor<2x3x2x4xf32>, tensor<2x4xf32>, tensor<3x2xf32>, tensor<3x2xf32>)
// CHECK: moe.add
// CHECK-NEXT: moe.rope
func.func @bias_rope(%x: tensor<2x3x2x4xf32>, %cos: tensor<3x2xf32>, %sin: tensor<3x2xf32>) -> tensor<2x3x2x4xf32> {
  %b = moe.param @bias : tensor<2x4xf32>
  %0 = moe.add %x, %b : (tensor<2x3x2x4xf32>, tensor<2x4xf32>) -> tensor<2x3x2x4xf32>
  %1 = moe.rope %0, %cos, %sin : (tensor<2x3x2x4xf32>, tensor<3x2xf32>, tensor<3x2xf32>) -> tensor<2x3x2x4xf32>
  return %1 : tensor<2x3x2x4xf32>
}

// The gate is made before the product that the sum needs: nobody else waits for it, so it moves down.
// CHECK-LABEL: func.func @moves_down
// CHECK: moe.linear
// CHECK-NEXT: plan.fused
// CHECK: moe.sigmoid_gate
// CHECK-NEXT: moe.add
func.func @moves_down(%x: tensor<3x8xf32>, %g: tensor<3x1xf32>, %v: tensor<8x8xf32>) -> tensor<3x8xf32> {
  %0 = moe.sigmoid_gate %x, %g : (tensor<3x8xf32>, tensor<3x1xf32>) -> tensor<3x8xf32>
  %1 = moe.linear %x, %v contract 1 : (tensor<3x8xf32>, tensor<8x8xf32>) -> tensor<3x8xf32>
  %2 = moe.add %1, %0 : (tensor<3x8xf32>, tensor<3x8xf32>) -> tensor<3x8xf32>
  return %2 : tensor<3x8xf32>
}

// Here the product needs the gate's result: two kernels.
// CHECK-LABEL: func.func @stays_apart
// CHECK: plan.fused
// CHECK: moe.sigmoid_gate
// CHECK: moe.linear
// CHECK-NEXT: plan.fused
// CHECK: moe.add
func.func @stays_apart(%x: tensor<3x8xf32>, %g: tensor<3x1xf32>, %v: tensor<8x8xf32>) -> tensor<3x8xf32> {
  %0 = moe.sigmoid_gate %x, %g : (tensor<3x8xf32>, tensor<3x1xf32>) -> tensor<3x8xf32>
  %1 = moe.linear %0, %v contract 1 : (tensor<3x8xf32>, tensor<8x8xf32>) -> tensor<3x8xf32>
  %2 = moe.add %1, %0 : (tensor<3x8xf32>, tensor<3x8xf32>) -> tensor<3x8xf32>
  return %2 : tensor<3x8xf32>
}

// Products are no row ops, and an op of f64 has no kernel.
// CHECK-LABEL: func.func @no_kernel
// CHECK-NOT: plan.fused
func.func @no_kernel(%x: tensor<3x8xf64>, %y: tensor<3x8xf64>) -> tensor<3x8xf64> {
  %0 = moe.add %x, %y : (tensor<3x8xf64>, tensor<3x8xf64>) -> tensor<3x8xf64>
  return %0 : tensor<3x8xf64>
}

// Queries and keys of one position: two small groups that are independent of each other are one kernel, which stands where the later one did.
// CHECK-LABEL: func.func @independent
// CHECK: moe.linear
// CHECK-NEXT: moe.linear
// CHECK-NEXT: %[[BOTH:.*]]:2 = plan.fused(%{{.*}}, %{{.*}}, %{{.*}}, %{{.*}}) : (tensor<2x1x2x4xf32>, tensor<1x2xf32>, tensor<1x2xf32>, tensor<2x1x4x4xf32>) -> (tensor<2x1x2x4xf32>, tensor<2x1x4x4xf32>) {
// CHECK: moe.rope
// CHECK-NEXT: moe.scale
// CHECK-NEXT: moe.rope
// CHECK: return %[[BOTH]]#0, %[[BOTH]]#1
func.func @independent(%x: tensor<2x1x8xf32>, %q: tensor<2x4x8xf32>, %k: tensor<4x4x8xf32>, %cos: tensor<1x2xf32>, %sin: tensor<1x2xf32>) -> (tensor<2x1x2x4xf32>, tensor<2x1x4x4xf32>) {
  %0 = moe.linear %x, %q contract 1 : (tensor<2x1x8xf32>, tensor<2x4x8xf32>) -> tensor<2x1x2x4xf32>
  %1 = moe.rope %0, %cos, %sin : (tensor<2x1x2x4xf32>, tensor<1x2xf32>, tensor<1x2xf32>) -> tensor<2x1x2x4xf32>
  %2 = moe.scale %1 by 0.5 : (tensor<2x1x2x4xf32>) -> tensor<2x1x2x4xf32>
  %3 = moe.linear %x, %k contract 1 : (tensor<2x1x8xf32>, tensor<4x4x8xf32>) -> tensor<2x1x4x4xf32>
  %4 = moe.rope %3, %cos, %sin : (tensor<2x1x4x4xf32>, tensor<1x2xf32>, tensor<1x2xf32>) -> tensor<2x1x4x4xf32>
  return %2, %4 : tensor<2x1x2x4xf32>, tensor<2x1x4x4xf32>
}

// Not where the first one's result is waited for before, or with much work.
// CHECK-LABEL: func.func @waited_for
// CHECK: plan.fused
// CHECK: moe.linear
// CHECK: plan.fused
// CHECK-LABEL: func.func @much_work
// CHECK: plan.fused
// CHECK: plan.fused
func.func @waited_for(%x: tensor<3x8xf32>, %v: tensor<8x8xf32>) -> tensor<3x8xf32> {
  %0 = moe.act silu %x : (tensor<3x8xf32>) -> tensor<3x8xf32>
  %1 = moe.linear %0, %v contract 1 : (tensor<3x8xf32>, tensor<8x8xf32>) -> tensor<3x8xf32>
  %2 = moe.act relu %1 : (tensor<3x8xf32>) -> tensor<3x8xf32>
  return %2 : tensor<3x8xf32>
}
func.func @much_work(%x: tensor<40000x8xf32>, %y: tensor<40000x8xf32>) -> (tensor<40000x8xf32>, tensor<40000x8xf32>) {
  %0 = moe.act silu %x : (tensor<40000x8xf32>) -> tensor<40000x8xf32>
  %1 = moe.act relu %y : (tensor<40000x8xf32>) -> tensor<40000x8xf32>
  return %0, %1 : tensor<40000x8xf32>, tensor<40000x8xf32>
}
