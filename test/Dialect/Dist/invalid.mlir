// Every numbered constraint of the dist dialect has one case here that breaks it.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// DimShardingAttr C1
// expected-error @+1 {{C1: an axis stands twice in one dimension's sharding}}
#d = #dist.dim<{dp, dp}>

// -----

// DimShardingAttr C2
// expected-error @+1 {{C2: pad must not be negative}}
#d = #dist.dim<{dp} pad -1>

// -----

// DimShardingAttr C3
// expected-error @+1 {{C3: a ragged dimension has positive slots and bound}}
#d = #dist.dim<ragged{dp}{ep} 2x0>

// -----

// ShardingAttr C1
// expected-error @+1 {{C1: axis "dp" stands twice in one sharding}}
#s = #dist.sharding<[{dp}, {dp}]>

// -----

// ShardingAttr C2
// expected-error @+1 {{C2: a sharding of 1 dimensions on a tensor of 2}}
func.func private @f(tensor<2x3xf32, #dist.sharding<[{dp}]>>)

// -----

// MeshOp C1
// expected-error @+1 {{C1: 1 names for 2 sizes}}
dist.mesh @mesh ["dp"] = [2, 2]

// -----

// MeshOp C2
// expected-error @+1 {{C2: axis name}}
dist.mesh @mesh ["dp", "dp"] = [2, 2]

// -----

// MeshOp C3
// expected-error @+1 {{C3: axis}}
dist.mesh @mesh ["dp"] = [1]

// -----

// MeshOp C4
// expected-error @+1 {{C4: more than 2^20 ranks}}
dist.mesh @mesh ["dp", "ep"] = [1048576, 2]

// -----

// MeshOp C5
dist.mesh @mesh ["dp"] = [2]
// expected-error @+1 {{C5: a module has one mesh}}
dist.mesh @again ["dp"] = [2]

// -----

// ReshardOp C1
func.func @f(%x: tensor<4x2xf32, #dist.sharding<[{dp}, {}]>>) {
  // expected-error @+1 {{operand and result have different global shapes}}
  %0 = dist.reshard %x : tensor<4x2xf32, #dist.sharding<[{dp}, {}]>> -> tensor<2x4xf32, #dist.sharding<[{}, {}]>>
  return
}

// -----

// ReshardOp C2
func.func @f(%x: tensor<4x2xf32>) {
  // expected-error @+1 {{C2: both types must carry a sharding}}
  %0 = dist.reshard %x : tensor<4x2xf32> -> tensor<4x2xf32>
  return
}

// -----

// ReshardOp C3
func.func @f(%x: tensor<4x2xf32, #dist.sharding<[{dp}, {}]>>) {
  // expected-error @+1 {{C3: the shardings are equal}}
  %0 = dist.reshard %x : tensor<4x2xf32, #dist.sharding<[{dp}, {}]>> -> tensor<4x2xf32, #dist.sharding<[{dp}, {}]>>
  return
}

// -----

// ReshardOp C4
func.func @f(%x: tensor<4x2xf32, #dist.sharding<[ragged{dp}{ep} 1x4, {}]>>) {
  // expected-error @+1 {{C4: ragged rows are never resharded}}
  %0 = dist.reshard %x : tensor<4x2xf32, #dist.sharding<[ragged{dp}{ep} 1x4, {}]>> -> tensor<4x2xf32, #dist.sharding<[{}, {}]>>
  return
}

// -----

// ReshardOp C5
func.func @f(%x: tensor<4x2xf32, #dist.sharding<[{}, {}]>>) {
  // expected-error @+1 {{C5: the result is partial over}}
  %0 = dist.reshard %x : tensor<4x2xf32, #dist.sharding<[{}, {}]>> -> tensor<4x2xf32, #dist.sharding<[{}, {}], partial = sum{dp}>>
  return
}

// -----

// AllReduceOp C1
func.func @f(%x: tensor<4xf32, #dist.sharding<[{}]>>) {
  // expected-error @+1 {{C1: the operand is not partial(sum) over}}
  %0 = dist.all_reduce sum %x over ["dp"] : tensor<4xf32, #dist.sharding<[{}]>> -> tensor<4xf32, #dist.sharding<[{}]>>
  return
}

// -----

// AllReduceOp C2
func.func @f(%x: tensor<4xf32, #dist.sharding<[{}], partial = sum{dp, tp}>>) {
  // expected-error @+1 {{C2: the result must be partial over the other axes only}}
  %0 = dist.all_reduce sum %x over ["dp"] : tensor<4xf32, #dist.sharding<[{}], partial = sum{dp, tp}>> -> tensor<4xf32, #dist.sharding<[{}]>>
  return
}

// -----

// AllReduceOp C3
func.func @f(%x: tensor<4xf32, #dist.sharding<[{}], partial = sum{dp}>>) {
  // expected-error @+1 {{C3: operand and result are cut differently}}
  %0 = dist.all_reduce sum %x over ["dp"] : tensor<4xf32, #dist.sharding<[{}], partial = sum{dp}>> -> tensor<4xf32, #dist.sharding<[{ep}]>>
  return
}

// -----

// AllGatherOp C1
func.func @f(%x: tensor<4xf32, #dist.sharding<[{ep}]>>) {
  // expected-error @+1 {{C1: dimension 0 of the operand must end in the axes}}
  %0 = dist.all_gather %x dim 0 over ["dp"] : tensor<4xf32, #dist.sharding<[{ep}]>> -> tensor<4xf32, #dist.sharding<[{}]>>
  return
}

// -----

// AllGatherOp C2
func.func @f(%x: tensor<4x4xf32, #dist.sharding<[{dp}, {}]>>) {
  // expected-error @+1 {{C2: only dimension 0 may change}}
  %0 = dist.all_gather %x dim 0 over ["dp"] : tensor<4x4xf32, #dist.sharding<[{dp}, {}]>> -> tensor<4x4xf32, #dist.sharding<[{}, {ep}]>>
  return
}

// -----

// AllGatherOp C3
func.func @f(%x: tensor<7xf32, #dist.sharding<[{dp, ep} pad 1]>>) {
  // expected-error @+1 {{C3: dimension 0 is padded and not gathered whole}}
  %0 = dist.all_gather %x dim 0 over ["ep"] : tensor<7xf32, #dist.sharding<[{dp, ep} pad 1]>> -> tensor<7xf32, #dist.sharding<[{dp} pad 1]>>
  return
}

// -----

// ReduceScatterOp C1
func.func @f(%x: tensor<4xf32, #dist.sharding<[{}]>>) {
  // expected-error @+1 {{C1: the operand is not partial(sum) over}}
  %0 = dist.reduce_scatter sum %x dim 0 over ["dp"] : tensor<4xf32, #dist.sharding<[{}]>> -> tensor<4xf32, #dist.sharding<[{dp}]>>
  return
}

// -----

// ReduceScatterOp C2
func.func @f(%x: tensor<4xf32, #dist.sharding<[{}], partial = sum{dp}>>) {
  // expected-error @+1 {{C2: dimension 0 of the result must end in the axes}}
  %0 = dist.reduce_scatter sum %x dim 0 over ["dp"] : tensor<4xf32, #dist.sharding<[{}], partial = sum{dp}>> -> tensor<4xf32, #dist.sharding<[{}]>>
  return
}

// -----

// ReduceScatterOp C3
func.func @f(%x: tensor<4x4xf32, #dist.sharding<[{}, {}], partial = sum{dp}>>) {
  // expected-error @+1 {{C3: only dimension 0 may change}}
  %0 = dist.reduce_scatter sum %x dim 0 over ["dp"] : tensor<4x4xf32, #dist.sharding<[{}, {}], partial = sum{dp}>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {ep}]>>
  return
}

// -----

// AllToAllOp C1
func.func @f(%x: tensor<4x4xf32, #dist.sharding<[{ep}, {}]>>) {
  // expected-error @+1 {{C1: the axes must end dimension 0}}
  %0 = dist.all_to_all %x from 0 to 1 over ["ep"] : tensor<4x4xf32, #dist.sharding<[{ep}, {}]>> -> tensor<4x4xf32, #dist.sharding<[{}, {}]>>
  return
}

// -----

// AllToAllOp C2
func.func @f(%x: tensor<4x4x4xf32, #dist.sharding<[{ep}, {}, {}]>>) {
  // expected-error @+1 {{C2: only dimensions 0 and 1 may change}}
  %0 = dist.all_to_all %x from 0 to 1 over ["ep"] : tensor<4x4x4xf32, #dist.sharding<[{ep}, {}, {}]>> -> tensor<4x4x4xf32, #dist.sharding<[{}, {ep}, {dp}]>>
  return
}

// -----

// AllToAllOp C3
func.func @f(%x: tensor<4x4xf32, #dist.sharding<[{ep}, {}]>>) {
  // expected-error @+1 {{C3: from and to are the same dimension}}
  %0 = dist.all_to_all %x from 0 to 0 over ["ep"] : tensor<4x4xf32, #dist.sharding<[{ep}, {}]>> -> tensor<4x4xf32, #dist.sharding<[{}, {ep}]>>
  return
}

// -----

// SliceOp C1
func.func @f(%x: tensor<4xf32, #dist.sharding<[{}]>>) {
  // expected-error @+1 {{C1: dimension 0 of the result must end in the axes}}
  %0 = dist.slice %x dim 0 over ["dp"] : tensor<4xf32, #dist.sharding<[{}]>> -> tensor<4xf32, #dist.sharding<[{}]>>
  return
}

// -----

// SliceOp C2
func.func @f(%x: tensor<4x4xf32, #dist.sharding<[{}, {}]>>) {
  // expected-error @+1 {{C2: only dimension 0 may change}}
  %0 = dist.slice %x dim 0 over ["dp"] : tensor<4x4xf32, #dist.sharding<[{}, {}]>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {ep}]>>
  return
}

// -----

// RequireBoundOp C1
func.func @f(%n: tensor<1xi32, #dist.sharding<[{}], partial = max{dp}>>) {
  // expected-error @+1 {{C1: need is a complete tensor<1xi32>}}
  dist.require_bound %n initial 2 worst 4 : tensor<1xi32, #dist.sharding<[{}], partial = max{dp}>>
  return
}

// -----

// RequireBoundOp C2
func.func @f(%n: tensor<1xi32>) {
  // expected-error @+1 {{C2: initial must lie between 1 and worst}}
  dist.require_bound %n initial 5 worst 4 : tensor<1xi32>
  return
}

// -----

// PackOp C1
func.func @f(%x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %n: tensor<1xi32>) {
  // expected-error @+1 {{C1: shapes must be x[t..,D]}}
  %0:4 = dist.pack %x, %r need %n segments 1 : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>) -> (tensor<1x2x5x8xf32>, tensor<1x2x2xi32>, tensor<2x6x3xi32>, tensor<1xi32>)
  return
}

// -----

// PackOp C2
func.func @f(%x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %n: tensor<1xi32>) {
  // expected-error @+1 {{C2: P = 3 must divide 4 experts}}
  %0:4 = dist.pack %x, %r need %n segments 1 : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>) -> (tensor<1x3x5x8xf32>, tensor<1x3x2xi32>, tensor<2x6x2xi32>, tensor<1xi32>)
  return
}

// -----

// RegroupOp C1
func.func @f(%s: tensor<2x1x5x8xf32>, %c: tensor<3x1x2xi32>) {
  // expected-error @+1 {{C1: shapes must be slots[G,P,B,D]}}
  %0:2 = dist.regroup %s, %c segments 1 : (tensor<2x1x5x8xf32>, tensor<3x1x2xi32>) -> (tensor<10x8xf32>, tensor<1x2xi32>)
  return
}

// -----

// UngroupOp C1
func.func @f(%s: tensor<10x7xf32>, %c: tensor<2x1x2xi32>) {
  // expected-error @+1 {{C1: shapes must be rows[R,D]}}
  %0 = dist.ungroup %s, %c segments 1 : (tensor<10x7xf32>, tensor<2x1x2xi32>) -> tensor<2x1x5x8xf32>
  return
}

// -----

// UnpackOp C1
func.func @f(%s: tensor<1x2x5x8xf32>, %p: tensor<2x6x3xi32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: shapes must be slots[G,P,B,D], pos}}
  %0 = dist.unpack %s, %p, %r : (tensor<1x2x5x8xf32>, tensor<2x6x3xi32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  return
}

// -----

// SelectOp C1
func.func @f(%x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>, %n: tensor<1xi32>) {
  // expected-error @+1 {{C1: shapes must be x[t..,D] }}
  %0:4 = dist.select %x, %r need %n : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>) -> (tensor<24x7xf32>, tensor<1x4xi32>, tensor<2x6x2xi32>, tensor<1xi32>)
  return
}

// -----

// MergeOp C1
func.func @f(%s: tensor<24x8xf32>, %p: tensor<2x6x2xi32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: shapes must be rows[R,D], pos}}
  %0 = dist.merge %s, %p, %r : (tensor<24x8xf32>, tensor<2x6x2xi32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x7xf32>
  return
}

// -----

// ChoiceDotsOp C1
func.func @f(%s: tensor<24x8xf32>, %x: tensor<2x6x7xf32>, %p: tensor<2x6x2xi32>) {
  // expected-error @+1 {{C1: shapes must be rows[R,D] or slots[G,P,B,D], x}}
  %0 = dist.choice_dots %s, %x, %p : (tensor<24x8xf32>, tensor<2x6x7xf32>, tensor<2x6x2xi32>) -> tensor<2x6x2xf32>
  return
}

// -----

// SampleCountsOp C1
func.func @f(%r: !moe.routing<2x6, experts = 4, k = 2>) {
  // expected-error @+1 {{C1: counts must be [B,E] of the routing}}
  %0 = dist.sample_counts %r : (!moe.routing<2x6, experts = 4, k = 2>) -> tensor<6x4xi32>
  return
}
