//===- InstrVerifiers.cpp - constraints of instructions -------------------===//
// One function an op; constraint numbers are those of PlanInstrOps.td.
//===----------------------------------------------------------------------===//
#include "moira/Dialect/Plan/IR/CallBridge.h"
#include "llvm/ADT/DenseSet.h"
#include <cmath>

using namespace mlir;
using namespace moira;
using namespace moira::plan;

static ViewType viewOf(Value v) { return cast<ViewType>(v.getType()); }

/// The parameter as an integer, if it is one.
static std::optional<int64_t> integerParam(DictionaryAttr params, StringRef name) {
  if (auto value = params.getAs<IntegerAttr>(name))
    return value.getInt();
  return std::nullopt;
}

//===----------------------------------------------------------------------===//
// Kernels and calls
//===----------------------------------------------------------------------===//

LogicalResult LaunchOp::verify() {
  auto kernel = dyn_cast_or_null<KernelOp>(
      SymbolTable::lookupSymbolIn((*this)->getParentOfType<PlanOp>(), getKernelAttr().getAttr()));
  if (!kernel)
    return emitOpError("C1: ") << getKernelAttr() << " is not a plan.kernel";
  if (static_cast<int64_t>(getRows()) < 1)
    return emitOpError("C4: rows is ") << static_cast<int64_t>(getRows());
  auto input = getInputs().begin(), output = getOutputs().begin();
  for (auto [i, operand] : llvm::enumerate(kernel.getTakes().getAsRange<OperandAttr>())) {
    auto &next = operand.getOutput() ? output : input;
    auto end = operand.getOutput() ? getOutputs().end() : getInputs().end();
    if (next == end)
      return emitOpError("C2: no view for operand ") << i << " of " << getKernelAttr();
    ViewType view = viewOf(*next++);
    if (view.getElementType() != operand.getElementType())
      return emitOpError("C2: operand ") << i << " is " << operand << ", the view " << view;
    int64_t elements = operand.getRowwise() ? getRows() : 1;
    for (int64_t size : operand.getInner())
      elements *= size;
    if (view.numElements() != elements ||
        view.isBounded() != (operand.getRowwise() && getBounded()))
      return emitOpError("C3: operand ") << i << " is " << operand << " and rows " << getRows()
                                         << (getBounded() ? "·B" : "") << ", the view " << view;
  }
  if (input != getInputs().end() || output != getOutputs().end())
    return emitOpError("C2: more views than ") << getKernelAttr() << " has operands";
  return success();
}

LogicalResult CallOp::verify() {
  const rt::CallDesc *call = rt::findCall(std::string_view(getCallee()));
  if (!call)
    return emitOpError("C1: the registry has no call '") << getCallee() << "'";
  rt::Status status = checkCallOp(*this, *call);
  if (status.ok())
    return success();
  InFlightDiagnostic diagnostic = emitOpError("C1: ") << status.diagnostics().front().message;
  for (const rt::Diagnostic &problem : llvm::drop_begin(status.diagnostics()))
    diagnostic.attachNote() << problem.message;
  return diagnostic;
}

//===----------------------------------------------------------------------===//
// Collectives and copies
//===----------------------------------------------------------------------===//

/// One view in, one out, of one element type.
static LogicalResult verifyOneToOne(Operation *op, OperandRange inputs, OperandRange outputs) {
  if (inputs.size() != 1 || outputs.size() != 1 ||
      viewOf(inputs[0]).getElementType() != viewOf(outputs[0]).getElementType())
    return op->emitOpError("C1: one view in and one out, of one element type");
  return success();
}

LogicalResult CollectiveOp::verify() {
  if (failed(verifyOneToOne(*this, getInputs(), getOutputs())))
    return failure();
  auto plan = (*this)->getParentOfType<PlanOp>();
  int64_t ranks = 1;
  llvm::DenseSet<StringAttr> seen;
  for (auto axis : getAxes().getAsRange<StringAttr>()) {
    int64_t index = plan.indexOfAxis(axis.getValue());
    if (index < 0 || !seen.insert(axis).second)
      return emitOpError("C2: ") << axis << (index < 0 ? " is no axis" : " stands twice");
    ranks *= plan.getSizes()[index];
  }
  if (seen.empty())
    return emitOpError("C2: no axis");

  static constexpr StringLiteral reduce[] = {"op"}, gather[] = {"dim"}, scatter[] = {"dim", "op"},
                                 all[] = {"concat_dim", "split_dim"};
  ArrayRef<StringLiteral> names = getKind() == CollectiveKind::all_reduce       ? ArrayRef(reduce)
                                  : getKind() == CollectiveKind::all_gather     ? ArrayRef(gather)
                                  : getKind() == CollectiveKind::reduce_scatter ? ArrayRef(scatter)
                                                                                : ArrayRef(all);
  ViewType in = viewOf(getInputs()[0]), out = viewOf(getOutputs()[0]);
  for (StringRef name : names) {
    std::optional<int64_t> value = integerParam(getParams(), name);
    int64_t end = name == "op" ? 2 : in.getShape().size();
    if (!value || *value < 0 || *value >= end)
      return emitOpError("C3: ") << stringifyCollectiveKind(getKind()) << " wants an integer '"
                                 << name << "' under " << end;
  }
  if (getParams().size() != names.size())
    return emitOpError("C3: parameters that ")
           << stringifyCollectiveKind(getKind()) << " does not have";

  SmallVector<int64_t> shape(in.getShape());
  bool divides = true;
  auto split = [&](StringRef param) {
    int64_t &size = shape[*integerParam(getParams(), param)];
    divides &= size % ranks == 0;
    size /= ranks;
  };
  if (getKind() == CollectiveKind::all_gather)
    shape[*integerParam(getParams(), "dim")] *= ranks;
  if (getKind() == CollectiveKind::reduce_scatter)
    split("dim");
  if (getKind() == CollectiveKind::all_to_all) {
    split("split_dim");
    shape[*integerParam(getParams(), "concat_dim")] *= ranks;
  }
  if (!divides || ArrayRef(shape) != out.getShape() || in.getBoundDim() != out.getBoundDim())
    return emitOpError("C4: ") << in << " over " << ranks << " ranks does not give " << out;
  return success();
}

LogicalResult CopyOp::verify() {
  if (failed(verifyOneToOne(*this, getInputs(), getOutputs())))
    return failure();
  std::optional<int64_t> dim = integerParam(getParams(), "dim"),
                         start = integerParam(getParams(), "start");
  auto offset = getParams().getAs<dist::OffsetAttr>("offset");
  if (!dim || !start || getParams().size() != (offset ? 3u : 2u))
    return emitOpError("C2: the parameters are integers dim and start, and perhaps offset");
  ViewType in = viewOf(getInputs()[0]), out = viewOf(getOutputs()[0]);
  ArrayRef<int64_t> from = in.getShape(), to = out.getShape();
  if (*dim < 0 || from.size() != to.size() || *dim >= static_cast<int64_t>(from.size()) ||
      in.getBoundDim() != out.getBoundDim() || in.getBoundDim() == *dim ||
      from.take_front(*dim) != to.take_front(*dim) ||
      from.drop_front(*dim + 1) != to.drop_front(*dim + 1))
    return emitOpError("C3: ") << in << " and " << out << " may differ only along dim " << *dim;
  int64_t last = 0;
  if (offset)
    last = offset.getStride() *
           (getMesh((*this)->getParentOfType<PlanOp>()).sizeOf(offset.getAxes()) - 1);
  if (*start < 0 || *start + last < 0 ||
      *start + std::max<int64_t>(last, 0) + to[*dim] > from[*dim])
    return emitOpError("C4: elements ")
           << *start << " to " << *start + last + to[*dim] << " of a dimension of " << from[*dim];
  return success();
}

//===----------------------------------------------------------------------===//
// The rest
//===----------------------------------------------------------------------===//

LogicalResult FillOp::verify() {
  if (!std::isfinite(getValue().convertToDouble()))
    return emitOpError("C1: the value must be finite");
  return success();
}

LogicalResult WaitOp::verify() {
  if (getEvent().getDefiningOp<RecordOp>().getQueue() == getQueue())
    return emitOpError("C1: the event was recorded on the same queue");
  return success();
}

LogicalResult RequireBoundOp::verify() {
  ViewType type = viewOf(getNeed());
  if (!type.getElementType().isInteger(32) || type.getShape() != ArrayRef<int64_t>{1} ||
      type.isBounded())
    return emitOpError("C1: the view must be 1xi32");
  if (!cast<ProgramOp>((*this)->getParentOp()).getBound())
    return emitOpError("C2: the program has no bound");
  return success();
}
