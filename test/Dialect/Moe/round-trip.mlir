// Every op of the moe dialect prints and parses back to itself, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

// CHECK: moe.state @experts.w : tensor<8x2x112x64xf32> from <names = ["e.{e}.w1", "e.{e}.w3"], per_expert = true, disk_shape = [112, 64]> layer 0
moe.state @experts.w : tensor<8x2x112x64xf32> from #moe.source<names = ["e.{e}.w1", "e.{e}.w3"], per_expert = true, disk_shape = [112, 64]> layer 0
// CHECK: moe.state @experts.v : tensor<8x2x112x64xf32> from <names = ["e.gate_up"], disk_shape = [8, 64, 224], permute = [0, 3, 2, 1]>
moe.state @experts.v : tensor<8x2x112x64xf32> from #moe.source<names = ["e.gate_up"], disk_shape = [8, 64, 224], permute = [0, 3, 2, 1]>
// CHECK: moe.state @part : tensor<4x16x32xf32> from <names = ["a"], disk_shape = [128, 32], slice = [1, 16, 32]>
moe.state @part : tensor<4x16x32xf32> from #moe.source<names = ["a"], disk_shape = [128, 32], slice = [1, 16, 32]>
// CHECK: moe.state @moments : tensor<4xf32>
moe.state @moments : tensor<4xf32>

// CHECK-LABEL: func.func @dense
func.func @dense(%ids: tensor<2x6xi32>, %table: tensor<16x8xf32>, %w: tensor<4x2x8xf32>, %norm: tensor<8xf32>, %bias: tensor<4x2xf32>, %gate: tensor<1x8xf32>, %up: tensor<2x5x8xf32>) {
  // CHECK: moe.param @moments : tensor<4xf32>
  %p = moe.param @moments : tensor<4xf32>
  // CHECK: moe.embedding %{{.*}}, %{{.*}} : (tensor<2x6xi32>, tensor<16x8xf32>) -> tensor<2x6x8xf32>
  %x = moe.embedding %ids, %table : (tensor<2x6xi32>, tensor<16x8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.rms_norm %{{.*}}, %{{.*}} eps 1.000000e-05 :
  %n = moe.rms_norm %x, %norm eps 1.0e-5 : (tensor<2x6x8xf32>, tensor<8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.linear %{{.*}}, %{{.*}} contract 1 :
  %q = moe.linear %n, %w contract 1 : (tensor<2x6x8xf32>, tensor<4x2x8xf32>) -> tensor<2x6x4x2xf32>
  // CHECK: moe.add
  %b = moe.add %q, %bias : (tensor<2x6x4x2xf32>, tensor<4x2xf32>) -> tensor<2x6x4x2xf32>
  // CHECK: moe.clamp %{{.*}} from -1.000000e+00 to 1.000000e+00 :
  %c = moe.clamp %b from -1.0 to 1.0 : (tensor<2x6x4x2xf32>) -> tensor<2x6x4x2xf32>
  // CHECK: moe.full 1.000000e+00 : tensor<8xf32>
  %ones = moe.full 1.0 : tensor<8xf32>
  // CHECK: moe.glu silu %{{.*}} :
  %u = moe.linear %n, %up contract 1 : (tensor<2x6x8xf32>, tensor<2x5x8xf32>) -> tensor<2x6x2x5xf32>
  %g = moe.glu silu %u : (tensor<2x6x2x5xf32>) -> tensor<2x6x5xf32>
  // CHECK: moe.glu silu %{{.*}} limit 7.000000e+00 alpha 1.702000e+00 up_shift 1.000000e+00 :
  %gc = moe.glu silu %u limit 7.0 alpha 1.702 up_shift 1.0 : (tensor<2x6x2x5xf32>) -> tensor<2x6x5xf32>
  // CHECK: moe.glu silu %{{.*}} limit 3.000000e+00 :
  %gl = moe.glu silu %u limit 3.0 : (tensor<2x6x2x5xf32>) -> tensor<2x6x5xf32>
  // CHECK: moe.layer_norm %{{.*}}, %{{.*}}, %{{.*}} eps 1.000000e-05 :
  %ln = moe.layer_norm %x, %norm, %norm eps 1.0e-5 : (tensor<2x6x8xf32>, tensor<8xf32>, tensor<8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.layer_norm %{{.*}}, %{{.*}} eps 1.000000e-05 :
  %lm = moe.layer_norm %x, %norm eps 1.0e-5 : (tensor<2x6x8xf32>, tensor<8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.scale %{{.*}} by 2.500000e-01 :
  %sc = moe.scale %ln by 0.25 : (tensor<2x6x8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.act gelu_tanh %{{.*}} :
  %ac = moe.act gelu_tanh %sc : (tensor<2x6x8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.sum_squares %{{.*}} dims 1 :
  %ss = moe.sum_squares %x dims 1 : (tensor<2x6x8xf32>) -> tensor<2x6xf32>
  // CHECK: moe.rms_apply %{{.*}}, %{{.*}}, %{{.*}} eps 0.000000e+00 count 8 :
  %a = moe.rms_apply %x, %ss, %norm eps 0.0 count 8 : (tensor<2x6x8xf32>, tensor<2x6xf32>, tensor<8xf32>) -> tensor<2x6x8xf32>
  %l = moe.linear %a, %gate contract 1 : (tensor<2x6x8xf32>, tensor<1x8xf32>) -> tensor<2x6x1xf32>
  // CHECK: moe.sigmoid_gate
  %s = moe.sigmoid_gate %a, %l : (tensor<2x6x8xf32>, tensor<2x6x1xf32>) -> tensor<2x6x8xf32>
  return
}

// CHECK-LABEL: func.func @attention
func.func @attention(%x: tensor<2x6x8xf32>, %q: tensor<2x6x4x8xf32>, %k: tensor<2x6x2x8xf32>, %mask: tensor<2x6xi32>) -> tensor<2x6x4x8xf32> {
  // CHECK: moe.positions : tensor<6xi32>
  %pos = moe.positions : tensor<6xi32>
  // CHECK: moe.rope_table %{{.*}} frequencies [1.000000e+00, 0.10000000149011612, 0.0099999997764825821, 0.0010000000474974513] times 1.250000e+00 :
  %cos, %sin = moe.rope_table %pos frequencies [1.0, 0.10000000149011612, 0.0099999997764825821, 0.0010000000474974513] times 1.25 : (tensor<6xi32>) -> (tensor<6x4xf32>, tensor<6x4xf32>)
  // CHECK: moe.whole %{{.*}} dims [1] : (tensor<2x6x8xf32>) -> tensor<2x6x8xf32>
  %whole = moe.whole %x dims [1] : (tensor<2x6x8xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.rope %{{.*}}, %{{.*}}, %{{.*}} interleaved : (tensor<2x6x8xf32>,
  %shared = "moe.rope"(%x, %cos, %sin) <{interleaved}> : (tensor<2x6x8xf32>, tensor<6x4xf32>, tensor<6x4xf32>) -> tensor<2x6x8xf32>
  // CHECK: moe.rope %{{.*}}, %{{.*}}, %{{.*}} :
  %r = moe.rope %q, %cos, %sin : (tensor<2x6x4x8xf32>, tensor<6x4xf32>, tensor<6x4xf32>) -> tensor<2x6x4x8xf32>
  // CHECK: moe.attention %{{.*}}, %{{.*}}, %{{.*}} at %{{.*}}, %{{.*}} mask %{{.*}} heads 4 over 2 scale 2.500000e-01 window 0 :
  %o = moe.attention %r, %k, %k at %pos, %pos mask %mask heads 4 over 2 scale 0.25 window 0
    : (tensor<2x6x4x8xf32>, tensor<2x6x2x8xf32>, tensor<2x6x2x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x6x4x8xf32>
  return %o : tensor<2x6x4x8xf32>
}

// CHECK-LABEL: func.func @attention_parts
func.func @attention_parts(%q: tensor<2x6x4x8xf32>, %k: tensor<2x9x2x8xf32>, %v: tensor<2x9x2x5xf32>, %pos: tensor<6xi32>, %kpos: tensor<9xi32>, %mask: tensor<2x9xi32>,
                           %q2: tensor<2x6x4x3xf32>, %k2: tensor<2x9x3xf32>, %bias: tensor<4x6x9xf32>, %sinks: tensor<4xf32>,
                           %heads: tensor<4x7x8xf32>, %latent: tensor<2x9x8xf32>) {
  // CHECK: moe.attention %{{.*}}, %{{.*}}, %{{.*}} at %{{.*}}, %{{.*}} mask %{{.*}} also %{{.*}}, %{{.*}} bias %{{.*}} sinks %{{.*}} heads 4 over 2 scale 2.500000e-01 window 3 :
  %all = moe.attention %q, %k, %v at %pos, %kpos mask %mask also %q2, %k2 bias %bias sinks %sinks heads 4 over 2 scale 0.25 window 3
    : (tensor<2x6x4x8xf32>, tensor<2x9x2x8xf32>, tensor<2x9x2x5xf32>, tensor<6xi32>, tensor<9xi32>, tensor<2x9xi32>, tensor<2x6x4x3xf32>, tensor<2x9x3xf32>, tensor<4x6x9xf32>, tensor<4xf32>) -> tensor<2x6x4x5xf32>
  // CHECK: moe.head_linear %{{.*}}, %{{.*}} : (tensor<2x6x4x8xf32>, tensor<4x7x8xf32>) -> tensor<2x6x4x7xf32>
  %up = moe.head_linear %q, %heads : (tensor<2x6x4x8xf32>, tensor<4x7x8xf32>) -> tensor<2x6x4x7xf32>
  // CHECK: moe.head_linear %{{.*}}, %{{.*}} transposed :
  %down = moe.head_linear %up, %heads transposed : (tensor<2x6x4x7xf32>, tensor<4x7x8xf32>) -> tensor<2x6x4x8xf32>
  // CHECK: moe.attention %{{.*}} heads 4 over 1 scale
  %shared = moe.attention %down, %latent, %latent at %pos, %kpos mask %mask heads 4 over 1 scale 0.25 window 0
    : (tensor<2x6x4x8xf32>, tensor<2x9x8xf32>, tensor<2x9x8xf32>, tensor<6xi32>, tensor<9xi32>, tensor<2x9xi32>) -> tensor<2x6x4x8xf32>
  // CHECK: moe.attention %{{.*}} mask %{{.*}} sinks %{{.*}} heads 4 over 2 scale 2.500000e-01 window 0 bidirectional :
  %some = moe.attention %q, %k, %v at %pos, %kpos mask %mask sinks %sinks heads 4 over 2 scale 0.25 window 0 bidirectional
    : (tensor<2x6x4x8xf32>, tensor<2x9x2x8xf32>, tensor<2x9x2x5xf32>, tensor<6xi32>, tensor<9xi32>, tensor<2x9xi32>, tensor<4xf32>) -> tensor<2x6x4x5xf32>
  return
}

// CHECK-LABEL: func.func @experts
func.func @experts(%x: tensor<2x6x8xf32>, %logits: tensor<2x6x4xf32>, %w: tensor<4x16x8xf32>, %down: tensor<4x8x16xf32>, %bias: tensor<4x8xf32>, %choice_bias: tensor<4xf32>, %ids: tensor<2x6xi32>, %table: tensor<9x2xi32>, %step: tensor<1xi32>) -> tensor<2x6x8xf32> {
  // CHECK: moe.route <k = 2, renorm = sum> of %{{.*}} : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  %r = moe.route #moe.router<k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %logits : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  // CHECK: moe.route <k = 2, score = sigmoid, groups = 2, group_score = top2_sum, renorm = sum, renorm_epsilon = {{.*}} : f64, scale = 2.500000e+00 : f64> of %{{.*}} bias %{{.*}} : (tensor<2x6x4xf32>, tensor<4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  %r2 = moe.route <k = 2, score = sigmoid, groups = 2, group_keep = 1, group_score = top2_sum, renorm = sum, renorm_epsilon = 1.0e-20 : f64, scale = 2.5 : f64> of %logits bias %choice_bias : (tensor<2x6x4xf32>, tensor<4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  // CHECK: moe.route <k = 2, score = sparsemixer, jitter_eps = 1.000000e-02 : f64> of
  %r3 = moe.route <k = 2, score = sparsemixer, jitter_eps = 0.01 : f64> of %logits : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 2>
  // CHECK: moe.route <k = 1, score = sigmoid, order = topk_score, apply = input> of
  %r5 = moe.route <k = 1, score = sigmoid, order = topk_score, apply = input> of %logits : (tensor<2x6x4xf32>) -> !moe.routing<2x6, experts = 4, k = 1>
  // CHECK: moe.lookup %{{.*}}, %{{.*}} : (tensor<2x6xi32>, tensor<9x2xi32>) -> tensor<2x6x2xi32>
  %choices = moe.lookup %ids, %table : (tensor<2x6xi32>, tensor<9x2xi32>) -> tensor<2x6x2xi32>
  // CHECK: moe.route_to <k = 2, score = sqrt_softplus, renorm = sum> of %{{.*}} to %{{.*}} : (tensor<2x6x4xf32>, tensor<2x6x2xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  %r6 = moe.route_to <k = 2, score = sqrt_softplus, renorm = sum> of %logits to %choices : (tensor<2x6x4xf32>, tensor<2x6x2xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  // CHECK: moe.route <k = 2, score = sparsemixer, jitter_eps = 1.000000e-02 : f64> of %{{.*}} at %{{.*}} part %{{.*}} layer 3 seed 7 : (tensor<2x6x4xf32>, tensor<1xi32>, tensor<1xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  %drawn = moe.route <k = 2, score = sparsemixer, jitter_eps = 0.01 : f64> of %logits at %step part %step layer 3 seed 7 : (tensor<2x6x4xf32>, tensor<1xi32>, tensor<1xi32>) -> !moe.routing<2x6, experts = 4, k = 2>
  // CHECK: moe.jitter %{{.*}} at %{{.*}} part %{{.*}} eps 1.000000e-02 layer 3 seed 7 : (tensor<2x6x8xf32>, tensor<1xi32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  %jittered = moe.jitter %x at %step part %step eps 0.01 layer 3 seed 7 : (tensor<2x6x8xf32>, tensor<1xi32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  // CHECK: moe.jitter %{{.*}} at %{{.*}} eps 1.000000e+00 layer 0 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  %jittered2 = moe.jitter %x at %step eps 1.0 layer 0 : (tensor<2x6x8xf32>, tensor<1xi32>) -> tensor<2x6x8xf32>
  // CHECK: moe.limit <rule = factor, value = 1.250000e+00 : f64> of %{{.*}} : (!moe.routing<2x6, experts = 4, k = 2>) -> (!moe.routing<2x6, experts = 4, k = 2>, tensor<2xf32>)
  %r7, %dropped7 = moe.limit <rule = factor, value = 1.25 : f64, least = 0, policy = position> of %r : (!moe.routing<2x6, experts = 4, k = 2>) -> (!moe.routing<2x6, experts = 4, k = 2>, tensor<2xf32>)
  // CHECK: moe.limit <rule = rounded, value = 1.000000e+00 : f64, least = 4, domain = sequence, policy = random, order = choice_major, renorm = after, renorm_clamp_min = {{.*}} : f64, seed = 7, layer = 3> of %{{.*}} step %{{.*}} :
  %r8, %dropped8 = moe.limit <rule = rounded, value = 1.0 : f64, least = 4, domain = sequence, policy = random, order = choice_major, renorm = after, renorm_clamp_min = 1.0e-7 : f64, seed = 7, layer = 3> of %r step %step : (!moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>) -> (!moe.routing<2x6, experts = 4, k = 2>, tensor<2xf32>)
  // CHECK: moe.redirect %{{.*}} first 1 rest 0 : !moe.routing<2x6, experts = 4, k = 2>
  %r4 = moe.redirect %r first 1 rest 0 : !moe.routing<2x6, experts = 4, k = 2>
  // CHECK: moe.dispatch %{{.*}}, %{{.*}} :
  %d = moe.dispatch %x, %r : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<24x8xf32>
  // CHECK: moe.grouped_matmul %{{.*}} by %{{.*}}, %{{.*}} contract 1 :
  %h = moe.grouped_matmul %d by %r, %w contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x16x8xf32>) -> tensor<24x16xf32>
  %y = moe.grouped_matmul %h by %r, %down contract 1 : (tensor<24x16xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8x16xf32>) -> tensor<24x8xf32>
  // CHECK: moe.grouped_bias %{{.*}} by %{{.*}}, %{{.*}} :
  %z = moe.grouped_bias %y by %r, %bias : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8xf32>) -> tensor<24x8xf32>
  // CHECK: moe.combine
  %o = moe.combine %z, %r : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  return %o : tensor<2x6x8xf32>
}
