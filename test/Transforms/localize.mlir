// --dist-localize divides shapes, moves what depends on the rank into offsets, keeps global types where they are still needed, and marks
// the rows of growing buffers.
// RUN: moe-opt %s --split-input-file --dist-localize --dist-verify-localize | FileCheck %s

// A weight keeps its global type, its value has the shard's; 7 rows and a pad of 1 are 4 rows on each of two ranks.
// CHECK: moe.state @table : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>
// CHECK-LABEL: func.func @offsets
// CHECK-SAME: (%[[IDS:.*]]: tensor<2x6xi32> {dist.global = tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>, moe.name = "ids"})
// CHECK-SAME: -> (tensor<2x3x8xf32> {dist.global = tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>})
// CHECK: dist.slice %[[IDS]] dim 1 over ["ep"] {start = #dist.offset<{ep} * 3>} : tensor<2x6xi32> -> tensor<2x3xi32>
// CHECK: moe.param @table : tensor<4x8xf32>
// CHECK: moe.embedding {{.*}} {row_offset = #dist.offset<{tp} * 4>} : (tensor<2x3xi32>, tensor<4x8xf32>) -> tensor<2x3x8xf32>
// CHECK: dist.all_reduce sum %{{.*}} over ["tp"] : tensor<2x3x8xf32> -> tensor<2x3x8xf32>
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]
moe.state @table : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>
func.func @offsets(%ids: tensor<4x6xi32, #dist.sharding<[{dp}, {}]>> {moe.name = "ids"}) -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>> {
  %0 = dist.slice %ids dim 1 over ["ep"] : tensor<4x6xi32, #dist.sharding<[{dp}, {}]>> -> tensor<4x6xi32, #dist.sharding<[{dp}, {ep}]>>
  %table = moe.param @table : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>
  %1 = moe.embedding %0, %table : (tensor<4x6xi32, #dist.sharding<[{dp}, {ep}]>>, tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>) -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}], partial = sum{tp}>>
  %2 = dist.all_reduce sum %1 over ["tp"] : tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}], partial = sum{tp}>> -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>
  return %2 : tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>
}

// -----

// CHECK-LABEL: func.func @attention
// CHECK: moe.positions {start = #dist.offset<{ep} * 3>} : tensor<3xi32>
// CHECK: moe.positions : tensor<6xi32>
// CHECK: moe.attention {{.*}} {head_offset = #dist.offset<{tp} * 2>, kv_offset = #dist.offset<{tp} * 1>} : (tensor<2x3x2x8xf32>, tensor<2x6x1x8xf32>, tensor<2x6x1x8xf32>, tensor<3xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x3x2x8xf32>
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]
func.func @attention(%q: tensor<4x6x4x8xf32, #dist.sharding<[{dp}, {ep}, {tp}, {}]>>, %k: tensor<4x6x2x8xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, %mask: tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>) {
  %qpos = moe.positions : tensor<6xi32, #dist.sharding<[{ep}]>>
  %kpos = moe.positions : tensor<6xi32, #dist.sharding<[{}]>>
  %a = moe.attention %q, %k, %k at %qpos, %kpos mask %mask heads 4 over 2 scale 1.0 window 0
    : (tensor<4x6x4x8xf32, #dist.sharding<[{dp}, {ep}, {tp}, {}]>>, tensor<4x6x2x8xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, tensor<4x6x2x8xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, tensor<6xi32, #dist.sharding<[{ep}]>>, tensor<6xi32, #dist.sharding<[{}]>>, tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>) -> tensor<4x6x4x8xf32, #dist.sharding<[{dp}, {ep}, {tp}, {}]>>
  return
}

// -----

// Slots of B = 5 rows from and to two ranks: B is dimension 2 of the slots and once in every two rows of the buffer.
// CHECK-LABEL: func.func @exchange
// CHECK: dist.zero_need : tensor<1xi32>
// CHECK: dist.pack {{.*}} -> (tensor<1x2x5x8xf32, #dist.rows<2, 1>>, tensor<1x2x2xi32>, tensor<3x2xi32>, tensor<1xi32>)
// CHECK: dist.all_to_all {{.*}} : tensor<1x2x5x8xf32, #dist.rows<2, 1>> -> tensor<2x1x5x8xf32, #dist.rows<2, 1>>
// CHECK: dist.all_to_all {{.*}} : tensor<1x2x2xi32> -> tensor<2x1x2xi32>
// CHECK: dist.regroup {{.*}} -> (tensor<10x8xf32, #dist.rows<0, 2>>, tensor<1x2xi32>)
// CHECK: moe.grouped_matmul {{.*}} : (tensor<10x8xf32, #dist.rows<0, 2>>, tensor<1x2xi32>, tensor<2x2x6x8xf32>) -> tensor<10x2x6xf32, #dist.rows<0, 2>>
dist.mesh @mesh ["ep"] = [2]
func.func @exchange(%x: tensor<6x8xf32, #dist.sharding<[{ep}, {}]>>, %r: !moe.routing<6, experts = 4, k = 2, #dist.sharding<[{ep}]>>, %w: tensor<4x2x6x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>>) {
  %0 = dist.zero_need : tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>
  %slots, %counts, %pos, %need = dist.pack %x, %r need %0 segments 1 : (tensor<6x8xf32, #dist.sharding<[{ep}, {}]>>, !moe.routing<6, experts = 4, k = 2, #dist.sharding<[{ep}]>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
    -> (tensor<2x2x5x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>>, tensor<2x2x2xi32, #dist.sharding<[{ep}, {}, {}]>>, tensor<6x2xi32, #dist.sharding<[{ep}, {}]>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
  %1 = dist.all_to_all %slots from 0 to 1 over ["ep"] : tensor<2x2x5x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>> -> tensor<2x2x5x8xf32, #dist.sharding<[{}, {ep}, {}, {}]>>
  %2 = dist.all_to_all %counts from 0 to 1 over ["ep"] : tensor<2x2x2xi32, #dist.sharding<[{ep}, {}, {}]>> -> tensor<2x2x2xi32, #dist.sharding<[{}, {ep}, {}]>>
  %rows, %groups = dist.regroup %1, %2 segments 1 : (tensor<2x2x5x8xf32, #dist.sharding<[{}, {ep}, {}, {}]>>, tensor<2x2x2xi32, #dist.sharding<[{}, {ep}, {}]>>) -> (tensor<12x8xf32, #dist.sharding<[ragged{}{ep} 2x5, {}]>>, tensor<1x4xi32, #dist.sharding<[{}, {ep}]>>)
  %3 = moe.grouped_matmul %rows by %groups, %w contract 1 : (tensor<12x8xf32, #dist.sharding<[ragged{}{ep} 2x5, {}]>>, tensor<1x4xi32, #dist.sharding<[{}, {ep}]>>, tensor<4x2x6x8xf32, #dist.sharding<[{ep}, {}, {}, {}]>>) -> tensor<12x2x6xf32, #dist.sharding<[ragged{}{ep} 2x5, {}, {}]>>
  return
}

// -----

// Selected rows grow, and know their first expert; rows that nothing can make grow have a plain size.
// CHECK-LABEL: func.func @select
// CHECK: dist.select {{.*}} {expert_offset = #dist.offset<{ep} * 2>} : {{.*}} !moe.routing<3, experts = 4, k = 2>, {{.*}} -> (tensor<3x8xf32, #dist.rows<0, 1>>, tensor<1x2xi32>, tensor<3x2xi32>, tensor<1xi32>)
// CHECK: dist.select {{.*}} -> (tensor<6x8xf32>, tensor<1x4xi32>, tensor<3x2xi32>, tensor<1xi32>)
dist.mesh @mesh ["ep"] = [2]
func.func @select(%x: tensor<3x8xf32, #dist.sharding<[{}, {}]>>, %r: !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) {
  %0 = dist.zero_need : tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>
  %rows, %groups, %pos, %need = dist.select %x, %r need %0 : (tensor<3x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
    -> (tensor<6x8xf32, #dist.sharding<[ragged{}{ep} 1x3, {}]>>, tensor<1x4xi32, #dist.sharding<[{}, {ep}]>>, tensor<3x2xi32, #dist.sharding<[{}, {}], partial = max{ep}>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
  %rows2, %groups2, %pos2, %need2 = dist.select %x, %r need %0 : (tensor<3x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
    -> (tensor<6x8xf32, #dist.sharding<[ragged{}{} 1x6, {}]>>, tensor<1x4xi32, #dist.sharding<[{}, {}]>>, tensor<3x2xi32, #dist.sharding<[{}, {}]>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
  return
}

// -----

// A router remembers how its tokens were cut.
// CHECK-LABEL: func.func @route
// CHECK: moe.route {{.*}} {dist.global = !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>} : (tensor<2x3x4xf32>) -> !moe.routing<2x3, experts = 4, k = 2>
dist.mesh @mesh ["dp", "ep"] = [2, 2]
func.func @route(%logits: tensor<4x6x4xf32, #dist.sharding<[{dp}, {ep}, {}]>>) {
  %r = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %logits : (tensor<4x6x4xf32, #dist.sharding<[{dp}, {ep}, {}]>>) -> !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>
  return
}
