// The ops of programs that generate tokens print and parse back to themselves, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

// CHECK: moe.state @cache.0.k : tensor<2x32x4x16xf32> layer 0
moe.state @cache.0.k : tensor<2x32x4x16xf32> layer 0
// CHECK: moe.state @cache.mask : tensor<2x32xi32>
moe.state @cache.mask : tensor<2x32xi32>
// CHECK-LABEL: @decode
func.func @decode(%k: tensor<2x1x4x16xf32>, %h: tensor<2x24x64xf32>, %logits: tensor<2x1x256xf32>, %at: tensor<1xi32>, %sampling: tensor<2xf32>,
                  %draw: tensor<4xi32>) -> (tensor<2x1x64xf32>, tensor<2x1xi32>) {
  %cache = moe.param @cache.0.k : tensor<2x32x4x16xf32>
  // CHECK: moe.write_rows %{{.*}} into %{{.*}} at %{{.*}} : (tensor<2x1x4x16xf32>, tensor<2x32x4x16xf32>, tensor<1xi32>) -> tensor<2x32x4x16xf32>
  %0 = moe.write_rows %k into %cache at %at : (tensor<2x1x4x16xf32>, tensor<2x32x4x16xf32>, tensor<1xi32>) -> tensor<2x32x4x16xf32>
  // CHECK: moe.full 1.000000e+00 : tensor<2x8xi32>
  %ones = moe.full 1.0 : tensor<2x8xi32>
  %mask = moe.param @cache.mask : tensor<2x32xi32>
  // Nobody needs the result: the state is written all the same.
  // CHECK: moe.write_rows %{{.*}} into %{{.*}} : (tensor<2x8xi32>, tensor<2x32xi32>) -> tensor<2x32xi32>
  %1 = moe.write_rows %ones into %mask : (tensor<2x8xi32>, tensor<2x32xi32>) -> tensor<2x32xi32>
  // CHECK: moe.slot %{{.*}} : (tensor<2x24x64xf32>) -> tensor<2x1x64xf32>
  %2 = moe.slot %h : (tensor<2x24x64xf32>) -> tensor<2x1x64xf32>
  // CHECK: moe.slot %{{.*}} at %{{.*}} : (tensor<2x24x64xf32>, tensor<1xi32>) -> tensor<2x1x64xf32>
  %3 = moe.slot %h at %at : (tensor<2x24x64xf32>, tensor<1xi32>) -> tensor<2x1x64xf32>
  // CHECK: moe.sample %{{.*}} by %{{.*}}, %{{.*}} : (tensor<2x1x256xf32>, tensor<2xf32>, tensor<4xi32>) -> tensor<2x1xi32>
  %4 = moe.sample %logits by %sampling, %draw : (tensor<2x1x256xf32>, tensor<2xf32>, tensor<4xi32>) -> tensor<2x1xi32>
  // CHECK: moe.whole %{{.*}} dims [0, 1] : (tensor<2x1xi32>) -> tensor<2x1xi32>
  %5 = moe.whole %4 dims [0, 1] : (tensor<2x1xi32>) -> tensor<2x1xi32>
  return %3, %5 : tensor<2x1x64xf32>, tensor<2x1xi32>
}
