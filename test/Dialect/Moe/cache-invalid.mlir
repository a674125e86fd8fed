// Every constraint of the ops of programs that generate tokens has one case here that breaks it.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// WriteRowsOp C1
moe.state @c : tensor<2x8x4xf32>
func.func @f(%rows: tensor<2x9x4xf32>) {
  %c = moe.param @c : tensor<2x8x4xf32>
  // expected-error @+1 {{C1: rows 'tensor<2x9x4xf32>' are none of 'tensor<2x8x4xf32>'}}
  %0 = moe.write_rows %rows into %c : (tensor<2x9x4xf32>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  return
}

// -----

// WriteRowsOp C2
moe.state @c : tensor<2x8x4xf32>
func.func @f(%rows: tensor<2x1x4xbf16>) {
  %c = moe.param @c : tensor<2x8x4xf32>
  // expected-error @+1 {{C2: the result must have the cache's type, and rows its element type}}
  %0 = moe.write_rows %rows into %c : (tensor<2x1x4xbf16>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  return
}

// -----

// WriteRowsOp C3
moe.state @c : tensor<2x8x4xf32>
func.func @f(%rows: tensor<2x1x4xf32>) {
  %c = moe.param @c : tensor<2x8x4xf32>
  %at = moe.positions : tensor<1xi32>
  // expected-error @+1 {{C3: at must be one number and an argument of the program}}
  %0 = moe.write_rows %rows into %c at %at : (tensor<2x1x4xf32>, tensor<2x8x4xf32>, tensor<1xi32>) -> tensor<2x8x4xf32>
  return
}

// -----

// WriteRowsOp C4
func.func @f(%rows: tensor<2x1x4xf32>, %c: tensor<2x8x4xf32>) {
  // expected-error @+1 {{C4: the cache must be a moe.param that nothing else uses}}
  %0 = moe.write_rows %rows into %c : (tensor<2x1x4xf32>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  return
}

// -----

// WriteRowsOp C4
moe.state @c : tensor<2x8x4xf32> from #moe.source<names = ["c"], disk_shape = [64]>
func.func @f(%rows: tensor<2x1x4xf32>) {
  %c = moe.param @c : tensor<2x8x4xf32>
  // expected-error @+1 {{C4: @c is not a state without a source}}
  %0 = moe.write_rows %rows into %c : (tensor<2x1x4xf32>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  return
}

// -----

// WriteRowsOp C4
moe.state @c : tensor<2x8x4xf32>
func.func @f(%rows: tensor<2x1x4xf32>) -> tensor<2x8x4xf32> {
  %c = moe.param @c : tensor<2x8x4xf32>
  %again = moe.param @c : tensor<2x8x4xf32>
  // expected-error @+1 {{C4: @c is read besides}}
  %0 = moe.write_rows %rows into %c : (tensor<2x1x4xf32>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  return %again : tensor<2x8x4xf32>
}

// -----

// SlotOp C1
func.func @f(%x: tensor<2x8x4xf32>) {
  // expected-error @+1 {{C1: x must be [B,S,..] and the result [B,1,..] of its element type}}
  %0 = moe.slot %x : (tensor<2x8x4xf32>) -> tensor<2x2x4xf32>
  return
}

// -----

// SlotOp C2
func.func @f(%x: tensor<2x8x4xf32>, %at: tensor<2xi32>) {
  // expected-error @+1 {{C2: at must be one number}}
  %0 = moe.slot %x at %at : (tensor<2x8x4xf32>, tensor<2xi32>) -> tensor<2x1x4xf32>
  return
}

// -----

// SampleOp C1
func.func @f(%l: tensor<2x1x8xf32>, %s: tensor<2xf32>, %d: tensor<4xi32>) {
  // expected-error @+1 {{C1: logits must be [B,S,V] and the result [B,S]}}
  %0 = moe.sample %l by %s, %d : (tensor<2x1x8xf32>, tensor<2xf32>, tensor<4xi32>) -> tensor<2xi32>
  return
}

// -----

// SampleOp C2
func.func @f(%l: tensor<2x1x8xf32>, %s: tensor<2xf32>, %d: tensor<3xi32>) {
  // expected-error @+1 {{C2: sampling must be [2] and draw [4]}}
  %0 = moe.sample %l by %s, %d : (tensor<2x1x8xf32>, tensor<2xf32>, tensor<3xi32>) -> tensor<2x1xi32>
  return
}
