//===- MoeOps.td - all operations of the moe dialect --------------------------*- tablegen -*-===//
include "Moe/MoeStateOps.td"
include "Moe/MoeDenseOps.td"
include "Moe/MoeAttentionOps.td"
include "Moe/MoePositionOps.td"
include "Moe/MoeExpertOps.td"
include "Moe/MoeGradOps.td"
include "Moe/MoeExpertGradOps.td"
include "Moe/MoeLossOps.td"
