//===- Passes.td - the partitioning passes ------------------------------------*- tablegen -*-===//
// Flags, options and statistics; each pass is one file in lib/Transforms, and Pipelines.cpp says why
// they stand in their order.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_TRANSFORMS_PASSES
#define MOIRA_TRANSFORMS_PASSES

include "mlir/Pass/PassBase.td"

class Dist_Pass<string flag> : Pass<flag, "::mlir::ModuleOp"> {
  let dependentDialects = ["::moira::dist::DistDialect", "::moira::moe::MoeDialect"];
}

//===----------------------------------------------------------------------===//
// On the global program
//===----------------------------------------------------------------------===//

def MoeLimitCapacity : Dist_Pass<"moe-limit-capacity"> {
  let summary = "Give experts a capacity, change or remove the model's, and report what is dropped";
  let options = [Option<"factor", "factor", "double", "-1", "capacity factor; negative: leave capacities as they are">,
                 Option<"policy", "policy", "std::string", "\"\"", "none, position, probs, random or priority; empty: as it is">,
                 Option<"minimum", "minimum", "int64_t", "4", "least capacity that a factor gives">,
                 Option<"seed", "seed", "int64_t", "0", "seed of random draws">];
  let statistics = [Statistic<"limits", "limits", "Capacities added">];
}

def MoeRouterNoise : Dist_Pass<"moe-router-noise"> {
  let summary = "Multiply what gates read by random factors, or let gates draw their choices, as the model's moe.router_noise says";
  let options = [Option<"microBatches", "micro-batches", "int64_t", "1", "parts of the batch, of which the program takes one">,
                 Option<"seed", "seed", "int64_t", "0", "seed of the draws">];
  let statistics = [Statistic<"gates", "gates", "Gates with noise">];
}

def MoeAddLoss : Dist_Pass<"moe-add-loss"> {
  let summary = "Make a program that gives logits one that gives a loss";
  let options = [Option<"program", "program", "std::string", "\"grad\"", "the program's new name">,
                 Option<"microBatches", "micro-batches", "int64_t", "1", "parts of the batch, of which the program takes one; the number of labels that count in all is then an input">,
                 Option<"smoothing", "label-smoothing", "double", "0", "label smoothing">,
                 Option<"balance", "aux-loss", "double", "0", "share of the routers' load-balancing losses">,
                 Option<"perSequence", "aux-loss-per-sequence", "bool", "false", "whether they are means of each sequence's own">,
                 Option<"z", "z-loss", "double", "0", "share of the routers' z-losses">];
}

def MoeAutodiff : Dist_Pass<"moe-autodiff"> {
  let summary = "Add the gradients of its losses to the results of every program that has some, for each state";
  let statistics = [Statistic<"gradients", "gradients", "Gradients added">];
}

def MoeVjp : Dist_Pass<"moe-vjp"> {
  let summary = "Add the gradients of all results to the results, for each argument: cotangents of the results become arguments (for tests of single operations)";
}

def MoeNarrowGradients : Dist_Pass<"moe-narrow-gradients"> {
  let summary = "Round gradients of weights to bf16 in the products of bf16 that make them, where these alone give the gradient";
  let statistics = [Statistic<"narrowed", "narrowed", "Gradients that became bf16">];
}

def MoeNarrowCotangents : Dist_Pass<"moe-narrow-cotangents"> {
  let summary = "Take cotangents of bf16 results, and give gradients of bf16 arguments, in bf16";
  let statistics = [Statistic<"narrowed", "narrowed", "Cotangents and gradients that became bf16">];
}

def MoeMasterWeights : Dist_Pass<"moe-master-weights"> {
  let summary = "Keep every state that has a gradient in f32, and round it where products take it narrower";
  let statistics = [Statistic<"states", "states", "States that were widened">];
}

def MoeAddLoads : Dist_Pass<"moe-add-loads"> {
  let summary = "Add to the results of a program that gives gradients how many choices went to the experts, for the states that are updated by it";
  let options = [Option<"biases", "biases", "bool", "false", "for selection biases">,
                 Option<"experts", "experts", "bool", "false", "for experts that are parameters of their own">];
  let statistics = [Statistic<"loads", "loads", "Loads added">];
}

def MoeMicroBatches : Dist_Pass<"moe-micro-batches"> {
  let summary = "Make a program that gives losses and gradients two: one adds up those of a part of the batch, one gives the sums";
  let options = [Option<"count", "parts", "int64_t", "1", "parts of the batch">];
  let statistics = [Statistic<"sums", "sums", "Values that are added up">];
}

def MoeAddOptimizer : Dist_Pass<"moe-add-optimizer"> {
  let summary = "Update every state by its gradient instead of giving the gradients as results";
  let options = [Option<"optimizer", "optimizer", "std::string", "\"adamw\"", "adamw, adafactor or sgd">,
                 Option<"lr", "lr", "double", "0.001", "learning rate of a run that gives none">,
                 Option<"beta1", "beta1", "double", "0.9", "adamw">,
                 Option<"beta2", "beta2", "double", "0.999", "adamw">,
                 Option<"eps", "eps", "double", "1e-8", "adamw; adafactor: what squares of gradients are added to">,
                 Option<"eps2", "eps2", "double", "1e-3", "adafactor: least root mean square of a parameter">,
                 Option<"decayRate", "decay-rate", "double", "0.8", "adafactor">,
                 Option<"clipThreshold", "clip-threshold", "double", "1", "adafactor: largest root mean square of an update">,
                 Option<"scaleParameter", "scale-parameter", "bool", "true", "adafactor: the rate is relative to a parameter's root mean square">,
                 Option<"weightDecay", "weight-decay", "double", "0.01", "decoupled for adamw">,
                 Option<"momentum", "momentum", "double", "0", "sgd">,
                 Option<"nesterov", "nesterov", "bool", "false", "sgd">,
                 Option<"biasRate", "bias-update-rate", "double", "0", "step of selection biases towards an even load; 0: they stay">,
                 Option<"clipNorm", "clip-norm", "double", "0", "largest norm of all gradients together; 0: any">];
  let statistics = [Statistic<"updates", "updates", "States that are updated">];
}

//===----------------------------------------------------------------------===//
// Phase shard
//===----------------------------------------------------------------------===//

def DistAttachMesh : Dist_Pass<"dist-attach-mesh"> {
  let summary = "Put the mesh into the module";
  let options = [Option<"mesh", "mesh", "std::string", "\"\"", "axes and sizes, major to minor: dp=2,ep=4">];
  let statistics = [Statistic<"ranks", "ranks", "Ranks of the mesh">];
}

def DistCheckDivisibility : Dist_Pass<"dist-check-divisibility"> {
  let summary = "Refuse a mesh that does not divide the model, with all violations and the nearest meshes that do";
  let statistics = [Statistic<"constraints", "constraints", "Sizes that were checked">];
}

def DistShardData : Dist_Pass<"dist-shard-data"> {
  let summary = "Split the tokens: inputs and embeddings over dp and ep";
  let statistics = [Statistic<"seeds", "seeds", "Values that got a sharding">];
}

def DistShardExpert : Dist_Pass<"dist-shard-expert"> {
  let summary = "Split the experts over ep";
  let options = [Option<"raggedBound", "ragged-bound", "int64_t", "0", "initial bound of ragged rows; 0: the default">];
  let statistics = [Statistic<"seeds", "seeds", "Weights that were split">];
}

def DistShardTensor : Dist_Pass<"dist-shard-tensor"> {
  let summary = "Split heads, widths and the vocabulary over tp";
  let statistics = [Statistic<"seeds", "seeds", "Weights that were split">,
                    Statistic<"replicated", "kv-replicated", "Key/value projections that tp does not divide">];
}

def DistPropagate : Dist_Pass<"dist-propagate"> {
  let summary = "Give every value a sharding; conflicts become dist.reshard";
  let statistics = [Statistic<"reshards", "reshards", "Reshards inserted">];
}

def DistExpandNorms : Dist_Pass<"dist-expand-norms"> {
  let summary = "Split norms over cut dimensions into a sum of squares, its reduction and the scaling";
  let statistics = [Statistic<"expanded", "expanded", "Norms expanded">];
}

def DistShardZero : Dist_Pass<"dist-shard-zero"> {
  let summary = "Split updates, what optimizers keep and, at stage 3, weights over the ranks that replicate a weight (ZeRO)";
  let options = [Option<"stage", "stage", "int64_t", "0", "0: nothing; 1, 2: optimizer states; 3: weights too">];
  let statistics = [Statistic<"cut", "cut", "Weights whose update is split">,
                    Statistic<"uncut", "uncut", "Replicated weights that no dimension lets split">];
}

def DistVerifyShard : Dist_Pass<"dist-verify-shard"> {
  let summary = "Check what the phase shard promises";
}

//===----------------------------------------------------------------------===//
// Phase partition
//===----------------------------------------------------------------------===//

def DistLowerDispatch : Dist_Pass<"dist-lower-dispatch"> {
  let summary = "Turn dispatch and combine into an exchange of rows, or a selection where tokens are replicated";
  let statistics = [Statistic<"exchanged", "exchanged", "Dispatches by all_to_all">,
                    Statistic<"selected", "selected", "Dispatches without an exchange">];
}

def DistLowerReshards : Dist_Pass<"dist-lower-reshards"> {
  let summary = "Turn reshards into the cheapest collectives";
  let statistics = [Statistic<"collectives", "collectives", "Collectives made">, Statistic<"slices", "slices", "Slices made">];
}

def DistOptimizeCollectives : Dist_Pass<"dist-optimize-collectives"> {
  let summary = "Merge, fuse and drop collectives";
  let statistics = [Statistic<"scattered", "scattered", "all_reduce + slice made a reduce_scatter">,
                    Statistic<"summed", "summed", "Sums of all_reduces made an all_reduce of a sum">,
                    Statistic<"duplicates", "duplicates", "Collectives that another one already computed">];
}

def DistRecompute : Dist_Pass<"dist-recompute"> {
  let summary = "Make values of the forward program again for the backward one instead of keeping them";
  let description = [{
    `none` keeps everything. `selective` keeps the fewest bytes without repeating a product, an attention or a collective. `full` keeps what goes from one layer to the next, and
    repeats what is within one. A routing, the integers that are made of it, and what stands outside of the layers are kept. Locations say which layer an operation is of.
  }];
  let options = [Option<"policy", "policy", "std::string", "\"none\"", "none, selective or full">,
                 Option<"remark", "remark", "bool", "false", "say how much is kept and repeated">];
  let statistics = [Statistic<"keptBytes", "kept-bytes", "Bytes on a rank that are kept">,
                    Statistic<"recomputed", "recomputed", "Operations that are repeated">];
}

def DistRegatherWeights : Dist_Pass<"dist-regather-weights"> {
  let summary = "Gather weights that are cut at rest anew for uses that stand far apart";
  let options = [Option<"distance", "distance", "int64_t", "32", "operations between two uses that share a gather, at most">];
  let statistics = [Statistic<"gathers", "gathers", "Gathers of weights">];
}

def DistVerifyPartition : Dist_Pass<"dist-verify-partition"> {
  let summary = "Check what the phase partition promises";
  let options = [Option<"gatherRemarkBytes", "gather-remark-bytes", "int64_t", "0",
                        "remark on every all_gather whose result has at least so many bytes on a rank; 0: none">];
  let statistics = [Statistic<"largeGathers", "large-gathers", "all_gathers remarked on">];
}

//===----------------------------------------------------------------------===//
// Phase localize
//===----------------------------------------------------------------------===//

def DistLocalize : Dist_Pass<"dist-localize"> {
  let summary = "Divide every shape by its sharding: one program for all ranks";
  let statistics = [Statistic<"values", "values", "Values whose shape changed">];
}

def DistVerifyLocalize : Dist_Pass<"dist-verify-localize"> {
  let summary = "Check what the phase localize promises";
}

#endif // MOIRA_TRANSFORMS_PASSES
