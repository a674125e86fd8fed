//===- Adafactor.cpp - the operations of one state's step -----------------===//
// See Adafactor.h. Sums and what is made of them are operations of their own, so that where a
// dimension is cut partitioning sees partial sums and completes them.
//===----------------------------------------------------------------------===//
#include "Adafactor.h"

#include <numeric>

using namespace mlir;
using namespace moira;

static int64_t product(ArrayRef<int64_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t(1), std::multiplies<>());
}

/// How many dimensions from the end of `order` on (indices into `sizes`) have this product; 0 if
/// none have.
static size_t runOf(ArrayRef<int64_t> order, ArrayRef<int64_t> sizes, int64_t wanted) {
  int64_t size = 1;
  for (size_t n = 0; n < order.size();) {
    size *= sizes[order[order.size() - ++n]];
    if (size == wanted)
      return n;
  }
  return 0;
}

/// Whether the numbers are a run, in any order.
static bool isRun(ArrayRef<int64_t> dims) {
  auto [least, most] = std::minmax_element(dims.begin(), dims.end());
  return *most - *least + 1 == int64_t(dims.size());
}

FactoredLayout moira::factoredLayout(moe::StateOp state) {
  ArrayRef<int64_t> shape = state.getTensorType().getShape();
  moe::SourceAttr source = state.getSourceAttr();
  if (!source)
    return {};
  FactoredLayout layout;
  layout.parameters = (source.getPerExpert() ? 1 : 0) + (source.getNames().size() > 1 ? 1 : 0);
  layout.kept = layout.parameters;
  ArrayRef<int64_t> disk = source.getDiskShape().asArrayRef();
  SmallVector<int64_t> block(shape.drop_front(layout.parameters)), order(block.size());
  std::iota(order.begin(), order.end(), 0);
  if (DenseI64ArrayAttr permute = source.getPermute())
    order.assign(permute.asArrayRef().begin(), permute.asArrayRef().end());
  if (DenseI64ArrayAttr slice = source.getSlice())
    block[slice[0]] = slice[2];
  if (disk.size() < 2)
    return layout;
  ArrayRef<int64_t> rest(order);
  size_t columns = runOf(rest, block, disk.back());
  ArrayRef<int64_t> columnDims = rest.take_back(columns);
  rest = rest.drop_back(columns);
  size_t rows = columns ? runOf(rest, block, disk[disk.size() - 2]) : 0;
  ArrayRef<int64_t> rowDims = rest.take_back(rows);
  rest = rest.drop_back(rows);
  // What is before them is kept, in the state as on disk. A moment of rows is one of columns the
  // other way round, so which of the two comes first does not matter.
  if (!rows || !isRun(columnDims) || !isRun(rowDims) ||
      llvm::any_of(llvm::enumerate(rest),
                   [](auto it) { return it.value() != int64_t(it.index()); }))
    return layout;
  layout.kept += rest.size();
  bool columnsFirst = columnDims.front() < rowDims.front();
  layout.rows = columnsFirst ? columns : rows;
  return layout;
}

void moira::addAdafactor(OpBuilder &b, moe::StateOp state, const AdafactorStep &step,
                         const AdafactorOptions &options) {
  Location loc = state.getLoc();
  FactoredLayout layout = factoredLayout(state);
  ArrayRef<int64_t> shape = state.getTensorType().getShape();
  int64_t rank = shape.size(), count = product(shape.drop_front(layout.parameters));
  /// Sums over the dimensions between the first `keep` and the last `tail`.
  auto squares = [&](Value x, int64_t keep, int64_t tail) -> Value {
    SmallVector<int64_t> kept(shape.take_front(keep));
    llvm::append_range(kept, shape.take_back(tail));
    if (kept.empty())
      kept.push_back(1);
    return moe::SquaresOp::create(b, loc, RankedTensorType::get(kept, b.getF32Type()), x, keep,
                                  tail);
  };
  SmallVector<Value> moments, fresh;
  auto addMoment = [&](StringRef name, int64_t keep, int64_t tail) {
    Value sums = squares(step.grad, keep, tail);
    auto type = cast<RankedTensorType>(sums.getType());
    int64_t summed = product(shape.slice(keep, rank - keep - tail));
    Value moment = step.kept(name, type);
    moments.push_back(moment);
    fresh.push_back(moe::SecondMomentOp::create(
        b, loc, type, moment, sums, step.step, step.factor, b.getI64IntegerAttr(summed),
        b.getF64FloatAttr(options.decay), b.getF64FloatAttr(options.eps1)));
  };
  if (layout.rows) {
    addMoment("r", layout.kept + layout.rows, 0);
    addMoment("c", layout.kept, rank - layout.kept - layout.rows);
    addMoment("m", layout.kept, 0);
  } else {
    addMoment("v", rank, 0);
  }
  Value weights = options.scaleParameter ? squares(step.w, layout.parameters, 0) : Value();
  SmallVector<int64_t> perParameter(shape.take_front(layout.parameters));
  if (perParameter.empty())
    perParameter.push_back(1);
  auto norms = moe::AdafactorNormOp::create(
      b, loc, RankedTensorType::get(perParameter, b.getF32Type()), step.grad, fresh,
      b.getI64IntegerAttr(layout.parameters), b.getI64IntegerAttr(layout.kept),
      b.getI64IntegerAttr(layout.rows));
  moe::AdafactorOp::create(b, loc, step.w, moments, step.grad, fresh, norms, weights, step.rate,
                           step.factor, b.getI64IntegerAttr(layout.parameters),
                           b.getI64IntegerAttr(layout.kept), b.getI64IntegerAttr(layout.rows),
                           b.getI64IntegerAttr(count), b.getF64FloatAttr(options.clip),
                           b.getF64FloatAttr(options.eps2), b.getF64FloatAttr(options.weightDecay));
}
