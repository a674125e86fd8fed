// --dist-propagate gives every value a sharding by the operations' rules: weights follow their first use, partial sums travel through
// linear operations, conflicts become reshards that say which operand asked for them, and a reshard is made once for all uses.
// RUN: moe-opt %s --split-input-file --dist-propagate | FileCheck %s

// A bias that nobody seeded takes the heads' cut. The sum over cut heads is partial, and is completed where the residual needs it.
// CHECK: moe.state @unused : tensor<3xf32, #dist.sharding<[{}]>>
// CHECK-LABEL: func.func @heads
// CHECK: moe.param @bias : tensor<4x2xf32, #dist.sharding<[{tp}, {}]>>
// CHECK: moe.add {{.*}} -> tensor<3x4x2xf32, #dist.sharding<[{}, {tp}, {}]>>
// CHECK: %[[PARTIAL:.*]] = moe.linear %{{.*}} contract 2 : {{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>
// CHECK-NEXT: %[[SUM:.*]] = dist.reshard %[[PARTIAL]] {reason = "moe.add operand 1"} : {{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}]>>
// CHECK-NEXT: moe.add %{{.*}}, %[[SUM]]
dist.mesh @mesh ["tp"] = [2]
moe.state @q : tensor<4x2x8xf32, #dist.sharding<[{tp}, {}, {}]>>
moe.state @bias : tensor<4x2xf32>
moe.state @o : tensor<8x4x2xf32, #dist.sharding<[{}, {tp}, {}]>>
moe.state @unused : tensor<3xf32>
func.func @heads(%x: tensor<3x8xf32>) -> tensor<3x8xf32> {
  %wq = moe.param @q : tensor<4x2x8xf32, #dist.sharding<[{tp}, {}, {}]>>
  %q = moe.linear %x, %wq contract 1 : (tensor<3x8xf32>, tensor<4x2x8xf32, #dist.sharding<[{tp}, {}, {}]>>) -> tensor<3x4x2xf32>
  %bias = moe.param @bias : tensor<4x2xf32>
  %b = moe.add %q, %bias : (tensor<3x4x2xf32>, tensor<4x2xf32>) -> tensor<3x4x2xf32>
  %wo = moe.param @o : tensor<8x4x2xf32, #dist.sharding<[{}, {tp}, {}]>>
  %o = moe.linear %b, %wo contract 2 : (tensor<3x4x2xf32>, tensor<8x4x2xf32, #dist.sharding<[{}, {tp}, {}]>>) -> tensor<3x8xf32>
  %y = moe.add %x, %o : (tensor<3x8xf32>, tensor<3x8xf32>) -> tensor<3x8xf32>
  return %y : tensor<3x8xf32>
}

// -----

// A partial sum with a use that is not linear is completed once, for all uses.
// CHECK-LABEL: func.func @once
// CHECK: %[[X:.*]] = moe.embedding {{.*}} partial = sum{tp}>>
// CHECK-NEXT: %[[COMPLETE:.*]] = dist.reshard %[[X]] {reason = "moe.clamp operand 0"}
// CHECK-NOT: dist.reshard
// CHECK: moe.clamp %[[COMPLETE]]
// CHECK: moe.add %{{.*}}, %[[COMPLETE]]
dist.mesh @mesh ["tp"] = [2]
moe.state @table : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>
func.func @once(%ids: tensor<3xi32>) -> tensor<3x8xf32> {
  %table = moe.param @table : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>
  %x = moe.embedding %ids, %table : (tensor<3xi32>, tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>) -> tensor<3x8xf32>
  %c = moe.clamp %x from -1.0 to 1.0 : (tensor<3x8xf32>) -> tensor<3x8xf32>
  %y = moe.add %c, %x : (tensor<3x8xf32>, tensor<3x8xf32>) -> tensor<3x8xf32>
  return %y : tensor<3x8xf32>
}

// -----

// A seed on a result cuts the operands: ids are sliced, and nothing is left partial at a return.
// CHECK-LABEL: func.func @seed
// CHECK-SAME: -> tensor<4x8xf32, #dist.sharding<[{dp, ep}, {}]>>
// CHECK: %[[IDS:.*]] = dist.reshard %arg0 {reason = "moe.embedding operand 0"} : {{.*}} -> tensor<4xi32, #dist.sharding<[{dp, ep}]>>
// CHECK: moe.embedding %[[IDS]], %{{.*}} -> tensor<4x8xf32, #dist.sharding<[{dp, ep}, {}], partial = sum{tp}>>
// CHECK: %[[Y:.*]] = dist.reshard %{{.*}} {reason = "func.return operand 0"}
// CHECK: return %[[Y]]
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]
moe.state @table : tensor<6x8xf32, #dist.sharding<[{tp}, {}]>>
func.func @seed(%ids: tensor<4xi32, #dist.sharding<[{dp}]>>) -> tensor<4x8xf32, #dist.sharding<[{dp, ep}, {}]>> {
  %table = moe.param @table : tensor<6x8xf32, #dist.sharding<[{tp}, {}]>>
  %x = moe.embedding %ids, %table : (tensor<4xi32, #dist.sharding<[{dp}]>>, tensor<6x8xf32, #dist.sharding<[{tp}, {}]>>) -> tensor<4x8xf32, #dist.sharding<[{dp, ep}, {}]>>
  return %x : tensor<4x8xf32, #dist.sharding<[{dp, ep}, {}]>>
}

// -----

// Keys and values are needed whole on the sequence; key/value heads that tp does not cut stay whole; the mask is sliced to the batch once.
// CHECK-LABEL: func.func @attention
// CHECK: %[[MASK:.*]] = dist.reshard %arg3 {reason = "moe.attention operand 5"} : {{.*}} -> tensor<4x6xi32, #dist.sharding<[{dp}, {}]>>
// CHECK: %[[K:.*]] = dist.reshard %arg1 {reason = "moe.attention operand 1"} : {{.*}} -> tensor<4x6x1x8xf32, #dist.sharding<[{dp}, {}, {}, {}]>>
// CHECK: moe.attention %arg0, %[[K]], %[[K]] at %{{.*}}, %{{.*}} mask %[[MASK]]
// CHECK: moe.attention %arg0, %[[K]], %[[K]] at %{{.*}}, %{{.*}} mask %[[MASK]]
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]
func.func @attention(%q: tensor<4x6x4x8xf32, #dist.sharding<[{dp}, {ep}, {tp}, {}]>>, %k: tensor<4x6x1x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}]>>,
                     %pos: tensor<6xi32, #dist.sharding<[{ep}]>>, %mask: tensor<4x6xi32>) -> tensor<4x6x4x8xf32> {
  %kpos = moe.positions : tensor<6xi32>
  %a = moe.attention %q, %k, %k at %pos, %kpos mask %mask heads 4 over 1 scale 1.0 window 0
    : (tensor<4x6x4x8xf32, #dist.sharding<[{dp}, {ep}, {tp}, {}]>>, tensor<4x6x1x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}]>>, tensor<4x6x1x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}]>>, tensor<6xi32, #dist.sharding<[{ep}]>>, tensor<6xi32>, tensor<4x6xi32>) -> tensor<4x6x4x8xf32>
  %b = moe.attention %q, %k, %k at %pos, %kpos mask %mask heads 4 over 1 scale 2.0 window 0
    : (tensor<4x6x4x8xf32, #dist.sharding<[{dp}, {ep}, {tp}, {}]>>, tensor<4x6x1x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}]>>, tensor<4x6x1x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}]>>, tensor<6xi32, #dist.sharding<[{ep}]>>, tensor<6xi32>, tensor<4x6xi32>) -> tensor<4x6x4x8xf32>
  %c = moe.add %a, %b : (tensor<4x6x4x8xf32>, tensor<4x6x4x8xf32>) -> tensor<4x6x4x8xf32>
  return %c : tensor<4x6x4x8xf32>
}

// -----

// Tokens replicated over ep: what comes out of the experts is partial over ep and tp. Beside a shared expert that is partial over tp only,
// ep is summed first, then one sum over tp does for both.
// CHECK-LABEL: func.func @shared
// CHECK: moe.dispatch {{.*}} -> tensor<6x8xf32, #dist.sharding<[ragged{}{ep} 1x3, {}]>>
// CHECK: moe.combine {{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}], partial = sum{ep, tp}>>
// CHECK: dist.reshard {{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>
// CHECK: %[[BOTH:.*]] = moe.add {{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>
// CHECK: dist.reshard %[[BOTH]] {reason = "func.return operand 0"} : {{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}]>>
dist.mesh @mesh ["ep", "tp"] = [2, 2]
moe.state @up : tensor<2x4x8xf32, #dist.sharding<[{ep}, {tp}, {}]>>
moe.state @experts : tensor<2x8x4xf32, #dist.sharding<[{ep}, {}, {tp}]>>
moe.state @down : tensor<8x8xf32, #dist.sharding<[{}, {tp}]>>
func.func @shared(%x: tensor<3x8xf32>, %r: !moe.routing<3, experts = 2, k = 2>) -> tensor<3x8xf32> {
  %rows = moe.dispatch %x, %r {expert_axes = ["ep"]} : (tensor<3x8xf32>, !moe.routing<3, experts = 2, k = 2>) -> tensor<6x8xf32>
  %u = moe.param @up : tensor<2x4x8xf32, #dist.sharding<[{ep}, {tp}, {}]>>
  %h = moe.grouped_matmul %rows by %r, %u contract 1 : (tensor<6x8xf32>, !moe.routing<3, experts = 2, k = 2>, tensor<2x4x8xf32, #dist.sharding<[{ep}, {tp}, {}]>>) -> tensor<6x4xf32>
  %w = moe.param @experts : tensor<2x8x4xf32, #dist.sharding<[{ep}, {}, {tp}]>>
  %y = moe.grouped_matmul %h by %r, %w contract 1 : (tensor<6x4xf32>, !moe.routing<3, experts = 2, k = 2>, tensor<2x8x4xf32, #dist.sharding<[{ep}, {}, {tp}]>>) -> tensor<6x8xf32>
  %c = moe.combine %y, %r : (tensor<6x8xf32>, !moe.routing<3, experts = 2, k = 2>) -> tensor<3x8xf32>
  %wd = moe.param @down : tensor<8x8xf32, #dist.sharding<[{}, {tp}]>>
  %d = moe.linear %x, %wd contract 1 : (tensor<3x8xf32>, tensor<8x8xf32, #dist.sharding<[{}, {tp}]>>) -> tensor<3x8xf32>
  %z = moe.add %c, %d : (tensor<3x8xf32>, tensor<3x8xf32>) -> tensor<3x8xf32>
  return %z : tensor<3x8xf32>
}

// -----

// A program has one bound: the larger of the two layers'.
// CHECK-LABEL: func.func @one_bound
// CHECK: moe.dispatch {{.*}} -> tensor<8x8xf32, #dist.sharding<[ragged{}{ep} 2x3, {}]>>
// CHECK: moe.dispatch {{.*}} -> tensor<12x8xf32, #dist.sharding<[ragged{}{ep} 2x3, {}]>>
dist.mesh @mesh ["ep"] = [2]
func.func @one_bound(%x: tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>, %r: !moe.routing<4, experts = 4, k = 2, #dist.sharding<[{ep}]>>,
                     %s: !moe.routing<4, experts = 4, k = 3, #dist.sharding<[{ep}]>>) {
  %a = moe.dispatch %x, %r {expert_axes = ["ep"], bound = 2} : (tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>, !moe.routing<4, experts = 4, k = 2, #dist.sharding<[{ep}]>>) -> tensor<8x8xf32>
  %b = moe.dispatch %x, %s {expert_axes = ["ep"], bound = 3} : (tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>, !moe.routing<4, experts = 4, k = 3, #dist.sharding<[{ep}]>>) -> tensor<12x8xf32>
  return
}
