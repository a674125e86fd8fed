//===- MoeDialect.cpp - attributes and types of the moe dialect -----------===//
#include "mlir/Dialect/Utils/IndexingUtils.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

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

LogicalResult MoeDialect::verifyOperationAttribute(Operation *op, NamedAttribute attribute) {
  if (attribute.getName() == kDeterministic &&
      (!isa<ModuleOp>(op) || !isa<UnitAttr>(attribute.getValue())))
    return op->emitOpError() << kDeterministic << " must be a unit attribute of a module";
  return success();
}

LogicalResult RouterAttr::verify(function_ref<InFlightDiagnostic()> emitError, int64_t k,
                                 Score score, RouteOrder order, int64_t groups, int64_t groupKeep,
                                 GroupScore, Renorm renorm, FloatAttr epsilon, FloatAttr clampMin,
                                 FloatAttr jitter, FloatAttr scale, RouteApply) {
  if (k < 1)
    return emitError() << "C1: k must be at least 1, got " << k;
  if (!scale.getValue().isFinite() || scale.getValue().isZero())
    return emitError() << "C2: scale must be finite and not 0";
  if (groupKeep < 1 || groupKeep > groups)
    return emitError() << "C3: group_keep = " << groupKeep
                       << " must lie between 1 and groups = " << groups;
  auto check = [&](StringRef name, FloatAttr value, bool allowed, StringRef where) {
    if (!value.getValue().isFinite() || value.getValue().isNegative())
      return LogicalResult(emitError() << "C4: " << name << " must be finite and not negative");
    if (!allowed && !value.getValue().isZero())
      return LogicalResult(emitError() << "C4: " << name << " has a meaning only with " << where);
    return success();
  };
  if (failed(check("renorm_epsilon", epsilon, renorm == Renorm::sum, "renorm = sum")) ||
      failed(check("renorm_clamp_min", clampMin, renorm == Renorm::sum, "renorm = sum")) ||
      failed(check("jitter_eps", jitter, score == Score::sparsemixer, "score = sparsemixer")))
    return failure();
  if (score == Score::sparsemixer &&
      (order != RouteOrder::score_topk || groups != 1 || renorm != Renorm::none))
    return emitError() << "C5: sparsemixer has order = score_topk, one group and renorm = none";
  return success();
}

RouterAttr RouterAttr::get(MLIRContext *context, const RouterFields &f) {
  auto real = [&](double value) { return FloatAttr::get(Float64Type::get(context), value); };
  return get(context, f.k, f.score, f.order, f.groups, f.groupKeep, f.groupScore, f.renorm,
             real(f.renormEpsilon), real(f.renormClampMin), real(f.jitterEps), real(f.scale),
             f.apply);
}

RouterFields RouterAttr::getFields() const {
  return {getK(),
          getScore(),
          getOrder(),
          getGroups(),
          getGroupKeep(),
          getGroupScore(),
          getRenorm(),
          getRenormEpsilon().getValueAsDouble(),
          getRenormClampMin().getValueAsDouble(),
          getJitterEps().getValueAsDouble(),
          getScale().getValueAsDouble(),
          getApply()};
}

LogicalResult CapacityAttr::verify(function_ref<InFlightDiagnostic()> emitError, CapacityRule rule,
                                   FloatAttr value, int64_t least, CapacityDomain,
                                   DropPolicy policy, CapacityOrder, LimitRenorm renorm,
                                   FloatAttr epsilon, FloatAttr clampMin, FloatAttr scale,
                                   int64_t seed, int64_t layer) {
  double number = value.getValueAsDouble();
  if (!std::isfinite(number) || number < 0 ||
      (rule == CapacityRule::fixed && number != std::floor(number)))
    return emitError() << "C1: value must be finite and not negative, and whole if it is fixed";
  if (least < 0)
    return emitError() << "C2: least must not be negative, got " << least;
  for (FloatAttr part : {epsilon, clampMin})
    if (!part.getValue().isFinite() || part.getValue().isNegative() ||
        (renorm == LimitRenorm::none && !part.getValue().isZero()))
      return emitError() << "C3: renorm_epsilon and renorm_clamp_min must be finite, not negative, "
                            "and 0 without renorm";
  if (!scale.getValue().isFinite() || scale.getValue().isZero())
    return emitError() << "C4: scale must be finite and not 0";
  if (layer < 0 || layer > INT32_MAX || (seed != 0 && policy != DropPolicy::random))
    return emitError()
           << "C5: layer must be a 31-bit number, and seed 0 unless the policy is random";
  return success();
}

CapacityAttr CapacityAttr::get(MLIRContext *context, const CapacityFields &f) {
  auto real = [&](double value) { return FloatAttr::get(Float64Type::get(context), value); };
  return get(context, f.rule, real(f.value), f.least, f.domain, f.policy, f.order, f.renorm,
             real(f.renormEpsilon), real(f.renormClampMin), real(f.scale), f.seed, f.layer);
}

CapacityFields CapacityAttr::getFields() const {
  return {getRule(),
          getValue().getValueAsDouble(),
          getLeast(),
          getDomain(),
          getPolicy(),
          getOrder(),
          getRenorm(),
          getRenormEpsilon().getValueAsDouble(),
          getRenormClampMin().getValueAsDouble(),
          getScale().getValueAsDouble(),
          getSeed(),
          getLayer()};
}

int64_t CapacityAttr::capacityFor(int64_t tokens, int64_t experts, int64_t k) const {
  double value = getValue().getValueAsDouble(), T = tokens, E = experts, capacity = value;
  switch (getRule()) {
  case CapacityRule::fixed:
    break;
  case CapacityRule::factor:
    capacity = std::ceil((T / E) * (value * k));
    break;
  case CapacityRule::rounded:
    capacity = std::ceil(value * k * std::ceil(T / E));
    break;
  case CapacityRule::fraction:
    capacity = std::ceil(value * T);
    break;
  }
  if (getRule() != CapacityRule::fixed)
    capacity = std::max(capacity, double(getLeast()));
  return std::min(capacity, T); // an expert meets a token at most once
}

LogicalResult SourceAttr::verify(function_ref<InFlightDiagnostic()> emitError, ArrayAttr names,
                                 bool perExpert, DenseI64ArrayAttr diskShape,
                                 DenseI64ArrayAttr permute, DenseI64ArrayAttr slice) {
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
  if (slice && (slice.size() != 3 || slice[0] < 0 || slice[1] < 0 || slice[1] >= slice[2]))
    return emitError() << "C5: slice must be [dim, first, size] with 0 <= first < size";
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
