// What --router-noise=on does to the global program: factors on what a gate reads, and on what its experts read only where the model's code has them there;
// the reference program takes the batch as a whole. On a mesh a shard says where it begins.
// RUN: sed 's/NOISE/eps = 0.01 : f64/' %s | moe-opt --moe-router-noise | FileCheck %s --check-prefix=GATE
// RUN: sed 's/NOISE/eps = 0.01 : f64, experts/' %s | moe-opt --moe-router-noise="seed=7 micro-batches=4" | FileCheck %s --check-prefix=EXPERTS
// RUN: sed 's/NOISE/eps = 0.01 : f64/' %s | moe-opt --moe-router-noise --dist-shard-pipeline="mesh=dp=2,ep=2" --dist-partition-pipeline --dist-localize-pipeline | FileCheck %s --check-prefix=MESH
// RUN: sed 's/NOISE/sampled/; s/<k = 2>/<k = 2, score = sparsemixer, jitter_eps = 0.01>/' %s | moe-opt --moe-router-noise="seed=7 micro-batches=4" | FileCheck %s --check-prefix=SAMPLED
// RUN: sed 's/NOISE/sampled/; s/<k = 2>/<k = 2, score = sparsemixer, jitter_eps = 0.01>/' %s | moe-opt --moe-router-noise --dist-shard-pipeline="mesh=dp=2,ep=2" --dist-partition-pipeline --dist-localize-pipeline | FileCheck %s --check-prefix=SAMPLEDMESH
// RUN: sed 's/NOISE//' %s | not moe-opt --moe-router-noise 2>&1 | FileCheck %s --check-prefix=NONE

// GATE-LABEL: func.func @forward
// GATE-SAME: %[[STEP:[a-z0-9]+]]: tensor<1xi32> {moe.fill = 0.000000e+00 : f64, moe.name = "step", moe.optional, moe.range = array<i64: 0, 2147483647>})
// GATE: %[[X:.*]] = moe.embedding
// GATE: %[[N:.*]] = moe.jitter %[[X]] at %[[STEP]] eps 1.000000e-02 layer 0 :
// GATE: moe.linear %[[N]],
// GATE: moe.dispatch %[[X]],
// GATE: %[[Y:.*]] = moe.combine
// GATE: %[[N1:.*]] = moe.jitter %[[Y]] at %[[STEP]] eps 1.000000e-02 layer 1 :
// GATE: moe.linear %[[N1]],
// GATE: moe.dispatch %[[Y]],

// EXPERTS-LABEL: func.func @forward
// EXPERTS-SAME: %[[PART:[a-z0-9]+]]: tensor<1xi32> {moe.fill = 0.000000e+00 : f64, moe.name = "micro_batch", moe.optional, moe.range = array<i64: 0, 3>})
// EXPERTS: %[[N:.*]] = moe.jitter %{{.*}} at %{{.*}} part %[[PART]] eps 1.000000e-02 layer 0 seed 7 :
// EXPERTS: moe.dispatch %[[N]],
// EXPERTS: %[[N1:.*]] = moe.jitter {{.*}} layer 1 seed 7 :
// EXPERTS: moe.dispatch %[[N1]],
// EXPERTS-LABEL: func.func @reference
// EXPERTS-NOT: part
// EXPERTS: moe.jitter %{{.*}} at %{{.*}} eps 1.000000e-02 layer 0 seed 7 :

// MESH: moe.jitter {{.*}}row_offset = #dist.offset<{{.*}}>, rows = 4 : i64} : (tensor<1x6x8xf32

// SAMPLED-LABEL: func.func @forward
// SAMPLED-NOT: moe.jitter
// SAMPLED: moe.route {{.*}} at %{{.*}} part %{{.*}} layer 0 seed 7 :
// SAMPLED: moe.route {{.*}} at %{{.*}} part %{{.*}} layer 1 seed 7 :
// SAMPLED-LABEL: func.func @reference
// SAMPLED: moe.route {{.*}} at %{{[a-z0-9]+}} layer 0 seed 7 :
// SAMPLEDMESH: moe.route {{.*}} layer 0 {{.*}}row_offset = #dist.offset<{{.*}}>, rows = 4 : i64} : (tensor<1x6x4xf32
// NONE: MOE-0102: --router-noise=on: this model's gates have no noise

!r = !moe.routing<4x6, experts = 4, k = 2>
module attributes {moe.router_noise = {NOISE}} {
  moe.state @table : tensor<16x8xf32> from #moe.source<names = ["t"], disk_shape = [16, 8]>
  moe.state @gate : tensor<4x8xf32> from #moe.source<names = ["g"], disk_shape = [4, 8]>
  func.func @forward(%ids: tensor<4x6xi32> {moe.name = "input_ids"}) -> (tensor<4x6x8xf32> {moe.name = "logits"}) {
    %t = moe.param @table : tensor<16x8xf32>
    %w = moe.param @gate : tensor<4x8xf32>
    %x = moe.embedding %ids, %t : (tensor<4x6xi32>, tensor<16x8xf32>) -> tensor<4x6x8xf32>
    %l0 = moe.linear %x, %w contract 1 : (tensor<4x6x8xf32>, tensor<4x8xf32>) -> tensor<4x6x4xf32>
    %r0 = moe.route <k = 2> of %l0 : (tensor<4x6x4xf32>) -> !r
    %d0 = moe.dispatch %x, %r0 : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
    %y0 = moe.combine %d0, %r0 : (tensor<48x8xf32>, !r) -> tensor<4x6x8xf32>
    %l1 = moe.linear %y0, %w contract 1 : (tensor<4x6x8xf32>, tensor<4x8xf32>) -> tensor<4x6x4xf32>
    %r1 = moe.route <k = 2> of %l1 : (tensor<4x6x4xf32>) -> !r
    %r2, %dropped = moe.limit <rule = fixed, value = 3.0 : f64> of %r1 : (!r) -> (!r, tensor<2xf32>)
    %d1 = moe.dispatch %y0, %r2 : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
    %y1 = moe.combine %d1, %r2 : (tensor<48x8xf32>, !r) -> tensor<4x6x8xf32>
    return %y1 : tensor<4x6x8xf32>
  }
  func.func @reference(%ids: tensor<4x6xi32> {moe.name = "input_ids"}) -> (tensor<4x6x4xf32> {moe.name = "logits"}) attributes {moe.reference} {
    %t = moe.param @table : tensor<16x8xf32>
    %w = moe.param @gate : tensor<4x8xf32>
    %x = moe.embedding %ids, %t : (tensor<4x6xi32>, tensor<16x8xf32>) -> tensor<4x6x8xf32>
    %l0 = moe.linear %x, %w contract 1 : (tensor<4x6x8xf32>, tensor<4x8xf32>) -> tensor<4x6x4xf32>
    %r0 = moe.route <k = 2> of %l0 : (tensor<4x6x4xf32>) -> !r
    %d0 = moe.dispatch %x, %r0 : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
    return %l0 : tensor<4x6x4xf32>
  }
}
