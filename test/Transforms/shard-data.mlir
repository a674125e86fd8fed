// --dist-shard-data seeds the token split: batch over dp and ep, else the sequence over ep, else tokens replicated over ep. Inputs are cut
// over dp only. Where the sequence is cut, keys get positions of their own.
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2,ep=2" --dist-shard-data | FileCheck %s --check-prefix=BATCH
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2,ep=3" --dist-shard-data | FileCheck %s --check-prefix=SEQUENCE
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2,ep=4" --dist-shard-data | FileCheck %s --check-prefix=REPLICATED
// RUN: moe-opt %s --dist-shard-data | FileCheck %s --check-prefix=ONE

// BATCH: func.func @forward(%{{.*}}: tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>, %{{.*}}: tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>)
// BATCH-COUNT-1: moe.positions : tensor<6xi32>
// BATCH: moe.embedding {{.*}} -> tensor<4x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}]>>

// SEQUENCE: func.func @forward(%{{.*}}: tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>, %{{.*}}: tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>)
// SEQUENCE: %[[KEYS:.*]] = moe.positions : tensor<6xi32, #dist.sharding<[{}]>>
// SEQUENCE: %[[QUERIES:.*]] = moe.positions : tensor<6xi32, #dist.sharding<[{ep}]>>
// SEQUENCE: moe.embedding {{.*}} -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>
// SEQUENCE: moe.attention {{.*}} at %[[QUERIES]], %[[KEYS]] mask

// REPLICATED: moe.embedding {{.*}} -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {}, {}]>>

// ONE: func.func @forward(%{{.*}}: tensor<4x6xi32, #dist.sharding<[{}, {}]>>
// ONE: moe.embedding {{.*}} -> tensor<4x6x8xf32, #dist.sharding<[{}, {}, {}]>>
func.func @forward(%ids: tensor<4x6xi32>, %mask: tensor<4x6xi32>) -> tensor<4x6x2x4xf32> {
  %pos = moe.positions : tensor<6xi32>
  %table = moe.param @embed : tensor<10x8xf32>
  %x = moe.embedding %ids, %table : (tensor<4x6xi32>, tensor<10x8xf32>) -> tensor<4x6x8xf32>
  %w = moe.param @q : tensor<2x4x8xf32>
  %q = moe.linear %x, %w contract 1 : (tensor<4x6x8xf32>, tensor<2x4x8xf32>) -> tensor<4x6x2x4xf32>
  %a = moe.attention %q, %q, %q at %pos, %pos mask %mask heads 2 over 2 scale 1.0 window 0
    : (tensor<4x6x2x4xf32>, tensor<4x6x2x4xf32>, tensor<4x6x2x4xf32>, tensor<6xi32>, tensor<6xi32>, tensor<4x6xi32>) -> tensor<4x6x2x4xf32>
  return %a : tensor<4x6x2x4xf32>
}
moe.state @embed : tensor<10x8xf32>
moe.state @q : tensor<2x4x8xf32>
