// One case for each constraint of the ops on positions.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// TokenPositionsOp C1
func.func @f(%ids: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: ids must be [B, S] and the result have their shape}}
  %0 = moe.token_positions %ids pad 1 : (tensor<2x6xi32>) -> tensor<6xi32>
  return
}

// -----

// TokenPositionsOp C2
func.func @f(%ids: tensor<2x6xi32>, %counts: tensor<2x5xi32>) {
  // expected-error @+1 {{C2: counts must have the result's shape}}
  %0 = moe.token_positions %ids counts %counts pad 1 : (tensor<2x6xi32>, tensor<2x5xi32>) -> tensor<2x6xi32>
  return
}

// -----

// TokenPositionsOp C3
func.func @f(%ids: tensor<2x6xi32>) {
  // expected-error @+1 {{C3: pad must not be negative}}
  %0 = moe.token_positions %ids pad -1 : (tensor<2x6xi32>) -> tensor<2x6xi32>
  return
}

// -----

// SinusoidOp C1
func.func @f(%pos: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: the result must be the shape of pos followed by D}}
  %0 = moe.sinusoid %pos offset 0 zero -1 : (tensor<2x6xi32>) -> tensor<6x8xf32>
  return
}

// -----

// SinusoidOp C2
func.func @f(%pos: tensor<6xi32>) {
  // expected-error @+1 {{C2: D must be at least 4}}
  %0 = moe.sinusoid %pos offset 0 zero -1 : (tensor<6xi32>) -> tensor<6x3xf32>
  return
}

// -----

// RelativeBiasOp C1
func.func @f(%t: tensor<32x4xf32>, %q: tensor<3xi32>, %k: tensor<6xi32>) {
  // expected-error @+1 {{C1: shapes must be table[N,H], qpos[Sq], kpos[Sk] and the result [H,Sq,Sk]}}
  %0 = moe.relative_bias %t, %q, %k max_distance 128 : (tensor<32x4xf32>, tensor<3xi32>, tensor<6xi32>) -> tensor<4x6x3xf32>
  return
}

// -----

// RelativeBiasOp C2
func.func @f(%t: tensor<6x4xf32>, %q: tensor<3xi32>) {
  // expected-error @+1 {{C2: 6 buckets do not fall into two halves of exact and growing ones}}
  %0 = moe.relative_bias %t, %q, %q max_distance 128 bidirectional : (tensor<6x4xf32>, tensor<3xi32>, tensor<3xi32>) -> tensor<4x3x3xf32>
  return
}

// -----

// RelativeBiasOp C3
func.func @f(%t: tensor<32x4xf32>, %q: tensor<3xi32>) {
  // expected-error @+1 {{C3: max_distance must exceed the 16 exact buckets}}
  %0 = moe.relative_bias %t, %q, %q max_distance 16 : (tensor<32x4xf32>, tensor<3xi32>, tensor<3xi32>) -> tensor<4x3x3xf32>
  return
}
