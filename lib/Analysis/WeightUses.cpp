//===- WeightUses.cpp - what a weight's dimensions mean -------------------===//
#include "moira/Analysis/WeightUses.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;

StringRef moira::wordsFor(DimMeaning meaning) {
  switch (meaning) {
  case DimMeaning::queryHeads:
    return "query heads";
  case DimMeaning::kvHeads:
    return "key/value heads";
  case DimMeaning::denseWidth:
    return "the dense width";
  case DimMeaning::sharedWidth:
    return "the shared expert's width";
  case DimMeaning::expertWidth:
    return "the experts' width";
  case DimMeaning::experts:
    return "experts";
  case DimMeaning::vocabulary:
    return "the vocabulary";
  }
  llvm_unreachable("a meaning without words");
}

/// The operation that made a projection: walks back over what keeps its dimensions (bias, norm,
/// clamp, scale, rotation, a cache that its rows go into).
static Operation *projectionOf(Value value) {
  while (Operation *op = value.getDefiningOp()) {
    if (!isa<moe::AddOp, moe::GroupedBiasOp, moe::RmsNormOp, moe::LayerNormOp, moe::ClampOp,
             moe::ScaleOp, moe::RopeOp, moe::WriteRowsOp>(op))
      return op;
    value = op->getOperand(0);
  }
  return nullptr;
}

namespace {
class Collector {
public:
  explicit Collector(ModuleOp module) : module(module) {}

  std::vector<WeightUse> collect() {
    module.walk([&](Operation *op) {
      llvm::TypeSwitch<Operation *>(op)
          .Case([&](moe::AttentionOp attention) { visit(attention); })
          .Case<moe::GluOp, moe::ActOp>([&](Operation *activation) { visit(activation); })
          .Case([&](moe::GroupedMatmulOp matmul) { add(matmul.getW(), 0, DimMeaning::experts); })
          .Case([&](moe::GroupedBiasOp bias) { add(bias.getB(), 0, DimMeaning::experts); })
          .Case([&](moe::RelativeBiasOp bias) { add(bias.getTable(), 1, DimMeaning::queryHeads); })
          .Case([&](moe::EmbeddingOp embedding) {
            add(embedding.getTable(), 0, DimMeaning::vocabulary);
          })
          .Case([&](moe::RowMaxOp logits) { visitLogits(logits.getX()); })
          .Case([&](moe::SampleOp sample) { visitLogits(sample.getLogits()); })
          .Case([&](func::ReturnOp ret) {
            for (Value value : ret.getOperands())
              visitLogits(value);
          });
    });
    return std::move(uses);
  }

private:
  void visit(moe::AttentionOp attention) {
    auto projection = [&](Value value, DimMeaning meaning) {
      Operation *first = projectionOf(value);
      if (auto perHead = dyn_cast_or_null<moe::HeadLinearOp>(first)) {
        add(perHead.getW(), 0, meaning);
        first = projectionOf(perHead.getX());
      }
      if (auto linear = dyn_cast_or_null<moe::LinearOp>(first))
        add(linear.getW(), 0, meaning);
    };
    projection(attention.getQ(), DimMeaning::queryHeads);
    if (rankOf(attention.getK()) == 4) { // else they have no heads
      projection(attention.getK(), DimMeaning::kvHeads);
      projection(attention.getV(), DimMeaning::kvHeads);
    }
    if (attention.getQ2())
      projection(attention.getQ2(), DimMeaning::queryHeads);
    if (attention.getSinks())
      add(attention.getSinks(), 0, DimMeaning::queryHeads);
    visitResult(attention.getResult());
  }

  void visitLogits(Value logits) {
    if (auto head = dyn_cast_or_null<moe::LinearOp>(projectionOf(logits)))
      add(head.getW(), 0, DimMeaning::vocabulary);
  }

  /// What is made of attention's heads.
  void visitResult(Value heads) {
    for (Operation *user : heads.getUsers()) {
      if (auto out = dyn_cast<moe::LinearOp>(user); out && out.getX() == heads)
        add(out.getW(), rankOf(out.getW()) - out.getContract(), DimMeaning::queryHeads);
      if (auto perHead = dyn_cast<moe::HeadLinearOp>(user); perHead && perHead.getX() == heads) {
        add(perHead.getW(), 0, DimMeaning::queryHeads);
        visitResult(perHead.getResult());
      }
    }
  }

  /// A feed-forward's two products lie around its activation.
  void visit(Operation *activation) {
    DimMeaning meaning = DimMeaning::denseWidth;
    Operation *first = projectionOf(activation->getOperand(0));
    if (auto linear = dyn_cast_or_null<moe::LinearOp>(first)) {
      if (llvm::any_of(linear.getX().getUsers(),
                       [](Operation *op) { return isa<moe::DispatchOp>(op); }))
        meaning = DimMeaning::sharedWidth;
      add(linear.getW(), rankOf(linear.getW()) - linear.getContract() - 1, meaning);
    } else if (auto matmul = dyn_cast_or_null<moe::GroupedMatmulOp>(first)) {
      meaning = DimMeaning::expertWidth;
      add(matmul.getW(), rankOf(matmul.getW()) - matmul.getContract() - 1, meaning);
      if (auto bias = activation->getOperand(0).getDefiningOp<moe::GroupedBiasOp>())
        add(bias.getB(), rankOf(bias.getB()) - 1, meaning);
    }
    Value out = activation->getResult(0);
    for (Operation *user : activation->getUsers()) {
      if (auto linear = dyn_cast<moe::LinearOp>(user); linear && linear.getX() == out)
        add(linear.getW(), rankOf(linear.getW()) - 1, meaning);
      if (auto matmul = dyn_cast<moe::GroupedMatmulOp>(user); matmul && matmul.getRows() == out)
        add(matmul.getW(), rankOf(matmul.getW()) - 1, meaning);
    }
  }

  static int64_t rankOf(Value value) { return cast<RankedTensorType>(value.getType()).getRank(); }

  void add(Value weight, int64_t dim, DimMeaning meaning) {
    moe::ParamOp param = moe::paramOf(weight);
    auto state = param ? module.lookupSymbol<moe::StateOp>(param.getState()) : moe::StateOp();
    if (!state || llvm::any_of(uses, [&](const WeightUse &use) {
          return use.state == state && use.dim == dim && use.meaning == meaning;
        }))
      return;
    uses.push_back({state, dim, meaning});
  }

  ModuleOp module;
  std::vector<WeightUse> uses;
};
} // namespace

std::vector<WeightUse> moira::collectWeightUses(ModuleOp module) {
  return Collector(module).collect();
}
