// A padded dimension keeps its sharding: pads are gathered by nobody.
// RUN: not moe-opt %s --dist-lower-reshards 2>&1 | FileCheck %s
dist.mesh @mesh ["tp"] = [2]
// CHECK: MOE-0601: no collective leads from {{.*}}{tp} pad 1{{.*}} ragged and padded dimensions keep their sharding
func.func @pad(%x: tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>) -> tensor<7x8xf32, #dist.sharding<[{}, {}]>> {
  %y = dist.reshard %x : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>> -> tensor<7x8xf32, #dist.sharding<[{}, {}]>>
  return %y : tensor<7x8xf32, #dist.sharding<[{}, {}]>>
}
