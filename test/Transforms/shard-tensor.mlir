// --dist-shard-tensor finds heads, widths and the vocabulary by what weights are used for, pads the vocabulary, replicates key/value
// heads that tp does not divide, and leaves norms, biases and routers to propagation. The tied embedding is cut once, for both uses.
// RUN: moe-opt %s --dist-attach-mesh="mesh=tp=4" --dist-shard-tensor | FileCheck %s

// CHECK: moe.state @embed : tensor<9x8xf32, #dist.sharding<[{tp} pad 3, {}]>>
// CHECK: moe.state @q : tensor<4x6x8xf32, #dist.sharding<[{tp}, {}, {}]>>
// CHECK: moe.state @k : tensor<2x6x8xf32>{{$}}
// CHECK: moe.state @bias : tensor<4x6xf32>{{$}}
// CHECK: moe.state @o : tensor<8x4x6xf32, #dist.sharding<[{}, {tp}, {}]>>
// CHECK: moe.state @dense_up : tensor<2x12x8xf32, #dist.sharding<[{}, {tp}, {}]>>
// CHECK: moe.state @dense_down : tensor<8x12xf32, #dist.sharding<[{}, {tp}]>>
// CHECK: moe.state @router : tensor<4x8xf32>{{$}}
// CHECK: moe.state @up : tensor<4x2x16x8xf32, #dist.sharding<[{}, {}, {tp}, {}]>>
// CHECK: moe.state @down : tensor<4x8x16xf32, #dist.sharding<[{}, {}, {tp}]>>
moe.state @embed : tensor<9x8xf32>
moe.state @q : tensor<4x6x8xf32>
moe.state @k : tensor<2x6x8xf32>
moe.state @bias : tensor<4x6xf32>
moe.state @o : tensor<8x4x6xf32>
moe.state @dense_up : tensor<2x12x8xf32>
moe.state @dense_down : tensor<8x12xf32>
moe.state @router : tensor<4x8xf32>
moe.state @up : tensor<4x2x16x8xf32>
moe.state @down : tensor<4x8x16xf32>
func.func @forward(%ids: tensor<2x3xi32>, %mask: tensor<2x3xi32>, %r: !moe.routing<2x3, experts = 4, k = 2>) -> tensor<2x3x9xf32> {
  %embed = moe.param @embed : tensor<9x8xf32>
  %x = moe.embedding %ids, %embed : (tensor<2x3xi32>, tensor<9x8xf32>) -> tensor<2x3x8xf32>
  %pos = moe.positions : tensor<3xi32>
  %cos, %sin = moe.rope_table %pos frequencies [1.0, 0.1, 0.01] times 1.0 : (tensor<3xi32>) -> (tensor<3x3xf32>, tensor<3x3xf32>)
  %wq = moe.param @q : tensor<4x6x8xf32>
  %q0 = moe.linear %x, %wq contract 1 : (tensor<2x3x8xf32>, tensor<4x6x8xf32>) -> tensor<2x3x4x6xf32>
  %bias = moe.param @bias : tensor<4x6xf32>
  %q1 = moe.add %q0, %bias : (tensor<2x3x4x6xf32>, tensor<4x6xf32>) -> tensor<2x3x4x6xf32>
  %q2 = moe.clamp %q1 from -8.0 to 8.0 : (tensor<2x3x4x6xf32>) -> tensor<2x3x4x6xf32>
  %q = moe.rope %q2, %cos, %sin : (tensor<2x3x4x6xf32>, tensor<3x3xf32>, tensor<3x3xf32>) -> tensor<2x3x4x6xf32>
  %wk = moe.param @k : tensor<2x6x8xf32>
  %k = moe.linear %x, %wk contract 1 : (tensor<2x3x8xf32>, tensor<2x6x8xf32>) -> tensor<2x3x2x6xf32>
  %a = moe.attention %q, %k, %k at %pos, %pos mask %mask heads 4 over 2 scale 1.0 window 0
    : (tensor<2x3x4x6xf32>, tensor<2x3x2x6xf32>, tensor<2x3x2x6xf32>, tensor<3xi32>, tensor<3xi32>, tensor<2x3xi32>) -> tensor<2x3x4x6xf32>
  %wo = moe.param @o : tensor<8x4x6xf32>
  %o = moe.linear %a, %wo contract 2 : (tensor<2x3x4x6xf32>, tensor<8x4x6xf32>) -> tensor<2x3x8xf32>
  %du = moe.param @dense_up : tensor<2x12x8xf32>
  %d0 = moe.linear %o, %du contract 1 : (tensor<2x3x8xf32>, tensor<2x12x8xf32>) -> tensor<2x3x2x12xf32>
  %d1 = moe.glu silu %d0 : (tensor<2x3x2x12xf32>) -> tensor<2x3x12xf32>
  %dd = moe.param @dense_down : tensor<8x12xf32>
  %d = moe.linear %d1, %dd contract 1 : (tensor<2x3x12xf32>, tensor<8x12xf32>) -> tensor<2x3x8xf32>
  %wr = moe.param @router : tensor<4x8xf32>
  %logits = moe.linear %d, %wr contract 1 : (tensor<2x3x8xf32>, tensor<4x8xf32>) -> tensor<2x3x4xf32>
  %rows = moe.dispatch %d, %r : (tensor<2x3x8xf32>, !moe.routing<2x3, experts = 4, k = 2>) -> tensor<12x8xf32>
  %wu = moe.param @up : tensor<4x2x16x8xf32>
  %g = moe.grouped_matmul %rows by %r, %wu contract 1 : (tensor<12x8xf32>, !moe.routing<2x3, experts = 4, k = 2>, tensor<4x2x16x8xf32>) -> tensor<12x2x16xf32>
  %h = moe.glu silu %g : (tensor<12x2x16xf32>) -> tensor<12x16xf32>
  %wd = moe.param @down : tensor<4x8x16xf32>
  %y = moe.grouped_matmul %h by %r, %wd contract 1 : (tensor<12x16xf32>, !moe.routing<2x3, experts = 4, k = 2>, tensor<4x8x16xf32>) -> tensor<12x8xf32>
  %z = moe.combine %y, %r : (tensor<12x8xf32>, !moe.routing<2x3, experts = 4, k = 2>) -> tensor<2x3x8xf32>
  %out = moe.linear %z, %embed contract 1 : (tensor<2x3x8xf32>, tensor<9x8xf32>) -> tensor<2x3x9xf32>
  return %out : tensor<2x3x9xf32>
}
