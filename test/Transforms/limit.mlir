// A capacity means the same on every mesh: a domain that is split over ranks is gathered (the routing alone), limited, and cut again; sequences
// that no axis cuts are limited where they are, and their drops are added up.
// RUN: moe-opt %s --dist-propagate --dist-lower-reshards | FileCheck %s
// RUN: moe-opt %s --dist-propagate --dist-lower-reshards --dist-localize | FileCheck %s --check-prefix=LOCAL

// CHECK-LABEL: func.func @batch
// CHECK: %[[R:.*]] = moe.route
// CHECK: %[[ALL:.*]] = dist.all_gather %[[R]] dim 0 over ["dp", "ep"] : !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp, ep}, {}]>> -> !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{}, {}]>>
// CHECK: %[[LIMITED:.*]], %[[DROPPED:.*]] = moe.limit <rule = factor, value = 1.000000e+00 : f64> of %[[ALL]] : {{.*}} -> (!moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{}, {}]>>, tensor<2xf32, #dist.sharding<[{}]>>)
// CHECK: %[[MINE:.*]] = dist.slice %[[LIMITED]] dim 0 over ["dp", "ep"]
// CHECK: moe.dispatch %{{.*}}, %[[MINE]]
// CHECK: return %{{.*}}, %[[DROPPED]]
// LOCAL-LABEL: func.func @batch
// LOCAL: dist.all_gather %{{.*}} dim 0 over ["dp", "ep"] : !moe.routing<1x6, experts = 4, k = 2> -> !moe.routing<4x6, experts = 4, k = 2>
// LOCAL: dist.slice %{{.*}} dim 0 over ["dp", "ep"] {start = #dist.offset<{dp, ep} * 1>} : !moe.routing<4x6, experts = 4, k = 2> -> !moe.routing<1x6, experts = 4, k = 2>

// CHECK-LABEL: func.func @sequence
// CHECK: %[[R:.*]] = moe.route
// CHECK: %[[ALL:.*]] = dist.all_gather %[[R]] dim 1 over ["ep"]
// CHECK: %{{.*}}, %[[DROPPED:.*]] = moe.limit <rule = factor, value = 1.000000e+00 : f64, domain = sequence> of %[[ALL]] : {{.*}} -> (!moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {}]>>, tensor<2xf32, #dist.sharding<[{}], partial = sum{dp}>>)
// CHECK: %[[SUM:.*]] = dist.all_reduce sum %[[DROPPED]] over ["dp"]
// CHECK: return %[[SUM]]
// LOCAL-LABEL: func.func @sequence
// LOCAL: moe.limit {{.*}} {token_offset = #dist.offset<{dp} * 12>}
dist.mesh @mesh ["dp", "ep"] = [2, 2]
!s = !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp, ep}, {}]>>
func.func @batch(%l: tensor<4x6x4xf32, #dist.sharding<[{dp, ep}, {}, {}]>>, %x: tensor<4x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}]>>) -> (tensor<48x8xf32>, tensor<2xf32>) {
  %r = moe.route <k = 2> of %l : (tensor<4x6x4xf32, #dist.sharding<[{dp, ep}, {}, {}]>>) -> !moe.routing<4x6, experts = 4, k = 2>
  %r2, %d = moe.limit <rule = factor, value = 1.0 : f64> of %r : (!moe.routing<4x6, experts = 4, k = 2>) -> (!moe.routing<4x6, experts = 4, k = 2>, tensor<2xf32>)
  %rows = moe.dispatch %x, %r2 : (tensor<4x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}]>>, !moe.routing<4x6, experts = 4, k = 2>) -> tensor<48x8xf32>
  return %rows, %d : tensor<48x8xf32>, tensor<2xf32>
}
func.func @sequence(%l: tensor<4x6x4xf32, #dist.sharding<[{dp}, {ep}, {}]>>) -> tensor<2xf32> {
  %r = moe.route <k = 2> of %l : (tensor<4x6x4xf32, #dist.sharding<[{dp}, {ep}, {}]>>) -> !moe.routing<4x6, experts = 4, k = 2>
  %r2, %d = moe.limit <rule = factor, value = 1.0 : f64, domain = sequence> of %r : (!moe.routing<4x6, experts = 4, k = 2>) -> (!moe.routing<4x6, experts = 4, k = 2>, tensor<2xf32>)
  return %d : tensor<2xf32>
}
