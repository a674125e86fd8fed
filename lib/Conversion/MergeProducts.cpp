//===- MergeProducts.cpp - --plan-merge-products --------------------------===//
// Products of the same few rows by several weights (queries, keys and values; the two latents of
// MLA) become one call. Few rows take less time than a launch does on a GPU, and so each launch
// that goes is time that goes; with many rows nothing is to be won, and results would live longer.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "QueueClocks.h"
#include "moira/Conversion/PlanPasses.h"
#include "llvm/ADT/MapVector.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

/// The most rows that are few.
constexpr int64_t kFewRows = 16;
/// The most weights of a call (Calls.def: linears).
constexpr size_t kMostWeights = 4;

bool hasFewRows(CallOp product) {
  auto x = cast<ViewType>(product.getInputs()[0].getType());
  auto contract = cast<IntegerAttr>(product.getParams().get("contract"));
  int64_t rows = 1;
  for (int64_t size : x.getShape().drop_back(contract.getInt()))
    rows *= size;
  return !x.isBounded() && rows <= kFewRows;
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

/// What products must share to be one call.
using Key = std::tuple<Value, DictionaryAttr, StringAttr>;

struct MergeProductsPass : PassWrapper<MergeProductsPass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(MergeProductsPass)
  StringRef getArgument() const final { return "plan-merge-products"; }
  StringRef getDescription() const final {
    return "Make one call of products of the same few rows by several weights";
  }
  void runOnOperation() final {
    for (auto program : getOperation().getOps<ProgramOp>())
      merge(program);
  }
  void merge(ProgramOp program);
  void replace(ArrayRef<CallOp> products);

  Statistic numMerged{this, "merged", "products that are part of another one's call"};
};

void MergeProductsPass::merge(ProgramOp program) {
  SmallVector<InstructionInterface> instrs = instructionsOf(program);
  // A product may move up to an earlier one if all that it waits for stands before that.
  std::vector<int64_t> waitsFor(instrs.size(), -1);
  forEachDependence(instrs, [&](unsigned i, unsigned earlier) {
    waitsFor[i] = std::max<int64_t>(waitsFor[i], earlier);
  });
  struct Group {
    int64_t place;
    SmallVector<CallOp> products;
  };
  llvm::MapVector<Key, Group> groups;
  std::vector<Group> done;
  auto finish = [&] {
    for (auto &[key, group] : groups)
      done.push_back(std::move(group));
    groups.clear();
  };
  for (auto [i, instr] : llvm::enumerate(instrs)) {
    // Exchanges hide behind what stands after them, so that stays there.
    if (isa<CollectiveOp>(instr.getOperation()))
      finish();
    auto call = dyn_cast<CallOp>(instr.getOperation());
    if (!call || call.getCallee() != "linear" || !hasFewRows(call))
      continue;
    Key key{call.getInputs()[0], call.getParams(), call.getQueueAttr()};
    auto [it, fresh] = groups.try_emplace(key, Group{int64_t(i), {}});
    Group &group = it->second;
    if (!fresh && (waitsFor[i] >= group.place || group.products.size() == kMostWeights)) {
      done.push_back(std::move(group));
      group = Group{int64_t(i), {}};
    }
    group.products.push_back(call);
  }
  finish();
  for (const Group &group : done)
    if (group.products.size() > 1)
      replace(group.products);
}

void MergeProductsPass::replace(ArrayRef<CallOp> products) {
  CallOp first = products.front();
  SmallVector<Value> inputs{first.getInputs()[0]}, outputs;
  for (CallOp product : products) {
    // Views are only names of memory until there are addresses: they may stand anywhere.
    for (Value view : {product.getInputs()[1], product.getOutputs()[0]})
      if (Operation *op = view.getDefiningOp(); op && first->isBeforeInBlock(op))
        op->moveBefore(first);
    inputs.push_back(product.getInputs()[1]);
    outputs.push_back(product.getOutputs()[0]);
  }
  OpBuilder builder(first);
  CallOp::create(builder, first.getLoc(), builder.getStringAttr("linears"), inputs, outputs,
                 first.getParams(), first.getQueueAttr(), commonPlace(products),
                 first.getLayerAttr());
  for (CallOp product : products)
    product.erase();
  numMerged += products.size() - 1;
}

} // namespace

std::unique_ptr<Pass> moira::createPlanMergeProductsPass() {
  return std::make_unique<MergeProductsPass>();
}
