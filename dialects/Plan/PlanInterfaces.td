//===- PlanInterfaces.td - what all instructions have in common ---------------*- tablegen -*-===//
#ifndef MOIRA_PLAN_INTERFACES
#define MOIRA_PLAN_INTERFACES

include "mlir/IR/OpBase.td"

def InstructionInterface : OpInterface<"InstructionInterface"> {
  let cppNamespace = "::moira::plan";
  let description = [{
    An instruction of a program: it runs on a queue, reads some views and writes others. Scheduling, happens-before, liveness and the writer know
    nothing else about most of them.
  }];
  let methods = [
    InterfaceMethod<"Name of the queue.", "::llvm::StringRef", "getQueue", (ins)>,
    InterfaceMethod<"Moves it to another queue.", "void", "setQueue", (ins "::llvm::StringRef":$queue)>,
    InterfaceMethod<"Views that it reads.", "::mlir::OperandRange", "getReads", (ins)>,
    InterfaceMethod<"Views that it writes.", "::mlir::OperandRange", "getWrites", (ins)>,
    InterfaceMethod<"Number of the layer it belongs to, if any.", "std::optional<uint64_t>", "getLayer", (ins)>,
    InterfaceMethod<"Name of the part of the model it came from, as tensors name it.", "std::optional<::llvm::StringRef>", "getPlace", (ins)>
  ];
}

#endif // MOIRA_PLAN_INTERFACES
