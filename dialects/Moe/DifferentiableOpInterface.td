//===- DifferentiableOpInterface.td - how an op is differentiated -------------*- tablegen -*-===//
#ifndef MOIRA_DIFFERENTIABLE_OP_INTERFACE
#define MOIRA_DIFFERENTIABLE_OP_INTERFACE

include "mlir/IR/OpBase.td"

def DifferentiableOpInterface : OpInterface<"DifferentiableOpInterface"> {
  let cppNamespace = "::moira";
  let description = [{
    Reverse-mode differentiation of one operation on global types. Nothing here knows of a mesh: what a cotangent's sharding is follows from the rules of the ops that
    make it. A cotangent has its value's shape and element type f32, but that of the rows of experts keeps the rows' type; the cotangent of a routing is that of its weights,
    f32 [tokens.., k].
  }];
  let methods = [
    InterfaceMethod<[{
        Builds, behind everything that the op reads and makes, what its operands' cotangents are, given those of its results. A null cotangent is zero.
        `operands` comes with one null for every operand; an operand that has no gradient, or a zero one, stays null. Fails, with an error at the op, where the op has no
        gradient with these attributes.
      }], "::llvm::LogicalResult", "buildVJP",
      (ins "::mlir::OpBuilder &":$builder, "::mlir::ValueRange":$cotangents, "::llvm::MutableArrayRef<::mlir::Value>":$operands)>
  ];
}

#endif // MOIRA_DIFFERENTIABLE_OP_INTERFACE
