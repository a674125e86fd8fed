// Every op and attribute of the dist dialect prints and parses back to itself, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

// CHECK: dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]

// CHECK-LABEL: func.func @collectives
func.func @collectives(%x: tensor<4x4xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>>) {
  // CHECK: dist.reshard %{{.*}} {reason = "norm"} : tensor<4x4xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {}]>>
  %0 = dist.reshard %x {reason = "norm"} : tensor<4x4xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {}]>>
  // CHECK: dist.all_reduce sum %{{.*}} over ["tp"] :
  %1 = dist.all_reduce sum %x over ["tp"] : tensor<4x4xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {}]>>
  // CHECK: dist.reduce_scatter sum %{{.*}} dim 1 over ["tp"] :
  %2 = dist.reduce_scatter sum %x dim 1 over ["tp"] : tensor<4x4xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {tp}]>>
  // CHECK: dist.all_gather %{{.*}} dim 1 over ["tp"] :
  %3 = dist.all_gather %2 dim 1 over ["tp"] : tensor<4x4xf32, #dist.sharding<[{dp}, {tp}]>> -> tensor<4x4xf32, #dist.sharding<[{dp}, {}]>>
  // CHECK: dist.all_to_all %{{.*}} from 1 to 0 over ["tp"] :
  %4 = dist.all_to_all %2 from 1 to 0 over ["tp"] : tensor<4x4xf32, #dist.sharding<[{dp}, {tp}]>> -> tensor<4x4xf32, #dist.sharding<[{dp, tp}, {}]>>
  // CHECK: dist.slice %{{.*}} dim 0 over ["ep"] :
  %5 = dist.slice %1 dim 0 over ["ep"] : tensor<4x4xf32, #dist.sharding<[{dp}, {}]>> -> tensor<4x4xf32, #dist.sharding<[{dp, ep}, {}]>>
  return
}

// A padded vocabulary and ragged rows.
// CHECK-LABEL: func.func private @types
// CHECK-SAME: tensor<255x64xf32, #dist.sharding<[{tp} pad 1, {}]>>
// CHECK-SAME: tensor<96x64xf32, #dist.sharding<[ragged{dp}{ep} 2x16, {}]>>
// CHECK-SAME: !moe.routing<2x24, experts = 8, k = 2, #dist.sharding<[{dp}, {ep}]>>
func.func private @types(tensor<255x64xf32, #dist.sharding<[{tp} pad 1, {}]>>, tensor<96x64xf32, #dist.sharding<[ragged{dp}{ep} 2x16, {}]>>,
                         !moe.routing<2x24, experts = 8, k = 2, #dist.sharding<[{dp}, {ep}]>>)

// One rank's part of an exchange between two ranks, as after localisation: 12 tokens, 4 experts, slots of 5 rows.
// CHECK-LABEL: func.func @exchange
func.func @exchange(%x: tensor<2x6x8xf32>, %r: !moe.routing<2x6, experts = 4, k = 2>) {
  // CHECK: dist.zero_need : tensor<1xi32>
  %zero = dist.zero_need : tensor<1xi32>
  // CHECK: dist.pack %{{.*}}, %{{.*}} need %{{.*}} segments 1 :
  %slots, %counts, %pos, %need = dist.pack %x, %r need %zero segments 1 : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>)
    -> (tensor<1x2x5x8xf32, #dist.rows<2, 1>>, tensor<1x2x2xi32>, tensor<2x6x2xi32>, tensor<1xi32>)
  // CHECK: dist.all_to_all %{{.*}} from 0 to 1 over ["ep"] : tensor<1x2x5x8xf32, #dist.rows<2, 1>> -> tensor<2x1x5x8xf32, #dist.rows<2, 1>>
  %got = dist.all_to_all %slots from 0 to 1 over ["ep"] : tensor<1x2x5x8xf32, #dist.rows<2, 1>> -> tensor<2x1x5x8xf32, #dist.rows<2, 1>>
  %gotCounts = dist.all_to_all %counts from 0 to 1 over ["ep"] : tensor<1x2x2xi32> -> tensor<2x1x2xi32>
  // CHECK: dist.regroup %{{.*}}, %{{.*}} segments 1 :
  %rows, %groups = dist.regroup %got, %gotCounts segments 1 : (tensor<2x1x5x8xf32, #dist.rows<2, 1>>, tensor<2x1x2xi32>) -> (tensor<10x8xf32, #dist.rows<0, 2>>, tensor<1x2xi32>)
  // CHECK: dist.ungroup %{{.*}}, %{{.*}} segments 1 :
  %sent = dist.ungroup %rows, %gotCounts segments 1 : (tensor<10x8xf32, #dist.rows<0, 2>>, tensor<2x1x2xi32>) -> tensor<2x1x5x8xf32, #dist.rows<2, 1>>
  %back = dist.all_to_all %sent from 1 to 0 over ["ep"] : tensor<2x1x5x8xf32, #dist.rows<2, 1>> -> tensor<1x2x5x8xf32, #dist.rows<2, 1>>
  // CHECK: dist.unpack
  %y = dist.unpack %back, %pos, %r : (tensor<1x2x5x8xf32, #dist.rows<2, 1>>, tensor<2x6x2xi32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  // CHECK: dist.select %{{.*}}, %{{.*}} need %{{.*}} {expert_offset = #dist.offset<{ep} * 2>} :
  %rows2, %groups2, %pos2, %need2 = dist.select %x, %r need %need {expert_offset = #dist.offset<{ep} * 2>} : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>)
    -> (tensor<7x8xf32, #dist.rows<0, 1>>, tensor<1x2xi32>, tensor<2x6x2xi32>, tensor<1xi32>)
  // CHECK: dist.merge
  %z = dist.merge %rows2, %pos2, %r : (tensor<7x8xf32, #dist.rows<0, 1>>, tensor<2x6x2xi32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  // CHECK: dist.merge %{{.*}}, %{{.*}}, %{{.*}} unit :
  %z2 = dist.merge %rows2, %pos2, %r unit : (tensor<7x8xf32, #dist.rows<0, 1>>, tensor<2x6x2xi32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  // CHECK: dist.unpack %{{.*}}, %{{.*}}, %{{.*}} unit :
  %y2 = dist.unpack %back, %pos, %r unit : (tensor<1x2x5x8xf32, #dist.rows<2, 1>>, tensor<2x6x2xi32>, !moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x6x8xf32>
  // CHECK: dist.sample_counts %{{.*}} : (!moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x4xi32>
  %samples = dist.sample_counts %r : (!moe.routing<2x6, experts = 4, k = 2>) -> tensor<2x4xi32>
  // CHECK: dist.pack %{{.*}}, %{{.*}} weighted need
  %slots3, %counts3, %pos3, %need3 = dist.pack %x, %r weighted need %need segments 1 : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>)
    -> (tensor<1x2x5x8xf32, #dist.rows<2, 1>>, tensor<1x2x2xi32>, tensor<2x6x2xi32>, tensor<1xi32>)
  // CHECK: dist.select %{{.*}}, %{{.*}} weighted need
  %rows4, %groups4, %pos4, %need4 = dist.select %x, %r weighted need %need : (tensor<2x6x8xf32>, !moe.routing<2x6, experts = 4, k = 2>, tensor<1xi32>)
    -> (tensor<7x8xf32, #dist.rows<0, 1>>, tensor<1x2xi32>, tensor<2x6x2xi32>, tensor<1xi32>)
  // CHECK: dist.choice_dots
  %dots = dist.choice_dots %back, %x, %pos : (tensor<1x2x5x8xf32, #dist.rows<2, 1>>, tensor<2x6x8xf32>, tensor<2x6x2xi32>) -> tensor<2x6x2xf32>
  // CHECK: dist.require_bound %{{.*}} initial 7 worst 24 : tensor<1xi32>
  dist.require_bound %need2 initial 7 worst 24 : tensor<1xi32>
  return
}
