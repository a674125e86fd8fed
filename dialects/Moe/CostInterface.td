//===- CostInterface.td - what an operation's execution costs ------------------*- tablegen -*-===//
#ifndef MOIRA_COST_INTERFACE
#define MOIRA_COST_INTERFACE

include "mlir/IR/OpBase.td"

def CostInterface : OpInterface<"CostInterface"> {
  let cppNamespace = "::moira";
  let description = [{
    What decides whether a value is cheaper kept or made again. What an operation reads and writes follows from its types; the arithmetic does not.
  }];
  let methods = [
    InterfaceMethod<[{
        Multiplications and additions of one execution, from the shapes in the types (global ones: those of all ranks together). Default: one for each element that is read or
        written, as row-wise and element-wise operations need.
      }], "double", "getFlops", (ins), "", [{ return ::moira::elementsMoved($_op); }]>
  ];
}

// For products, which do more.
def CostOfProduct : DeclareOpInterfaceMethods<CostInterface, ["getFlops"]>;

#endif // MOIRA_COST_INTERFACE
