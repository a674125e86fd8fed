// Every numbered constraint of the gradient and loss ops has one case here that breaks it.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// EmbeddingGradOp C1
func.func @f(%ids: tensor<2x6xi32>, %dy: tensor<2x6x4xf32>, %w: tensor<9x8xf32>) {
  // expected-error @+1 {{C1: dy must have the shape of ids}}
  %0 = moe.embedding_grad %ids, %dy like %w : (tensor<2x6xi32>, tensor<2x6x4xf32>, tensor<9x8xf32>) -> tensor<9x8xf32>
  return
}

// -----

// EmbeddingGradOp C2
func.func @f(%ids: tensor<2x6xi32>, %dy: tensor<2x6x8xf32>, %w: tensor<9x8xf32>) {
  // expected-error @+1 {{C2: the result must have the table's shape}}
  %0 = moe.embedding_grad %ids, %dy like %w : (tensor<2x6xi32>, tensor<2x6x8xf32>, tensor<9x8xf32>) -> tensor<8x8xf32>
  return
}

// -----

// EmbeddingGradOp C3
func.func @f(%ids: tensor<2x6xi32>, %dy: tensor<2x6x8xf32>, %w: tensor<9x8xf32>) {
  // expected-error @+1 {{C3: pad = -1 must not be negative}}
  %0 = moe.embedding_grad %ids, %dy like %w {pad = -1 : i64} : (tensor<2x6xi32>, tensor<2x6x8xf32>, tensor<9x8xf32>) -> tensor<9x8xf32>
  return
}

// -----

// LinearInputGradOp C1
func.func @f(%dy: tensor<6x4xf32>, %w: tensor<4x8xf32>) {
  // expected-error @+1 {{C1: contract = 3 must lie between 1 and the rank of w}}
  %0 = moe.linear_input_grad %dy, %w contract 3 : (tensor<6x4xf32>, tensor<4x8xf32>) -> tensor<6x8xf32>
  return
}

// -----

// LinearInputGradOp C2
func.func @f(%dy: tensor<6x5xf32>, %w: tensor<4x8xf32>) {
  // expected-error @+1 {{C2: dy must end with w's first 1 dimensions}}
  %0 = moe.linear_input_grad %dy, %w contract 1 : (tensor<6x5xf32>, tensor<4x8xf32>) -> tensor<6x8xf32>
  return
}

// -----

// LinearInputGradOp C3
func.func @f(%dy: tensor<6x4xf32>, %w: tensor<4x8xf32>) {
  // expected-error @+1 {{C3: the result must be dy's and then w's other dimensions}}
  %0 = moe.linear_input_grad %dy, %w contract 1 : (tensor<6x4xf32>, tensor<4x8xf32>) -> tensor<6x9xf32>
  return
}

// -----

// LinearWeightGradOp C1
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x8xf32>) {
  // expected-error @+1 {{C1: contract = 0 must lie between 1 and the rank of x}}
  %0 = moe.linear_weight_grad %dy, %x contract 0 : (tensor<6x4xf32>, tensor<6x8xf32>) -> tensor<4x8xf32>
  return
}

// -----

// LinearWeightGradOp C2
func.func @f(%dy: tensor<5x4xf32>, %x: tensor<6x8xf32>) {
  // expected-error @+1 {{C2: dy must begin with x's first 1 dimensions}}
  %0 = moe.linear_weight_grad %dy, %x contract 1 : (tensor<5x4xf32>, tensor<6x8xf32>) -> tensor<4x8xf32>
  return
}

// -----

// LinearWeightGradOp C3
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x8xf32>) {
  // expected-error @+1 {{C3: the result must be dy's and then x's other dimensions}}
  %0 = moe.linear_weight_grad %dy, %x contract 1 : (tensor<6x4xf32>, tensor<6x8xf32>) -> tensor<8x4xf32>
  return
}

// -----

// HeadWeightGradOp C1
func.func @f(%dy: tensor<6x4x3xf32>, %x: tensor<6x5x8xf32>) {
  // expected-error @+1 {{C1: dy and x must be [t..,H,N] and [t..,H,K]}}
  %0 = moe.head_weight_grad %dy, %x : (tensor<6x4x3xf32>, tensor<6x5x8xf32>) -> tensor<4x3x8xf32>
  return
}

// -----

// HeadWeightGradOp C2
func.func @f(%dy: tensor<6x4x3xf32>, %x: tensor<6x4x8xf32>) {
  // expected-error @+1 {{C2: the result must be [H,N,K]}}
  %0 = moe.head_weight_grad %dy, %x : (tensor<6x4x3xf32>, tensor<6x4x8xf32>) -> tensor<4x8x3xf32>
  return
}

// -----

// SumRowsOp C1
func.func @f(%x: tensor<6x4xf32>) {
  // expected-error @+1 {{C1: the result's shape must be a suffix of x's}}
  %0 = moe.sum_rows %x : (tensor<6x4xf32>) -> tensor<6x4xf32>
  return
}

// -----

// RmsSumsOp C1
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C1: dy and x must have one shape}}
  %0:2 = moe.rms_sums %dy, %x, %w : (tensor<6x4xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6xf32>, tensor<6xf32>)
  return
}

// -----

// RmsSumsOp C2
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C2: the results must have x's leading shape}}
  %0:2 = moe.rms_sums %dy, %x, %w : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6xf32>, tensor<7xf32>)
  return
}

// -----

// RmsNormGradOp C1
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C1: dy, x and dx must have one shape}}
  %0:2 = moe.rms_norm_grad %dy, %x, %w eps 1.0e-5 count 5 : (tensor<6x4xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  return
}

// -----

// RmsNormGradOp C2
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C2: dw must have w's shape}}
  %0:2 = moe.rms_norm_grad %dy, %x, %w eps 1.0e-5 count 5 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<6xf32>)
  return
}

// -----

// RmsNormGradOp C3
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C3: eps must not be negative, count must be at least 1}}
  %0:2 = moe.rms_norm_grad %dy, %x, %w eps 1.0e-5 count 0 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  return
}

// -----

// RmsNormGradOp C4
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>, %s: tensor<5xf32>, %d: tensor<6xf32>) {
  // expected-error @+1 {{C4: ss and dot, both or neither}}
  %0:2 = moe.rms_norm_grad %dy, %x, %w sums %s, %d eps 1.0e-5 count 5 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>, tensor<5xf32>, tensor<6xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  return
}

// -----

// LayerNormGradOp C1
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C1: dy, x and dx must have one shape}}
  %0:3 = moe.layer_norm_grad %dy, %x, %w eps 1.0e-5 : (tensor<6x4xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>, tensor<5xf32>)
  return
}

// -----

// LayerNormGradOp C2
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C2: dw and db must have w's shape}}
  %0:3 = moe.layer_norm_grad %dy, %x, %w eps 1.0e-5 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>, tensor<6xf32>)
  return
}

// -----

// LayerNormGradOp C3
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // expected-error @+1 {{C3: eps must not be negative}}
  %0:3 = moe.layer_norm_grad %dy, %x, %w eps -1.0 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>, tensor<5xf32>)
  return
}

// -----

// ClampGradOp C1
func.func @f(%dy: tensor<6xf32>, %x: tensor<6xf32>) {
  // expected-error @+1 {{C1: lo must not exceed hi}}
  %0 = moe.clamp_grad %dy, %x from 1.0 to 0.0 : (tensor<6xf32>, tensor<6xf32>) -> tensor<6xf32>
  return
}

// -----

// ClampGradOp C2
func.func @f(%dy: tensor<6xf32>, %x: tensor<6xf32>) {
  // expected-error @+1 {{C2: dy, x and the result must have one shape}}
  %0 = moe.clamp_grad %dy, %x from 0.0 to 1.0 : (tensor<6xf32>, tensor<6xf32>) -> tensor<7xf32>
  return
}

// -----

// ActGradOp C1
func.func @f(%dy: tensor<6xf32>, %x: tensor<7xf32>) {
  // expected-error @+1 {{C1: dy, x and the result must have one shape}}
  %0 = moe.act_grad silu %dy, %x : (tensor<6xf32>, tensor<7xf32>) -> tensor<6xf32>
  return
}

// -----

// GluGradOp C1
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x3x4xf32>) {
  // expected-error @+1 {{C1: the last dimension but one of x must be 2}}
  %0 = moe.glu_grad silu %dy, %x : (tensor<6x4xf32>, tensor<6x3x4xf32>) -> tensor<6x3x4xf32>
  return
}

// -----

// GluGradOp C2
func.func @f(%dy: tensor<6x5xf32>, %x: tensor<6x2x4xf32>) {
  // expected-error @+1 {{C2: dy must be x without that dimension}}
  %0 = moe.glu_grad silu %dy, %x : (tensor<6x5xf32>, tensor<6x2x4xf32>) -> tensor<6x2x4xf32>
  return
}

// -----

// GluGradOp C3
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x2x4xf32>) {
  // expected-error @+1 {{C3: the limit must be positive}}
  %0 = moe.glu_grad silu %dy, %x limit 0.0 : (tensor<6x4xf32>, tensor<6x2x4xf32>) -> tensor<6x2x4xf32>
  return
}

// -----

// GluGradOp C4
func.func @f(%dy: tensor<6x4xf32>, %x: tensor<6x2x4xf32>) {
  // expected-error @+1 {{C4: alpha is for silu only}}
  %0 = moe.glu_grad relu %dy, %x alpha 2.0 : (tensor<6x4xf32>, tensor<6x2x4xf32>) -> tensor<6x2x4xf32>
  return
}

// -----

// SigmoidGateGradOp C1
func.func @f(%x: tensor<6x4xf32>, %dy: tensor<6x5xf32>, %g: tensor<6x1xf32>) {
  // expected-error @+1 {{C1: x and dy must have one shape}}
  %0 = moe.sigmoid_gate_grad %x, %dy, %g : (tensor<6x4xf32>, tensor<6x5xf32>, tensor<6x1xf32>) -> tensor<6x1xf32>
  return
}

// -----

// SigmoidGateGradOp C2
func.func @f(%x: tensor<6x4xf32>, %dy: tensor<6x4xf32>, %g: tensor<6x2xf32>) {
  // expected-error @+1 {{C2: g and the result must have x's leading shape}}
  %0 = moe.sigmoid_gate_grad %x, %dy, %g : (tensor<6x4xf32>, tensor<6x4xf32>, tensor<6x2xf32>) -> tensor<6x1xf32>
  return
}

// -----

// RelativeBiasGradOp C1
func.func @f(%dy: tensor<2x5x7xf32>, %q: tensor<5xi32>, %k: tensor<6xi32>, %w: tensor<8x2xf32>) {
  // expected-error @+1 {{C1: dy must be [H,Sq,Sk]}}
  %0 = moe.relative_bias_grad %dy, %q, %k like %w max_distance 16 : (tensor<2x5x7xf32>, tensor<5xi32>, tensor<6xi32>, tensor<8x2xf32>) -> tensor<8x2xf32>
  return
}

// -----

// RelativeBiasGradOp C2
func.func @f(%dy: tensor<2x5x6xf32>, %q: tensor<5xi32>, %k: tensor<6xi32>, %w: tensor<8x2xf32>) {
  // expected-error @+1 {{C2: the result must have the table's shape}}
  %0 = moe.relative_bias_grad %dy, %q, %k like %w max_distance 16 : (tensor<2x5x6xf32>, tensor<5xi32>, tensor<6xi32>, tensor<8x2xf32>) -> tensor<2x8xf32>
  return
}

// -----

// AttentionGradOp C1
func.func @f(%dy: tensor<1x5x4x8xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>) {
  // expected-error @+1 {{C1: dy must have the shape of the attention's result}}
  %0:3 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m heads 4 over 2 scale 0.5 window 0 : (tensor<1x5x4x8xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>)
  return
}

// -----

// AttentionGradOp C2
func.func @f(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>) {
  // expected-error @+1 {{C2: there must be 3 results}}
  %0:2 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m heads 4 over 2 scale 0.5 window 0 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>)
  return
}

// -----

// AttentionGradOp C2
func.func @f(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>) {
  // expected-error @+1 {{is no gradient of}}
  %0:3 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m heads 4 over 2 scale 0.5 window 0 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x8xf32>)
  return
}

// -----

// AttentionGradOp C3
func.func @f(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>) {
  // expected-error @+1 {{C3: its heads, window, scale}}
  %0:3 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m heads 3 over 2 scale 0.5 window 0 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>)
  return
}

// -----

// AttentionGradOp C4
func.func @f(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>, %sinks: tensor<4xf32>) {
  // expected-error @+1 {{C4: only dq, dk and dv may be narrower than f32}}
  %0:4 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m sinks %sinks heads 4 over 2 scale 0.5 window 0 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>, tensor<4xf32>) -> (tensor<1x5x4x8xbf16>, tensor<1x6x2x8xbf16>, tensor<1x6x2x9xbf16>, tensor<4xbf16>)
  return
}

// -----

// RouteGradOp C1
func.func @f(%d: tensor<2x6x2xf32>, %l: tensor<2x6x5xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: logits must be [t..,E]}}
  %0 = moe.route_grad <k = 2> of %d, %l by %r : (tensor<2x6x2xf32>, tensor<2x6x5xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x5xf32>
  return
}

// -----

// RouteGradOp C2
func.func @f(%d: tensor<2x6x3xf32>, %l: tensor<2x6x4xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: dweights must be [t..,k]}}
  %0 = moe.route_grad <k = 2> of %d, %l by %r : (tensor<2x6x3xf32>, tensor<2x6x4xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x4xf32>
  return
}

// -----

// RouteGradOp C3
func.func @f(%d: tensor<2x6x2xf32>, %l: tensor<2x6x4xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C3: the result must have the shape of logits}}
  %0 = moe.route_grad <k = 2> of %d, %l by %r : (tensor<2x6x2xf32>, tensor<2x6x4xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x5xf32>
  return
}

// -----

// LimitGradOp C1
func.func @f(%d: tensor<2x6x2xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %s: !moe.routing<2x6, experts = 5, k = 2>) {
  // expected-error @+1 {{C1: both routings must have the same tokens}}
  %0 = moe.limit_grad <rule = fixed, value = 2.0 : f64> of %d, %r to %s : (tensor<2x6x2xf32>, !moe.routing<2x6, experts = 4, k = 2>, !moe.routing<2x6, experts = 5, k = 2>) -> tensor<2x6x2xf32>
  return
}

// -----

// LimitGradOp C2
func.func @f(%d: tensor<2x6x2xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %s: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: dweights and the result must be [t..,k]}}
  %0 = moe.limit_grad <rule = fixed, value = 2.0 : f64> of %d, %r to %s : (tensor<2x6x2xf32>, !moe.routing<2x6, experts = 4, k = 2>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x3xf32>
  return
}

// -----

// ChoiceDotsOp C1
func.func @f(%y: tensor<23x8xf32>, %x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: rows must be [T·k,D]}}
  %0 = moe.choice_dots %y, %x, %r : (tensor<23x8xf32>, tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x2xf32>
  return
}

// -----

// ChoiceDotsOp C2
func.func @f(%y: tensor<24x8xf32>, %x: tensor<2x6x9xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: x must be t.. of the routing followed by D}}
  %0 = moe.choice_dots %y, %x, %r : (tensor<24x8xf32>, tensor<2x6x9xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x2xf32>
  return
}

// -----

// ChoiceDotsOp C3
func.func @f(%y: tensor<24x8xf32>, %x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C3: the result must be [t..,k]}}
  %0 = moe.choice_dots %y, %x, %r : (tensor<24x8xf32>, tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x3xf32>
  return
}

// -----

// GroupedInputGradOp C1
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x8x3xf32>) {
  // expected-error @+1 {{C1: contract must be at least 1 and less than the rank of w}}
  %0 = moe.grouped_input_grad %y by %r, %w contract 3 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8x3xf32>) -> tensor<24x3xf32>
  return
}

// -----

// GroupedInputGradOp C2
func.func @f(%y: tensor<24x7xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x8x3xf32>) {
  // expected-error @+1 {{C2: dy must be [R,N..]}}
  %0 = moe.grouped_input_grad %y by %r, %w contract 1 : (tensor<24x7xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8x3xf32>) -> tensor<24x3xf32>
  return
}

// -----

// GroupedInputGradOp C3
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x8x3xf32>) {
  // expected-error @+1 {{C3: the result must be [R,K..]}}
  %0 = moe.grouped_input_grad %y by %r, %w contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8x3xf32>) -> tensor<24x4xf32>
  return
}

// -----

// GroupedInputGradOp C4
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<5x8x3xf32>) {
  // expected-error @+1 {{C4: groups must count the experts of w}}
  %0 = moe.grouped_input_grad %y by %r, %w contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<5x8x3xf32>) -> tensor<24x3xf32>
  return
}

// -----

// GroupedWeightGradOp C1
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>) {
  // expected-error @+1 {{C1: contract must be at least 1 and less than the rank of rows}}
  %0 = moe.grouped_weight_grad %y by %r, %x contract 2 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<4x8x3xf32>
  return
}

// -----

// GroupedWeightGradOp C2
func.func @f(%y: tensor<23x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>) {
  // expected-error @+1 {{C2: dy and rows must have one number of rows}}
  %0 = moe.grouped_weight_grad %y by %r, %x contract 1 : (tensor<23x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<4x8x3xf32>
  return
}

// -----

// GroupedWeightGradOp C3
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>) {
  // expected-error @+1 {{C3: the result must be [E,N..,K..]}}
  %0 = moe.grouped_weight_grad %y by %r, %x contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<4x3x8xf32>
  return
}

// -----

// GroupedWeightGradOp C4
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>) {
  // expected-error @+1 {{C4: groups must count the experts of the result}}
  %0 = moe.grouped_weight_grad %y by %r, %x contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<5x8x3xf32>
  return
}

// -----

// GroupedBiasGradOp C1
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: the result must be [E,N..]}}
  %0 = moe.grouped_bias_grad %y by %r : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<4x7xf32>
  return
}

// -----

// GroupedBiasGradOp C2
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C2: groups must count the experts of the result}}
  %0 = moe.grouped_bias_grad %y by %r : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<5x8xf32>
  return
}

// -----

// NextTokensOp C1
func.func @f(%ids: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: ids must have two dimensions}}
  %0 = moe.next_tokens %ids : (tensor<2x6xi32>) -> tensor<2x5xi32>
  return
}

// -----

// RowMaxOp C1
func.func @f(%x: tensor<2x6x9xf32>) {
  // expected-error @+1 {{C1: the result must have x's leading shape}}
  %0 = moe.row_max %x classes 9 : (tensor<2x6x9xf32>) -> tensor<2x5xf32>
  return
}

// -----

// RowMaxOp C2
func.func @f(%x: tensor<2x6x9xf32>) {
  // expected-error @+1 {{C2: classes = 8 do not fit 9 columns}}
  %0 = moe.row_max %x classes 8 : (tensor<2x6x9xf32>) -> tensor<2x6xf32>
  return
}

// -----

// CrossEntropyStatsOp C1
func.func @f(%x: tensor<2x6x9xf32>, %m: tensor<2x6xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: max and labels must have x's leading shape}}
  %0 = moe.cross_entropy_stats %x, %m, %l classes 9 : (tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x2xf32>
  return
}

// -----

// CrossEntropyStatsOp C2
func.func @f(%x: tensor<2x6x9xf32>, %m: tensor<2x6xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C2: classes = 0 do not fit 9 columns}}
  %0 = moe.cross_entropy_stats %x, %m, %l classes 0 : (tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  return
}

// -----

// CrossEntropyStatsGradOp C1
func.func @f(%d: tensor<2x6x2xf32>, %x: tensor<2x6x9xf32>, %m: tensor<2x6xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: max and labels must have x's leading shape}}
  %0 = moe.cross_entropy_stats_grad %d, %x, %m, %l classes 9 : (tensor<2x6x2xf32>, tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x9xf32>
  return
}

// -----

// CrossEntropyStatsGradOp C2
func.func @f(%d: tensor<2x6x3xf32>, %x: tensor<2x6x9xf32>, %m: tensor<2x6xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C2: classes = 10 do not fit 9 columns}}
  %0 = moe.cross_entropy_stats_grad %d, %x, %m, %l classes 10 : (tensor<2x6x3xf32>, tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x9xf32>
  return
}

// -----

// CrossEntropyOp C1
func.func @f(%s: tensor<2x6x2xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: stats must be [t..,3]}}
  %0:2 = moe.cross_entropy %s, %l classes 9 smoothing 0.0 : (tensor<2x6x2xf32>, tensor<2x6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}

// -----

// CrossEntropyOp C2
func.func @f(%s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C2: the results must be [1]}}
  %0:2 = moe.cross_entropy %s, %l classes 9 smoothing 0.0 : (tensor<2x6x3xf32>, tensor<2x6xi32>) -> (tensor<1xf32>, tensor<2xf32>)
  return
}

// -----

// CrossEntropyOp C3
func.func @f(%s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C3: classes must be at least 1, smoothing}}
  %0:2 = moe.cross_entropy %s, %l classes 9 smoothing 1.0 : (tensor<2x6x3xf32>, tensor<2x6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}

// -----

// CrossEntropyGradOp C1
func.func @f(%d: tensor<1xf32>, %s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C1: stats must be [t..,3]}}
  %0 = moe.cross_entropy_grad %d, %s, %l classes 9 smoothing 0.0 : (tensor<1xf32>, tensor<2x6x3xf32>, tensor<2x6xi32>) -> tensor<2x6x2xf32>
  return
}

// -----

// CrossEntropyGradOp C2
func.func @f(%d: tensor<2xf32>, %s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C2: d must be [1]}}
  %0 = moe.cross_entropy_grad %d, %s, %l classes 9 smoothing 0.0 : (tensor<2xf32>, tensor<2x6x3xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  return
}

// -----

// CrossEntropyGradOp C3
func.func @f(%d: tensor<1xf32>, %s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // expected-error @+1 {{C3: classes must be at least 1, smoothing}}
  %0 = moe.cross_entropy_grad %d, %s, %l classes 9 smoothing -0.5 : (tensor<1xf32>, tensor<2x6x3xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  return
}

// -----

// ExpertLoadOp C1
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: the result must be [E]}}
  %0 = moe.expert_load %r : (!moe.routing<2x6, experts = 4, k = 2>) -> tensor<5xf32>
  return
}

// -----

// ExpertProbsOp C1
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C1: the result must be [E]}}
  %0 = moe.expert_probs %l : (tensor<2x6x4xf32>) -> tensor<5xf32>
  return
}

// -----

// ExpertProbsGradOp C1
func.func @f(%d: tensor<5xf32>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C1: d must be [E]}}
  %0 = moe.expert_probs_grad %d, %l : (tensor<5xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}

// -----

// ExpertProbsGradOp C2
func.func @f(%d: tensor<4xf32>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C2: the result must have the shape of logits}}
  %0 = moe.expert_probs_grad %d, %l : (tensor<4xf32>, tensor<2x6x4xf32>) -> tensor<2x6x5xf32>
  return
}

// -----

// BalanceOp C1
func.func @f(%l: tensor<4xf32>, %p: tensor<5xf32>) {
  // expected-error @+1 {{C1: load and probs must have one shape [E]}}
  %0 = moe.balance %l, %p tokens 12 : (tensor<4xf32>, tensor<5xf32>) -> tensor<1xf32>
  return
}

// -----

// BalanceOp C2
func.func @f(%l: tensor<4xf32>, %p: tensor<4xf32>) {
  // expected-error @+1 {{C2: the result must be [1]}}
  %0 = moe.balance %l, %p tokens 12 : (tensor<4xf32>, tensor<4xf32>) -> tensor<2xf32>
  return
}

// -----

// BalanceOp C3
func.func @f(%l: tensor<4xf32>, %p: tensor<4xf32>) {
  // expected-error @+1 {{C3: tokens must be at least 1}}
  %0 = moe.balance %l, %p tokens 0 : (tensor<4xf32>, tensor<4xf32>) -> tensor<1xf32>
  return
}

// -----

// BalanceGradOp C1
func.func @f(%d: tensor<4xf32>, %l: tensor<4xf32>) {
  // expected-error @+1 {{C1: d must be [1]}}
  %0 = moe.balance_grad %d, %l tokens 12 : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

// BalanceGradOp C2
func.func @f(%d: tensor<1xf32>, %l: tensor<4xf32>) {
  // expected-error @+1 {{C2: the result must have load's shape [E]}}
  %0 = moe.balance_grad %d, %l tokens 12 : (tensor<1xf32>, tensor<4xf32>) -> tensor<5xf32>
  return
}

// -----

// BalanceGradOp C3
func.func @f(%d: tensor<1xf32>, %l: tensor<4xf32>) {
  // expected-error @+1 {{C3: tokens must be at least 1}}
  %0 = moe.balance_grad %d, %l tokens 0 : (tensor<1xf32>, tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

// SequenceBalanceOp C1
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x5xf32>) {
  // expected-error @+1 {{C1: logits must be [B,S,E] of the routing's tokens [B,S] and experts}}
  %0 = moe.sequence_balance %r, %l sequences 2 : (!moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x5xf32>) -> tensor<1xf32>
  return
}

// -----

// SequenceBalanceOp C1
func.func @f(%r: !moe.routing<12, experts = 4, k = 2>, %l: tensor<12x4xf32>) {
  // expected-error @+1 {{C1: logits must be [B,S,E] of the routing's tokens [B,S] and experts}}
  %0 = moe.sequence_balance %r, %l sequences 2 : (!moe.routing<12, experts = 4, k = 2>, tensor<12x4xf32>) -> tensor<1xf32>
  return
}

// -----

// SequenceBalanceOp C2
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C2: the result must be [1]}}
  %0 = moe.sequence_balance %r, %l sequences 2 : (!moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<2xf32>
  return
}

// -----

// SequenceBalanceOp C3
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C3: sequences must be at least 1}}
  %0 = moe.sequence_balance %r, %l sequences 0 : (!moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<1xf32>
  return
}

// -----

// SequenceBalanceGradOp C1
func.func @f(%d: tensor<2xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C1: d must be [1]}}
  %0 = moe.sequence_balance_grad %d, %r, %l sequences 2 : (tensor<2xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}

// -----

// SequenceBalanceGradOp C2
func.func @f(%d: tensor<1xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x5x4xf32>) {
  // expected-error @+1 {{C2: logits must be [B,S,E] of the routing's tokens [B,S] and experts}}
  %0 = moe.sequence_balance_grad %d, %r, %l sequences 2 : (tensor<1xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x5x4xf32>) -> tensor<2x5x4xf32>
  return
}

// -----

// SequenceBalanceGradOp C3
func.func @f(%d: tensor<1xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C3: the result must have the shape of logits}}
  %0 = moe.sequence_balance_grad %d, %r, %l sequences 2 : (tensor<1xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<2x6x5xf32>
  return
}

// -----

// SequenceBalanceGradOp C4
func.func @f(%d: tensor<1xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C4: sequences must be at least 1}}
  %0 = moe.sequence_balance_grad %d, %r, %l sequences 0 : (tensor<1xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}

// -----

// RouterZOp C1
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C1: the result must be [1]}}
  %0 = moe.router_z %l tokens 12 : (tensor<2x6x4xf32>) -> tensor<4xf32>
  return
}

// -----

// RouterZOp C2
func.func @f(%l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C2: tokens must be at least 1}}
  %0 = moe.router_z %l tokens 0 : (tensor<2x6x4xf32>) -> tensor<1xf32>
  return
}

// -----

// RouterZGradOp C1
func.func @f(%d: tensor<4xf32>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C1: d must be [1]}}
  %0 = moe.router_z_grad %d, %l tokens 12 : (tensor<4xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}

// -----

// RouterZGradOp C2
func.func @f(%d: tensor<1xf32>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C2: the result must have the shape of logits}}
  %0 = moe.router_z_grad %d, %l tokens 12 : (tensor<1xf32>, tensor<2x6x4xf32>) -> tensor<2x6x5xf32>
  return
}

// -----

// RouterZGradOp C3
func.func @f(%d: tensor<1xf32>, %l: tensor<2x6x4xf32>) {
  // expected-error @+1 {{C3: tokens must be at least 1}}
  %0 = moe.router_z_grad %d, %l tokens 0 : (tensor<1xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}

// -----

// RatioOp C1
func.func @f(%a: tensor<1xf32>, %b: tensor<2xf32>) {
  // expected-error @+1 {{C1: a, b and the result must have one shape}}
  %0 = moe.ratio %a over %b : (tensor<1xf32>, tensor<2xf32>) -> tensor<1xf32>
  return
}

// -----

// GroupedWeightGradOp C5
func.func @f(%y: tensor<24x8xf32>, %x: tensor<24x3xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %s: tensor<2x5xi32>) {
  // expected-error @+1 {{C5: samples must be [B,E]}}
  %0 = moe.grouped_weight_grad %y by %r, %x samples %s contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>, tensor<2x5xi32>) -> tensor<4x8x3xf32>
  return
}

// -----

// GroupedBiasGradOp C3
func.func @f(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %s: tensor<4xi32>) {
  // expected-error @+1 {{C3: samples must be [B,E]}}
  %0 = moe.grouped_bias_grad %y by %r samples %s : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4xi32>) -> tensor<4x8xf32>
  return
}

// -----

// A module that is deterministic
// expected-error @+1 {{moe.deterministic must be a unit attribute of a module}}
func.func @f() attributes {moe.deterministic} {
  return
}

// -----

// LinearWeightGradOp C4
func.func @f(%dy: tensor<6x4xbf16>, %x: tensor<6x8xf32>) {
  // expected-error @+1 {{C4: the result must be f32, or bf16 if x is}}
  %0 = moe.linear_weight_grad %dy, %x contract 1 : (tensor<6x4xbf16>, tensor<6x8xf32>) -> tensor<4x8xbf16>
  return
}

// -----

// GroupedWeightGradOp C6
func.func @f(%y: tensor<24x8xbf16>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>) {
  // expected-error @+1 {{C6: the result must be f32, or bf16 if rows are and there are no samples}}
  %0 = moe.grouped_weight_grad %y by %r, %x contract 1 : (tensor<24x8xbf16>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<4x8x3xbf16>
  return
}

// -----

// GroupedWeightGradOp C6
func.func @f(%y: tensor<24x8xbf16>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xbf16>, %s: tensor<2x4xi32>) {
  // expected-error @+1 {{C6: the result must be f32, or bf16 if rows are and there are no samples}}
  %0 = moe.grouped_weight_grad %y by %r, %x samples %s contract 1 : (tensor<24x8xbf16>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xbf16>, tensor<2x4xi32>) -> tensor<4x8x3xbf16>
  return
}
