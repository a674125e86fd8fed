// Each rank adds up its own part of a gradient; the sums over ranks are made where they are read, once a step, as the weight lies.
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2,ep=2" --dist-propagate --dist-verify-shard | FileCheck %s

moe.state @w : tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>
// CHECK: moe.state @w.accumulated : tensor<4x8xf32, #dist.sharding<[{ep}, {}], partial = sum{dp}>> transient
moe.state @w.accumulated : tensor<4x8xf32> transient
// Somebody has decided that its rows are cut further: then every micro-batch scatters its part.
moe.state @u.accumulated : tensor<4x8xf32, #dist.sharding<[{ep, dp}, {}]>> transient

// CHECK-LABEL: func.func @accumulate
func.func @accumulate(%x: tensor<6x4x8xf32, #dist.sharding<[{dp}, {ep}, {}]>> {moe.name = "x"}, %i: tensor<1xi32> {moe.name = "micro_batch"}) {
  %w = moe.param @w.accumulated : tensor<4x8xf32>
  %u = moe.param @u.accumulated : tensor<4x8xf32, #dist.sharding<[{ep, dp}, {}]>>
  %sum = moe.squares %x tail 2 : (tensor<6x4x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>) -> tensor<4x8xf32>
  // CHECK: %[[SUM:.*]] = moe.squares {{.*}} -> tensor<4x8xf32, #dist.sharding<[{ep}, {}], partial = sum{dp}>>
  // CHECK: %[[PART:.*]] = dist.reshard %[[SUM]] {{.*}} -> tensor<4x8xf32, #dist.sharding<[{ep, dp}, {}]>>
  // CHECK: moe.accumulate %{{.*}} by %[[SUM]]
  // CHECK: moe.accumulate %{{.*}} by %[[PART]]
  moe.accumulate %w by %sum at %i : (tensor<4x8xf32>, tensor<4x8xf32>, tensor<1xi32>) -> ()
  moe.accumulate %u by %sum at %i : (tensor<4x8xf32, #dist.sharding<[{ep, dp}, {}]>>, tensor<4x8xf32>, tensor<1xi32>) -> ()
  return
}

// CHECK-LABEL: func.func @update
func.func @update(%lr: tensor<1xf32> {moe.name = "lr"}) -> (tensor<1xf32> {moe.name = "norm"}) {
  %g = moe.param @w.accumulated : tensor<4x8xf32>
  %w = moe.param @w : tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>
  // CHECK: %[[G:.*]] = dist.reshard {{.*}} -> tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>
  // CHECK: moe.squares %[[G]]
  // CHECK: moe.sgd %{{.*}} by %[[G]]
  %n = moe.squares %g : (tensor<4x8xf32>) -> tensor<1xf32>
  moe.sgd %w by %g rate %lr momentum 0.0 weight_decay 0.0 : (tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>, tensor<4x8xf32>, tensor<1xf32>) -> ()
  return %n : tensor<1xf32>
}
