//===- MoeDialect.cpp - attributes and types of the moe dialect -----------===//
#include "mlir/Dialect/Utils/IndexingUtils.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;

#include "Moe/MoeDialect.cpp.inc"
#include "Moe/MoeEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "Moe/MoeAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "Moe/MoeTypes.cpp.inc"

void MoeDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "Moe/MoeAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "Moe/MoeTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "Moe/MoeOps.cpp.inc"
      >();
}

LogicalResult RouterAttr::verify(function_ref<InFlightDiagnostic()> emitError, int64_t k, Score,
                                 RouteOrder, Renorm, FloatAttr scale) {
  if (k < 1)
    return emitError() << "C1: k must be at least 1, got " << k;
  if (!scale.getValue().isFinite() || scale.getValue().isZero())
    return emitError() << "C2: scale must be finite and not 0";
  return success();
}

LogicalResult SourceAttr::verify(function_ref<InFlightDiagnostic()> emitError, ArrayAttr names,
                                 bool perExpert, DenseI64ArrayAttr diskShape,
                                 DenseI64ArrayAttr permute) {
  if (names.empty())
    return emitError() << "C1: a source needs a tensor name";
  for (Attribute name : names) {
    auto string = dyn_cast<StringAttr>(name);
    if (!string || string.empty())
      return emitError() << "C1: tensor names are non-empty strings";
    if (string.getValue().contains("{e}") != perExpert)
      return emitError() << "C2: {e} must stand in " << name
                         << " exactly if the source is per expert";
  }
  for (int64_t size : diskShape.asArrayRef())
    if (size < 1)
      return emitError() << "C3: disk_shape has a size of " << size;
  if (permute && !isPermutationVector(permute.asArrayRef()))
    return emitError() << "C4: permute must be a permutation";
  return success();
}

Type RoutingType::parse(AsmParser &parser) {
  SmallVector<int64_t> tokens;
  int64_t experts, k;
  Attribute encoding;
  llvm::SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseDimensionList(tokens, false, false) ||
      parser.parseComma() || parser.parseKeyword("experts") || parser.parseEqual() ||
      parser.parseInteger(experts) || parser.parseComma() || parser.parseKeyword("k") ||
      parser.parseEqual() || parser.parseInteger(k))
    return {};
  if (succeeded(parser.parseOptionalComma()) && parser.parseAttribute(encoding))
    return {};
  if (parser.parseGreater())
    return {};
  return getChecked([&] { return parser.emitError(loc); }, parser.getContext(), tokens, experts, k,
                    encoding);
}

void RoutingType::print(AsmPrinter &printer) const {
  printer << "<";
  llvm::interleave(getTokens(), printer, "x");
  printer << ", experts = " << getExperts() << ", k = " << getK();
  if (getEncoding())
    printer << ", " << getEncoding();
  printer << ">";
}

LogicalResult RoutingType::verify(function_ref<InFlightDiagnostic()> emitError,
                                  ArrayRef<int64_t> tokens, int64_t experts, int64_t k,
                                  Attribute encoding) {
  if (k < 1 || k > experts)
    return emitError() << "C1: k = " << k << " must lie between 1 and the number of experts, "
                       << experts;
  for (int64_t size : tokens)
    if (size < 1)
      return emitError() << "C2: token sizes must be positive";
  if (!encoding)
    return success();
  auto sharding = dyn_cast<dist::ShardingAttr>(encoding);
  if (!sharding || sharding.getDims().size() != tokens.size() || sharding.isPartial() ||
      llvm::any_of(sharding.getDims(), [](dist::DimShardingAttr d) { return d.isRagged(); }))
    return emitError() << "C3: the encoding must be a complete, not ragged #dist.sharding of "
                       << tokens.size() << " dimensions";
  return success();
}

int64_t RoutingType::numTokens() const {
  int64_t n = 1;
  for (int64_t size : getTokens())
    n *= size;
  return n;
}
