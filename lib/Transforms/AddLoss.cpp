//===- AddLoss.cpp - --moe-add-loss ---------------------------------------===//
// A program that gives logits becomes one that gives a loss: mean cross-entropy over the tokens
// that count, with a normaliser that is global: the program's own count, or, where the program
// takes one of several micro-batches, the count of the whole batch, which is then an input
// `label_count`. Losses of micro-batches add up to those of the batch. A decoder's labels are its
// own next tokens unless it is given others, at the places of the tokens that they are for; an
// encoder-decoder's are given, at the places of the logits. Routers' losses are results of their
// own; what is differentiated is the sum of all, each times its `moe.loss_weight`.
//===----------------------------------------------------------------------===//
#include "ProgramInputs.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOEADDLOSS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct AddLoss : moira::impl::MoeAddLossBase<AddLoss> {
  using MoeAddLossBase::MoeAddLossBase;

  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal() && (func.getName() == "forward" || isReference(func)) &&
          failed(addLoss(func)))
        return signalPassFailure();
  }

  /// It takes the whole batch and keeps its name.
  static bool isReference(func::FuncOp func) { return func->hasAttr("moe.reference"); }

  static std::optional<unsigned> named(unsigned count, StringRef wanted,
                                       llvm::function_ref<Attribute(unsigned)> nameOf) {
    for (unsigned i = 0; i < count; ++i)
      if (auto name = dyn_cast_if_present<StringAttr>(nameOf(i)); name && name == wanted)
        return i;
    return std::nullopt;
  }
  static std::optional<unsigned> argument(func::FuncOp func, StringRef name) {
    return named(func.getNumArguments(), name,
                 [&](unsigned i) { return func.getArgAttr(i, "moe.name"); });
  }
  static std::optional<unsigned> result(func::FuncOp func, StringRef name) {
    return named(func.getNumResults(), name,
                 [&](unsigned i) { return func.getResultAttr(i, "moe.name"); });
  }

  LogicalResult addLoss(func::FuncOp func) {
    std::optional<unsigned> index = result(func, "logits"), ids = argument(func, "input_ids");
    if (!index || !ids)
      return func.emitError("MOE-0601: a loss needs a result `logits` and an argument `input_ids`");
    Operation *end = func.front().getTerminator();
    Value logits = narrowed(end->getOperand(*index));
    auto type = cast<RankedTensorType>(logits.getType());
    ArrayRef<int64_t> tokens = type.getShape().drop_back();
    int64_t classes = type.getShape().back();
    OpBuilder b(end);
    Location loc = func.getLoc();
    auto f32 = [&](ArrayRef<int64_t> shape) {
      return RankedTensorType::get(shape, b.getF32Type());
    };
    auto i32 = RankedTensorType::get(tokens, b.getI32Type());

    // Labels of a decoder are optional: what stands for them is no label.
    bool shifted = !argument(func, "decoder_input_ids");
    Value labels =
        addInput(func, "labels", i32, shifted ? std::optional<double>(INT32_MIN) : std::nullopt,
                 InputRange{-100, classes - 1});
    if (shifted)
      labels = moe::NextTokensOp::create(b, loc, i32, func.getArgument(*ids), labels);

    Value max = moe::RowMaxOp::create(b, loc, f32(tokens), logits, classes, Attribute());
    SmallVector<int64_t> three(tokens);
    three.push_back(3);
    Value stats = moe::CrossEntropyStatsOp::create(b, loc, f32(three), logits, max, labels, classes,
                                                   Attribute());
    auto sums = moe::CrossEntropyOp::create(b, loc, f32({1}), f32({1}), stats, labels, classes,
                                            llvm::APFloat(double(smoothing)));
    bool isPart = microBatches > 1 && !isReference(func);
    Value count = isPart ? labelCount(func, f32({1})) : sums.getCount();
    Value loss = moe::RatioOp::create(b, loc, f32({1}), sums.getSum(), count);

    end->setOperand(*index, loss);
    func.setResultAttrs(*index, lossAttrs(b, "loss", 1));
    SmallVector<Type> results(end->getOperandTypes());
    func.setFunctionType(b.getFunctionType(func.getArgumentTypes(), results));
    if (!isReference(func))
      func.setName(program);
    addRouterLosses(func, *index + 1, isPart ? microBatches : 1);
    return success();
  }

  /// Logits that only a loss reads are of the type of the product that makes them: in bf16 half as
  /// many bytes, of what is the largest tensor of most steps. The loss's own sums are f32.
  static Value narrowed(Value logits) {
    auto head = logits.getDefiningOp<moe::LinearOp>();
    if (head && logits.hasOneUse()) {
      auto type = cast<RankedTensorType>(logits.getType());
      logits.setType(type.clone(cast<RankedTensorType>(head.getX().getType()).getElementType()));
    }
    return logits;
  }

  /// Nobody who runs the program leaves it out; without it losses are sums.
  static Value labelCount(func::FuncOp func, Type type) {
    return addInput(func, "label_count", type, 1);
  }

  /// A loss and its share in what is differentiated.
  static SmallVector<NamedAttribute> lossAttrs(OpBuilder &b, StringRef name, double weight) {
    return {b.getNamedAttr("moe.name", b.getStringAttr(name)),
            b.getNamedAttr("moe.loss_weight", b.getF64FloatAttr(weight))};
  }

  /// The losses of all routers, each kind added up over the layers, as results of their own; of one
  /// of several parts of a batch, its share in their mean over the parts.
  void addRouterLosses(func::FuncOp func, unsigned at, int64_t parts) {
    Operation *end = func.front().getTerminator();
    OpBuilder b(end);
    auto one = RankedTensorType::get({1}, b.getF32Type());
    auto add = [&](StringRef name, double weight, auto lossOf) {
      Value sum;
      for (auto route : func.getOps<moe::RouteOp>()) {
        Value loss = lossOf(route);
        sum = sum ? moe::AddOp::create(b, route.getLoc(), one, sum, loss).getResult() : loss;
      }
      if (!sum || weight == 0)
        return;
      if (parts > 1)
        sum = moe::ScaleOp::create(b, func.getLoc(), one, sum, llvm::APFloat(1.0 / double(parts)));
      (void)func.insertResult(at, one, b.getDictionaryAttr(lossAttrs(b, name, weight)));
      end->insertOperands(at++, sum);
    };
    if (balance != 0)
      add("aux_loss", balance, [&](moe::RouteOp route) -> Value {
        if (perSequence)
          return moe::SequenceBalanceOp::create(b, route.getLoc(), one, route.getResult(),
                                                route.getLogits(),
                                                route.getType().getTokens().front());
        auto load = RankedTensorType::get({route.getType().getExperts()}, b.getF32Type());
        Location loc = route.getLoc();
        return moe::BalanceOp::create(b, loc, one,
                                      moe::ExpertLoadOp::create(b, loc, load, route.getResult()),
                                      moe::ExpertProbsOp::create(b, loc, load, route.getLogits()),
                                      route.getType().numTokens());
      });
    if (z != 0)
      add("z_loss", z, [&](moe::RouteOp route) -> Value {
        return moe::RouterZOp::create(b, route.getLoc(), one, route.getLogits(),
                                      route.getType().numTokens());
      });
  }
};
} // namespace
