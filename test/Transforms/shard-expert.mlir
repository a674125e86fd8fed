// --dist-shard-expert splits the experts' weights over ep and tells dispatches so; without ep it does nothing.
// RUN: moe-opt %s --dist-attach-mesh="mesh=ep=2" --dist-shard-expert | FileCheck %s
// RUN: moe-opt %s --dist-attach-mesh="mesh=ep=2" --dist-shard-expert="ragged-bound=3" | FileCheck %s --check-prefix=BOUND
// RUN: moe-opt %s --dist-attach-mesh="mesh=tp=2" --dist-shard-expert="ragged-bound=3" | FileCheck %s --check-prefix=NONE

// CHECK: moe.state @up : tensor<4x2x6x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>>
// CHECK: moe.state @other : tensor<8x8xf32>{{$}}
// CHECK: moe.dispatch %{{.*}} {expert_axes = ["ep"]} :
// CHECK: moe.param @up : tensor<4x2x6x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>>
// BOUND: moe.dispatch %{{.*}} {bound = 3 : i64, expert_axes = ["ep"]} :
// NONE-NOT: dist.sharding
// NONE-NOT: bound
moe.state @up : tensor<4x2x6x8xf32>
moe.state @other : tensor<8x8xf32>
func.func @forward(%x: tensor<2x3x8xf32>, %r: !moe.routing<2x3, experts = 4, k = 2>) -> tensor<12x2x6xf32> {
  %rows = moe.dispatch %x, %r : (tensor<2x3x8xf32>, !moe.routing<2x3, experts = 4, k = 2>) -> tensor<12x8xf32>
  %w = moe.param @up : tensor<4x2x6x8xf32>
  %y = moe.grouped_matmul %rows by %r, %w contract 1 : (tensor<12x8xf32>, !moe.routing<2x3, experts = 4, k = 2>, tensor<4x2x6x8xf32>) -> tensor<12x2x6xf32>
  return %y : tensor<12x2x6xf32>
}
