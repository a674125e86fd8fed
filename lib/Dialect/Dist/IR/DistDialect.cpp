//===- DistDialect.cpp - attributes of the dist dialect -------------------===//
// Printing, parsing and verification of shardings. Rules between values are in DistVerifiers.cpp.
//===----------------------------------------------------------------------===//
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;
using namespace moira::dist;

#include "Dist/DistDialect.cpp.inc"
#include "Dist/DistEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "Dist/DistAttrs.cpp.inc"

void DistDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "Dist/DistAttrs.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "Dist/DistOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// Axis lists: `{dp, ep}`. Names that are not identifiers are quoted.
//===----------------------------------------------------------------------===//

static ParseResult parseAxes(AsmParser &parser, SmallVectorImpl<StringAttr> &axes) {
  return parser.parseCommaSeparatedList(AsmParser::Delimiter::Braces, [&]() -> ParseResult {
    std::string name;
    if (failed(parser.parseKeywordOrString(&name)))
      return failure();
    axes.push_back(StringAttr::get(parser.getContext(), name));
    return success();
  });
}

static void printAxes(AsmPrinter &printer, ArrayRef<StringAttr> axes) {
  printer << "{";
  llvm::interleaveComma(axes, printer,
                        [&](StringAttr a) { printer.printKeywordOrString(a.getValue()); });
  printer << "}";
}

//===----------------------------------------------------------------------===//
// DimShardingAttr
//===----------------------------------------------------------------------===//

static FailureOr<DimShardingAttr> parseDim(AsmParser &parser) {
  SmallVector<StringAttr> axes, expertAxes;
  int64_t pad = 0, slots = 0, bound = 0;
  llvm::SMLoc loc = parser.getCurrentLocation();
  if (succeeded(parser.parseOptionalKeyword("ragged"))) {
    SmallVector<int64_t, 2> size;
    if (parseAxes(parser, axes) || parseAxes(parser, expertAxes) ||
        parser.parseDimensionList(size, false, false))
      return failure();
    if (size.size() != 2)
      return parser.emitError(loc, "expected slots x bound, e.g. 2x16"), failure();
    slots = size[0];
    bound = size[1];
  } else {
    if (parseAxes(parser, axes))
      return failure();
    if (succeeded(parser.parseOptionalKeyword("pad")) && parser.parseInteger(pad))
      return failure();
  }
  auto dim = DimShardingAttr::getChecked([&] { return parser.emitError(loc); }, parser.getContext(),
                                         axes, pad, expertAxes, slots, bound);
  if (!dim)
    return failure();
  return dim;
}

static void printDim(AsmPrinter &printer, DimShardingAttr dim) {
  if (!dim.isRagged()) {
    printAxes(printer, dim.getAxes());
    if (dim.getPad())
      printer << " pad " << dim.getPad();
    return;
  }
  printer << "ragged";
  printAxes(printer, dim.getAxes());
  printAxes(printer, dim.getExpertAxes());
  printer << " " << dim.getSlots() << "x" << dim.getBound();
}

Attribute DimShardingAttr::parse(AsmParser &parser, Type) {
  if (parser.parseLess())
    return {};
  FailureOr<DimShardingAttr> dim = parseDim(parser);
  if (failed(dim) || parser.parseGreater())
    return {};
  return *dim;
}

void DimShardingAttr::print(AsmPrinter &printer) const {
  printer << "<";
  printDim(printer, *this);
  printer << ">";
}

/// False if an axis stands twice in the lists.
static bool areUnique(std::initializer_list<ArrayRef<StringAttr>> lists) {
  llvm::DenseSet<StringAttr> seen;
  for (ArrayRef<StringAttr> list : lists)
    for (StringAttr axis : list)
      if (!seen.insert(axis).second)
        return false;
  return true;
}

LogicalResult DimShardingAttr::verify(function_ref<InFlightDiagnostic()> emitError,
                                      ArrayRef<StringAttr> axes, int64_t pad,
                                      ArrayRef<StringAttr> expertAxes, int64_t slots,
                                      int64_t bound) {
  if (!areUnique({axes, expertAxes}))
    return emitError() << "C1: an axis stands twice in one dimension's sharding";
  bool ragged = slots > 0;
  if (pad < 0 || (ragged && pad))
    return emitError() << "C2: pad must not be negative, and is 0 for a ragged dimension";
  if (slots < 0 || bound < 0 || ragged != (bound > 0) || (!ragged && !expertAxes.empty()))
    return emitError()
           << "C3: a ragged dimension has positive slots and bound, another has neither";
  return success();
}

DimShardingAttr DimShardingAttr::split(MLIRContext *context, ArrayRef<StringAttr> axes,
                                       int64_t pad) {
  return get(context, axes, pad, {}, 0, 0);
}

//===----------------------------------------------------------------------===//
// ShardingAttr
//===----------------------------------------------------------------------===//

Attribute ShardingAttr::parse(AsmParser &parser, Type) {
  SmallVector<DimShardingAttr> dims;
  SmallVector<StringAttr> partial;
  ReduceKind kind = ReduceKind::sum;
  llvm::SMLoc loc = parser.getCurrentLocation();
  auto parseOne = [&]() -> ParseResult {
    FailureOr<DimShardingAttr> dim = parseDim(parser);
    if (failed(dim))
      return failure();
    dims.push_back(*dim);
    return success();
  };
  if (parser.parseLess() || parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseOne))
    return {};
  if (succeeded(parser.parseOptionalComma())) {
    StringRef word;
    if (parser.parseKeyword("partial") || parser.parseEqual() || parser.parseKeyword(&word))
      return {};
    std::optional<ReduceKind> parsed = symbolizeReduceKind(word);
    if (!parsed)
      return parser.emitError(loc, "expected sum or max after 'partial ='"), Attribute();
    kind = *parsed;
    if (parseAxes(parser, partial))
      return {};
  }
  if (parser.parseGreater())
    return {};
  return getChecked([&] { return parser.emitError(loc); }, parser.getContext(), dims, partial,
                    kind);
}

void ShardingAttr::print(AsmPrinter &printer) const {
  printer << "<[";
  llvm::interleaveComma(getDims(), printer, [&](DimShardingAttr dim) { printDim(printer, dim); });
  printer << "]";
  if (isPartial()) {
    printer << ", partial = " << stringifyReduceKind(getPartialKind());
    printAxes(printer, getPartialAxes());
  }
  printer << ">";
}

LogicalResult ShardingAttr::verify(function_ref<InFlightDiagnostic()> emitError,
                                   ArrayRef<DimShardingAttr> dims, ArrayRef<StringAttr> partialAxes,
                                   ReduceKind) {
  llvm::DenseSet<StringAttr> seen;
  auto insertAll = [&](ArrayRef<StringAttr> axes) -> LogicalResult {
    for (StringAttr axis : axes)
      if (!seen.insert(axis).second)
        return emitError() << "C1: axis " << axis << " stands twice in one sharding";
    return success();
  };
  for (DimShardingAttr dim : dims)
    if (failed(insertAll(dim.getAxes())) || failed(insertAll(dim.getExpertAxes())))
      return failure();
  return insertAll(partialAxes);
}

LogicalResult ShardingAttr::verifyEncoding(ArrayRef<int64_t> shape, Type,
                                           function_ref<InFlightDiagnostic()> emitError) const {
  if (shape.size() != getDims().size())
    return emitError() << "C2: a sharding of " << getDims().size() << " dimensions on a tensor of "
                       << shape.size();
  return success();
}

ShardingAttr ShardingAttr::replicated(MLIRContext *context, int64_t rank) {
  SmallVector<DimShardingAttr> dims(rank, DimShardingAttr::replicated(context));
  return get(context, dims, {}, ReduceKind::sum);
}

bool ShardingAttr::isFullyReplicated() const {
  return !isPartial() &&
         llvm::all_of(getDims(), [](DimShardingAttr d) { return d.isReplicated(); });
}

ShardingAttr ShardingAttr::withPartial(ArrayRef<StringAttr> axes, ReduceKind kind) const {
  return get(getContext(), getDims(), axes, axes.empty() ? ReduceKind::sum : kind);
}

ShardingAttr ShardingAttr::withDim(int64_t dim, DimShardingAttr sharding) const {
  SmallVector<DimShardingAttr> dims(getDims());
  dims[dim] = sharding;
  return get(getContext(), dims, getPartialAxes(), getPartialKind());
}

SmallVector<StringAttr> ShardingAttr::usedAxes() const {
  SmallVector<StringAttr> axes;
  for (DimShardingAttr dim : getDims()) {
    llvm::append_range(axes, dim.getAxes());
    llvm::append_range(axes, dim.getExpertAxes());
  }
  llvm::append_range(axes, getPartialAxes());
  return axes;
}

//===----------------------------------------------------------------------===//
// OffsetAttr: `<{tp} * 128>`
//===----------------------------------------------------------------------===//

Attribute OffsetAttr::parse(AsmParser &parser, Type) {
  SmallVector<StringAttr> axes;
  int64_t stride;
  if (parser.parseLess() || parseAxes(parser, axes) || parser.parseStar() ||
      parser.parseInteger(stride) || parser.parseGreater())
    return {};
  return get(parser.getContext(), axes, stride);
}

void OffsetAttr::print(AsmPrinter &printer) const {
  printer << "<";
  printAxes(printer, getAxes());
  printer << " * " << getStride() << ">";
}

//===----------------------------------------------------------------------===//
// Types with shardings
//===----------------------------------------------------------------------===//

ShardingAttr dist::getSharding(Type type) {
  if (auto tensor = dyn_cast<RankedTensorType>(type))
    return dyn_cast_if_present<ShardingAttr>(tensor.getEncoding());
  if (auto routing = dyn_cast<moe::RoutingType>(type))
    return dyn_cast_if_present<ShardingAttr>(routing.getEncoding());
  return {};
}

Type dist::withSharding(Type type, ShardingAttr sharding) {
  if (auto tensor = dyn_cast<RankedTensorType>(type))
    return RankedTensorType::get(tensor.getShape(), tensor.getElementType(), sharding);
  auto routing = cast<moe::RoutingType>(type);
  return moe::RoutingType::get(type.getContext(), routing.getTokens(), routing.getExperts(),
                               routing.getK(), sharding);
}

int64_t dist::localSize(int64_t size, DimShardingAttr dim, const MeshInfo &mesh) {
  if (dim.isRagged())
    return dim.getSlots() * dim.getBound();
  int64_t parts = mesh.sizeOf(dim.getAxes());
  int64_t padded = size + dim.getPad();
  return padded % parts ? -1 : padded / parts;
}

SmallVector<int64_t> dist::localShape(ArrayRef<int64_t> shape, ShardingAttr sharding,
                                      const MeshInfo &mesh) {
  SmallVector<int64_t> local;
  for (auto [size, dim] : llvm::zip(shape, sharding.getDims()))
    local.push_back(localSize(size, dim, mesh));
  return local;
}

MeshInfo dist::getMesh(ModuleOp module) {
  MeshInfo mesh;
  for (MeshOp op : module.getOps<MeshOp>())
    for (auto [name, size] : llvm::zip(op.getAxes().getAsRange<StringAttr>(), op.getSizes())) {
      mesh.names.push_back(name);
      mesh.sizes.push_back(size);
    }
  return mesh;
}
