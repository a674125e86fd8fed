// What --capacity-factor and --drop-policy do to the global program, whether its gates have a capacity or not.
// RUN: moe-opt %s --moe-limit-capacity | FileCheck %s --check-prefix=REPORT
// RUN: moe-opt %s --moe-limit-capacity='factor=1.25' | FileCheck %s --check-prefix=FACTOR
// RUN: moe-opt %s --moe-limit-capacity='factor=2 policy=random seed=815731525043 minimum=0' | FileCheck %s --check-prefix=RANDOM
// RUN: moe-opt %s --moe-limit-capacity='policy=none' | FileCheck %s --check-prefix=NONE
// RUN: moe-opt %s --moe-limit-capacity='factor=1.25' --moe-limit-capacity='policy=none' | FileCheck %s --check-prefix=NONE
// RUN: not moe-opt %s --moe-limit-capacity='policy=probs' 2>&1 | FileCheck %s --check-prefix=ERROR

// REPORT-LABEL: func.func @plain({{.*}}) -> tensor<48x8xf32> {
// REPORT-NOT: moe.limit
// REPORT-LABEL: func.func @own
// REPORT-SAME: -> (tensor<48x8xf32>, tensor<2xf32> {moe.name = "dropped_choices"})
// REPORT: %[[A:.*]], %[[DA:.*]] = moe.limit <rule = fixed, value = 3.000000e+00 : f64, order = choice_major, renorm = after, renorm_clamp_min = 1.000000e+00 : f64, layer = 7>
// REPORT: return %{{.*}}, %[[DA]]

// A gate's renormalisation moves behind its limit; two limits are reported as one sum.
// FACTOR-LABEL: func.func @plain
// FACTOR-SAME: -> (tensor<48x8xf32>, tensor<2xf32> {moe.name = "dropped_choices"})
// FACTOR: %[[G0:.*]] = moe.route <k = 2> of
// FACTOR: %[[R0:.*]], %[[D0:.*]] = moe.limit <rule = factor, value = 1.250000e+00 : f64, least = 4, renorm = before, renorm_epsilon = 1.000000e+00 : f64, scale = 2.500000e+00 : f64> of %[[G0]]
// FACTOR: moe.dispatch %{{.*}}, %[[R0]]
// FACTOR: %[[G1:.*]] = moe.route <k = 2, score = sparsemixer> of
// FACTOR: %{{.*}}, %[[D1:.*]] = moe.limit <rule = factor, value = 1.250000e+00 : f64, least = 4, layer = 1> of %[[G1]]
// FACTOR: %[[SUM:.*]] = moe.add %[[D0]], %[[D1]]
// FACTOR: return %{{.*}}, %[[SUM]]
// FACTOR-LABEL: func.func @own
// FACTOR: moe.limit <rule = factor, value = 1.250000e+00 : f64, least = 4, order = choice_major, renorm = after, renorm_clamp_min = 1.000000e+00 : f64> of

// RANDOM-LABEL: func.func @plain
// RANDOM-SAME: %[[STEP:[^ ]*]]: tensor<1xi32> {moe.fill = 0.000000e+00 : f64, moe.name = "step", moe.optional, moe.range = array<i64: 0, 2147483647>}
// RANDOM: moe.limit <rule = factor, value = 2.000000e+00 : f64, policy = random, {{.*}}seed = 815731525043> of %{{.*}} step %[[STEP]]
// RANDOM: moe.limit <rule = factor, value = 2.000000e+00 : f64, policy = random, seed = 815731525043, layer = 1> of %{{.*}} step %[[STEP]]

// NONE-LABEL: func.func @plain({{.*}}) -> tensor<48x8xf32> {
// NONE: moe.route <k = 2, renorm = sum, renorm_epsilon = 1.000000e+00 : f64, scale = 2.500000e+00 : f64> of
// NONE-NOT: moe.limit
// NONE-LABEL: func.func @own({{.*}}) -> tensor<48x8xf32> {
// NONE: %[[R:.*]] = moe.route <k = 2, renorm = sum, renorm_clamp_min = 1.000000e+00 : f64> of
// NONE-NOT: moe.limit
// NONE: moe.dispatch %{{.*}}, %[[R]]

// ERROR: MOE-0102: --drop-policy=probs needs --capacity-factor: the model has no capacity of its own

!r = !moe.routing<4x6, experts = 4, k = 2>
func.func @plain(%l: tensor<4x6x4xf32>, %x: tensor<4x6x8xf32>) -> tensor<48x8xf32> {
  %r0 = moe.route <k = 2, renorm = sum, renorm_epsilon = 1.0 : f64, scale = 2.5 : f64> of %l : (tensor<4x6x4xf32>) -> !r
  %d0 = moe.dispatch %x, %r0 : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
  %y0 = moe.combine %d0, %r0 : (tensor<48x8xf32>, !r) -> tensor<4x6x8xf32>
  %r1 = moe.route <k = 2, score = sparsemixer> of %l : (tensor<4x6x4xf32>) -> !r
  %d1 = moe.dispatch %y0, %r1 : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
  return %d1 : tensor<48x8xf32>
}
func.func @own(%l: tensor<4x6x4xf32>, %x: tensor<4x6x8xf32>) -> tensor<48x8xf32> {
  %r0 = moe.route <k = 2> of %l : (tensor<4x6x4xf32>) -> !r
  %r1, %dropped = moe.limit <rule = fixed, value = 3.0 : f64, order = choice_major, renorm = after, renorm_clamp_min = 1.0 : f64, layer = 7> of %r0 : (!r) -> (!r, tensor<2xf32>)
  %d = moe.dispatch %x, %r1 : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
  return %d : tensor<48x8xf32>
}
