// --dist-lower-reshards makes the collectives that move the fewest bytes: slices first, a partial sum that is to be split by
// reduce_scatter, gathers last.
// RUN: moe-opt %s --dist-lower-reshards | FileCheck %s
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]

// CHECK-LABEL: func.func @complete
// CHECK: dist.all_reduce sum %{{.*}} over ["tp"]
// CHECK-NOT: = dist.
func.func @complete(%x: tensor<8x8xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>>) -> tensor<8x8xf32, #dist.sharding<[{dp}, {}]>> {
  %y = dist.reshard %x : tensor<8x8xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{dp}, {}]>>
  return %y : tensor<8x8xf32, #dist.sharding<[{dp}, {}]>>
}

// CHECK-LABEL: func.func @scatter
// CHECK: dist.reduce_scatter sum %{{.*}} dim 1 over ["tp"]
// CHECK-NOT: = dist.
func.func @scatter(%x: tensor<8x8xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>>) -> tensor<8x8xf32, #dist.sharding<[{dp}, {tp}]>> {
  %y = dist.reshard %x : tensor<8x8xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{dp}, {tp}]>>
  return %y : tensor<8x8xf32, #dist.sharding<[{dp}, {tp}]>>
}

// Slicing before the sum halves what is summed.
// CHECK-LABEL: func.func @slice_first
// CHECK: dist.slice %{{.*}} dim 0 over ["dp", "ep"]
// CHECK: dist.all_reduce sum %{{.*}} over ["tp"]
// CHECK-NOT: = dist.
func.func @slice_first(%x: tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>) -> tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>> {
  %y = dist.reshard %x : tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>>
  return %y : tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>>
}

// CHECK-LABEL: func.func @exchange
// CHECK: dist.all_to_all %{{.*}} from 0 to 1 over ["ep"]
// CHECK-NOT: = dist.
func.func @exchange(%x: tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>>) -> tensor<8x8xf32, #dist.sharding<[{dp}, {ep}]>> {
  %y = dist.reshard %x : tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>> -> tensor<8x8xf32, #dist.sharding<[{dp}, {ep}]>>
  return %y : tensor<8x8xf32, #dist.sharding<[{dp}, {ep}]>>
}

// CHECK-LABEL: func.func @gather
// CHECK: dist.slice %{{.*}} dim 1 over ["tp"]
// CHECK: dist.all_gather %{{.*}} dim 0 over ["ep"]
// CHECK-NOT: = dist.
func.func @gather(%x: tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>>) -> tensor<8x8xf32, #dist.sharding<[{dp}, {tp}]>> {
  %y = dist.reshard %x : tensor<8x8xf32, #dist.sharding<[{dp, ep}, {}]>> -> tensor<8x8xf32, #dist.sharding<[{dp}, {tp}]>>
  return %y : tensor<8x8xf32, #dist.sharding<[{dp}, {tp}]>>
}
