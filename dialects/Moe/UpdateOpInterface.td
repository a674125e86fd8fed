//===- UpdateOpInterface.td - operations that change states ----------------------*- tablegen -*-===//
#ifndef MOIRA_UPDATE_OP_INTERFACE
#define MOIRA_UPDATE_OP_INTERFACE

include "mlir/IR/OpBase.td"

def UpdateOpInterface : OpInterface<"UpdateOpInterface"> {
  let cppNamespace = "::moira";
  let description = [{
    An operation that changes states in place. Updates stand behind everything that can make a step be repeated (the largest ragged slot), and behind all that read the
    states. Operand 0 is the weight; where the operation has a result, that is the new weight, and the old one stays.
  }];
  let methods = [InterfaceMethod<"The states that it changes, as parameters.", "::mlir::OperandRange", "getUpdated", (ins)>];
}

#endif // MOIRA_UPDATE_OP_INTERFACE
