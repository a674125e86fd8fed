//===- ProgramBuilder.h - emitting one plan.program -------------*- C++ -*-===//
// Views, instructions and weights of one program under construction, in terms of the tensors of the
// function that it comes from. Which op becomes which instruction is OpLowerings.cpp's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_CONVERSION_PROGRAMBUILDER_H
#define MOIRA_LIB_CONVERSION_PROGRAMBUILDER_H

#include "KernelGroups.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "llvm/ADT/StringMap.h"

namespace moira {

/// The views that one `!moe.routing` value is. A weight multiplies what an expert gives
/// (`weights`); where it multiplies what the expert gets (`inputWeights`, else null), `weights` are
/// ones. pos and groups are there once a dispatch has sorted by it.
struct RoutingViews {
  mlir::Value ids, weights, inputWeights, pos, groups;
};

inline constexpr llvm::StringLiteral kStateArena = "state", kActivationArena = "activations",
                                     kRaggedArena = "ragged", kHostStateArena = "host_state",
                                     kHostArena = "host", kComputeQueue = "compute",
                                     kCommQueue = "comm", kToHostQueue = "d2h",
                                     kToDeviceQueue = "h2d", kHostQueue = "host";

/// Where state tensors lie in the state arenas, the device's and the host's.
struct StatePlaces {
  struct Place {
    llvm::StringRef arena;
    uint64_t offset;
  };
  llvm::StringMap<Place> places;
  uint64_t bytes = 0, hostBytes = 0;
};

/// Adds a plan.state at `builder` for each state of the module that `wanted` accepts. `reference`:
/// whole tensors, in f32.
StatePlaces addStates(mlir::ModuleOp module, plan::PlanOp plan, bool reference,
                      llvm::function_ref<bool(moe::StateOp)> wanted, mlir::OpBuilder &builder);

class ProgramBuilder {
public:
  /// Builds into `plan`, at its end. A mesh program uses the `shared` states of the plan; null
  /// means a reference program: one rank, f32, states of its own, and no kernels (`kernels` is not
  /// used then).
  ProgramBuilder(plan::PlanOp plan, mlir::func::FuncOp source, const StatePlaces *shared,
                 kernels::KernelTable &kernels, bool fastest = false);

  /// All of the function. Errors are emitted at its ops.
  llvm::LogicalResult build();

  // --- for the lowerings of single ops
  bool isReference() const { return reference; }
  bool isForGpu() { return !reference && plan.getTarget() != "host"; }
  /// --attention-grad=fastest
  bool wantsFastest() const { return fastest; }
  /// The sums of weights that an attention's result, `attention`, is made with; null: nobody asked.
  mlir::Value &logSums(mlir::Value attention) { return attentionSums[attention]; }
  mlir::Value view(mlir::Value tensor) const { return views.lookup(tensor); }
  RoutingViews &routing(mlir::Value routing) { return routings[routing]; }
  /// A fresh view for the op's result; becomes view(tensor).
  mlir::Value define(mlir::Value tensor);
  mlir::Value define(plan::ViewType type);
  /// The op's result is in this view already.
  void alias(mlir::Value tensor, mlir::Value view) { views[tensor] = view; }
  plan::ViewType viewType(llvm::ArrayRef<int64_t> shape, mlir::Type element,
                          int64_t bound = -1) const;
  /// The view type of a local tensor: sharding encodings dropped, #dist.rows a bound.
  plan::ViewType viewType(mlir::Type tensor) const;
  /// How many ranks a collective over these axes joins.
  int64_t groupSize(mlir::ArrayAttr axes);
  /// A view of one i32 that is 0, written once at the program's start.
  mlir::Value zeroNeed();

  /// From here on instructions come from `op`.
  void setSource(mlir::Operation *op);
  void call(llvm::StringRef callee, llvm::ArrayRef<mlir::Value> inputs,
            llvm::ArrayRef<mlir::Value> outputs, llvm::ArrayRef<mlir::NamedAttribute> params);
  void collective(plan::CollectiveKind kind, mlir::Value input, mlir::Value output,
                  mlir::ArrayAttr axes, llvm::ArrayRef<mlir::NamedAttribute> params);
  void copy(mlir::Value input, mlir::Value output, int64_t dim, mlir::Attribute offset);
  void fill(mlir::Value output, double value);
  void requireBound(mlir::Value need, int64_t initial, int64_t worst);
  llvm::LogicalResult launch(plan::FusedOp fused);
  /// Lets tools look at what this op chooses (plan.trace), once its views are known.
  llvm::LogicalResult traceRouting(moe::RouteOp route);

  mlir::NamedAttribute integer(llvm::StringRef name, int64_t value);
  mlir::NamedAttribute real(llvm::StringRef name, double value);
  mlir::NamedAttribute text(llvm::StringRef name, llvm::StringRef value);
  /// `value` may be null: 0 on every rank.
  mlir::NamedAttribute offset(llvm::StringRef name, mlir::Attribute value);

  /// The view of a weight.
  llvm::LogicalResult defineParam(moe::ParamOp param);

private:
  llvm::LogicalResult checkTypes();
  llvm::LogicalResult addInputs();
  llvm::LogicalResult addOutputs();
  void addTraces();

  /// One moe.route and its choices as a global tensor.
  struct TracedRoute {
    mlir::Location loc;
    mlir::IntegerAttr layer;
    RoutingViews views;
    llvm::SmallVector<int64_t> shape; // [tokens.., k]
    dist::ShardingAttr sharding;      // null: not cut
  };

  plan::PlanOp plan;
  mlir::func::FuncOp source;
  bool reference, fastest;
  kernels::KernelTable &kernels;
  plan::ProgramOp program;
  mlir::OpBuilder builder; // instructions and views
  llvm::DenseMap<mlir::Value, mlir::Value> views;
  llvm::DenseMap<mlir::Value, RoutingViews> routings;
  llvm::DenseMap<mlir::Value, mlir::Value> attentionSums;
  const StatePlaces *shared;
  StatePlaces own; // of a reference program
  llvm::StringMap<mlir::Value> stateViews;
  llvm::SmallVector<TracedRoute> routes;
  mlir::Value zero;
  bool onHost = false; // fresh views and calls of the present op are the host's
  mlir::Location loc;
  mlir::StringAttr place;
  mlir::IntegerAttr layer;
};

/// Emits the instructions of one op of a function. Fails, with an error at the op, on an op that
/// the phase `localize` (or `import`, for a reference program) should not have left.
llvm::LogicalResult lowerOp(mlir::Operation *op, ProgramBuilder &builder);

} // namespace moira

#endif // MOIRA_LIB_CONVERSION_PROGRAMBUILDER_H
