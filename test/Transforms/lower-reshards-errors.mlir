// A padded dimension keeps its sharding or is gathered whole: pads are nobody's elements.
// RUN: not moe-opt %s --dist-lower-reshards 2>&1 | FileCheck %s
dist.mesh @mesh ["dp", "tp"] = [2, 2]
// CHECK: MOE-0601: no collective leads from {{.*}}{tp} pad 1{{.*}} ragged and padded dimensions keep their sharding
func.func @pad(%x: tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>>) -> tensor<7x8xf32, #dist.sharding<[{dp} pad 1, {}]>> {
  %y = dist.reshard %x : tensor<7x8xf32, #dist.sharding<[{tp} pad 1, {}]>> -> tensor<7x8xf32, #dist.sharding<[{dp} pad 1, {}]>>
  return %y : tensor<7x8xf32, #dist.sharding<[{dp} pad 1, {}]>>
}
