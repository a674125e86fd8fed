// On a GPU one call finds the maximum of a row's logits and the statistics about it, where ranks do not join their maxima between the two and nobody else waits for it. The gradient
// reads the maximum that this call gives. On the host they stay two.
// RUN: moe-opt %s --plan-lower=target=sm_90 | FileCheck %s
// RUN: moe-opt %s --plan-lower | FileCheck %s --check-prefix=HOST

// CHECK-LABEL: plan.program @whole
// CHECK-NOT: plan.call "row_max"
// CHECK: plan.call "row_max_stats"(%[[X:[0-9]+]], %[[LABELS:[0-9]+]]) -> (%[[MAX:[0-9]+]], %[[STATS:[0-9]+]]) {classes = 9 : i64, column_offset = {{.*}}}
// CHECK-NOT: plan.call "cross_entropy_stats"
// CHECK: plan.call "cross_entropy_stats_grad"(%{{[0-9]+}}, %[[X]], %[[MAX]], %[[LABELS]])
// CHECK: plan.output "stats" %[[STATS]]
// HOST-LABEL: plan.program @whole
// HOST: plan.call "row_max"
// HOST: plan.call "cross_entropy_stats"

// CHECK-LABEL: plan.program @cut
// CHECK: plan.call "row_max"
// CHECK: plan.collective all_reduce
// CHECK: plan.call "cross_entropy_stats"

// CHECK-LABEL: plan.program @read_before
// CHECK: plan.call "row_max"
// CHECK: plan.call "cross_entropy_stats"

// CHECK-LABEL: plan.program @of_others
// CHECK: plan.call "row_max"
// CHECK: plan.call "cross_entropy_stats"

!x = tensor<6x9xf32>
!t = tensor<6xf32>
!l = tensor<6xi32>
!s = tensor<6x3xf32>
dist.mesh @mesh ["tp"] = [2]
func.func @whole(%x: !x {moe.name = "x"}, %labels: !l {moe.name = "labels", moe.range = array<i64: 0, 8>}, %d: !s {moe.name = "d"}) -> (!s {moe.name = "stats"}, !x {moe.name = "dx"}) {
  %max = moe.row_max %x classes 9 : (!x) -> !t
  %stats = moe.cross_entropy_stats %x, %max, %labels classes 9 : (!x, !t, !l) -> !s
  %dx = moe.cross_entropy_stats_grad %d, %x, %max, %labels classes 9 : (!s, !x, !t, !l) -> !x
  return %stats, %dx : !s, !x
}
func.func @cut(%x: !x {moe.name = "x"}, %labels: !l {moe.name = "labels", moe.range = array<i64: 0, 17>}) -> (!s {moe.name = "stats"}) {
  %max = moe.row_max %x classes 18 {column_offset = #dist.offset<{tp} * 9>} : (!x) -> !t
  %all = dist.all_reduce max %max over ["tp"] : !t -> !t
  %stats = moe.cross_entropy_stats %x, %all, %labels classes 18 {column_offset = #dist.offset<{tp} * 9>} : (!x, !t, !l) -> !s
  return %stats : !s
}
func.func @read_before(%x: !x {moe.name = "x"}, %labels: !l {moe.name = "labels", moe.range = array<i64: 0, 8>}) -> (!s {moe.name = "stats"}, !t {moe.name = "twice"}) {
  %max = moe.row_max %x classes 9 : (!x) -> !t
  %twice = moe.scale %max by 2.0 : (!t) -> !t
  %stats = moe.cross_entropy_stats %x, %max, %labels classes 9 : (!x, !t, !l) -> !s
  return %stats, %twice : !s, !t
}
func.func @of_others(%x: !x {moe.name = "x"}, %y: !x {moe.name = "y"}, %labels: !l {moe.name = "labels", moe.range = array<i64: 0, 8>}) -> (!s {moe.name = "stats"}) {
  %max = moe.row_max %x classes 9 : (!x) -> !t
  %stats = moe.cross_entropy_stats %y, %max, %labels classes 9 : (!x, !t, !l) -> !s
  return %stats : !s
}
