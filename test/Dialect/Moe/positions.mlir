// Ops on positions print and parse back to themselves, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

// CHECK-LABEL: func.func @positions
func.func @positions(%ids: tensor<2x6xi32>, %counts: tensor<2x6xi32>, %one: tensor<1xi32>, %table: tensor<32x4xf32>) {
  // CHECK: moe.token_positions %{{.*}} pad 1 : (tensor<2x6xi32>) -> tensor<2x6xi32>
  %0 = moe.token_positions %ids pad 1 : (tensor<2x6xi32>) -> tensor<2x6xi32>
  // CHECK: moe.token_positions %{{.*}} counts %{{.*}} pad 0 : (tensor<2x6xi32>, tensor<2x6xi32>) -> tensor<2x6xi32>
  %1 = moe.token_positions %ids counts %counts pad 0 : (tensor<2x6xi32>, tensor<2x6xi32>) -> tensor<2x6xi32>
  // CHECK: moe.sinusoid %{{.*}} offset 0 zero 1 : (tensor<2x6xi32>) -> tensor<2x6x8xf32>
  %2 = moe.sinusoid %0 offset 0 zero 1 : (tensor<2x6xi32>) -> tensor<2x6x8xf32>
  %pos = moe.positions : tensor<6xi32>
  // CHECK: moe.sinusoid %{{.*}} offset 2 zero -1 : (tensor<6xi32>) -> tensor<6x5xf32>
  %3 = moe.sinusoid %pos offset 2 zero -1 : (tensor<6xi32>) -> tensor<6x5xf32>
  // CHECK: moe.relative_bias %{{.*}}, %{{.*}}, %{{.*}} max_distance 128 bidirectional :
  %4 = moe.relative_bias %table, %pos, %pos max_distance 128 bidirectional : (tensor<32x4xf32>, tensor<6xi32>, tensor<6xi32>) -> tensor<4x6x6xf32>
  // CHECK: moe.relative_bias %{{.*}}, %{{.*}}, %{{.*}} max_distance 64 :
  %5 = moe.relative_bias %table, %one, %pos max_distance 64 : (tensor<32x4xf32>, tensor<1xi32>, tensor<6xi32>) -> tensor<4x1x6xf32>
  return
}
