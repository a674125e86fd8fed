//===- Explain.cpp - why a weight lies as it does -------------------------===//
#include "Explain.h"
#include "mlir/Pass/Pass.h"
#include "moira/Analysis/Mesh.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/rt/PlanSummary.h"
#include "moira/rt/SafeTensors.h"
#include "moira/rt/Suggest.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;
using rt::ErrorId;

/// Whether a source's name, in which {e} stands for an expert's number, is this tensor's.
static bool isNamed(StringRef pattern, StringRef tensor) {
  auto [before, after] = pattern.split("{e}");
  if (before.size() == pattern.size())
    return pattern == tensor;
  return tensor.consume_front(before) && tensor.consume_back(after) && !tensor.empty() &&
         llvm::all_of(tensor, llvm::isDigit);
}

static std::string axesText(ArrayRef<StringAttr> axes) {
  return llvm::join(llvm::map_range(axes, [](StringAttr axis) { return axis.str(); }), ", ");
}

/// "[4, 8], 128 B"
static std::string sizesText(ArrayRef<int64_t> shape, Type element) {
  uint64_t bytes = element.getIntOrFloatBitWidth() / 8;
  for (int64_t size : shape)
    bytes *= uint64_t(size);
  return rt::shapeText(shape) + ", " + rt::bytesText(bytes);
}

/// Whole where no pass has said anything yet.
static ShardingAttr shardingOf(Type type) {
  ShardingAttr sharding = dist::getSharding(type);
  return sharding
             ? sharding
             : ShardingAttr::replicated(type.getContext(), cast<RankedTensorType>(type).getRank());
}

rt::Expected<ShardingHistory> ShardingHistory::of(ModuleOp module, const std::string &tensor) {
  ShardingHistory history;
  std::vector<std::string> known;
  moe::StateOp found;
  for (moe::StateOp state : module.getOps<moe::StateOp>()) {
    known.push_back(state.getSymName().str());
    bool isIt = state.getSymName() == tensor;
    std::string names;
    if (auto source = state.getSourceAttr())
      for (StringAttr name : source.getNames().getAsRange<StringAttr>()) {
        known.push_back(name.str());
        names += (names.empty() ? "" : ", ") + name.str();
        isIt |= isNamed(name, tensor);
      }
    if (isIt && !found) {
      found = state;
      history.disk = names;
    }
  }
  if (!found) {
    std::string near = rt::nearestWord(tensor, known);
    return rt::Status(ErrorId::BadUsage, "--explain: the model has no weight " + tensor +
                                             (near.empty() ? "; moe-inspect lists those of a plan"
                                                           : "; did you mean " + near + "?"));
  }
  history.state = found.getSymName().str();
  history.type = found.getType();
  history.sharding = shardingOf(history.type);
  history.meanings.resize(size_t(found.getTensorType().getRank()));
  for (const WeightUse &use : collectWeightUses(module))
    if (use.state == found)
      history.meanings[size_t(use.dim)].push_back(use.meaning);
  return history;
}

/// Compares the state before and behind each pass over a module.
class ShardingHistory::Watch : public PassInstrumentation {
public:
  explicit Watch(ShardingHistory &history) : history(history) {}

  void runAfterPass(Pass *pass, Operation *op) override {
    auto module = dyn_cast<ModuleOp>(op);
    auto state = module ? module.lookupSymbol<moe::StateOp>(history.state) : moe::StateOp();
    if (!state)
      return;
    ShardingAttr before = history.sharding, after = shardingOf(state.getType());
    if (before == after)
      return;
    history.decisions.push_back(
        {pass->getArgument().str(), pass->getDescription().str(), before, after});
    history.sharding = after;
  }

private:
  ShardingHistory &history;
};

std::unique_ptr<PassInstrumentation> ShardingHistory::watch() {
  return std::make_unique<Watch>(*this);
}

SmallVector<StringAttr> ShardingHistory::axes() const { return sharding.usedAxes(); }

std::string ShardingHistory::text(const MeshInfo &mesh) const {
  auto tensorType = cast<RankedTensorType>(type);
  Type element = tensorType.getElementType();
  ArrayRef<int64_t> shape = tensorType.getShape();
  std::string elementText;
  llvm::raw_string_ostream(elementText) << element;
  std::string text = state + ": " + elementText + " " + sizesText(shape, element) + "\n";
  if (!disk.empty() && disk != state)
    text += "  filled by " + disk + "\n";

  auto dimText = [&](size_t dim) {
    return "dimension " + std::to_string(dim) + ", " + std::to_string(shape[dim]) +
           (meanings[dim].empty()
                ? ""
                : " (" + llvm::join(llvm::map_range(meanings[dim], wordsFor), ", ") + ")");
  };
  for (const Decision &decision : decisions) {
    for (size_t dim = 0; dim < meanings.size(); ++dim) {
      DimShardingAttr now = decision.after.getDims()[dim];
      if (now == decision.before.getDims()[dim])
        continue;
      int64_t parts = mesh.sizeOf(now.getAxes());
      text += "  --" + decision.pass + ": " + dimText(dim) +
              (now.isReplicated() ? " made whole"
                                  : " cut over " + axesText(now.getAxes()) + " into " +
                                        std::to_string(parts) + " parts" +
                                        (now.getPad() ? ", with " + std::to_string(now.getPad()) +
                                                            " rows of zeros behind it"
                                                      : "")) +
              "\n    " + decision.why + "\n";
    }
  }
  if (llvm::all_of(sharding.getDims(), [](DimShardingAttr dim) { return dim.isReplicated(); }))
    text += "  no pass cuts it\n";
  for (auto [dim, meaning] : llvm::enumerate(meanings))
    if (int64_t parts = mesh.sizeOf(kTensorAxis);
        llvm::is_contained(meaning, DimMeaning::kvHeads) && shape[dim] % parts != 0)
      text += "  tp=" + std::to_string(parts) + " does not divide " + dimText(dim) +
              ": every rank reads those that its query heads need\n";
  int64_t holders = mesh.ranks() / mesh.sizeOf(axes());
  text += "a rank holds " + sizesText(dist::localShape(shape, sharding, mesh), element) +
          (holders > 1 ? "; " + std::to_string(holders) + " ranks hold the same" : "") + "\n";
  return text;
}

std::string moira::costHead(const std::string &what) {
  return costLine(what, {"memory a rank", "sent in a step"}).substr(2);
}

std::string moira::costLine(const std::string &what, const std::vector<std::string> &cells) {
  std::string line = "  " + llvm::formatv("{0,-44}", what).str();
  for (const std::string &cell : cells)
    if (!cell.empty())
      line += llvm::formatv("  {0,15}", cell).str();
  return line + "\n";
}
