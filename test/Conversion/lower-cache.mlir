// Two programs share the plan's states: one table, the same place in the state arena of each. A cache is written where it lies.
// RUN: moe-opt %s --plan-lower | FileCheck %s
// RUN: moe-opt %s --plan-lower --plan-schedule --plan-insert-events --plan-allocate | FileCheck %s --check-prefix=PLACED

// CHECK: plan.state "w" : tensor<4x4xf32> in "state" at 0 from
// CHECK-NEXT: plan.state "cache" : tensor<2x8x4xf32, #dist.sharding<[{dp}, {}, {}]>> in "state" at 64
// CHECK-NOT: plan.state
// CHECK: plan.program @prefill ranks 2
// CHECK: plan.arena "state" state on device bytes 192 per_bound 0
// CHECK: %[[ROWS:.*]] = plan.view "activations" : <1x3x4xf32>
// CHECK: %[[CACHE:.*]] = plan.view "state" at 64 : <1x8x4xf32>
// CHECK: plan.call "write_rows"(%[[ROWS]]) -> (%[[CACHE]]) {} on "compute"
// CHECK: plan.program @decode ranks 2
// CHECK: plan.arena "state" state on device bytes 192 per_bound 0
// CHECK: plan.input "position" %[[AT:.*]] : tensor<1xi32> range [0, 7]
// CHECK: %[[CACHE:.*]] = plan.view "state" at 64 : <1x8x4xf32>
// CHECK: plan.call "write_rows"(%{{.*}}, %[[AT]]) -> (%[[CACHE]]) {} on "compute"
// What reads the new cache reads the state.
// CHECK: plan.call "linear"(%[[CACHE]], %{{.*}})

// Nothing may come between: the read stays behind the write.
// PLACED: plan.program @decode
// PLACED: plan.call "write_rows"
// PLACED: plan.call "linear"

dist.mesh @mesh ["dp"] = [2]
moe.state @w : tensor<4x4xf32> from #moe.source<names = ["w"], disk_shape = [4, 4]>
moe.state @cache : tensor<2x8x4xf32, #dist.sharding<[{dp}, {}, {}]>>
func.func @prefill(%rows: tensor<1x3x4xf32> {moe.name = "rows", dist.global = tensor<2x3x4xf32, #dist.sharding<[{dp}, {}, {}]>>})
    -> (tensor<1x3x4xf32> {moe.name = "y", dist.global = tensor<2x3x4xf32, #dist.sharding<[{dp}, {}, {}]>>}) {
  %cache = moe.param @cache : tensor<1x8x4xf32>
  %w = moe.param @w : tensor<4x4xf32>
  %0 = moe.write_rows %rows into %cache : (tensor<1x3x4xf32>, tensor<1x8x4xf32>) -> tensor<1x8x4xf32>
  %1 = moe.linear %rows, %w contract 1 : (tensor<1x3x4xf32>, tensor<4x4xf32>) -> tensor<1x3x4xf32>
  return %1 : tensor<1x3x4xf32>
}
func.func @decode(%row: tensor<1x1x4xf32> {moe.name = "row", dist.global = tensor<2x1x4xf32, #dist.sharding<[{dp}, {}, {}]>>},
                  %at: tensor<1xi32> {moe.name = "position", moe.range = array<i64: 0, 7>, dist.global = tensor<1xi32>})
    -> (tensor<1x8x4xf32> {moe.name = "y", dist.global = tensor<2x8x4xf32, #dist.sharding<[{dp}, {}, {}]>>}) {
  %cache = moe.param @cache : tensor<1x8x4xf32>
  %w = moe.param @w : tensor<4x4xf32>
  %0 = moe.write_rows %row into %cache at %at : (tensor<1x1x4xf32>, tensor<1x8x4xf32>, tensor<1xi32>) -> tensor<1x8x4xf32>
  %1 = moe.linear %0, %w contract 1 : (tensor<1x8x4xf32>, tensor<4x4xf32>) -> tensor<1x8x4xf32>
  return %1 : tensor<1x8x4xf32>
}
