//===- MergeCalls.cpp - --plan-merge-calls --------------------------------===//
// Calls that are independent of each other become one: products of the same few rows by several
// weights (queries, keys and values; the two latents of MLA), and what is written at the same place
// of two caches. Few rows take less time than a launch does on a GPU, and so each launch that goes
// is time that goes; of products of many rows nothing is to be won, and results would live longer.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "QueueClocks.h"
#include "moira/Conversion/PlanPasses.h"
#include <iterator>

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

/// The most rows of a product that are few.
constexpr int64_t kFewRows = 16;

bool hasFewRows(CallOp product) {
  auto x = cast<ViewType>(product.getInputs()[0].getType());
  auto contract = cast<IntegerAttr>(product.getParams().get("contract"));
  int64_t rows = 1;
  for (int64_t size : x.getShape().drop_back(contract.getInt()))
    rows *= size;
  return !x.isBounded() && rows <= kFewRows;
}

/// A call that others can be merged into, and how.
struct Mergeable {
  StringRef callee, merged;
  size_t most;  // calls that become one (Calls.def)
  unsigned own; // the input that each has for itself; the others are one for all
};
constexpr Mergeable kProducts{"linear", "linears", 4, 1}, kWrites{"write_rows", "write_rows", 2, 0};

const Mergeable *mergeableOf(CallOp call) {
  if (call.getCallee() == kProducts.callee && hasFewRows(call))
    return &kProducts;
  if (call.getCallee() == kWrites.callee && call.getInputs().size() == 2)
    return &kWrites;
  return nullptr;
}

/// The longest path that contains all places: "layers.0.attn" of "layers.0.attn.q" and
/// "layers.0.attn.k". Null: none.
StringAttr commonPlace(ArrayRef<CallOp> calls) {
  CallOp first = calls.front();
  StringRef common = first.getPlace().value_or("");
  for (CallOp call : calls) {
    StringRef place = call.getPlace().value_or("");
    while (place != common && !place.starts_with((common + ".").str()) && !common.empty())
      common = common.contains('.') ? common.rsplit('.').first : StringRef();
  }
  return common.empty() ? StringAttr() : StringAttr::get(first->getContext(), common);
}

/// What calls must share to be one.
struct Key {
  const Mergeable *how;
  Value shared; // the input that is one for all
  DictionaryAttr params;
  StringAttr queue;
  SmallVector<int64_t, 3> sizes; // of written rows and states: sequences, rows, all rows
  Type element;

  Key(const Mergeable *how, CallOp call)
      : how(how), shared(call.getInputs()[1 - how->own]), params(call.getParams()),
        queue(call.getQueueAttr()) {
    if (how != &kWrites)
      return;
    auto rows = cast<ViewType>(call.getInputs()[0].getType()),
         state = cast<ViewType>(call.getOutputs()[0].getType());
    sizes = {rows.getShape()[0], rows.getShape()[1], state.getShape()[1]};
    element = rows.getElementType();
  }
  bool operator==(const Key &) const = default;
};

struct MergeCallsPass : PassWrapper<MergeCallsPass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(MergeCallsPass)
  StringRef getArgument() const final { return "plan-merge-calls"; }
  StringRef getDescription() const final {
    return "Make one call of independent ones: products of the same few rows, writes at one place";
  }
  void runOnOperation() final {
    for (auto program : getOperation().getOps<ProgramOp>())
      merge(program);
  }
  void merge(ProgramOp program);
  void replace(const Mergeable &how, ArrayRef<CallOp> calls);

  Statistic numMerged{this, "merged", "calls that are part of another one"};
};

void MergeCallsPass::merge(ProgramOp program) {
  SmallVector<InstructionInterface> instrs = instructionsOf(program);
  // A call may move up to an earlier one if all that it waits for stands before that.
  std::vector<int64_t> waitsFor(instrs.size(), -1);
  forEachDependence(instrs, [&](unsigned i, unsigned earlier) {
    waitsFor[i] = std::max<int64_t>(waitsFor[i], earlier);
  });
  struct Group {
    Key key;
    int64_t place;
    SmallVector<CallOp> calls;
  };
  std::vector<Group> open, done; // open: that more calls may join
  auto finish = [&](auto first, auto last) {
    done.insert(done.end(), std::move_iterator(first), std::move_iterator(last));
    open.erase(first, last);
  };
  for (auto [i, instr] : llvm::enumerate(instrs)) {
    // Exchanges hide behind what stands after them, so that stays there.
    if (isa<CollectiveOp>(instr.getOperation()))
      finish(open.begin(), open.end());
    auto call = dyn_cast<CallOp>(instr.getOperation());
    const Mergeable *how = call ? mergeableOf(call) : nullptr;
    if (!how)
      continue;
    Key key(how, call);
    auto group = llvm::find_if(open, [&](const Group &g) { return g.key == key; });
    if (group != open.end() && (waitsFor[i] >= group->place || group->calls.size() == how->most)) {
      finish(group, group + 1);
      group = open.end();
    }
    if (group == open.end())
      group = open.insert(open.end(), Group{key, int64_t(i), {}});
    group->calls.push_back(call);
  }
  finish(open.begin(), open.end());
  for (const Group &group : done)
    if (group.calls.size() > 1)
      replace(*group.key.how, group.calls);
}

void MergeCallsPass::replace(const Mergeable &how, ArrayRef<CallOp> calls) {
  CallOp first = calls.front();
  SmallVector<Value> inputs{first.getInputs()}, outputs;
  for (CallOp call : calls) {
    Value own = call.getInputs()[how.own], output = call.getOutputs()[0];
    // Views are only names of memory until there are addresses: they may stand anywhere.
    for (Value view : {own, output})
      if (Operation *op = view.getDefiningOp(); op && first->isBeforeInBlock(op))
        op->moveBefore(first);
    if (call != first)
      inputs.push_back(own);
    outputs.push_back(output);
  }
  OpBuilder builder(first);
  CallOp::create(builder, first.getLoc(), builder.getStringAttr(how.merged), inputs, outputs,
                 first.getParams(), first.getQueueAttr(), commonPlace(calls), first.getLayerAttr());
  for (CallOp call : calls)
    call.erase();
  numMerged += calls.size() - 1;
}

} // namespace

std::unique_ptr<Pass> moira::createPlanMergeCallsPass() {
  return std::make_unique<MergeCallsPass>();
}
