// Every gradient and loss op prints and parses back to itself, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

func.func @f0(%ids: tensor<2x6xi32>, %dy: tensor<2x6x8xf32>, %w: tensor<9x8xf32>) {
  // CHECK: moe.embedding_grad %{{.*}}, %{{.*}} like %{{.*}} : (tensor<2x6xi32>, tensor<2x6x8xf32>, tensor<9x8xf32>) -> tensor<9x8xf32>
  %0 = moe.embedding_grad %ids, %dy like %w : (tensor<2x6xi32>, tensor<2x6x8xf32>, tensor<9x8xf32>) -> tensor<9x8xf32>
  return
}
func.func @f1(%dy: tensor<6x4xf32>, %w: tensor<4x8xf32>) {
  // CHECK: moe.linear_input_grad %{{.*}}, %{{.*}} contract 1 : (tensor<6x4xf32>, tensor<4x8xf32>) -> tensor<6x8xf32>
  %0 = moe.linear_input_grad %dy, %w contract 1 : (tensor<6x4xf32>, tensor<4x8xf32>) -> tensor<6x8xf32>
  return
}
func.func @f2(%dy: tensor<6x4xf32>, %x: tensor<6x8xf32>) {
  // CHECK: moe.linear_weight_grad %{{.*}}, %{{.*}} contract 1 : (tensor<6x4xf32>, tensor<6x8xf32>) -> tensor<4x8xf32>
  %0 = moe.linear_weight_grad %dy, %x contract 1 : (tensor<6x4xf32>, tensor<6x8xf32>) -> tensor<4x8xf32>
  return
}
func.func @f3(%dy: tensor<6x4x3xf32>, %x: tensor<6x4x8xf32>) {
  // CHECK: moe.head_weight_grad %{{.*}}, %{{.*}} : (tensor<6x4x3xf32>, tensor<6x4x8xf32>) -> tensor<4x3x8xf32>
  %0 = moe.head_weight_grad %dy, %x : (tensor<6x4x3xf32>, tensor<6x4x8xf32>) -> tensor<4x3x8xf32>
  return
}
func.func @f4(%x: tensor<6x4xf32>) {
  // CHECK: moe.sum_rows %{{.*}} : (tensor<6x4xf32>) -> tensor<4xf32>
  %0 = moe.sum_rows %x : (tensor<6x4xf32>) -> tensor<4xf32>
  return
}
func.func @f5(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // CHECK: moe.rms_sums %{{.*}}, %{{.*}}, %{{.*}} : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6xf32>, tensor<6xf32>)
  %0:2 = moe.rms_sums %dy, %x, %w : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6xf32>, tensor<6xf32>)
  return
}
func.func @f6(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // CHECK: moe.rms_norm_grad %{{.*}}, %{{.*}}, %{{.*}} eps 1.000000e-05 count 5 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  %0:2 = moe.rms_norm_grad %dy, %x, %w eps 1.000000e-05 count 5 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  return
}
func.func @f7(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>, %s: tensor<6xf32>, %d: tensor<6xf32>) {
  // CHECK: moe.rms_norm_grad %{{.*}}, %{{.*}}, %{{.*}} sums %{{.*}}, %{{.*}} eps 1.000000e-05 count 10 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>, tensor<6xf32>, tensor<6xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  %0:2 = moe.rms_norm_grad %dy, %x, %w sums %s, %d eps 1.000000e-05 count 10 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>, tensor<6xf32>, tensor<6xf32>) -> (tensor<6x5xf32>, tensor<5xf32>)
  return
}
func.func @f8(%dy: tensor<6x5xf32>, %x: tensor<6x5xf32>, %w: tensor<5xf32>) {
  // CHECK: moe.layer_norm_grad %{{.*}}, %{{.*}}, %{{.*}} eps 1.000000e-05 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>, tensor<5xf32>)
  %0:3 = moe.layer_norm_grad %dy, %x, %w eps 1.000000e-05 : (tensor<6x5xf32>, tensor<6x5xf32>, tensor<5xf32>) -> (tensor<6x5xf32>, tensor<5xf32>, tensor<5xf32>)
  return
}
func.func @f9(%dy: tensor<6xf32>, %x: tensor<6xf32>) {
  // CHECK: moe.clamp_grad %{{.*}}, %{{.*}} from 0.000000e+00 to 1.000000e+00 : (tensor<6xf32>, tensor<6xf32>) -> tensor<6xf32>
  %0 = moe.clamp_grad %dy, %x from 0.000000e+00 to 1.000000e+00 : (tensor<6xf32>, tensor<6xf32>) -> tensor<6xf32>
  return
}
func.func @f10(%dy: tensor<6xf32>, %x: tensor<6xf32>) {
  // CHECK: moe.act_grad silu %{{.*}}, %{{.*}} : (tensor<6xf32>, tensor<6xf32>) -> tensor<6xf32>
  %0 = moe.act_grad silu %dy, %x : (tensor<6xf32>, tensor<6xf32>) -> tensor<6xf32>
  return
}
func.func @f11(%dy: tensor<6x4xf32>, %x: tensor<6x2x4xf32>) {
  // CHECK: moe.glu_grad silu %{{.*}}, %{{.*}} limit 7.000000e+00 alpha 1.702000e+00 up_shift 1.000000e+00 : (tensor<6x4xf32>, tensor<6x2x4xf32>) -> tensor<6x2x4xf32>
  %0 = moe.glu_grad silu %dy, %x limit 7.000000e+00 alpha 1.702000e+00 up_shift 1.000000e+00 : (tensor<6x4xf32>, tensor<6x2x4xf32>) -> tensor<6x2x4xf32>
  return
}
func.func @f12(%x: tensor<6x4xf32>, %dy: tensor<6x4xf32>, %g: tensor<6x1xf32>) {
  // CHECK: moe.sigmoid_gate_grad %{{.*}}, %{{.*}}, %{{.*}} : (tensor<6x4xf32>, tensor<6x4xf32>, tensor<6x1xf32>) -> tensor<6x1xf32>
  %0 = moe.sigmoid_gate_grad %x, %dy, %g : (tensor<6x4xf32>, tensor<6x4xf32>, tensor<6x1xf32>) -> tensor<6x1xf32>
  return
}
func.func @f13(%dy: tensor<2x5x6xf32>, %q: tensor<5xi32>, %k: tensor<6xi32>, %w: tensor<8x2xf32>) {
  // CHECK: moe.relative_bias_grad %{{.*}}, %{{.*}}, %{{.*}} like %{{.*}} max_distance 16 bidirectional : (tensor<2x5x6xf32>, tensor<5xi32>, tensor<6xi32>, tensor<8x2xf32>) -> tensor<8x2xf32>
  %0 = moe.relative_bias_grad %dy, %q, %k like %w max_distance 16 bidirectional : (tensor<2x5x6xf32>, tensor<5xi32>, tensor<6xi32>, tensor<8x2xf32>) -> tensor<8x2xf32>
  return
}
func.func @f14(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>) {
  // CHECK: moe.attention_grad %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} at %{{.*}}, %{{.*}} mask %{{.*}} heads 4 over 2 scale 5.000000e-01 window 3 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>)
  %0:3 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m heads 4 over 2 scale 5.000000e-01 window 3 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>)
  return
}
func.func @f15(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>, %b: tensor<4x5x6xf32>, %s: tensor<4xf32>) {
  // CHECK: moe.attention_grad %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} at %{{.*}}, %{{.*}} mask %{{.*}} bias %{{.*}} sinks %{{.*}} heads 4 over 2 scale 5.000000e-01 window 0 bidirectional : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>, tensor<4x5x6xf32>, tensor<4xf32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<4x5x6xf32>, tensor<4xf32>)
  %0:5 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m bias %b sinks %s heads 4 over 2 scale 5.000000e-01 window 0 bidirectional : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>, tensor<4x5x6xf32>, tensor<4xf32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<4x5x6xf32>, tensor<4xf32>)
  return
}
func.func @f16(%dy: tensor<1x5x4x9xf32>, %q: tensor<1x5x4x8xf32>, %k: tensor<1x6x2x8xf32>, %v: tensor<1x6x2x9xf32>, %qp: tensor<5xi32>, %kp: tensor<6xi32>, %m: tensor<1x6xi32>, %q2: tensor<1x5x4x3xf32>, %k2: tensor<1x6x3xf32>) {
  // CHECK: moe.attention_grad %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} at %{{.*}}, %{{.*}} mask %{{.*}} also %{{.*}}, %{{.*}} heads 4 over 2 scale 5.000000e-01 window 0 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>, tensor<1x5x4x3xf32>, tensor<1x6x3xf32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<1x5x4x3xf32>, tensor<1x6x3xf32>)
  %0:5 = moe.attention_grad %dy, %q, %k, %v at %qp, %kp mask %m also %q2, %k2 heads 4 over 2 scale 5.000000e-01 window 0 : (tensor<1x5x4x9xf32>, tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<5xi32>, tensor<6xi32>, tensor<1x6xi32>, tensor<1x5x4x3xf32>, tensor<1x6x3xf32>) -> (tensor<1x5x4x8xf32>, tensor<1x6x2x8xf32>, tensor<1x6x2x9xf32>, tensor<1x5x4x3xf32>, tensor<1x6x3xf32>)
  return
}
func.func @f17(%d: tensor<2x6x2xf32>, %l: tensor<2x6x4xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.route_grad <k = 2> of %{{.*}}, %{{.*}} by %{{.*}} : (tensor<2x6x2xf32>, tensor<2x6x4xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x4xf32>
  %0 = moe.route_grad <k = 2> of %d, %l by %r : (tensor<2x6x2xf32>, tensor<2x6x4xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x4xf32>
  return
}
func.func @f18(%d: tensor<2x6x2xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %s: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.limit_grad <rule = fixed, value = 2.000000e+00 : f64> of %{{.*}}, %{{.*}} to %{{.*}} : (tensor<2x6x2xf32>, !moe.routing<2x6, experts = 4, k = 2>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x2xf32>
  %0 = moe.limit_grad <rule = fixed, value = 2.000000e+00 : f64> of %d, %r to %s : (tensor<2x6x2xf32>, !moe.routing<2x6, experts = 4, k = 2>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x2xf32>
  return
}
func.func @f19(%y: tensor<24x8xf32>, %x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.choice_dots %{{.*}}, %{{.*}}, %{{.*}} : (tensor<24x8xf32>, tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x2xf32>
  %0 = moe.choice_dots %y, %x, %r : (tensor<24x8xf32>, tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x2xf32>
  return
}
func.func @f20(%x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.dispatch %{{.*}}, %{{.*}} weighted : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<24x8xf32>
  %0 = moe.dispatch %x, %r weighted : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<24x8xf32>
  return
}
func.func @f21(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.combine %{{.*}}, %{{.*}} unit : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  %0 = moe.combine %y, %r unit : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  return
}
func.func @f22(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %w: tensor<4x8x3xf32>) {
  // CHECK: moe.grouped_input_grad %{{.*}} by %{{.*}}, %{{.*}} contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8x3xf32>) -> tensor<24x3xf32>
  %0 = moe.grouped_input_grad %y by %r, %w contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<4x8x3xf32>) -> tensor<24x3xf32>
  return
}
func.func @f23(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>) {
  // CHECK: moe.grouped_weight_grad %{{.*}} by %{{.*}}, %{{.*}} contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<4x8x3xf32>
  %0 = moe.grouped_weight_grad %y by %r, %x contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>) -> tensor<4x8x3xf32>
  return
}
func.func @f23s(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %x: tensor<24x3xf32>, %s: tensor<2x4xi32>) {
  // CHECK: moe.grouped_weight_grad %{{.*}} by %{{.*}}, %{{.*}} samples %{{.*}} contract 1
  %0 = moe.grouped_weight_grad %y by %r, %x samples %s contract 1 : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<24x3xf32>, tensor<2x4xi32>) -> tensor<4x8x3xf32>
  // CHECK: moe.grouped_bias_grad %{{.*}} by %{{.*}} samples %{{.*}} :
  %1 = moe.grouped_bias_grad %y by %r samples %s : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x4xi32>) -> tensor<4x8xf32>
  // CHECK: moe.squares exact %{{.*}} : (tensor<24x8xf32>) -> tensor<160xf32>
  %2 = moe.squares exact %y : (tensor<24x8xf32>) -> tensor<160xf32>
  // CHECK: moe.clip_factor %{{.*}} max_norm
  %norm, %factor = moe.clip_factor %2 max_norm 1.0 : (tensor<160xf32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}
func.func @f24(%y: tensor<24x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.grouped_bias_grad %{{.*}} by %{{.*}} : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<4x8xf32>
  %0 = moe.grouped_bias_grad %y by %r : (tensor<24x8xf32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<4x8xf32>
  return
}
func.func @f25(%ids: tensor<2x6xi32>, %l: tensor<2x6xi32>) {
  // CHECK: moe.next_tokens %{{.*}} labels %{{.*}} : (tensor<2x6xi32>, tensor<2x6xi32>) -> tensor<2x6xi32>
  %0 = moe.next_tokens %ids labels %l : (tensor<2x6xi32>, tensor<2x6xi32>) -> tensor<2x6xi32>
  return
}
func.func @f26(%ids: tensor<2x6xi32>) {
  // CHECK: moe.next_tokens %{{.*}} : (tensor<2x6xi32>) -> tensor<2x6xi32>
  %0 = moe.next_tokens %ids : (tensor<2x6xi32>) -> tensor<2x6xi32>
  return
}
func.func @f27(%x: tensor<2x6x9xf32>) {
  // CHECK: moe.row_max %{{.*}} classes 9 : (tensor<2x6x9xf32>) -> tensor<2x6xf32>
  %0 = moe.row_max %x classes 9 : (tensor<2x6x9xf32>) -> tensor<2x6xf32>
  return
}
func.func @f28(%x: tensor<2x6x9xf32>, %m: tensor<2x6xf32>, %l: tensor<2x6xi32>) {
  // CHECK: moe.cross_entropy_stats %{{.*}}, %{{.*}}, %{{.*}} classes 9 : (tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  %0 = moe.cross_entropy_stats %x, %m, %l classes 9 : (tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  return
}
func.func @f29(%s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // CHECK: moe.cross_entropy %{{.*}}, %{{.*}} classes 9 smoothing 1.000000e-01 : (tensor<2x6x3xf32>, tensor<2x6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  %0:2 = moe.cross_entropy %s, %l classes 9 smoothing 1.000000e-01 : (tensor<2x6x3xf32>, tensor<2x6xi32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}
func.func @f30(%d: tensor<1xf32>, %s: tensor<2x6x3xf32>, %l: tensor<2x6xi32>) {
  // CHECK: moe.cross_entropy_grad %{{.*}}, %{{.*}}, %{{.*}} classes 9 smoothing 1.000000e-01 : (tensor<1xf32>, tensor<2x6x3xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  %0 = moe.cross_entropy_grad %d, %s, %l classes 9 smoothing 1.000000e-01 : (tensor<1xf32>, tensor<2x6x3xf32>, tensor<2x6xi32>) -> tensor<2x6x3xf32>
  return
}
func.func @f31(%d: tensor<2x6x3xf32>, %x: tensor<2x6x9xf32>, %m: tensor<2x6xf32>, %l: tensor<2x6xi32>) {
  // CHECK: moe.cross_entropy_stats_grad %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} classes 9 : (tensor<2x6x3xf32>, tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x9xf32>
  %0 = moe.cross_entropy_stats_grad %d, %x, %m, %l classes 9 : (tensor<2x6x3xf32>, tensor<2x6x9xf32>, tensor<2x6xf32>, tensor<2x6xi32>) -> tensor<2x6x9xf32>
  return
}
func.func @f32(%a: tensor<1xf32>, %b: tensor<1xf32>) {
  // CHECK: moe.ratio %{{.*}} over %{{.*}} : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
  %0 = moe.ratio %a over %b : (tensor<1xf32>, tensor<1xf32>) -> tensor<1xf32>
  return
}
func.func @f33(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: moe.expert_load %{{.*}} : (!moe.routing<2x6, experts = 4, k = 2>) -> tensor<4xf32>
  %0 = moe.expert_load %r : (!moe.routing<2x6, experts = 4, k = 2>) -> tensor<4xf32>
  return
}
func.func @f34(%l: tensor<2x6x4xf32>) {
  // CHECK: moe.expert_probs %{{.*}} : (tensor<2x6x4xf32>) -> tensor<4xf32>
  %0 = moe.expert_probs %l : (tensor<2x6x4xf32>) -> tensor<4xf32>
  return
}
func.func @f35(%d: tensor<4xf32>, %l: tensor<2x6x4xf32>) {
  // CHECK: moe.expert_probs_grad %{{.*}}, %{{.*}} : (tensor<4xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  %0 = moe.expert_probs_grad %d, %l : (tensor<4xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}
func.func @f36(%l: tensor<4xf32>, %p: tensor<4xf32>) {
  // CHECK: moe.balance %{{.*}}, %{{.*}} tokens 12 : (tensor<4xf32>, tensor<4xf32>) -> tensor<1xf32>
  %0 = moe.balance %l, %p tokens 12 : (tensor<4xf32>, tensor<4xf32>) -> tensor<1xf32>
  return
}
func.func @f37(%d: tensor<1xf32>, %l: tensor<4xf32>) {
  // CHECK: moe.balance_grad %{{.*}}, %{{.*}} tokens 12 : (tensor<1xf32>, tensor<4xf32>) -> tensor<4xf32>
  %0 = moe.balance_grad %d, %l tokens 12 : (tensor<1xf32>, tensor<4xf32>) -> tensor<4xf32>
  return
}
func.func @f38(%l: tensor<2x6x4xf32>) {
  // CHECK: moe.router_z %{{.*}} tokens 12 : (tensor<2x6x4xf32>) -> tensor<1xf32>
  %0 = moe.router_z %l tokens 12 : (tensor<2x6x4xf32>) -> tensor<1xf32>
  return
}
func.func @f39(%d: tensor<1xf32>, %l: tensor<2x6x4xf32>) {
  // CHECK: moe.router_z_grad %{{.*}}, %{{.*}} tokens 12 : (tensor<1xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  %0 = moe.router_z_grad %d, %l tokens 12 : (tensor<1xf32>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}
func.func @f40(%r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // CHECK: moe.sequence_balance %{{.*}}, %{{.*}} sequences 2 : (!moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<1xf32>
  %0 = moe.sequence_balance %r, %l sequences 2 : (!moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<1xf32>
  return
}
func.func @f41(%d: tensor<1xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %l: tensor<2x6x4xf32>) {
  // CHECK: moe.sequence_balance_grad %{{.*}}, %{{.*}}, %{{.*}} sequences 2 : (tensor<1xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  %0 = moe.sequence_balance_grad %d, %r, %l sequences 2 : (tensor<1xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<2x6x4xf32>) -> tensor<2x6x4xf32>
  return
}
