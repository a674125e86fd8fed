// Every numbered constraint of the moe dialect has one case here that breaks it.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// RouterAttr C1
// expected-error @+1 {{C1: k must be at least 1, got 0}}
#r = #moe.router<k = 0, score = softmax, order = score_topk, renorm = none, scale = 1.0 : f64>

// -----

// RouterAttr C2
// expected-error @+1 {{C2: scale must be finite and not 0}}
#r = #moe.router<k = 1, score = softmax, order = score_topk, renorm = none, scale = 0.0 : f64>

// -----

// RouterAttr C3
// expected-error @+1 {{C3: group_keep = 3 must lie between 1 and groups = 2}}
#r = #moe.router<k = 1, groups = 2, group_keep = 3>

// -----

// RouterAttr C4
// expected-error @+1 {{C4: renorm_epsilon must be finite and not negative}}
#r = #moe.router<k = 1, renorm = sum, renorm_epsilon = -1.0 : f64>

// -----

// RouterAttr C4
// expected-error @+1 {{C4: renorm_clamp_min has a meaning only with renorm = sum}}
#r = #moe.router<k = 1, renorm_clamp_min = 1.0 : f64>

// -----

// RouterAttr C4
// expected-error @+1 {{C4: jitter_eps has a meaning only with score = sparsemixer}}
#r = #moe.router<k = 1, jitter_eps = 0.1 : f64>

// -----

// RouterAttr C5
// expected-error @+1 {{C5: sparsemixer has order = score_topk, one group and renorm = none}}
#r = #moe.router<k = 2, score = sparsemixer, renorm = sum>

// -----

// SourceAttr C1
// expected-error @+1 {{C1: a source needs a tensor name}}
#s = #moe.source<names = [], disk_shape = [4]>

// -----

// SourceAttr C2
// expected-error @+1 {{C2: {e} must stand in}}
#s = #moe.source<names = ["a.{e}.w"], disk_shape = [4]>

// -----

// SourceAttr C3
// expected-error @+1 {{C3: disk_shape has a size of 0}}
#s = #moe.source<names = ["a"], disk_shape = [0]>

// -----

// SourceAttr C4
// expected-error @+1 {{C4: permute must be a permutation}}
#s = #moe.source<names = ["a"], disk_shape = [4, 2], permute = [0, 2]>

// -----

// RoutingType C1
// expected-error @+1 {{C1: k = 5 must lie between 1 and the number of experts, 4}}
!r = !moe.routing<2x6, experts = 4, k = 5>

// -----

// RoutingType C2
// expected-error @+1 {{C2: token sizes must be positive}}
!r = !moe.routing<0x6, experts = 4, k = 2>

// -----

// RoutingType C3
// expected-error @+1 {{C3: the encoding must be a complete, not ragged #dist.sharding of 2 dimensions}}
!r = !moe.routing<2x6, experts = 4, k = 2, #dist.sharding<[{dp}]>>

// -----

// SourceAttr C5
// expected-error @+1 {{C5: slice must be [dim, first, size]}}
moe.state @w : tensor<4x8xf32> from #moe.source<names = ["a"], disk_shape = [4, 8], slice = [0, 4, 4]>

// -----

// StateOp C2: slice
// expected-error @+1 {{C2: slice array<i64: 0, 3, 6> is not within a block's dimensions}}
moe.state @w : tensor<4x8xf32> from #moe.source<names = ["a"], disk_shape = [6, 8], slice = [0, 3, 6]>

// -----

// StateOp C1
// expected-error @+1 {{C1: the type must be a static ranked tensor of floats or of i32}}
moe.state @w : tensor<4xi64>

// -----

// StateOp C2
// expected-error @+1 {{C2: a block has 8 elements, the tensors in the file have 7}}
moe.state @w : tensor<4x2xf32> from #moe.source<names = ["a"], disk_shape = [7]>

// -----

// StateOp C2: dimensions of the block
// expected-error @+1 {{C2: permute orders 3 dimensions, a block has 2}}
moe.state @w : tensor<4x2xf32> from #moe.source<names = ["a"], disk_shape = [8], permute = [0, 2, 1]>

// -----

// StateOp C3
func.func @f() {
  // expected-error @+1 {{expects parent op 'builtin.module'}}
  moe.state @w : tensor<4xf32>
  return
}

// -----

// ParamOp C1
func.func @f() {
  // expected-error @+1 {{C1: @w is not a moe.state}}
  %0 = moe.param @w : tensor<4xf32>
  return
}

// -----

// ParamOp C2
moe.state @w : tensor<4xf32>
func.func @f() {
  // expected-error @+1 {{C2: the result has type}}
  %0 = moe.param @w : tensor<5xf32>
  return
}

// -----

// EmbeddingOp C1
func.func @f(%i: tensor<2xi32>, %t: tensor<4x8xf32>) {
  // expected-error @+1 {{C1: the result must have the shape of ids}}
  %0 = moe.embedding %i, %t : (tensor<2xi32>, tensor<4x8xf32>) -> tensor<2x4xf32>
  return
}

// -----

// EmbeddingOp C2
func.func @f(%i: tensor<2xi32>, %t: tensor<4x8xf32>) {
  // expected-error @+1 {{C2: the result must have the table's element type or be f32}}
  %0 = moe.embedding %i, %t : (tensor<2xi32>, tensor<4x8xf32>) -> tensor<2x8xbf16>
  return
}

// -----

// EmbeddingOp C3
func.func @f(%i: tensor<2xi32>, %t: tensor<4x8xf32>) {
  // expected-error @+1 {{C3: pad = -1 must not be negative}}
  %0 = moe.embedding %i, %t {pad = -1 : i64} : (tensor<2xi32>, tensor<4x8xf32>) -> tensor<2x8xf32>
  return
}

// -----

// FullOp C1
func.func @f() {
  // expected-error @+1 {{C1: the value must be finite}}
  %0 = moe.full 0x7FF0000000000000 : tensor<8xf32>
  return
}

// -----

// LinearOp C1
func.func @f(%x: tensor<2x8xf32>, %w: tensor<4x8xf32>) {
  // expected-error @+1 {{C1: contract = 3 must lie between}}
  %0 = moe.linear %x, %w contract 3 : (tensor<2x8xf32>, tensor<4x8xf32>) -> tensor<2x4xf32>
  return
}

// -----

// LinearOp C2
func.func @f(%x: tensor<2x8xf32>, %w: tensor<4x7xf32>) {
  // expected-error @+1 {{C2: the contracted dimensions differ}}
  %0 = moe.linear %x, %w contract 1 : (tensor<2x8xf32>, tensor<4x7xf32>) -> tensor<2x4xf32>
  return
}

// -----

// LinearOp C3
func.func @f(%x: tensor<2x8xf32>, %w: tensor<4x8xf32>) {
  // expected-error @+1 {{C3: the result must be x's and then w's other dimensions}}
  %0 = moe.linear %x, %w contract 1 : (tensor<2x8xf32>, tensor<4x8xf32>) -> tensor<4x2xf32>
  return
}

// -----

// LinearOp C4
func.func @f(%x: tensor<2x8xf32>, %w: tensor<4x8xbf16>) {
  // expected-error @+1 {{C4: operands must have one element type}}
  %0 = moe.linear %x, %w contract 1 : (tensor<2x8xf32>, tensor<4x8xbf16>) -> tensor<2x4xf32>
  return
}

// -----

// RmsNormOp C1
func.func @f(%x: tensor<2x8xf32>, %w: tensor<4xf32>) {
  // expected-error @+1 {{C1: w's shape must be a suffix of x's}}
  %0 = moe.rms_norm %x, %w eps 0.1 : (tensor<2x8xf32>, tensor<4xf32>) -> tensor<2x8xf32>
  return
}

// -----

// RmsNormOp C2
func.func @f(%x: tensor<2x8xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C2: result and x must have one shape}}
  %0 = moe.rms_norm %x, %w eps 0.1 : (tensor<2x8xf32>, tensor<8xf32>) -> tensor<8xf32>
  return
}

// -----

// RmsNormOp C3
func.func @f(%x: tensor<2x8xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C3: eps must not be negative}}
  %0 = moe.rms_norm %x, %w eps -0.1 : (tensor<2x8xf32>, tensor<8xf32>) -> tensor<2x8xf32>
  return
}

// -----

// LayerNormOp C1
func.func @f(%x: tensor<2x8xf32>, %w: tensor<4xf32>) {
  // expected-error @+1 {{C1: w's shape must be a suffix of x's}}
  %0 = moe.layer_norm %x, %w eps 0.1 : (tensor<2x8xf32>, tensor<4xf32>) -> tensor<2x8xf32>
  return
}

// -----

// LayerNormOp C2
func.func @f(%x: tensor<2x8xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C2: result and x must have one shape}}
  %0 = moe.layer_norm %x, %w eps 0.1 : (tensor<2x8xf32>, tensor<8xf32>) -> tensor<8xf32>
  return
}

// -----

// LayerNormOp C3
func.func @f(%x: tensor<2x8xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C3: eps must not be negative}}
  %0 = moe.layer_norm %x, %w eps -0.1 : (tensor<2x8xf32>, tensor<8xf32>) -> tensor<2x8xf32>
  return
}

// -----

// LayerNormOp C4
func.func @f(%x: tensor<2x8xf32>, %w: tensor<8xf32>, %b: tensor<2x8xf32>) {
  // expected-error @+1 {{C4: b must have w's shape}}
  %0 = moe.layer_norm %x, %w, %b eps 0.1 : (tensor<2x8xf32>, tensor<8xf32>, tensor<2x8xf32>) -> tensor<2x8xf32>
  return
}

// -----

// SumSquaresOp C1
func.func @f(%x: tensor<2x8xf32>) {
  // expected-error @+1 {{C1: dims must lie between 1 and the rank of x}}
  %0 = moe.sum_squares %x dims 3 : (tensor<2x8xf32>) -> tensor<2xf32>
  return
}

// -----

// SumSquaresOp C2
func.func @f(%x: tensor<2x8xf32>) {
  // expected-error @+1 {{C2: the result must have x's leading shape}}
  %0 = moe.sum_squares %x dims 1 : (tensor<2x8xf32>) -> tensor<8xf32>
  return
}

// -----

// RmsApplyOp C1
func.func @f(%x: tensor<2x8xf32>, %s: tensor<2xf32>, %w: tensor<4xf32>) {
  // expected-error @+1 {{C1: w's shape must be a suffix of x's}}
  %0 = moe.rms_apply %x, %s, %w eps 0.1 count 8 : (tensor<2x8xf32>, tensor<2xf32>, tensor<4xf32>) -> tensor<2x8xf32>
  return
}

// -----

// RmsApplyOp C2
func.func @f(%x: tensor<2x8xf32>, %s: tensor<8xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C2: ss must have x's leading shape}}
  %0 = moe.rms_apply %x, %s, %w eps 0.1 count 8 : (tensor<2x8xf32>, tensor<8xf32>, tensor<8xf32>) -> tensor<2x8xf32>
  return
}

// -----

// RmsApplyOp C3
func.func @f(%x: tensor<2x8xf32>, %s: tensor<2xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C3: result and x must have one shape}}
  %0 = moe.rms_apply %x, %s, %w eps 0.1 count 8 : (tensor<2x8xf32>, tensor<2xf32>, tensor<8xf32>) -> tensor<8xf32>
  return
}

// -----

// RmsApplyOp C4
func.func @f(%x: tensor<2x8xf32>, %s: tensor<2xf32>, %w: tensor<8xf32>) {
  // expected-error @+1 {{C4: count must be at least 1}}
  %0 = moe.rms_apply %x, %s, %w eps 0.1 count 0 : (tensor<2x8xf32>, tensor<2xf32>, tensor<8xf32>) -> tensor<2x8xf32>
  return
}

// -----

// AddOp C1
func.func @f(%a: tensor<2x8xf32>, %b: tensor<2xf32>) {
  // expected-error @+1 {{C1: b's shape must be a suffix of a's}}
  %0 = moe.add %a, %b : (tensor<2x8xf32>, tensor<2xf32>) -> tensor<2x8xf32>
  return
}

// -----

// AddOp C2
func.func @f(%a: tensor<2x8xf32>, %b: tensor<8xf32>) {
  // expected-error @+1 {{C2: the result must have a's shape}}
  %0 = moe.add %a, %b : (tensor<2x8xf32>, tensor<8xf32>) -> tensor<8xf32>
  return
}

// -----

// AddOp C3
func.func @f(%a: tensor<2x8xf32>, %b: tensor<8xbf16>) {
  // expected-error @+1 {{C3: operands must have one element type, the result that or a narrower one}}
  %0 = moe.add %a, %b : (tensor<2x8xf32>, tensor<8xbf16>) -> tensor<2x8xf32>
  return
}

// -----

// ClampOp C1
func.func @f(%x: tensor<8xf32>) {
  // expected-error @+1 {{C1: lo must not exceed hi}}
  %0 = moe.clamp %x from 1.0 to 0.0 : (tensor<8xf32>) -> tensor<8xf32>
  return
}

// -----

// ClampOp C2
func.func @f(%x: tensor<8xf32>) {
  // expected-error @+1 {{C2: the result must have x's shape, and its element type or a narrower one}}
  %0 = moe.clamp %x from 0.0 to 1.0 : (tensor<8xf32>) -> tensor<9xf32>
  return
}

// -----

// ScaleOp C1
func.func @f(%x: tensor<8xf32>) {
  // expected-error @+1 {{C1: the factor must be finite}}
  %0 = moe.scale %x by 0x7FF0000000000000 : (tensor<8xf32>) -> tensor<8xf32>
  return
}

// -----

// ScaleOp C2
func.func @f(%x: tensor<8xf32>) {
  // expected-error @+1 {{C2: result and x must have one shape}}
  %0 = moe.scale %x by 2.0 : (tensor<8xf32>) -> tensor<9xf32>
  return
}

// -----

// ActOp C1
func.func @f(%x: tensor<8xf32>) {
  // expected-error @+1 {{C1: result and x must have one shape}}
  %0 = moe.act relu %x : (tensor<8xf32>) -> tensor<9xf32>
  return
}

// -----

// GluOp C1
func.func @f(%x: tensor<4x3x8xf32>) {
  // expected-error @+1 {{C1: the last dimension but one of x must be 2}}
  %0 = moe.glu silu %x : (tensor<4x3x8xf32>) -> tensor<4x8xf32>
  return
}

// -----

// GluOp C2
func.func @f(%x: tensor<4x2x8xf32>) {
  // expected-error @+1 {{C2: the result must be x without that dimension}}
  %0 = moe.glu silu %x : (tensor<4x2x8xf32>) -> tensor<4x2xf32>
  return
}

// -----

// GluOp C3
func.func @f(%x: tensor<4x2x8xf32>) {
  // expected-error @+1 {{C3: the limit must be positive, alpha and up_shift finite}}
  %0 = moe.glu silu %x limit 0.0 : (tensor<4x2x8xf32>) -> tensor<4x8xf32>
  return
}

// -----

// GluOp C4
func.func @f(%x: tensor<4x2x8xf32>) {
  // expected-error @+1 {{C4: alpha is for silu only}}
  %0 = moe.glu gelu %x alpha 1.5 : (tensor<4x2x8xf32>) -> tensor<4x8xf32>
  return
}

// -----

// SigmoidGateOp C1
func.func @f(%x: tensor<4x8xf32>, %g: tensor<4x2xf32>) {
  // expected-error @+1 {{C1: g must have x's leading shape}}
  %0 = moe.sigmoid_gate %x, %g : (tensor<4x8xf32>, tensor<4x2xf32>) -> tensor<4x8xf32>
  return
}

// -----

// SigmoidGateOp C2
func.func @f(%x: tensor<4x8xf32>, %g: tensor<4x1xf32>) {
  // expected-error @+1 {{C2: result and x must have one shape}}
  %0 = moe.sigmoid_gate %x, %g : (tensor<4x8xf32>, tensor<4x1xf32>) -> tensor<4x1xf32>
  return
}

// -----

// PositionsOp C1
func.func @f() {
  // expected-error @+1 {{C1: the result must have one dimension}}
  %0 = moe.positions : tensor<2x3xi32>
  return
}

// -----

// WholeOp C1: a dimension that is none
func.func @f(%x: tensor<2x6xf32>) {
  // expected-error @+1 {{C1: dims must be dimensions of x, each once}}
  %0 = moe.whole %x dims [2] : (tensor<2x6xf32>) -> tensor<2x6xf32>
  return
}

// -----

// WholeOp C1: a dimension twice
func.func @f(%x: tensor<2x6xf32>) {
  // expected-error @+1 {{C1: dims must be dimensions of x, each once}}
  %0 = moe.whole %x dims [1, 1] : (tensor<2x6xf32>) -> tensor<2x6xf32>
  return
}

// -----

// WholeOp C2
func.func @f(%x: tensor<2x6xf32>) {
  // expected-error @+1 {{C2: result and x must have one type}}
  %0 = moe.whole %x dims [1] : (tensor<2x6xf32>) -> tensor<6x2xf32>
  return
}

// -----

// RopeTableOp C1
func.func @f(%p: tensor<6xi32>) {
  // expected-error @+1 {{C1: the results must be [S, 2], a column for each frequency}}
  %c:2 = moe.rope_table %p frequencies [1.0, 0.1] times 1.0 : (tensor<6xi32>) -> (tensor<6x3xf32>, tensor<6x3xf32>)
  return
}

// -----

// RopeTableOp C2: factor
func.func @f(%p: tensor<6xi32>) {
  // expected-error @+1 {{C2: frequencies must be finite and factor a positive number}}
  %c:2 = moe.rope_table %p frequencies [1.0, 0.1] times 0.0 : (tensor<6xi32>) -> (tensor<6x2xf32>, tensor<6x2xf32>)
  return
}

// -----

// RopeTableOp C2: frequencies
func.func @f(%p: tensor<6xi32>) {
  // expected-error @+1 {{C2: frequencies must be finite and factor a positive number}}
  %c:2 = moe.rope_table %p frequencies [1.0, 0x7FF0000000000000 : f64] times 1.0 : (tensor<6xi32>) -> (tensor<6x2xf32>, tensor<6x2xf32>)
  return
}

// -----

// RopeOp C1
func.func @f(%x: tensor<4x8xf32>, %c: tensor<6x4xf32>) {
  // expected-error @+1 {{C1: x must have three or four dimensions}}
  %0 = moe.rope %x, %c, %c : (tensor<4x8xf32>, tensor<6x4xf32>, tensor<6x4xf32>) -> tensor<4x8xf32>
  return
}

// -----

// RopeOp C2
func.func @f(%x: tensor<2x6x4x8xf32>, %c: tensor<6x5xf32>) {
  // expected-error @+1 {{C2: cos and sin must be [S, r]}}
  %0 = moe.rope %x, %c, %c : (tensor<2x6x4x8xf32>, tensor<6x5xf32>, tensor<6x5xf32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// HeadLinearOp C1
func.func @f(%x: tensor<8xf32>, %w: tensor<4x7x8xf32>) {
  // expected-error @+1 {{C1: x must be [t.., H, K]}}
  %0 = moe.head_linear %x, %w : (tensor<8xf32>, tensor<4x7x8xf32>) -> tensor<7xf32>
  return
}

// -----

// HeadLinearOp C2
func.func @f(%x: tensor<2x4x8xf32>, %w: tensor<4x7x8xf32>) {
  // expected-error @+1 {{C2: w must be [H, K, N]}}
  %0 = moe.head_linear %x, %w transposed : (tensor<2x4x8xf32>, tensor<4x7x8xf32>) -> tensor<2x4x7xf32>
  return
}

// -----

// HeadLinearOp C3
func.func @f(%x: tensor<2x4x8xf32>, %w: tensor<4x7x8xf32>) {
  // expected-error @+1 {{C3: the result must be [t.., H, N]}}
  %0 = moe.head_linear %x, %w : (tensor<2x4x8xf32>, tensor<4x7x8xf32>) -> tensor<2x4x8xf32>
  return
}

// -----

// HeadLinearOp C4
func.func @f(%x: tensor<2x4x8xf32>, %w: tensor<4x7x8xbf16>) {
  // expected-error @+1 {{C4: operands and result must have one element type}}
  %0 = moe.head_linear %x, %w : (tensor<2x4x8xf32>, tensor<4x7x8xbf16>) -> tensor<2x4x7xf32>
  return
}

// -----

// AttentionOp C1
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>, %n: tensor<2x5xi32>) {
  // expected-error @+1 {{C1: shapes must be q}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %n heads 4 over 2 scale 1.0 window 0 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x5xi32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C2
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>) {
  // expected-error @+1 {{C2: 3 key/value heads must divide 4 query heads}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m heads 4 over 3 scale 1.0 window 0 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C3
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>) {
  // expected-error @+1 {{C3: window must not be negative}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m heads 4 over 2 scale 1.0 window -1 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C4
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>) {
  // expected-error @+1 {{C4: without offsets the operands must hold all heads}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m heads 8 over 2 scale 1.0 window 0 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C5: the second part of the scores
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>, %q2: tensor<2x6x4x3xf32>, %k2: tensor<2x6x2xf32>) {
  // expected-error @+1 {{C5: q2 must be [B,Sq,H,r] and k2 [B,Sk,r]}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m also %q2, %k2 heads 4 over 2 scale 1.0 window 0 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>, tensor<2x6x4x3xf32>, tensor<2x6x2xf32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C5: bias
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>, %b: tensor<2x6x6xf32>) {
  // expected-error @+1 {{C5: bias must be [H,Sq,Sk]}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m bias %b heads 4 over 2 scale 1.0 window 0 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>, tensor<2x6x6xf32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C5: sinks
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>, %s: tensor<2xf32>) {
  // expected-error @+1 {{C5: sinks must be [H]}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m sinks %s heads 4 over 2 scale 1.0 window 0 : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>, tensor<2xf32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C6
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>) {
  // expected-error @+1 {{C6: bidirectional attention has no window}}
  %0 = moe.attention %q, %k, %k at %p, %p mask %m  heads 4 over 2 scale 1.0 window 2 bidirectional : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// AttentionOp C5: half of the second part
func.func @f(%q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %p: tensor<6xi32>, %m: tensor<2x6xi32>) {
  // expected-error @+1 {{C5: q2 and k2 must both be given or neither}}
  %0 = "moe.attention"(%q, %k, %k, %p, %p, %m, %q) <{scale = 1.0 : f64, window = 0 : i64, q_heads = 4 : i64, kv_heads = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0, 0, 0>}> : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>, tensor<2x6x4x8xf32>) -> tensor<2x6x4x8xf32>
  return
}

// -----

// RouteOp C1
func.func @f(%l: tensor<2x6x5xf32>) {
  // expected-error @+1 {{C1: logits must be the routing's tokens followed by its experts}}
  %0 = moe.route #moe.router<k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %l : (tensor<2x6x5xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C2
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C2: the router chooses 1 experts, the routing holds 2}}
  %0 = moe.route #moe.router<k = 1, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %l : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C3
func.func @f(%l: tensor<2x6x4xf32>, %b: tensor<5xf32>) {
  // expected-error @+1 {{C3: bias must have one number for each of the 4 experts}}
  %0 = moe.route #moe.router<k = 2> of %l bias %b : (tensor<2x6x4xf32>, tensor<5xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C4
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C4: 3 groups do not divide 4 experts}}
  %0 = moe.route #moe.router<k = 2, groups = 3, group_keep = 2> of %l : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C4
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C4: 1 groups of 1 experts hold fewer than k = 2}}
  %0 = moe.route #moe.router<k = 2, groups = 4> of %l : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C4
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C4: groups of one expert have no top-2 sum}}
  %0 = moe.route #moe.router<k = 2, groups = 4, group_keep = 2, group_score = top2_sum> of %l : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C5
func.func @f(%l: tensor<2x6x4xf32>, %b: tensor<4xf32>) {
  // expected-error @+1 {{C5: a sparsemixer has no bias}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %l bias %b : (tensor<2x6x4xf32>, tensor<4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: step and layer must be given together, and part with them}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %l at %s : (tensor<2x6x4xf32>, tensor<1xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: step and layer must be given together, and part with them}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %l part %s : (tensor<2x6x4xf32>, tensor<1xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: step and layer must be given together, and part with them}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %l layer 1 : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: step and part must be tensor<1xi32>}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %l at %t layer 1 : (tensor<2x6x4xf32>, tensor<2xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: only a sparsemixer of tokens [batch, sequence] draws}}
  %0 = moe.route #moe.router<k = 2> of %l at %s layer 1 : (tensor<2x6x4xf32>, tensor<1xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: only a sparsemixer of tokens [batch, sequence] draws}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %m at %s layer 1 : (tensor<12x4xf32>, tensor<1xi32>) -> !moe.routing<12, experts = 4, k = 2>
  return
}

// -----

// RouteOp C6
func.func @f(%l: tensor<2x6x4xf32>, %s: tensor<1xi32>, %t: tensor<2xi32>, %m: tensor<12x4xf32>) {
  // expected-error @+1 {{C6: layer and seed must not be negative}}
  %0 = moe.route #moe.router<k = 2, score = sparsemixer> of %l at %s layer -1 : (tensor<2x6x4xf32>, tensor<1xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// CapacityAttr C1
// expected-error @+1 {{C1: value must be finite and not negative, and whole if it is fixed}}
#c = #moe.capacity<rule = fixed, value = 1.5 : f64>

// -----

// CapacityAttr C1
// expected-error @+1 {{C1: value must be finite and not negative, and whole if it is fixed}}
#c = #moe.capacity<rule = factor, value = -1.0 : f64>

// -----

// CapacityAttr C2
// expected-error @+1 {{C2: least must not be negative, got -1}}
#c = #moe.capacity<rule = factor, value = 1.0 : f64, least = -1>

// -----

// CapacityAttr C3
// expected-error @+1 {{C3: renorm_epsilon and renorm_clamp_min must be finite, not negative, and 0 without renorm}}
#c = #moe.capacity<rule = factor, value = 1.0 : f64, renorm_epsilon = 1.0 : f64>

// -----

// CapacityAttr C4
// expected-error @+1 {{C4: scale must be finite and not 0}}
#c = #moe.capacity<rule = factor, value = 1.0 : f64, scale = 0.0 : f64>

// -----

// CapacityAttr C5
// expected-error @+1 {{C5: layer must be a 31-bit number, and seed 0 unless the policy is random}}
#c = #moe.capacity<rule = factor, value = 1.0 : f64, seed = 3>

// -----

// JitterOp C1
func.func @f(%x: tensor<6x8xf32>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C1: x must be [batch, sequence, hidden], and the result alike}}
  %0 = moe.jitter %x at %s eps 0.1 layer 0 : (tensor<6x8xf32>, tensor<1xi32>) -> tensor<6x8xf32>
  return
}

// -----

// JitterOp C1
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C1: x must be [batch, sequence, hidden], and the result alike}}
  %0 = moe.jitter %x at %s eps 0.1 layer 0 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xbf16>
  return
}

// -----

// JitterOp C2
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C2: eps must be above 0 and at most 1}}
  %0 = moe.jitter %x at %s eps 0.0 layer 0 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  return
}

// -----

// JitterOp C2
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C2: eps must be above 0 and at most 1}}
  %0 = moe.jitter %x at %s eps 1.5 layer 0 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  return
}

// -----

// JitterOp C3
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C3: layer and seed must not be negative}}
  %0 = moe.jitter %x at %s eps 0.1 layer -1 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  return
}

// -----

// JitterOp C3
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C3: layer and seed must not be negative}}
  %0 = moe.jitter %x at %s eps 0.1 layer 0 seed -1 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  return
}

// -----

// JitterOp C4
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<2xi32>) {
  // expected-error @+1 {{C4: step and part must be tensor<1xi32>}}
  %0 = moe.jitter %x at %s eps 0.1 layer 0 : (tensor<2x6x8xf32>, tensor<2xi32>) -> tensor<2x6x8xf32>
  return
}

// -----

// JitterOp C4
func.func @f(%x: tensor<2x6x8xf32>, %s: tensor<1xi32>, %p: tensor<2xi32>) {
  // expected-error @+1 {{C4: step and part must be tensor<1xi32>}}
  %0 = moe.jitter %x at %s part %p eps 0.1 layer 0 : (tensor<2x6x8xf32>, tensor<1xi32>, tensor<2xi32>) -> tensor<2x6x8xf32>
  return
}

// -----

// LimitOp C1
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: operand and result must have the same tokens, experts and k}}
  %0, %1 = moe.limit #moe.capacity<rule = factor, value = 1.0 : f64> of %r : (!moe.routing<2x6, experts = 4, k = 2>) -> (!moe.routing<2x6, experts = 4, k = 1>, tensor<2xf32>)
  return
}

// -----

// LimitOp C2
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: step must be tensor<1xi32>, given if and only if the policy is random}}
  %0, %1 = moe.limit #moe.capacity<rule = factor, value = 1.0 : f64, policy = random> of %r : (!moe.routing<2x6, experts = 4, k = 2>) -> (!moe.routing<2x6, experts = 4, k = 2>, tensor<2xf32>)
  return
}

// -----

// LimitOp C2
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>, %s: tensor<1xi32>) {
  // expected-error @+1 {{C2: step must be tensor<1xi32>, given if and only if the policy is random}}
  %0, %1 = moe.limit #moe.capacity<rule = factor, value = 1.0 : f64> of %r step %s : (!moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>) -> (!moe.routing<2x6, experts = 4, k = 2>, tensor<2xf32>)
  return
}

// -----

// LimitOp C3
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C3: dropped must have two numbers}}
  %0, %1 = moe.limit #moe.capacity<rule = factor, value = 1.0 : f64> of %r : (!moe.routing<2x6, experts = 4, k = 2>) -> (!moe.routing<2x6, experts = 4, k = 2>, tensor<1xf32>)
  return
}

// -----

// LimitOp C4
func.func @f(%r: !moe.routing<6, experts = 4, k = 2>) {
  // expected-error @+1 {{C4: one dimension of tokens is no set of sequences}}
  %0, %1 = moe.limit #moe.capacity<rule = factor, value = 1.0 : f64, domain = sequence> of %r : (!moe.routing<6, experts = 4, k = 2>) -> (!moe.routing<6, experts = 4, k = 2>, tensor<2xf32>)
  return
}

// -----

// RouteToOp C1
func.func @f(%l: tensor<2x6x5xf32>, %i: tensor<2x6x2xi32>) {
  // expected-error @+1 {{C1: logits must be the routing's tokens followed by its experts}}
  %0 = moe.route_to #moe.router<k = 2> of %l to %i : (tensor<2x6x5xf32>, tensor<2x6x2xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteToOp C2
func.func @f(%l: tensor<2x6x4xf32>, %i: tensor<2x6x2xi32>) {
  // expected-error @+1 {{C2: the router chooses 1 experts, the routing holds 2}}
  %0 = moe.route_to #moe.router<k = 1> of %l to %i : (tensor<2x6x4xf32>, tensor<2x6x2xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteToOp C3
func.func @f(%l: tensor<2x6x4xf32>, %i: tensor<2x6x3xi32>) {
  // expected-error @+1 {{C3: choices must be the routing's tokens followed by k}}
  %0 = moe.route_to #moe.router<k = 2> of %l to %i : (tensor<2x6x4xf32>, tensor<2x6x3xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// RouteToOp C4
func.func @f(%l: tensor<2x6x4xf32>, %i: tensor<2x6x2xi32>) {
  // expected-error @+1 {{C4: groups and sparsemixer belong to gates that choose}}
  %0 = moe.route_to #moe.router<k = 2, score = sparsemixer> of %l to %i : (tensor<2x6x4xf32>, tensor<2x6x2xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// LookupOp C1
func.func @f(%i: tensor<2x6xi32>, %t: tensor<9x2xi32>) {
  // expected-error @+1 {{C1: the result must have the shape of ids followed by the table's last dimension}}
  %0 = moe.lookup %i, %t : (tensor<2x6xi32>, tensor<9x2xi32>) -> tensor<2x6x3xi32>
  return
}

// -----

// RedirectOp C1
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: there is no expert 4 among the routing's 4}}
  %0 = moe.redirect %r first 1 rest 4 : !moe.routing<2x6, experts = 4, k = 2>
  return
}

// -----

// DispatchOp C1
func.func @f(%x: tensor<2x5x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: x must be the routing's tokens followed by D}}
  %0 = moe.dispatch %x, %r : (tensor<2x5x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<24x8xf32>
  return
}

// -----

// DispatchOp C2
func.func @f(%x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: the result must be [T}}
  %0 = moe.dispatch %x, %r : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<12x8xf32>
  return
}

// -----

// GroupedMatmulOp C1
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x5x8xf32>) {
  // expected-error @+1 {{C1: contract must lie between}}
  %0 = moe.grouped_matmul %x by %r, %w contract 3 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x5x8xf32>) -> tensor<24x5xf32>
  return
}

// -----

// GroupedMatmulOp C2
func.func @f(%x: tensor<24x7xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x5x8xf32>) {
  // expected-error @+1 {{C2: rows must be [R, K..]}}
  %0 = moe.grouped_matmul %x by %r, %w contract 1 : (tensor<24x7xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x5x8xf32>) -> tensor<24x5xf32>
  return
}

// -----

// GroupedMatmulOp C3
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x5x8xf32>) {
  // expected-error @+1 {{C3: the result must be [R, N..]}}
  %0 = moe.grouped_matmul %x by %r, %w contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x5x8xf32>) -> tensor<24x6xf32>
  return
}

// -----

// GroupedMatmulOp C4
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<3x5x8xf32>) {
  // expected-error @+1 {{C4: the groups count 4 experts, w has 3}}
  %0 = moe.grouped_matmul %x by %r, %w contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<3x5x8xf32>) -> tensor<24x5xf32>
  return
}

// -----

// GroupedBiasOp C1
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %b: tensor<4x7xf32>) {
  // expected-error @+1 {{C1: rows must be [R, N..] where b is [E, N..]}}
  %0 = moe.grouped_bias %x by %r, %b : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x7xf32>) -> tensor<24x8xf32>
  return
}

// -----

// GroupedBiasOp C2
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %b: tensor<4x8xf32>) {
  // expected-error @+1 {{C2: result and rows must have one type}}
  %0 = moe.grouped_bias %x by %r, %b : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8xf32>) -> tensor<24x8xbf16>
  return
}

// -----

// GroupedBiasOp C3
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %b: tensor<3x8xf32>) {
  // expected-error @+1 {{C3: the groups count 4 experts, b has 3}}
  %0 = moe.grouped_bias %x by %r, %b : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<3x8xf32>) -> tensor<24x8xf32>
  return
}

// -----

// GroupedBiasOp C4
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %b: tensor<4x8xbf16>) {
  // expected-error @+1 {{C4: b must have the rows' element type}}
  %0 = moe.grouped_bias %x by %r, %b : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8xbf16>) -> tensor<24x8xf32>
  return
}

// -----

// CombineOp C1
func.func @f(%x: tensor<12x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: rows must be [T}}
  %0 = moe.combine %x, %r : (tensor<12x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  return
}

// -----

// CombineOp C2
func.func @f(%x: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: the result must be the routing's tokens followed by D}}
  %0 = moe.combine %x, %r : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x7xf32>
  return
}
