//===- MoeDialect.h - the moe dialect: dialect, attributes, types ---*- C++ -*-===//
#ifndef MOIRA_DIALECT_MOE_MOEDIALECT_H
#define MOIRA_DIALECT_MOE_MOEDIALECT_H

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpImplementation.h"
#include "moira/Dialect/Dist/IR/DistDialect.h"

#include "Moe/MoeDialect.h.inc"
#include "Moe/MoeEnums.h.inc"
#include "moira/Dialect/Moe/IR/CapacityFields.h"
#include "moira/Dialect/Moe/IR/RouterFields.h"
#define GET_ATTRDEF_CLASSES
#include "Moe/MoeAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "Moe/MoeTypes.h.inc"

#endif // MOIRA_DIALECT_MOE_MOEDIALECT_H
