// --dist-optimize-collectives: a sum that is then sliced becomes a reduce_scatter, two sums that are added become one, and a collective
// that stands twice stands once. None of it happens where another use needs the value.
// RUN: moe-opt %s --dist-optimize-collectives | FileCheck %s
dist.mesh @mesh ["tp"] = [2]

// CHECK-LABEL: func.func @scatter
// CHECK: dist.reduce_scatter sum %arg0 dim 0 over ["tp"]
// CHECK-NOT: = dist.
func.func @scatter(%x: tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>) -> tensor<8x8xf32, #dist.sharding<[{tp}, {}]>> {
  %0 = dist.all_reduce sum %x over ["tp"] : tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  %1 = dist.slice %0 dim 0 over ["tp"] : tensor<8x8xf32, #dist.sharding<[{}, {}]>> -> tensor<8x8xf32, #dist.sharding<[{tp}, {}]>>
  return %1 : tensor<8x8xf32, #dist.sharding<[{tp}, {}]>>
}

// CHECK-LABEL: func.func @no_scatter
// CHECK: dist.all_reduce
// CHECK: dist.slice
func.func @no_scatter(%x: tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>) -> (tensor<8x8xf32, #dist.sharding<[{tp}, {}]>>, tensor<8x8xf32, #dist.sharding<[{}, {}]>>) {
  %0 = dist.all_reduce sum %x over ["tp"] : tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  %1 = dist.slice %0 dim 0 over ["tp"] : tensor<8x8xf32, #dist.sharding<[{}, {}]>> -> tensor<8x8xf32, #dist.sharding<[{tp}, {}]>>
  return %1, %0 : tensor<8x8xf32, #dist.sharding<[{tp}, {}]>>, tensor<8x8xf32, #dist.sharding<[{}, {}]>>
}

// CHECK-LABEL: func.func @sum
// CHECK: %[[SUM:.*]] = moe.add %arg0, %arg1 : {{.*}} -> tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>
// CHECK: %[[ALL:.*]] = dist.all_reduce sum %[[SUM]] over ["tp"]
// CHECK-NOT: = dist.
// CHECK: return %[[ALL]]
func.func @sum(%x: tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>, %y: tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>) -> tensor<8x8xf32, #dist.sharding<[{}, {}]>> {
  %0 = dist.all_reduce sum %x over ["tp"] : tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  %1 = dist.all_reduce sum %y over ["tp"] : tensor<8x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>> -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  %2 = moe.add %0, %1 : (tensor<8x8xf32, #dist.sharding<[{}, {}]>>, tensor<8x8xf32, #dist.sharding<[{}, {}]>>) -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  return %2 : tensor<8x8xf32, #dist.sharding<[{}, {}]>>
}

// CHECK-LABEL: func.func @twice
// CHECK: %[[ONE:.*]] = dist.all_gather
// CHECK-NOT: dist.all_gather
// CHECK: return %[[ONE]], %[[ONE]]
func.func @twice(%x: tensor<8x8xf32, #dist.sharding<[{tp}, {}]>>) -> (tensor<8x8xf32, #dist.sharding<[{}, {}]>>, tensor<8x8xf32, #dist.sharding<[{}, {}]>>) {
  %0 = dist.all_gather %x dim 0 over ["tp"] : tensor<8x8xf32, #dist.sharding<[{tp}, {}]>> -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  %1 = dist.all_gather %x dim 0 over ["tp"] : tensor<8x8xf32, #dist.sharding<[{tp}, {}]>> -> tensor<8x8xf32, #dist.sharding<[{}, {}]>>
  return %0, %1 : tensor<8x8xf32, #dist.sharding<[{}, {}]>>, tensor<8x8xf32, #dist.sharding<[{}, {}]>>
}
