//===- PlanDialect.cpp - types and attributes of the plan dialect ---------===//
// Printing, parsing and verification of types and attributes. Rules of operations are in
// PlanVerifiers.cpp and InstrVerifiers.cpp.
//===----------------------------------------------------------------------===//
#include "mlir/IR/DialectImplementation.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

#include "Plan/PlanDialect.cpp.inc"
#include "Plan/PlanEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "Plan/PlanAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "Plan/PlanInterfaces.cpp.inc"
#include "Plan/PlanTypes.cpp.inc"

void PlanDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "Plan/PlanAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "Plan/PlanTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "Plan/PlanOps.cpp.inc"
      >();
}

unsigned plan::elementBytes(Type type) {
  if (type.isF32() || type.isInteger(32))
    return 4;
  if (type.isBF16() || type.isF16())
    return 2;
  if (type.isF64() || type.isInteger(64))
    return 8;
  return type.isUnsignedInteger(8) ? 1 : 0;
}

bool plan::isParams(Attribute attribute) {
  auto dictionary = dyn_cast<DictionaryAttr>(attribute);
  return dictionary && llvm::all_of(dictionary, [](NamedAttribute named) {
           Attribute value = named.getValue();
           if (auto integer = dyn_cast<IntegerAttr>(value))
             return integer.getType().isSignlessInteger(64);
           if (auto real = dyn_cast<FloatAttr>(value))
             return real.getType().isF64();
           if (auto list = dyn_cast<ArrayAttr>(value))
             return llvm::all_of(list, [](Attribute element) {
               auto real = dyn_cast<FloatAttr>(element);
               return real && real.getType().isF64();
             });
           return isa<StringAttr, DenseI64ArrayAttr, dist::OffsetAttr>(value);
         });
}

MeshInfo plan::getMesh(PlanOp op) {
  MeshInfo mesh;
  for (auto [name, size] : llvm::zip(op.getAxes().getAsRange<StringAttr>(), op.getSizes())) {
    mesh.names.push_back(name);
    mesh.sizes.push_back(size);
  }
  return mesh;
}

SmallVector<int64_t> plan::shardShape(RankedTensorType global, const MeshInfo &mesh) {
  if (dist::ShardingAttr sharding = dist::getSharding(global))
    return dist::localShape(global.getShape(), sharding, mesh);
  return SmallVector<int64_t>(global.getShape());
}

PlanOp plan::getPlan(ModuleOp module) {
  auto plans = module.getOps<PlanOp>();
  return plans.empty() ? PlanOp() : *plans.begin();
}

//===----------------------------------------------------------------------===//
// ViewType: `<2x24x64xf32>`, `<4x64xf32, bound = 0>`
//===----------------------------------------------------------------------===//

/// False, with a message, if `shape` and `element` are not a rectangle of memory.
static LogicalResult verifyRectangle(function_ref<InFlightDiagnostic()> emitError,
                                     ArrayRef<int64_t> shape, Type element) {
  if (!elementBytes(element))
    return emitError() << "C1: element type " << element
                       << " is not f32, bf16, f16, f64, i32, i64 or ui8";
  for (int64_t size : shape)
    if (size < 1)
      return emitError() << "C2: sizes must be positive, one is " << size;
  return success();
}

static void printRectangle(AsmPrinter &printer, ArrayRef<int64_t> shape, Type element) {
  for (int64_t size : shape)
    printer << size << "x";
  printer << element;
}

Type ViewType::parse(AsmParser &parser) {
  SmallVector<int64_t> shape;
  Type element;
  int64_t bound = -1;
  llvm::SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseDimensionList(shape, /*allowDynamic=*/false) ||
      parser.parseType(element))
    return {};
  if (succeeded(parser.parseOptionalComma()) &&
      (parser.parseKeyword("bound") || parser.parseEqual() || parser.parseInteger(bound)))
    return {};
  if (parser.parseGreater())
    return {};
  return getChecked([&] { return parser.emitError(loc); }, parser.getContext(), shape, element,
                    bound);
}

void ViewType::print(AsmPrinter &printer) const {
  printer << "<";
  printRectangle(printer, getShape(), getElementType());
  if (isBounded())
    printer << ", bound = " << getBoundDim();
  printer << ">";
}

LogicalResult ViewType::verify(function_ref<InFlightDiagnostic()> emitError,
                               ArrayRef<int64_t> shape, Type element, int64_t bound) {
  if (failed(verifyRectangle(emitError, shape, element)))
    return failure();
  if (bound < -1 || bound >= static_cast<int64_t>(shape.size()))
    return emitError() << "C3: bound = " << bound << " is not one of " << shape.size()
                       << " dimensions";
  return success();
}

int64_t ViewType::numElements() const {
  int64_t n = 1;
  for (int64_t size : getShape())
    n *= size;
  return n;
}

uint64_t ViewType::numBytes() const { return numElements() * elementBytes(getElementType()); }

//===----------------------------------------------------------------------===//
// OperandAttr: `<in row 64xf32>`
//===----------------------------------------------------------------------===//

Attribute OperandAttr::parse(AsmParser &parser, Type) {
  SmallVector<int64_t> inner;
  Type element;
  StringRef direction, kind;
  llvm::SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseKeyword(&direction) || parser.parseKeyword(&kind) ||
      parser.parseDimensionList(inner, /*allowDynamic=*/false) || parser.parseType(element) ||
      parser.parseGreater())
    return {};
  if ((direction != "in" && direction != "out") || (kind != "row" && kind != "shared"))
    return parser.emitError(loc, "expected 'in' or 'out', then 'row' or 'shared'"), Attribute();
  return getChecked([&] { return parser.emitError(loc); }, parser.getContext(), direction == "out",
                    kind == "row", inner, element);
}

void OperandAttr::print(AsmPrinter &printer) const {
  printer << "<" << (getOutput() ? "out " : "in ") << (getRowwise() ? "row " : "shared ");
  printRectangle(printer, getInner(), getElementType());
  printer << ">";
}

LogicalResult OperandAttr::verify(function_ref<InFlightDiagnostic()> emitError, bool, bool,
                                  ArrayRef<int64_t> inner, Type element) {
  return verifyRectangle(emitError, inner, element);
}
