//===- LowerDispatch.cpp - --dist-lower-dispatch --------------------------===//
// Globally, dispatch is one permutation of all rows. On a mesh a rank sorts its own rows by expert;
// where the experts' axes split the tokens too, rows then travel (pack → all_to_all → regroup, and
// ungroup → all_to_all → unpack on the way back), else every rank selects the rows of its own
// experts and what comes out is partial over the experts' axes (select, merge).
//
// A rank cannot know how many rows it will get. It keeps slots of B rows and notes the largest
// number that any slot needed; this `need` runs through the dispatches of a program and is compared
// with B once, behind the last, so that the usual path waits for the host no more than that. A
// routing that is dispatched again, as the backward pass does, needs what it needed before: of
// those only the first counts, and updates need not wait for the end of the backward pass.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Dialect/Moe/IR/RaggedRows.h"
#include "moira/Transforms/Passes.h"
#include "llvm/ADT/TypeSwitch.h"

namespace moira {
#define GEN_PASS_DEF_DISTLOWERDISPATCH
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ReduceKind;
using dist::ShardingAttr;

using Axes = SmallVector<StringAttr>;

namespace {
/// What a dispatch became; its matmuls and its combine need it.
struct Lowered {
  moe::RaggedRows rows;
  int64_t shards = 1, segments = 1;
  Value counts, groups, pos;
  llvm::DenseMap<Value, Value> back; // rows → slots, at home again
};

struct LowerDispatch : moira::impl::DistLowerDispatchBase<LowerDispatch> {
  void runOnOperation() override {
    mesh = dist::getMesh(getOperation());
    deterministic = getOperation()->hasAttr(moe::MoeDialect::kDeterministic);
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal() && failed(lower(func)))
        return signalPassFailure();
  }

private:
  MeshInfo mesh;
  bool deterministic = false;
  Axes needAxes;
  Value need;
  int64_t bound, worst; // of growable rows; 0 if there are none
  std::vector<Lowered> lowered;
  llvm::DenseMap<Value, size_t> madeBy;  // rows → index into lowered
  llvm::DenseMap<Value, size_t> counted; // routing → the dispatch that its need is known of
  llvm::DenseMap<Value, Value> samples;  // routing → rows by sample and expert

  LogicalResult lower(func::FuncOp func) {
    SmallVector<moe::DispatchOp> dispatches(func.getOps<moe::DispatchOp>());
    if (dispatches.empty())
      return success();
    needAxes.clear();
    lowered.clear();
    madeBy.clear();
    counted.clear();
    samples.clear();
    bound = worst = 0;
    for (moe::DispatchOp op : dispatches) {
      ShardingAttr tokens = shardingOf(op.getRouting());
      if (!tokens || !shardingOf(op.getResult()))
        return op.emitOpError("MOE-0601: has no sharding; run the phase shard first");
      FailureOr<moe::RaggedRows> rows = moe::raggedRows(op, mesh, tokens);
      if (failed(rows))
        return failure();
      addAxes(needAxes, rows->rowAxes);
      addAxes(needAxes, rows->expertAxes);
    }
    OpBuilder b(dispatches.front());
    need = dist::ZeroNeedOp::create(b, func.getLoc(), needType(needAxes));

    for (Operation &op : llvm::make_early_inc_range(func.front())) {
      if (auto dispatch = dyn_cast<moe::DispatchOp>(op)) {
        if (failed(lower(dispatch)))
          return failure();
      } else if (auto combine = dyn_cast<moe::CombineOp>(op)) {
        if (failed(lower(combine)))
          return failure();
      } else if (auto dots = dyn_cast<moe::ChoiceDotsOp>(op)) {
        if (failed(lower(dots)))
          return failure();
      } else if (op.getNumOperands() && madeBy.count(op.getOperand(0))) {
        size_t index = madeBy.lookup(op.getOperand(0));
        llvm::TypeSwitch<Operation *>(&op)
            .Case<moe::GroupedMatmulOp, moe::GroupedBiasOp, moe::GroupedInputGradOp>(
                [&](auto grouped) { grouped.getGroupsMutable().assign(lowered[index].groups); })
            .Case<moe::GroupedWeightGradOp, moe::GroupedBiasGradOp>([&](auto grouped) {
              if (deterministic)
                grouped.getSamplesMutable().assign(samplesOf(
                    grouped, cast<TypedValue<moe::RoutingType>>(grouped.getGroups()), index));
              grouped.getGroupsMutable().assign(lowered[index].groups);
            });
        for (Value result : op.getResults())
          madeBy[result] = index;
      }
    }
    if (bound)
      require(func);
    return success();
  }

  /// The rows of every sample and expert, as the rows of a dispatch are cut; of a module that is
  /// moe.deterministic, in which tokens are cut by samples only. Made once for a routing.
  Value samplesOf(Operation *before, TypedValue<moe::RoutingType> routing, size_t index) {
    Value &known = samples[routing];
    if (known)
      return known;
    const moe::RaggedRows &rows = lowered[index].rows;
    OpBuilder b(before);
    int64_t batch = routing.getType().getTokens().front(), experts = routing.getType().getExperts();
    auto made = tensorOf(
        {batch, experts}, i32(),
        ShardingAttr::get(&getContext(), {shardingOf(routing).getDims().front(), whole()}));
    known = dist::SampleCountsOp::create(b, before->getLoc(), made, routing);
    if (rows.exchange)
      known = dist::AllToAllOp::create(
          b, before->getLoc(),
          dist::withSharding(
              made, ShardingAttr::get(&getContext(), {cut(rows.rowAxes), cut(rows.expertAxes)})),
          known, 0, 1, axesAttr(rows.expertAxes));
    return known;
  }

  /// One more axis each, in the mesh's order.
  void addAxes(Axes &axes, ArrayRef<StringAttr> more) {
    Axes all;
    for (StringAttr axis : mesh.names)
      if (llvm::is_contained(axes, axis) || llvm::is_contained(more, axis))
        all.push_back(axis);
    axes = all;
  }

  RankedTensorType needType(ArrayRef<StringAttr> partial) {
    return tensorOf(
        {1}, i32(),
        ShardingAttr::replicated(&getContext(), 1).withPartial(partial, ReduceKind::max));
  }

  Type i32() { return IntegerType::get(&getContext(), 32); }
  static RankedTensorType tensorOf(ArrayRef<int64_t> shape, Type element, ShardingAttr sharding) {
    return RankedTensorType::get(shape, element, sharding);
  }
  DimShardingAttr cut(ArrayRef<StringAttr> axes) {
    return DimShardingAttr::split(&getContext(), axes);
  }
  DimShardingAttr whole() { return DimShardingAttr::replicated(&getContext()); }

  /// Runs of tokens that must keep their order: where an exchange's axes cut a dimension behind the
  /// first one, a rank's tokens are one stretch for each index before it.
  FailureOr<int64_t> segmentsOf(moe::DispatchOp op, const moe::RaggedRows &rows) {
    ShardingAttr tokens = shardingOf(op.getRouting());
    int64_t segments = 1, before = 1;
    bool found = false;
    for (auto [size, dim] : llvm::zip(op.getRouting().getType().getTokens(), tokens.getDims())) {
      bool exchanged = llvm::any_of(dim.getAxes(), [&](StringAttr axis) {
        return llvm::is_contained(rows.expertAxes, axis);
      });
      if (exchanged && found)
        return op.emitOpError("MOE-0601: the expert axes may cut only one dimension of the tokens");
      if (exchanged)
        segments = before;
      found |= exchanged;
      before *= dist::localSize(size, dim, mesh);
    }
    return segments;
  }

  LogicalResult lower(moe::DispatchOp op) {
    ShardingAttr tokens = shardingOf(op.getRouting()), out = shardingOf(op.getResult());
    auto routing = op.getRouting().getType();
    auto type = op.getType();
    Lowered made;
    made.rows = *moe::raggedRows(op, mesh, tokens);
    FailureOr<int64_t> segments = segmentsOf(op, made.rows);
    if (failed(segments))
      return failure();
    made.segments = made.rows.exchange ? *segments : 1;
    Axes all = made.rows.rowAxes;
    if (made.rows.exchange)
      llvm::append_range(all, made.rows.expertAxes);
    made.shards = mesh.sizeOf(all);
    int64_t slotRows =
        out.getDims()[0].getBound(); // the program's B, maybe more than this op's own
    if (out.getDims()[0].isGrowable()) {
      bound = std::max(bound, slotRows);
      worst = std::max(worst, made.rows.worst);
    }

    OpBuilder b(op);
    Location loc = op.getLoc();
    SmallVector<int64_t> posShape(routing.getTokens());
    posShape.push_back(routing.getK());
    SmallVector<DimShardingAttr> posDims(tokens.getDims());
    posDims.push_back(whole());
    ShardingAttr pos = ShardingAttr::get(&getContext(), posDims);
    int64_t experts = routing.getExperts(), parts = mesh.sizeOf(made.rows.expertAxes);
    Value rows, needed;
    if (made.rows.exchange) {
      ArrayAttr axes = axesAttr(made.rows.expertAxes);
      int64_t width = experts / parts * made.segments;
      auto slots = tensorOf({made.shards, parts, slotRows, type.getDimSize(1)},
                            type.getElementType(), slotSharding(made, out, /*sent=*/false));
      auto counts = tensorOf({made.shards, parts, width}, i32(),
                             ShardingAttr::get(&getContext(), {cut(all), whole(), whole()}));
      auto pack = dist::PackOp::create(b, loc, slots, counts, tensorOf(posShape, i32(), pos),
                                       needType(needAxes), op.getX(), op.getRouting(), need,
                                       made.segments, op.getWeighted());
      auto gotSlots = dist::withSharding(slots, slotSharding(made, out, /*sent=*/true));
      auto gotCounts = dist::withSharding(
          counts, ShardingAttr::get(&getContext(),
                                    {cut(made.rows.rowAxes), cut(made.rows.expertAxes), whole()}));
      Value got = dist::AllToAllOp::create(b, loc, gotSlots, pack.getSlots(), 0, 1, axes);
      made.counts = dist::AllToAllOp::create(b, loc, gotCounts, pack.getCounts(), 0, 1, axes);
      auto regroup =
          dist::RegroupOp::create(b, loc, type, groupsType(made.shards / parts, experts, made), got,
                                  made.counts, made.segments);
      made.pos = pack.getPos();
      made.groups = regroup.getGroups();
      needed = pack.getNeed();
      rows = regroup.getRows();
      ++exchanged;
    } else {
      // Every expert shard finds other rows at home: its pos is −1 for the rest, which is why the
      // largest over the shards is the row's place.
      auto select = dist::SelectOp::create(
          b, loc, type, groupsType(made.shards, experts, made),
          tensorOf(posShape, i32(), pos.withPartial(made.rows.expertAxes, ReduceKind::max)),
          needType(needAxes), op.getX(), op.getRouting(), need, dist::OffsetAttr(),
          op.getWeighted());
      made.pos = select.getPos();
      made.groups = select.getGroups();
      needed = select.getNeed();
      rows = select.getRows();
      ++selected;
    }
    Value routed = op.getRouting();
    op.replaceAllUsesWith(rows);
    op.erase();
    madeBy[rows] = lowered.size();
    auto [first, isFirst] = counted.try_emplace(routed, lowered.size());
    lowered.push_back(made);
    if (isFirst || !haveSameSlots(lowered[first->second].rows, made.rows))
      need = needed;
    return success();
  }

  /// Whether one routing fills the slots of both alike.
  static bool haveSameSlots(const moe::RaggedRows &a, const moe::RaggedRows &b) {
    return a.exchange == b.exchange && a.rowAxes == b.rowAxes && a.expertAxes == b.expertAxes;
  }

  ArrayAttr axesAttr(ArrayRef<StringAttr> axes) {
    return ArrayAttr::get(&getContext(), SmallVector<Attribute>(axes.begin(), axes.end()));
  }

  RankedTensorType groupsType(int64_t shards, int64_t experts, const Lowered &made) {
    return tensorOf(
        {shards, experts}, i32(),
        ShardingAttr::get(&getContext(), {cut(made.rows.rowAxes), cut(made.rows.expertAxes)}));
  }

  /// [G,P,B,D]: before the exchange a rank holds one source and all destinations, after it the
  /// other way round. Columns and partial axes are those of the rows.
  ShardingAttr slotSharding(const Lowered &made, ShardingAttr rows, bool sent) {
    Axes source = made.rows.rowAxes;
    if (!sent)
      llvm::append_range(source, made.rows.expertAxes);
    SmallVector<DimShardingAttr> dims{cut(source), sent ? cut(made.rows.expertAxes) : whole(),
                                      whole(), rows.getDims()[1]};
    return ShardingAttr::get(&getContext(), dims, rows.getPartialAxes(), rows.getPartialKind());
  }

  /// The dispatch that made the rows of `op`, which end here; null, with an error, if there is
  /// none.
  template <typename Op> Lowered *dispatchOf(Op op) {
    auto it = madeBy.find(op.getRows());
    if (it != madeBy.end())
      return &lowered[it->second];
    op.emitOpError("MOE-0601: its rows come from no dispatch");
    return nullptr;
  }

  /// Rows in the slots that they left home in, where `made` puts them: exchanged once, however many
  /// ops read them.
  Value slotsAtHome(OpBuilder &b, Location loc, Value rows, Lowered &made) {
    Value &back = made.back[rows];
    if (back)
      return back;
    ShardingAttr sharding = shardingOf(rows);
    auto type = cast<RankedTensorType>(rows.getType());
    auto there = tensorOf({made.shards, mesh.sizeOf(made.rows.expertAxes),
                           sharding.getDims()[0].getBound(), type.getDimSize(1)},
                          type.getElementType(), slotSharding(made, sharding, /*sent=*/true));
    Value slots = dist::UngroupOp::create(b, loc, there, rows, made.counts, made.segments);
    return back = dist::AllToAllOp::create(
               b, loc, dist::withSharding(there, slotSharding(made, sharding, /*sent=*/false)),
               slots, 1, 0, axesAttr(made.rows.expertAxes));
  }

  LogicalResult lower(moe::CombineOp op) {
    Lowered *made = dispatchOf(op);
    if (!made)
      return failure();
    OpBuilder b(op);
    Value result;
    if (made->rows.exchange)
      result = dist::UnpackOp::create(b, op.getLoc(), op.getType(),
                                      slotsAtHome(b, op.getLoc(), op.getRows(), *made), made->pos,
                                      op.getRouting(), op.getUnit());
    else
      result = dist::MergeOp::create(b, op.getLoc(), op.getType(), op.getRows(), made->pos,
                                     op.getRouting(), op.getUnit());
    op.replaceAllUsesWith(result);
    op.erase();
    return success();
  }

  LogicalResult lower(moe::ChoiceDotsOp op) {
    Lowered *made = dispatchOf(op);
    if (!made)
      return failure();
    OpBuilder b(op);
    Value rows =
        made->rows.exchange ? slotsAtHome(b, op.getLoc(), op.getRows(), *made) : op.getRows();
    Value result =
        dist::ChoiceDotsOp::create(b, op.getLoc(), op.getType(), rows, op.getX(), made->pos);
    op.replaceAllUsesWith(result);
    op.erase();
    return success();
  }

  /// At the end of the program, but before anything is updated: the largest need of all ranks
  /// against B.
  void require(func::FuncOp func) {
    Operation *end = func.front().getTerminator();
    for (Operation &op : func.front())
      if (isa<UpdateOpInterface>(op)) {
        end = &op;
        break;
      }
    OpBuilder b(end);
    if (!needAxes.empty())
      need = dist::AllReduceOp::create(b, func.getLoc(), needType({}), need, axesAttr(needAxes),
                                       ReduceKind::max);
    dist::RequireBoundOp::create(b, func.getLoc(), need, bound, worst);
  }
};
} // namespace
