//===- ShardingRuleInterface.td - how an op may be partitioned ----------------*- tablegen -*-===//
#ifndef MOIRA_SHARDING_RULE_INTERFACE
#define MOIRA_SHARDING_RULE_INTERFACE

include "mlir/IR/OpBase.td"

def ShardingRuleInterface : OpInterface<"ShardingRuleInterface"> {
  let cppNamespace = "::moira";
  let description = [{
    An einsum-like rule: every dimension of every operand and result belongs to one factor (include/moira/Analysis/FactorRule.h). Propagation,
    reshard insertion and localisation know nothing else about an operation.
  }];
  let methods = [
    InterfaceMethod<"The rule of this operation, from its (global) shapes.", "::moira::FactorRule", "getFactorRule", (ins)>,
    InterfaceMethod<[{
        Adjusts the result shardings that the rule gave, where a rule cannot say it (ragged rows, values that come out partial). Default: nothing.
        `operands` are the shardings that the operands will have.
      }], "::llvm::LogicalResult", "refineResultShardings",
      (ins "const ::moira::MeshInfo &":$mesh, "::llvm::ArrayRef<::moira::dist::ShardingAttr>":$operands,
           "::llvm::SmallVectorImpl<::moira::dist::ShardingAttr> &":$results), "", [{ return ::mlir::success(); }]>,
    InterfaceMethod<[{
        Called once, before shapes become local: set what depends on the rank (offsets), given the shardings of operands and results. Default: nothing.
      }], "void", "localize",
      (ins "const ::moira::MeshInfo &":$mesh, "::llvm::ArrayRef<::moira::dist::ShardingAttr>":$operands,
           "::llvm::ArrayRef<::moira::dist::ShardingAttr>":$results), "", [{ return; }]>
  ];
}

#endif // MOIRA_SHARDING_RULE_INTERFACE
