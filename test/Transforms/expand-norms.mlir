// --dist-expand-norms splits a norm over cut dimensions (olmoe's q and k norms under tp) and leaves other norms alone.
// RUN: moe-opt %s --dist-expand-norms | FileCheck %s
dist.mesh @mesh ["dp", "tp"] = [2, 2]

// The sum is over 4·6 = 24 elements wherever they lie.
// CHECK-LABEL: func.func @cut
// CHECK-SAME: (%[[X:.*]]: tensor<2x3x4x6xf32, {{.*}}>, %[[W:.*]]: tensor<4x6xf32, {{.*}}>)
// CHECK: %[[SS:.*]] = moe.sum_squares %[[X]] dims 2 : {{.*}} -> tensor<2x3xf32, #dist.sharding<[{dp}, {}], partial = sum{tp}>>
// CHECK: %[[SUM:.*]] = dist.reshard %[[SS]] {{.*}} -> tensor<2x3xf32, #dist.sharding<[{dp}, {}]>>
// CHECK: %[[Y:.*]] = moe.rms_apply %[[X]], %[[SUM]], %[[W]] eps 1.000000e-05 count 24 : {{.*}} -> tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>
// CHECK: return %[[Y]]
func.func @cut(%x: tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, %w: tensor<4x6xf32, #dist.sharding<[{tp}, {}]>>)
    -> tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>> {
  %y = moe.rms_norm %x, %w eps 1.0e-5 : (tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, tensor<4x6xf32, #dist.sharding<[{tp}, {}]>>)
    -> tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>
  return %y : tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>
}

// A norm over each head: heads are cut, but no norm crosses them.
// CHECK-LABEL: func.func @whole
// CHECK: moe.rms_norm
// CHECK-NOT: sum_squares
func.func @whole(%x: tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, %w: tensor<6xf32, #dist.sharding<[{}]>>)
    -> tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>> {
  %y = moe.rms_norm %x, %w eps 1.0e-5 : (tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>, tensor<6xf32, #dist.sharding<[{}]>>)
    -> tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>
  return %y : tensor<2x3x4x6xf32, #dist.sharding<[{dp}, {}, {tp}, {}]>>
}
