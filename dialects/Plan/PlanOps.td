//===- PlanOps.td - all operations of the plan dialect ------------------------*- tablegen -*-===//
include "Plan/PlanStructureOps.td"
include "Plan/PlanInstrOps.td"
include "Plan/PlanFusedOps.td"
