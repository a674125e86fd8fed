// Every numbered constraint of the plan dialect has one case here that breaks it.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// -----

// ViewType C1
// expected-error @+1 {{C1: element type 'i8' is not}}
func.func private @f(!plan.view<2xi8>)

// -----

// ViewType C2
// expected-error @+1 {{C2: sizes must be positive, one is 0}}
func.func private @f(!plan.view<0xf32>)

// -----

// ViewType C3
// expected-error @+1 {{C3: bound = 1 is not one of 1 dimensions}}
func.func private @f(!plan.view<2xf32, bound = 1>)

// -----

// OperandAttr C1
// expected-error @+1 {{C1: element type 'i1' is not}}
#o = #plan.operand<in row 4xi1>

// -----

// OperandAttr C2
// expected-error @+1 {{C2: sizes must be positive, one is 0}}
#o = #plan.operand<out row 0xf32>

// -----

// PlanOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
// expected-error @+1 {{C1: 1 axes and 2 sizes}}
plan.plan "host" mesh ["tp"] = [2, 2] by "t" info #info {
}

// -----

// PlanOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
// expected-error @+1 {{C2: axis names must be unique and not empty}}
plan.plan "host" mesh ["tp", "tp"] = [2, 2] by "t" info #info {
}

// -----

// PlanOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
// expected-error @+1 {{C3: an axis has size 0}}
plan.plan "host" mesh ["tp"] = [0] by "t" info #info {
}

// -----

// PlanOp C4
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C4: a plan holds only sections, kernels, states and programs}}
  dist.mesh @mesh ["tp"] = [2]
}


// -----

// PlanOp C5
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh [] = [] by "t" info #info {
}
// expected-error @+1 {{C5: a module holds one plan}}
plan.plan "host" mesh [] = [] by "t" info #info {
}

// -----

// SectionOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C1: the bytes must be a dense_resource of type tensor<Nxi8>}}
  plan.section @s ptx for "sm_90" features "" = dense<1> : tensor<4xi8>
}


// -----

// KernelOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C1: @nowhere is not a plan.section}}
  plan.kernel @k in @nowhere takes [#plan.operand<out row 4xf32>]
}


// -----

// KernelOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C2: a kernel has a section or a spec}}
  plan.kernel @k takes [#plan.operand<out row 4xf32>]
}


// -----

// KernelOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C3: no operand is written}}
  plan.kernel @k computes "x" takes [#plan.operand<in row 4xf32>]
}


// -----

// ProgramOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C1: 3 ranks, the mesh has 2}}
  plan.program @p ranks 3 queues ["a"] {
  }
}


// -----

// ProgramOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C2: queue names must be unique and not empty}}
  plan.program @p ranks 2 queues ["a", "a"] {
  }
}


// -----

// ProgramOp C4
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C4: the bound must be [initial, largest]}}
  plan.program @p ranks 2 queues ["a"] bound [5, 4] {
  }
}


// -----

// ProgramOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C3: the program has no queue 'c'}}
    %e = plan.record on "c"
  }
}


// -----

// ProgramOp C5
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a"] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C5: a bounded view in a program without a bound}}
    %v = plan.view "m" : !plan.view<4xf32, bound = 0>
  }
}


// -----

// ProgramOp C6
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.kernel @k computes "x" takes [#plan.operand<in row 4xf32>, #plan.operand<in shared 2xf32>, #plan.operand<out row 4xf32>]
  plan.program @p ranks 1 reference queues ["a"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<3x4xf32>
    %w = plan.view "m" : !plan.view<2xf32>
    %y = plan.view "m" : !plan.view<3x4xf32>
    // expected-error @+1 {{C6: a reference program launches no kernel}}
    plan.launch @k(%x, %w) -> (%y) rows 3 on "a" : (!plan.view<3x4xf32>, !plan.view<2xf32>) -> !plan.view<3x4xf32>
  }
}


// -----

// ProgramOp C7
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C7: not a part of a program}}
    %c = dist.zero_need : tensor<1xi32>
  }
}


// -----

// ArenaOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C1: a second arena 'm'}}
    plan.arena "m" activations on device bytes 64 per_bound 0
  }
}


// -----

// ArenaOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C2: sizes must be multiples of 64}}
    plan.arena "n" activations on device bytes 65 per_bound 0
  }
}


// -----

// ArenaOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C3: only a ragged arena grows with B}}
    plan.arena "n" activations on device bytes 64 per_bound 64
  }
}


// -----

// StateOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C1: 'm' is not an arena with the role state}}
  plan.state "w" : tensor<4xf32> in "m" at 0
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
  }
}


// -----

// StateOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C2: the offset must be a multiple of 64}}
  plan.state "w" : tensor<4xf32> in "s" at 4
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
  }
}


// -----

// StateOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C3: the sharding does not divide}}
  plan.state "w" : tensor<5xf32, #dist.sharding<[{tp}]>> in "s" at 0
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
  }
}


// -----

// StateOp C4
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C4: bytes 192 to 320 do not lie in an arena of 256}}
  plan.state "w" : tensor<64xf32, #dist.sharding<[{tp}]>> in "s" at 192
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
  }
}


// -----

// StateOp C6
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  // expected-error @+1 {{C6: what holds nothing between steps has no source}}
  plan.state "w" : tensor<4xf32> in "s" at 0 from #moe.source<names = ["a"], disk_shape = [4]> transient
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
  }
}


// -----

// StateOp C5
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a"] {
    plan.arena "s" state on device bytes 256 per_bound 0
    // expected-error @+1 {{C5: a mesh program has the plan's states, none of its own}}
    plan.state "w" : tensor<4xf32> in "s" at 0
  }
}


// -----

// ViewOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C1: no arena 'q'}}
    %v = plan.view "q" : !plan.view<4xf32>
  }
}


// -----

// ViewOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C2: offsets must be multiples of 64}}
    %v = plan.view "m" at 8 : !plan.view<4xf32>
  }
}


// -----

// ViewOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    // expected-error @+1 {{C3: ends at byte 1152 of an arena of 1024 (B = 1)}}
    %v = plan.view "r" at 0 per_bound 128 : !plan.view<256xf32, bound = 0>
  }
}


// -----

// InputOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %v = plan.view "m" : !plan.view<4xf32>
    // expected-error @+1 {{C1: '!plan.view<4xf32>' does not hold a shard of 'tensor<4xf32, #dist.sharding<[{tp}]>>'}}
    plan.input "x" %v : tensor<4xf32, #dist.sharding<[{tp}]>> : !plan.view<4xf32>
  }
}


// -----

// InputOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %v = plan.view "m" : !plan.view<4xf32>
    // expected-error @+1 {{C2: a range is [least, largest] and belongs to integers}}
    plan.input "x" %v : tensor<4xf32> range [0, 1] : !plan.view<4xf32>
  }
}


// -----

// OutputOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %v = plan.view "m" : !plan.view<4xf32>
    // expected-error @+1 {{C1: '!plan.view<4xf32>' does not hold a shard of 'tensor<4xi32>'}}
    plan.output "x" %v : tensor<4xi32> : !plan.view<4xf32>
  }
}


// -----

// OutputOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %v = plan.view "m" : !plan.view<4xf32>
    // expected-error @+1 {{C2: a block has 4 elements, the tensors in the file have 5}}
    plan.output "x" %v : tensor<4xf32> : !plan.view<4xf32> as #moe.source<names = ["a"], disk_shape = [5]>
  }
}


// -----

// TraceOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "m" activations on device bytes 4096 per_bound 0
    %v = plan.view "m" : !plan.view<4xf32>
    plan.fill %v with 0.0 on "a" : !plan.view<4xf32>
    // expected-error @+1 {{C1: '!plan.view<4xf32>' does not hold a shard of 'tensor<4xf32, #dist.sharding<[{tp}]>>'}}
    plan.trace "x" %v : tensor<4xf32, #dist.sharding<[{tp}]>> : !plan.view<4xf32>
  }
}


// -----

// TraceOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "m" activations on device bytes 4096 per_bound 0
    %v = plan.view "m" : !plan.view<4xf32>
    plan.fill %v with 0.0 on "a" : !plan.view<4xf32>
    plan.call "add"(%v, %v) -> (%v) {} on "a" : (!plan.view<4xf32>, !plan.view<4xf32>) -> !plan.view<4xf32>
    // expected-error @+1 {{C2: 2 instructions write the view}}
    plan.trace "x" %v : tensor<8xf32, #dist.sharding<[{tp}]>> : !plan.view<4xf32>
  }
}


// -----

// LaunchOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.kernel @k computes "x" takes [#plan.operand<in row 4xf32>, #plan.operand<in shared 2xf32>, #plan.operand<out row 4xf32>]
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<3x4xf32>
    %w = plan.view "m" : !plan.view<2xf32>
    %y = plan.view "m" : !plan.view<3x4xf32>
    // expected-error @+1 {{C1: @other is not a plan.kernel}}
    plan.launch @other(%x, %w) -> (%y) rows 3 on "a" : (!plan.view<3x4xf32>, !plan.view<2xf32>) -> !plan.view<3x4xf32>
  }
}


// -----

// LaunchOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.kernel @k computes "x" takes [#plan.operand<in row 4xf32>, #plan.operand<in shared 2xf32>, #plan.operand<out row 4xf32>]
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<3x4xf32>
    %w = plan.view "m" : !plan.view<2xf32>
    %y = plan.view "m" : !plan.view<3x4xf32>
    // expected-error @+1 {{C2: no view for operand 1 of @k}}
    plan.launch @k(%x) -> (%y) rows 3 on "a" : (!plan.view<3x4xf32>) -> !plan.view<3x4xf32>
  }
}


// -----

// LaunchOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.kernel @k computes "x" takes [#plan.operand<in row 4xf32>, #plan.operand<in shared 2xf32>, #plan.operand<out row 4xf32>]
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<3x4xf32>
    %w = plan.view "m" : !plan.view<2xf32>
    %y = plan.view "m" : !plan.view<3x4xf32>
    // expected-error @+1 {{C3: operand 0 is}}
    plan.launch @k(%x, %w) -> (%y) rows 4 on "a" : (!plan.view<3x4xf32>, !plan.view<2xf32>) -> !plan.view<3x4xf32>
  }
}


// -----

// LaunchOp C4
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.kernel @k computes "x" takes [#plan.operand<in row 4xf32>, #plan.operand<in shared 2xf32>, #plan.operand<out row 4xf32>]
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<3x4xf32>
    %w = plan.view "m" : !plan.view<2xf32>
    %y = plan.view "m" : !plan.view<3x4xf32>
    // expected-error @+1 {{C4: rows is 0}}
    plan.launch @k(%x, %w) -> (%y) rows 0 on "a" : (!plan.view<3x4xf32>, !plan.view<2xf32>) -> !plan.view<3x4xf32>
  }
}


// -----

// CallOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C1: the registry has no call 'frobnicate'}}
    plan.call "frobnicate"(%x) -> (%y) {} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
  }
}


// -----

// CallOp C1, parameters
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C1: call clamp: parameter max is missing}}
    plan.call "clamp"(%x) -> (%y) {min = 0.0} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
  }
}


// -----

// CollectiveOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C1: one view in and one out, of one element type}}
    plan.collective all_reduce(%x) -> (%i) over ["tp"] {op = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xi32>
  }
}


// -----

// CollectiveOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C2: "ep" is no axis}}
    plan.collective all_reduce(%x) -> (%y) over ["ep"] {op = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
  }
}


// -----

// CollectiveOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C3: all_gather wants an integer 'dim' under 2}}
    plan.collective all_gather(%x) -> (%y) over ["tp"] {op = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
  }
}


// -----

// CollectiveOp C4
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C4: '!plan.view<4x4xf32>' over 2 ranks does not give '!plan.view<4x4xf32>'}}
    plan.collective all_gather(%x) -> (%y) over ["tp"] {dim = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
  }
}


// -----

// CopyOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C1: one view in and one out, of one element type}}
    plan.copy(%x) -> (%i) {dim = 0 : i64, start = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xi32>
  }
}


// -----

// CopyOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C2: the parameters are integers dim and start, and perhaps offset}}
    plan.copy(%x) -> (%y) {dim = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<4x4xf32>
  }
}


// -----

// CopyOp C3
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{may differ only along dim 1}}
    plan.copy(%x) -> (%z) {dim = 1 : i64, start = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<2x4xf32>
  }
}


// -----

// CopyOp C4
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C4: elements 0 to 5 of a dimension of 4}}
    plan.copy(%x) -> (%z) {dim = 0 : i64, offset = #dist.offset<{tp} * 3>, start = 0 : i64} on "a" : (!plan.view<4x4xf32>) -> !plan.view<2x4xf32>
  }
}


// -----

// FillOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C1: the value must be finite}}
    plan.fill %x with 0x7FF0000000000000 on "a" : !plan.view<4x4xf32>
  }
}


// -----

// WaitOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %e = plan.record on "a"
    // expected-error @+1 {{C1: the event was recorded on the same queue}}
    plan.wait %e on "a"
  }
}


// -----

// RequireBoundOp C1
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] bound [1, 4] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %x = plan.view "m" : !plan.view<4x4xf32>
    %y = plan.view "m" : !plan.view<4x4xf32>
    %z = plan.view "m" : !plan.view<2x4xf32>
    %i = plan.view "m" : !plan.view<4x4xi32>
    // expected-error @+1 {{C1: the view must be 1xi32}}
    plan.require_bound %x on "a" : !plan.view<4x4xf32>
  }
}


// -----

// RequireBoundOp C2
#info = #plan.info<model_class = "m", task = "forward", dtype = f32, batch = 1, seq = 1, parameters = 0, active_parameters = 0, tensors_expected = 0, tensors_found = 0>
plan.plan "host" mesh ["tp"] = [2] by "t" info #info {
  plan.program @p ranks 2 queues ["a", "b"] {
    plan.arena "s" state on device bytes 256 per_bound 0
    plan.arena "m" activations on device bytes 4096 per_bound 0
    plan.arena "r" ragged on device bytes 0 per_bound 1024
    %n = plan.view "m" : !plan.view<1xi32>
    // expected-error @+1 {{C2: the program has no bound}}
    plan.require_bound %n on "a" : !plan.view<1xi32>
  }
}


// -----

// FusedOp C1
func.func @f(%a: tensor<2xf32>) -> tensor<2xf32> {
  // expected-error @+1 {{C1: the body's arguments do not have the operands' types}}
  %0 = plan.fused(%a) : (tensor<2xf32>) -> tensor<2xf32> {
  ^bb0(%x: tensor<3xf32>):
    plan.yield %x : tensor<3xf32>
  }
  return %0 : tensor<2xf32>
}

// -----

// FusedOp C2
func.func @f(%a: tensor<2xf32>) -> tensor<2xf32> {
  // expected-error @+1 {{C2: the body must yield the results' types}}
  %0 = plan.fused(%a) : (tensor<2xf32>) -> tensor<2xf32> {
  ^bb0(%x: tensor<2xf32>):
    plan.yield
  }
  return %0 : tensor<2xf32>
}

// -----

// FusedOp C3
func.func @f(%a: tensor<2xf32>) -> tensor<2xf32> {
  // expected-error @+1 {{C3: the body is empty}}
  %0 = plan.fused(%a) : (tensor<2xf32>) -> tensor<2xf32> {
  ^bb0(%x: tensor<2xf32>):
    plan.yield %x : tensor<2xf32>
  }
  return %0 : tensor<2xf32>
}

// -----

// GroupedGluGradOp C1
func.func @f(%dy: tensor<80x15xbf16>, %g: tensor<1x2xi32>, %pos: tensor<40x2xi32>, %r: !moe.routing<40, experts = 2, k = 2>, %w: tensor<2x16x8xbf16>, %z: tensor<80x2x8xbf16>) {
  // expected-error @+1 {{C1: w is not [E,D,F], or dy not [R,D]}}
  %0:3 = plan.grouped_glu_grad silu %dy by %g, %pos, %r, %w, %z : (tensor<80x15xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, !moe.routing<40, experts = 2, k = 2>, tensor<2x16x8xbf16>, tensor<80x2x8xbf16>) -> (tensor<80x2x8xbf16>, tensor<80x8xbf16>, tensor<40x2xf32>)
  return
}

// -----

// GroupedGluGradOp C2
func.func @f(%dy: tensor<80x16xbf16>, %g: tensor<1x2xi32>, %pos: tensor<40x2xi32>, %r: !moe.routing<40, experts = 2, k = 2>, %w: tensor<2x16x8xbf16>, %z: tensor<80x16xbf16>) {
  // expected-error @+1 {{C2: z is not [R,2,F], or groups are not [1,E]}}
  %0:3 = plan.grouped_glu_grad silu %dy by %g, %pos, %r, %w, %z : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, !moe.routing<40, experts = 2, k = 2>, tensor<2x16x8xbf16>, tensor<80x16xbf16>) -> (tensor<80x16xbf16>, tensor<80x8xbf16>, tensor<40x2xf32>)
  return
}

// -----

// GroupedGluGradOp C3
func.func @f(%dy: tensor<80x16xbf16>, %g: tensor<1x2xi32>, %pos: tensor<40x2xi32>, %r: !moe.routing<40, experts = 2, k = 2>, %w: tensor<2x16x8xbf16>, %z: tensor<80x2x8xbf16>) {
  // expected-error @+1 {{C3: dz has not z's type, or act is not [R,F], or dots are not f32 in pos' shape}}
  %0:3 = plan.grouped_glu_grad silu %dy by %g, %pos, %r, %w, %z : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, !moe.routing<40, experts = 2, k = 2>, tensor<2x16x8xbf16>, tensor<80x2x8xbf16>) -> (tensor<80x2x8xbf16>, tensor<80x8xbf16>, tensor<40x2xbf16>)
  return
}

// -----

func.func @move_to_nowhere(%a: tensor<2xf32>) -> tensor<2xf32> {
  // expected-error@+1 {{C1: goes to device or host}}
  %0 = plan.move %a to pinned : tensor<2xf32>
  func.return %0 : tensor<2xf32>
}

// -----

func.func @move_of_ragged_rows(%a: tensor<8x2xf32, #dist.rows<0, 2>>) {
  // expected-error@+1 {{C2: not a whole tensor of one rank}}
  %0 = plan.move %a to host : tensor<8x2xf32, #dist.rows<0, 2>>
  func.return
}
