// A program has random drops of its own; a new capacity keeps them, and takes their seed from the command line.
// RUN: moe-opt %s --capacity-factor=2 --drop-seed=7 --compile-to=import | FileCheck %s
// CHECK: moe.limit <rule = factor, value = 2.000000e+00 : f64, least = 4, policy = random, seed = 7> of
// Without one the program's capacity stays as it is, and so does its seed.
// RUN: not moe-opt %s --drop-seed=7 --compile-to=import 2>&1 | FileCheck %s --check-prefix=ALONE
// RUN: not moe-opt %s --capacity-factor=2 --drop-policy=position --drop-seed=7 --compile-to=import 2>&1 | FileCheck %s --check-prefix=ALONE
// ALONE: error MOE-0102: --drop-seed is for --drop-policy=random

!r = !moe.routing<4x6, experts = 4, k = 2>
func.func @forward(%l: tensor<4x6x4xf32> {moe.name = "l"}, %x: tensor<4x6x8xf32> {moe.name = "x"}, %step: tensor<1xi32> {moe.name = "step"}) -> (tensor<4x6x8xf32> {moe.name = "y"}) {
  %all = moe.route <k = 2> of %l : (tensor<4x6x4xf32>) -> !r
  %r, %dropped = moe.limit <rule = fixed, value = 3.0 : f64, policy = random, seed = 5> of %all step %step : (!r, tensor<1xi32>) -> (!r, tensor<2xf32>)
  %d = moe.dispatch %x, %r : (tensor<4x6x8xf32>, !r) -> tensor<48x8xf32>
  %y = moe.combine %d, %r : (tensor<48x8xf32>, !r) -> tensor<4x6x8xf32>
  return %y : tensor<4x6x8xf32>
}
